"""What happened again and again, in one line: a sparkline, and in words what it spans."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from ..curves import Curve, GradSeries
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
    if len(series) < 2:
        return None
    summaries = series.summaries()
    if len(summaries) == 1:
        return _spark("t", series.times, series.norm, label, _factor(summaries[0].factor, series))
    steps = [summary.step for summary in summaries]
    norms = [summary.last if math.isnan(summary.largest) else summary.largest for summary in summaries]
    times = max(series.times)
    within = f" · {times + 1} t{_factor(summaries[-1].factor, series.last_pass())}" if times else ""
    return _spark("step", steps, norms, label, within)


def curve_spark(curve: Curve) -> Spark | None:
    """The numbers of a curve; None for less than two."""
    return _spark("step", curve.steps, curve.values, "", "") if len(curve) > 1 else None


def legend(rows: Iterable[RowView]) -> str:
    """What the signs beside the sparklines mean; empty without any."""
    words = [spark.words for row in rows for spark in row.sparks]
    if not words:
        return ""
    signs = "first→last norm, ↓ smallest and ↑ largest @ step (one backward) or t (within one backward)"
    factor = "; ×/t: what the gradient is multiplied by with each time step back"
    return f"sparklines: {signs}{factor if any('/t' in each for each in words) else ''}"


def _spark(index: str, positions: Sequence[int], values: Sequence[float], label: str, more: str) -> Spark:
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (values[0], values[-1])
    at = {extreme: positions[list(values).index(extreme)] for extreme in (low, high)} if finite else {}
    title = (
        f"{index} {positions[0]}…{positions[-1]}: first {_short(values[0])}, last {_short(values[-1])}"
        f", smallest {_short(low)} ({index} {at.get(low, '?')}), largest {_short(high)} ({index} {at.get(high, '?')})"
    )
    if len({_short(value) for value in (values[0], values[-1], low, high)}) == 1:
        return Spark((), title, label, f"always {_short(low)}{more}")
    levels = sparkline(values, positions, WIDTH, LEVELS)
    return Spark(levels, title, label, _words(values, low, high, at) + more)


def _words(values: Sequence[float], low: float, high: float, at: Mapping[float, int]) -> str:
    """``2.1→0.012 ↑4.5@3``: the extremes where they are not at the ends."""
    ends = _short(values[0]), _short(values[-1])
    words = "→".join(ends)
    for sign, extreme in (("↓", low), ("↑", high)):
        if _short(extreme) not in ends:
            words += f" {sign}{_short(extreme)}@{at[extreme]}"
    return words


def _factor(factor: float | None, series: GradSeries) -> str:
    return f" ×{_short(factor)}/t" if factor is not None and len(series) >= _FEW else ""


def _short(value: float) -> str:
    return short(value, digits=_DIGITS)
