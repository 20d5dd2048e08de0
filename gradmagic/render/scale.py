"""Norms as lengths and heights, on a log scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHORTEST = 0.05
"""Length of the shortest bar, as a share of the longest: small, and still to be seen."""

DECADES = 1.0
"""A scale spans at least a factor of ten, so that norms that hardly differ do not look far apart."""


@dataclass(frozen=True, slots=True)
class LogScale:
    """Maps norms to 0.0 .. 1.0, from the smallest to the largest; `low` and `high` are their log10."""

    low: float
    high: float

    def share(self, norm: float) -> float:
        """Where `norm` stands on the scale: `SHORTEST` for the smallest, 1.0 for the largest."""
        span = max(self.high - self.low, DECADES)
        return max(SHORTEST, 1 - (self.high - math.log10(norm)) / span)


def log_scale(norms: Iterable[float]) -> LogScale:
    """The scale of those norms that are finite and not zero."""
    logs = [math.log10(norm) for norm in norms if drawable(norm)]
    return LogScale(min(logs, default=0.0), max(logs, default=0.0))


def drawable(norm: float) -> bool:
    """True for a norm that has a place on a log scale."""
    return math.isfinite(norm) and norm > 0


def sparkline(norms: Sequence[float], width: int, levels: int) -> tuple[int | None, ...]:
    """Heights 0 to ``levels - 1`` of the norms, at most `width` of them; None marks a NaN or inf.

    Where several norms share a place, the largest is drawn, and one that is not finite wins over all.
    """
    scale = log_scale(norms)
    return tuple(_level(max(group, key=_finite_last), scale, levels) for group in _groups(norms, width))


def _finite_last(norm: float) -> float:
    return norm if math.isfinite(norm) else math.inf


def _groups(norms: Sequence[float], width: int) -> list[Sequence[float]]:
    count = min(len(norms), width)
    edges = [round(i * len(norms) / count) for i in range(count + 1)] if count else []
    return [norms[start:stop] for start, stop in itertools.pairwise(edges)]


def _level(norm: float, scale: LogScale, levels: int) -> int | None:
    if not math.isfinite(norm):
        return None
    return min(int(scale.share(norm) * levels), levels - 1) if norm > 0 else 0
