"""What happened again and again, in one line: a sparkline, and in words what it spans."""

from __future__ import annotations

from collections.abc import Iterable

from ..curves import Curve, CurvePoint, GradSeries
from .numbers import short
from .scale import sparkline
from .view import RowView, Spark

WIDTH, LEVELS = 16, 8
_DIGITS = 2
_FEW = 3
"""From so many time steps on there is a factor worth telling."""


def gradient_spark(series: GradSeries, label: str = "") -> Spark | None:
    """The norms of one loss' gradients: over the time steps of one pass, or over passes; None for a single gradient.

    Where each of several passes has several time steps, each pass is drawn by the largest norm in it.
    """
    if not len(series):
        return None
    if series.passes[0] == series.passes[-1]:
        return _spark("t", Curve(series.times, series.norm), label, _factor(series))
    times = max(series.times) if any(series.times) else 0
    within = f" · {times + 1} t{_factor(series.last_pass())}" if times else ""
    return _spark("step", series.peaks(), label, within)


def curve_spark(curve: Curve) -> Spark | None:
    """The numbers of a curve; None for less than two."""
    return _spark("step", curve, "", "")


def legend(rows: Iterable[RowView]) -> str:
    """What the signs beside the sparklines mean; empty without any."""
    words = [spark.words for row in rows for spark in row.sparks]
    if not words:
        return ""
    signs = "first→last norm, ↓ smallest and ↑ largest @ step (one backward) or t (within one backward)"
    factor = "; ×/t: what the gradient is multiplied by with each time step back"
    return f"sparklines: {signs}{factor if any('/t' in each for each in words) else ''}"


def _spark(index: str, curve: Curve, label: str, more: str) -> Spark | None:
    """The curve in signs and words; `index` is what its steps are called."""
    first, last, (low, high) = curve.first, curve.last, curve.extremes
    if first is None or last is None or len(curve) < 2:
        return None
    title = (
        f"{index} {first.step}…{last.step}: first {_short(first.value)}, last {_short(last.value)}"
        f", smallest {_where(index, low, first)}, largest {_where(index, high, last)}"
    )
    if len({_short(point.value) for point in (first, last, low, high) if point is not None}) == 1:
        return Spark((), title, label, f"always {_short(first.value)}{more}")
    ends = (low.value, high.value) if low is not None and high is not None else None
    levels = sparkline(curve.values, curve.steps, WIDTH, LEVELS, ends)
    return Spark(levels, title, label, _words(first, last, low, high) + more)


def _where(index: str, extreme: CurvePoint | None, end: CurvePoint) -> str:
    """An extreme and its step; where nothing is finite, what stands at the end."""
    return (
        f"{_short(end.value)} ({index} ?)" if extreme is None else f"{_short(extreme.value)} ({index} {extreme.step})"
    )


def _words(first: CurvePoint, last: CurvePoint, low: CurvePoint | None, high: CurvePoint | None) -> str:
    """``2.1→0.012 ↑4.5@3``: the extremes where they are not at the ends."""
    ends = _short(first.value), _short(last.value)
    words = "→".join(ends)
    for sign, extreme in (("↓", low), ("↑", high)):
        if extreme is not None and _short(extreme.value) not in ends:
            words += f" {sign}{_short(extreme.value)}@{extreme.step}"
    return words


def _factor(one_pass: GradSeries) -> str:
    factor = one_pass.factor
    return f" ×{_short(factor)}/t" if factor is not None and len(one_pass) >= _FEW else ""


def _short(value: float) -> str:
    return short(value, digits=_DIGITS)
