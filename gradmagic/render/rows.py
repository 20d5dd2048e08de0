"""A row of the report in words and short numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..curves import GradSeries
from ..records import GradStats, InnerStep, TensorRow
from ..report import is_surprise
from .markup import LONGEST_NOTE, Line, Span, clean, marked_up
from .numbers import percent, plural, shape_text, short, values
from .phrases import remark
from .scale import LogScale, drawable
from .series import gradient_spark
from .view import ColumnView, GradView, InnerView, RowView, Spark

STEPS_TOLD = 8
"""So many inner steps are named in a tooltip."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What goes without saying: the default dtype, and the device when there is only one."""

    dtype: str
    device: str | None


def row_view(
    row: TensorRow, scale: LogScale, usual: Usual, shared: bool, columns: Sequence[ColumnView] = ()
) -> RowView:
    """One row; `scale` spans the norms of all rows shown, `shared` says that others have its source."""
    label, beside, path = _label(row, shared)
    line, place = _where(row)
    parts = [row.grads.of(column.loss) for column in columns]
    return RowView(
        line=line,
        place=place,
        label=label,
        beside=beside,
        path=path,
        times=f"×{row.count}" if row.count > 1 else "",
        title=_title(row),
        op=clean(row.op),
        shape=shape_text(row.shape),
        extra=_extra(row, usual),
        grad=_grad(row, scale, _norms(parts)),
        sparks=_sparks(row, parts, columns),
        update=short(row.updates.values[-1], digits=2) if len(row.updates) else "",
        note=_note(row),
        inner=tuple(map(_inner, row.inner)),
    )


def _where(row: TensorRow) -> tuple[str, str]:
    if row.location.own:
        return str(row.line), ""
    return "" if row.cell_line is None else str(row.cell_line), clean(str(row.location))


def _label(row: TensorRow, shared: bool) -> tuple[Span, str, bool]:
    """The name; else the expression, or the module where that only says that a module was called."""
    module = clean(" ".join(part for part in (row.module, row.module_type) if part))
    if row.name is not None:
        said = row.module is not None and row.name.startswith(f"{row.module}.")
        return Span(clean(row.name), "name"), clean(row.module_type or "") if said else module, True
    if row.module and (shared or not row.location.own):
        return Span(clean(row.module), "name"), clean(row.module_type or ""), True
    return Span(clean(row.expression or row.op), "code"), module, False


def _title(row: TensorRow) -> str:
    """What there is no column for, a line each."""
    source = f"{row.name} = {row.expression}" if row.name and row.expression else row.expression
    dtype = row.dtype.removeprefix("torch.")
    made = " · ".join(part for part in (row.grad_fn, f"{shape_text(row.shape)} {dtype} on {row.device}") if part)
    inner = f"inner steps: {', '.join(step.grad_fn for step in row.inner[:STEPS_TOLD])}" if row.inner else ""
    numbers = ""
    if row.grad is not None and row.grad.is_known and row.grad.values is None:
        numbers = f"rms {short(row.grad.rms)}, mean {short(row.grad.mean)}"
    return "\n".join(clean(part) for part in (source, made, numbers, inner) if part)


def _extra(row: TensorRow, usual: Usual) -> str:
    dtype = row.dtype.removeprefix("torch.")
    words = [dtype] if dtype != usual.dtype else []
    if row.device != usual.device:
        words.append(row.device)
    return clean(" ".join(words))


def norm_view(row: TensorRow, scale: LogScale) -> GradView:
    """Norm and bar of a row's gradient, or what stands in their place."""
    grad = row.grad
    if grad is None:
        return GradView(style="error" if is_surprise(row) else "dim")
    if not grad.is_known:
        return GradView(norm="–", style="dim")
    return GradView(
        norm=short(grad.norm),
        style="plain" if math.isfinite(grad.norm) else "error",
        bar=scale.share(grad.norm) if drawable(grad.norm) else None,
    )


def _grad(row: TensorRow, scale: LogScale, norms: tuple[str, ...]) -> GradView:
    grad = row.grad
    shown = norm_view(row, scale)
    if grad is None or not grad.is_known:
        return shown
    if norms:
        return GradView(norm=shown.norm, style="plain", norms=norms)  # extremes of which loss would they be?
    return replace(
        shown,
        values=values(grad.values, row.shape) if grad.values is not None else "",
        low=_extreme(grad.min, grad),
        high=_extreme(grad.max, grad),
        zeros=percent(grad.zero_fraction) if grad.numel else "",
    )


def _extreme(value: float, grad: GradStats) -> str:
    return "" if math.isnan(value) and not grad.nan_count else short(value)


def _norms(parts: Sequence[GradSeries]) -> tuple[str, ...]:
    """The last norm of each loss; empty for one that never reached the row."""
    lasts = [part.last for part in parts]
    return tuple(short(last.norm) if last is not None else "" for last in lasts)


def _sparks(row: TensorRow, parts: Sequence[GradSeries], columns: Sequence[ColumnView]) -> tuple[Spark, ...]:
    """One for all its gradients; where there are several losses, one for each."""
    if not columns:
        found = [gradient_spark(row.grads)]
    else:
        several = all(len(part) < len(row.grads) for part in parts)
        named = zip(parts, columns, strict=True)
        found = [gradient_spark(part, column.name if several else "") for part, column in named]
    return tuple(spark for spark in found if spark is not None)


def _note(row: TensorRow) -> Line:
    text = " · ".join(part for part in (_not_finite(row), remark(row), _forward(row)) if part)
    return marked_up(text, "dim" if row.grad is None and not is_surprise(row) else "plain", LONGEST_NOTE)


def _forward(row: TensorRow) -> str:
    """The tensor's own values, where they were asked for (``--values``)."""
    values = row.forward
    if values is None or not values.numel:
        return ""
    if values.nan_count or values.inf_count:
        return f"values: {_bad_elements(values)}"
    if values.numel == 1:
        return f"value {short(values.min)}"
    return f"values {short(values.min)} to {short(values.max)}, norm {short(values.norm)}"


def _not_finite(row: TensorRow) -> str:
    """Counts NaN and inf, unless the note already speaks of them."""
    grad = row.grad
    if grad is None or not (grad.nan_count or grad.inf_count) or "NaN" in row.note or "inf" in row.note:
        return ""
    return _bad_elements(grad)


def _bad_elements(stats: GradStats) -> str:
    counts = [f"{n} {what}" for n, what in ((stats.nan_count, "NaN"), (stats.inf_count, "inf")) if n]
    return f"{' and '.join(counts)} of {plural(stats.numel, 'element')}"


def _inner(step: InnerStep) -> InnerView:
    return InnerView(
        name=clean(step.grad_fn),
        shape=shape_text(step.shape) if step.shape is not None else "",
        norm=short(step.grad.norm) if step.grad is not None else "",
    )
