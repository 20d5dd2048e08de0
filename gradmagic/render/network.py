"""Report -> the graph of its tensors: nodes, edges and the modules they stand in. Words and numbers, no drawing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..loss_scale import unscaled
from ..records import Severity, TensorRow
from ..report import Report, is_surprise
from .folding import Fold, Item, rows_of
from .folds import norm_of
from .header import header
from .markup import clean, plain
from .numbers import plural, shape_text, short
from .pointing import Pointing
from .scale import LogScale, drawable, log_scale
from .selection import select

MOST_NODES = 500
"""So many are drawn at most: those next to the root."""
LONGEST = 40
NodeKind = Literal["parameter", "leaf", "non-leaf", "constant", "module"]
NodeState = Literal["flows", "zero", "not finite", "none", "quiet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNode:
    """A tensor, or a module that stands for all of its own.

    Attributes:
        key: what the drawing calls it, ``n0``...
        title: its name, or the code that made it.
        beside: what made it, and its shape.
        grad: its gradient in words.
        kind: what it is.
        state: ``none`` is a gradient that is missed, ``quiet`` one that nobody expects.
        modules: the modules it stands in, the outermost first.
        severity: of the worst finding that names it, or None.
        is_root: backward started here.
        tooltip: where it was made, and from what expression.
    """

    key: str
    title: str
    beside: str
    grad: str
    kind: NodeKind
    state: NodeState
    modules: tuple[str, ...] = ()
    severity: Severity | None = None
    is_root: bool = False
    tooltip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEdge:
    """From a tensor to what was made from it.

    Attributes:
        tail, head: keys of the nodes.
        share: the norm of the gradient that arrived at the tail, from 0.0 to 1.0 on a log scale; None for an edge that
            no gradient came along.
        norm: the norm in words; empty for none.
        times: how often a loop went along it (``×50``), for an edge from a node to itself; else empty.
        is_back: it leads back to an earlier node, as in a loop.
    """

    tail: str
    head: str
    share: float | None
    norm: str = ""
    times: str = ""
    is_back: bool = False


@dataclass(frozen=True, slots=True)
class GraphView:
    """What every drawing of the graph lowers: a caption, the nodes in order of execution, and the edges."""

    caption: str
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]


def graph_view(report: Report) -> GraphView:
    """The graph of a report under its own options; those for the order and the filter of the table do not count."""
    report = unscaled(report)
    options = replace(report.options, sort="line", filter=None, rows=None)
    every = select(replace(report, options=options)).items
    items = every[-MOST_NODES:]
    scale = log_scale(row.grad.norm for row in report.rows if row.grad is not None)
    owners = {id(row): place for place, item in enumerate(items) for row in rows_of(item)}
    pointing = Pointing(report)
    nodes = tuple(_node(f"n{place}", item, report, pointing.worst(item)) for place, item in enumerate(items))
    return GraphView(
        caption=_caption(report, scale, len(every) - len(items)),
        nodes=nodes,
        edges=tuple(_edges(report.rows, items, owners, scale)),
    )


def _caption(report: Report, scale: LogScale, more: int) -> str:
    start = plain(header(report)[0])
    low, high = short(10**scale.low), short(10**scale.high)
    grads = any(row.grad is not None for row in report.rows)
    width = f"an edge's width is ‖grad‖, {low} to {high}; dashed: no gradient" if grads else "no gradient flowed"
    left_out = f"; {plural(more, 'node')} farther from the root left out" if more else ""
    return f"{start} · {width}{left_out}"


# ---- nodes


def _node(key: str, item: Item, report: Report, severity: Severity | None) -> GraphNode:
    return _fold_node(key, item, severity) if isinstance(item, Fold) else _row_node(key, item, report, severity)


def _row_node(key: str, row: TensorRow, report: Report, severity: Severity | None) -> GraphNode:
    times = f" ×{row.count}" if row.count > 1 else ""
    title, beside = _words(row)
    where = f"{row.location}: {row.location.statement or row.expression}"
    return GraphNode(
        key=key,
        title=clean(title, LONGEST) + times,
        beside=clean(beside),
        grad=_grad_words(row),
        kind=row.kind,
        state=_state(row),
        modules=tuple(clean(part, LONGEST) for part in row.module.split(".")) if row.module else (),
        severity=severity,
        is_root=row is report.root,
        tooltip=clean(where),
    )


def _words(row: TensorRow) -> tuple[str, str]:
    """What stands on a row's node; in the box of a module, names without its path, and no code, which only calls it."""
    name = row.name.removeprefix(f"{row.module}.") if row.name and row.module else row.name
    shape = shape_text(row.shape)
    if name is None and row.module is not None:
        return row.op, shape
    return name or row.expression, f"{row.op} · {shape}" if row.kind == "non-leaf" else shape


def _fold_node(key: str, fold: Fold, severity: Severity | None) -> GraphNode:
    norm = norm_of(fold)
    parts = fold.path.split(".")
    return GraphNode(
        key=key,
        title=clean(fold.path, LONGEST),
        beside=f"{clean(fold.type_name or 'module', LONGEST)} · {plural(len(fold.rows), 'tensor')}",
        grad=f"‖grad‖ {short(norm)}" if norm is not None else "None",
        kind="module",
        state=_fold_state(fold, norm),
        modules=tuple(clean(part, LONGEST) for part in parts[:-1]),
        severity=severity,
        tooltip=clean(", ".join(row.label for row in fold.rows[:20])),
    )


def _grad_words(row: TensorRow) -> str:
    if row.grad is None:
        return "None" if is_surprise(row) else ""
    return f"‖grad‖ {short(row.grad.norm)}" if row.grad.is_known else ""


def _state(row: TensorRow) -> NodeState:
    if row.grad is None:
        return "none" if is_surprise(row) else "quiet"
    if not row.grad.is_known:
        return "quiet"
    return _state_of(row.grad.norm)


def _fold_state(fold: Fold, norm: float | None) -> NodeState:
    if norm is None:
        return "none" if any(map(is_surprise, fold.rows)) else "quiet"
    return _state_of(norm)


def _state_of(norm: float) -> NodeState:
    if not math.isfinite(norm):
        return "not finite"
    return "flows" if norm else "zero"


# ---- edges


def _edges(
    rows: Sequence[TensorRow], items: Sequence[Item], owners: dict[int, int], scale: LogScale
) -> Iterator[GraphEdge]:
    """One edge from item to item, with the largest gradient of all that lie between them."""
    found: dict[tuple[int, int], list[tuple[TensorRow, TensorRow]]] = {}
    for row in rows:
        head = owners.get(id(row))
        if head is None:
            continue
        for source in _sources(rows, row, owners):
            tail = owners[id(source)]
            if tail != head or source is row:
                found.setdefault((tail, head), []).append((source, row))
    for (tail, head), pairs in found.items():
        if tail != head or not isinstance(items[tail], Fold):
            yield _edge(tail, head, pairs, scale)


def _edge(tail: int, head: int, pairs: Sequence[tuple[TensorRow, TensorRow]], scale: LogScale) -> GraphEdge:
    norms = [norm for source, row in pairs if (norm := _arrived(source, row)) is not None]
    bad = [norm for norm in norms if not math.isfinite(norm)]
    norm = bad[0] if bad else max(norms, default=None)
    share = None if norm is None else min(scale.share(norm), 1.0) if drawable(norm) else 1.0
    times = pairs[0][1].count if tail == head else 1
    return GraphEdge(
        tail=f"n{tail}",
        head=f"n{head}",
        share=share,
        norm=short(norm) if norm is not None else "",
        times=f"×{times - 1}" if times > 1 else "",
        is_back=head < tail,
    )


def _arrived(source: TensorRow, row: TensorRow) -> float | None:
    """Norm of the gradient at `source` where some of it can have come from `row`; None for none, or for zero."""
    if source.grad is None or row.grad is None or not source.grad.is_known:
        return None
    return source.grad.norm or None


def _sources(rows: Sequence[TensorRow], row: TensorRow, owners: dict[int, int]) -> list[TensorRow]:
    """What the row was made from; a tensor that is not shown stands for what it was made from itself."""
    found: dict[int, TensorRow] = {}
    seen: set[int] = set()
    pending = list(row.inputs)
    while pending:
        index = pending.pop()
        if index in seen or index >= len(rows):
            continue
        seen.add(index)
        source = rows[index]
        if id(source) in owners:
            found[index] = source
        else:
            pending.extend(source.inputs)
    return [found[index] for index in sorted(found)]
