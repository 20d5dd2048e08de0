"""Norms as lengths and heights, on a log scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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


def sparkline(norms: Sequence[float], positions: Sequence[int], width: int, levels: int) -> tuple[int | None, ...]:
    """Heights 0 to ``levels - 1`` of the norms, at most `width` of them; None marks a NaN or inf.

    The scale is logarithmic where they span a factor of ten or more, else it begins at zero. Where several norms share
    a place, the largest is drawn, and one that is not finite wins over all. `positions` are ascending.
    """
    scale = log_scale(norms)
    share = scale.share if scale.high - scale.low >= DECADES else _linear(norms)
    groups = _groups(norms, positions, width)
    return tuple(_level(max(group, key=_finite_last), share, levels) for group in groups)


def _linear(norms: Sequence[float]) -> Callable[[float], float]:
    largest = max((norm for norm in norms if drawable(norm)), default=1.0)
    return lambda norm: norm / largest


def _finite_last(norm: float) -> float:
    return norm if math.isfinite(norm) else math.inf


def _groups(norms: Sequence[float], positions: Sequence[int], width: int) -> list[Sequence[float]]:
    if len(norms) <= width:
        return [[norm] for norm in norms]
    span = positions[-1] - positions[0] + 1
    groups: list[list[float]] = [[] for _ in range(width)]
    for norm, position in zip(norms, positions, strict=True):
        groups[(position - positions[0]) * width // span].append(norm)
    return [group for group in groups if group]


def _level(norm: float, share: Callable[[float], float], levels: int) -> int | None:
    if not math.isfinite(norm):
        return None
    return min(int(share(norm) * levels), levels - 1) if norm > 0 else 0
