"""A graph in the language of Mermaid, which GitHub and JupyterLab draw (https://mermaid.js.org/syntax/flowchart.html)."""

from __future__ import annotations

from collections.abc import Iterator

from .clusters import Cluster, clustered
from .graph_colors import FILLS, STROKES, edge_color
from .marks import FOLD, SIGNS
from .network import GraphEdge, GraphNode, GraphView

_HARMLESS = frozenset(" .,=+*()_×·‖▸✖▲●")
THINNEST, THICKEST = 1.0, 4.0


def mermaid_text(view: GraphView) -> str:
    """The graph as text for Mermaid; by its own defaults it draws at most 500 edges and 50,000 characters."""
    lines = ["flowchart TB", *_cluster(clustered(view.nodes), "    ", "c")]
    for number, edge in enumerate(view.edges):
        lines += _edge(number, edge)
    lines += [f"    style {node.key} {_style(node)}" for node in view.nodes]
    return "\n".join(lines)


def _cluster(cluster: Cluster, indent: str, key: str) -> Iterator[str]:
    for node in cluster.nodes:
        yield f"{indent}{_node(node)}"
    for number, inner in enumerate(cluster.inside.values()):
        yield f'{indent}subgraph {key}{number}["{_escaped(inner.label)}"]'
        yield from _cluster(inner, f"{indent}    ", f"{key}{number}_")
        yield f"{indent}end"


def _node(node: GraphNode) -> str:
    sign = f"{SIGNS[node.severity]} " if node.severity is not None else ""
    fold = FOLD if node.kind == "module" else ""
    lines = [f"{sign}{fold}{node.title}", node.beside, node.grad]
    label = "<br/>".join(_escaped(line) for line in lines if line)
    opened, closed = ("[[", "]]") if node.kind == "module" else ("([", "])") if node.is_root else ("[", "]")
    return f'{node.key}{opened}"{label}"{closed}'


def _style(node: GraphNode) -> str:
    width = 3 if node.state in ("none", "not finite") or node.is_root else 1
    dashed = ",stroke-dasharray:4 3" if node.state == "quiet" else ""
    return f"fill:{FILLS[node.kind]},stroke:{STROKES[node.state]},stroke-width:{width}px,color:#1f2328{dashed}"


def _edge(number: int, edge: GraphEdge) -> Iterator[str]:
    arrow = "-.->" if edge.share is None else "-->"
    label = f'|"{_escaped(edge.times)}"|' if edge.times else ""
    yield f"    {edge.tail} {arrow}{label} {edge.head}"
    width = THINNEST + (THICKEST - THINNEST) * (edge.share or 0.0)
    yield f"    linkStyle {number} stroke:{edge_color(edge.share, edge.norm)},stroke-width:{width:.1f}px"


def _escaped(text: str) -> str:
    """Every character that Mermaid, Markdown or HTML could read as its own becomes an entity code."""
    return "".join(
        character if character in _HARMLESS or character.isalnum() else f"#{ord(character)};" for character in text
    )
