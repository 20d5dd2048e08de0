"""What each use of a tensor adds to its gradient: the kept graph, followed back from the nearest tensors above."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

MOST_NODES = 2_000
"""So many nodes are looked at between a tensor and the nearest ones with a known gradient."""

MOST_REACHED = 50_000
"""So many nodes are looked at to find out whether a tensor belongs to a graph."""

_Edge = tuple[Any, int]


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a tensor: what it adds to the gradient, or None where the graph is used up.

    Attributes:
        operation: name of the autograd node that used it, such as ``MulBackward0``.
        sources: keys of the tensors above whose gradient it is computed from.
        part: its part of the gradient.
        summed: what bounds the part by its summands: the largest of them, times their number; 0.0 where it is unknown.
    """

    operation: str
    sources: frozenset[int]
    part: Tensor | None
    summed: float = 0.0


@dataclass(slots=True)
class _Node:
    """A node on the way: what has arrived at its outputs so far, and from which tensors."""

    arrived: dict[int, Tensor] = field(default_factory=dict)
    sources: set[int] = field(default_factory=set)
    is_known: bool = True


def uses_of(tensor: Tensor, above: Mapping[int, tuple[Tensor, Tensor]]) -> list[Use]:
    """Every use of a tensor between it and the nearest tensors with a gradient.

    Args:
        tensor: a leaf or non-leaf.
        above: other tensors with their gradients, by a key; what is no part of the same graph does no harm. Where an
            operation has several outputs, those without a known gradient count as having none.

    Returns:
        The uses; none where the graph between is larger than `MOST_NODES`, or is not to be had.
    """
    target = _edge(tensor)
    starts = {_edge(other): (key, gradient) for key, (other, gradient) in above.items() if other.grad_fn is not None}
    starts.pop(target, None)
    on_the_way = _leading_to(target, starts)
    return _followed(target, starts, on_the_way) if on_the_way else []


def reached(roots: Iterable[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
    """Those of some tensors that others depend on: their nodes lie in the graph, also where that is used up."""
    nodes: set[Any] = set()
    pending = [root.grad_fn for root in roots]
    while pending and len(nodes) < MOST_REACHED:
        node = pending.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            pending.extend(parent for parent, _ in node.next_functions)
    return [tensor for tensor in wanted if _edge(tensor)[0] in nodes]


def _edge(tensor: Tensor) -> _Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _leading_to(target: _Edge, starts: Mapping[_Edge, Any]) -> set[Any]:
    """The nodes on a way from a start to the target that leads through no other start."""
    below: dict[Any, list[Any]] = {}
    pending = [node for node, _ in starts]
    reaching: set[Any] = set()
    while pending:
        node = pending.pop()
        if node in below:
            continue
        if len(below) >= MOST_NODES + len(starts):
            return set()
        edges = [edge for edge in node.next_functions if edge[0] is not None]
        if target in edges:
            reaching.add(node)
        below[node] = [parent for parent, number in edges if (parent, number) not in starts and parent is not target[0]]
        pending.extend(below[node])
    return _closed(reaching, below)


def _closed(reaching: set[Any], below: Mapping[Any, list[Any]]) -> set[Any]:
    """Those that reach the target, and all that reach those."""
    users: dict[Any, list[Any]] = {}
    for node, parents in below.items():
        for parent in parents:
            users.setdefault(parent, []).append(node)
    pending, found = list(reaching), set()
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(users.get(node, ()))
    return found


def _followed(target: _Edge, starts: Mapping[_Edge, tuple[int, Tensor]], on_the_way: set[Any]) -> list[Use]:
    """Runs the nodes in the order of a backward pass: the one that was made last comes first."""
    nodes: dict[Any, _Node] = {}
    for (node, number), (key, gradient) in starts.items():
        if node in on_the_way:
            entry = nodes.setdefault(node, _Node())
            entry.arrived[number] = gradient
            entry.sources.add(key)
    queue = [(-node._sequence_nr(), order, node) for order, node in enumerate(nodes)]
    heapq.heapify(queue)
    uses: list[Use] = []
    while queue:
        node = heapq.heappop(queue)[2]
        entry = nodes[node]
        for (parent, number), whole in zip(node.next_functions, _parts(node, entry), strict=False):
            part = _fitted(whole, (parent, number))
            if (parent, number) == target:
                uses.append(Use(node.name(), frozenset(entry.sources), part, _summed(whole, part)))
            elif parent in on_the_way and (parent, number) not in starts:
                if parent not in nodes:
                    heapq.heappush(queue, (-parent._sequence_nr(), len(nodes), parent))
                _arrive(nodes.setdefault(parent, _Node()), entry, number, part)
    return uses


def _parts(node: Any, entry: _Node) -> Iterator[Tensor | None]:
    """What a node makes of what arrived; None for each where that is not known, or what it saved is gone."""
    unknown = (None for _ in node.next_functions)
    if not entry.is_known or _is_persons(node):
        return unknown
    try:
        with torch.no_grad():
            made = node(*(entry.arrived.get(number) for number in range(_outputs(node))))
    except RuntimeError:  # its saved tensors are freed
        return unknown
    return iter(made if isinstance(made, tuple) else (made,))


def _fitted(part: Tensor | None, edge: _Edge) -> Tensor | None:
    """What the engine does between two nodes: the sum over what was broadcast, and the dtype of what comes next."""
    node, number = edge
    if part is None or node is None:
        return None
    wanted = node._input_metadata[number]
    return part.sum_to_size(wanted.shape).to(wanted.dtype)


def _summed(whole: Tensor | None, part: Tensor | None) -> float:
    """Of an empty or unknown part 0.0."""
    if whole is None or part is None or not part.numel():
        return 0.0
    return float(whole.detach().abs().max()) * (whole.numel() / part.numel())


def _is_persons(node: Any) -> bool:
    """A custom Function's backward may print, count or fail: it is not run for our sake."""
    return isinstance(node, torch.autograd.function.BackwardCFunction)


def _outputs(node: Any) -> int:
    return len(node._input_metadata)


def _arrive(entry: _Node, above: _Node, number: int, part: Tensor | None) -> None:
    entry.sources |= above.sources
    if part is None:
        entry.is_known = False
    else:
        entry.arrived[number] = entry.arrived[number] + part if number in entry.arrived else part
