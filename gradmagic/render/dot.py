"""A graph in the DOT language (https://graphviz.org/doc/info/lang.html)."""

from __future__ import annotations

from collections.abc import Iterator

from .clusters import Cluster, clustered
from .graph_colors import FILLS, STROKES, edge_color
from .marks import FOLD, SIGNS
from .network import GraphEdge, GraphNode, GraphView

SHAPES = {"parameter": "box", "leaf": "box", "non-leaf": "box", "constant": "box", "module": "component"}
THINNEST, THICKEST = 1.0, 4.0


def dot_text(view: GraphView) -> str:
    """The graph as text for ``dot``."""
    lines = [
        "digraph gradients {",
        f'  graph [label={_quoted(view.caption)}, labelloc="b", labeljust="l", bgcolor="white", compound="true",'
        ' nodesep="0.25", ranksep="0.35", fontsize="10", fontname="Helvetica,Arial,sans-serif"];',
        '  node [fontsize="11", fontname="Helvetica,Arial,sans-serif", margin="0.12,0.06", height="0.3"];',
        '  edge [arrowsize="0.6", fontsize="9", fontname="Helvetica,Arial,sans-serif"];',
        *_cluster(clustered(view.nodes), "  ", "c"),
        *map(_edge, view.edges),
        "}",
    ]
    return "\n".join(lines)


def _cluster(cluster: Cluster, indent: str, key: str) -> Iterator[str]:
    for node in cluster.nodes:
        yield f"{indent}{_node(node)}"
    for number, inner in enumerate(cluster.inside.values()):
        yield f"{indent}subgraph cluster_{key}{number} {{"
        yield (
            f'{indent}  label={_quoted(inner.label)}; labelloc="t"; labeljust="l"; style="rounded";'
            ' color="#8c959f"; bgcolor="#8c959f14";'
        )
        yield from _cluster(inner, f"{indent}  ", f"{key}{number}_")
        yield f"{indent}}}"


def _node(node: GraphNode) -> str:
    sign = f"{SIGNS[node.severity]} " if node.severity is not None else ""
    fold = FOLD if node.kind == "module" else ""
    label = "\n".join(line for line in (f"{sign}{fold}{node.title}", node.beside, node.grad) if line)
    attributes = {
        "label": label,
        "tooltip": node.tooltip,
        "shape": SHAPES[node.kind],
        "style": "filled,dashed" if node.state == "quiet" else "filled,rounded",
        "fillcolor": FILLS[node.kind],
        "color": STROKES[node.state],
        "penwidth": "2" if node.state in ("none", "not finite") or node.is_root else "1",
        "peripheries": "2" if node.is_root else "1",
    }
    if node.kind == "module":
        attributes["style"] = "filled"
    return f"{node.key} [{', '.join(f'{name}={_quoted(value)}' for name, value in attributes.items())}];"


def _edge(edge: GraphEdge) -> str:
    attributes = {"color": edge_color(edge.share, edge.norm)}
    if edge.share is None:
        attributes["style"] = "dashed"
    else:
        attributes["penwidth"] = f"{THINNEST + (THICKEST - THINNEST) * edge.share:.2f}"
        attributes["tooltip"] = f"‖grad‖ {edge.norm}"
    if edge.times:
        attributes["label"] = edge.times
    if edge.is_back:
        attributes["constraint"] = "false"  # the way back in a loop: nodes stand in order of execution
    listed = ", ".join(f"{name}={_quoted(value)}" for name, value in attributes.items())
    return f"  {edge.tail} -> {edge.head} [{listed}];"


def _quoted(text: str) -> str:
    r"""A string of DOT: entities and backslashes, which Graphviz reads in labels (``\N`` is the node), undone."""
    escaped = text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
