"""The nodes of a graph by the modules they stand in, as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .network import GraphNode


@dataclass(slots=True)
class Cluster:
    """A module, or the whole: the nodes that stand right in it, and the modules in it.

    Attributes:
        label: the part of the path that it adds (several, where there is nothing between them).
        nodes: its own nodes.
        inside: the clusters in it, by their labels.
    """

    label: str = ""
    nodes: list[GraphNode] = field(default_factory=list)
    inside: dict[str, Cluster] = field(default_factory=dict)


def clustered(nodes: Sequence[GraphNode]) -> Cluster:
    """The tree of modules; a module with a single node in it is no cluster, and one inside the other is one."""
    whole = Cluster()
    for node in nodes:
        place = whole
        for part in node.modules:
            place = place.inside.setdefault(part, Cluster(part))
        place.nodes.append(node)
    _simplify(whole)
    return whole


def _simplify(cluster: Cluster) -> None:
    for label, inner in list(cluster.inside.items()):
        _simplify(inner)
        if len(inner.nodes) + len(inner.inside) > 1:
            continue
        if inner.inside:
            (only,) = inner.inside.values()
            only.label = f"{inner.label}.{only.label}"
            cluster.inside[label] = only
        else:
            cluster.nodes.extend(inner.nodes)
            del cluster.inside[label]
