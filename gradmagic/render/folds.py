"""A fold of rows in words and short numbers: what one module made, as a line of the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..records import GradStats, TensorRow
from ..report import is_surprise
from .folding import Fold
from .markup import Line, Span, clean, marked_up
from .numbers import plural, shape_text, short
from .phrases import remark
from .rows import norm_view
from .scale import LogScale, drawable
from .view import ColumnView, FoldedView, GradView, RowView

MOST_INSIDE = 120
"""So many rows of a fold can be looked at."""


def total_norm(rows: Iterable[TensorRow]) -> float | None:
    """Norm of all gradients of the parameters together, as ``clip_grad_norm_`` has it; None without any."""
    norms = [row.grad.norm for row in rows if row.kind == "parameter" and row.grad is not None and row.grad.is_known]
    return math.hypot(*norms) if norms else None


def norm_of(fold: Fold) -> float | None:
    """That of its parameters together; of its output where they have none; None for no gradient at all."""
    norm = total_norm(fold.rows)
    output = _output(fold.rows)
    return output.norm if norm is None and output is not None else norm


def fold_view(fold: Fold, scale: LogScale, columns: Sequence[ColumnView]) -> RowView:
    """A fold as a line; `scale` spans the norms of the table, `columns` are the losses where there are several."""
    first = fold.rows[0]
    return RowView(
        line=str(first.line) if first.location.own else str(first.cell_line or ""),
        place="",
        label=Span(clean(fold.path), "name"),
        beside="",
        path=True,
        times="",
        title="",
        op=clean(fold.type_name or "module"),
        shape=plural(len(fold.rows), "tensor"),
        extra="",
        grad=_grad(fold, scale, columns),
        note=_note(fold),
        folded=tuple(_inside(row, fold, scale) for row in fold.rows[:MOST_INSIDE]),
        more=max(len(fold.rows) - MOST_INSIDE, 0),
    )


def _grad(fold: Fold, scale: LogScale, columns: Sequence[ColumnView]) -> GradView:
    norm = norm_of(fold)
    if norm is None:
        return GradView(style="error" if any(map(is_surprise, fold.rows)) else "dim")
    if columns:
        return GradView(norm=short(norm), style="plain", norms=_norms(fold, columns))
    known = [row.grad for row in fold.rows if row.grad is not None and row.grad.is_known]
    return GradView(
        norm=short(norm),
        style="plain" if math.isfinite(norm) else "error",
        bar=min(scale.share(norm), 1.0) if drawable(norm) else None,
        low=short(min(grad.min for grad in known)),
        high=short(max(grad.max for grad in known)),
    )


def _norms(fold: Fold, columns: Sequence[ColumnView]) -> tuple[str, ...]:
    """What each loss gave its parameters together, the last time; empty for one that gave none."""
    found = []
    for column in columns:
        lasts = [row.grads.of(column.loss).last for row in fold.rows if row.kind == "parameter"]
        norms = [last.norm for last in lasts if last is not None]
        found.append(short(math.hypot(*norms)) if norms else "")
    return tuple(found)


def _output(rows: Sequence[TensorRow]) -> GradStats | None:
    """The gradient of what the module gave last."""
    made = [row.grad for row in rows if row.kind == "non-leaf" and row.grad is not None and row.grad.is_known]
    return made[-1] if made else None


def _note(fold: Fold) -> Line:
    output = _output(fold.rows)
    missing = sum(map(is_surprise, fold.rows))
    bad = sum(row.grad is not None and not math.isfinite(row.grad.norm) and row.grad.is_known for row in fold.rows)
    has_parameters = any(row.kind == "parameter" for row in fold.rows)
    parts = [
        f"output {short(output.norm)}" if output is not None and has_parameters else "",
        f"{missing} without a gradient" if missing else "",
        f"{bad} not finite" if bad else "",
    ]
    return marked_up(" · ".join(part for part in parts if part), "plain" if missing or bad else "dim")


def _inside(row: TensorRow, fold: Fold, scale: LogScale) -> FoldedView:
    name = row.name or row.module or row.label
    inside = name.removeprefix(f"{fold.path}.") if name != fold.path else fold.type_name or name
    told = " · ".join(part for part in (row.expression, row.op, shape_text(row.shape), remark(row)) if part)
    return FoldedView(clean(inside), norm_view(row, scale), clean(told))
