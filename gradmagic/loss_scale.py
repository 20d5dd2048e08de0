"""Gradients of a scaled loss (mixed precision), shown as they are without the scale."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import TypeVar

from .records import GradStats, InnerStep, TensorRow
from .report import Report

_Record = TypeVar("_Record", TensorRow, InnerStep)


def unscaled(report: Report) -> Report:
    """The report with every gradient but the root's divided by the loss scale."""
    if report.scale == 1.0:
        return report
    rows = [row if row is report.root else _row(row, report.scale) for row in report.rows]
    return replace(report, rows=rows)


def _row(row: TensorRow, scale: float) -> TensorRow:
    return replace(_received(row, scale), inner=tuple(_received(step, scale) for step in row.inner))


def _received(record: _Record, scale: float) -> _Record:
    whole = record.grads
    divided = (_divided(numbers, scale) for numbers in (whole.norm, whole.min, whole.max))
    grads = replace(whole, **dict(zip(("norm", "min", "max"), divided, strict=True)))  # type: ignore[arg-type]  # floats
    return replace(record, grad=_stats(record.grad, scale) if record.grad else None, grads=grads)


def _divided(numbers: array[float], scale: float) -> array[float]:
    return array("d", [number / scale for number in numbers])


def _stats(grad: GradStats, scale: float) -> GradStats:
    return replace(
        grad,
        norm=grad.norm / scale,
        rms=grad.rms / scale,
        mean=grad.mean / scale,
        min=grad.min / scale,
        max=grad.max / scale,
        values=tuple(value / scale for value in grad.values) if grad.values is not None else None,
    )
