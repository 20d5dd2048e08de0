"""Norms as lengths and heights, on a log scale."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    return LogScale(*map(math.log10, _ends(list(norms))))


def drawable(norm: float) -> bool:
    """True for a norm that has a place on a log scale."""
    return math.isfinite(norm) and norm > 0


def sparkline(
    norms: Sequence[float],
    positions: Sequence[int],
    width: int,
    levels: int,
    ends: tuple[float, float] | None = None,
) -> tuple[int | None, ...]:
    """Heights 0 to ``levels - 1`` of the norms, at most `width` of them; None marks a NaN or inf.

    The scale is logarithmic where they span a factor of ten or more, else it begins at zero. Where several norms share
    a place, the largest is drawn, and one that is not finite wins over all. `positions` are ascending, `ends` are the
    smallest and the largest finite norm, for one who knows them: looking for them takes a third of the time.
    """
    listed = list(norms)  # an array makes each number anew whenever it is looked at
    low, high = ends if ends is not None and ends[0] > 0 else _ends(listed)
    scale = LogScale(math.log10(low), math.log10(high))
    share = scale.share if scale.high - scale.low >= DECADES else lambda norm: norm / high
    return tuple(_level(_top(group), share, levels) for group in _groups(listed, positions, width))


def _ends(norms: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest that have a place on a log scale; 1.0 without any.

    Where all have one, nothing here runs in Python: it takes half the time.
    """
    if norms and math.isfinite(sum(norms)) and (least := min(norms)) > 0:
        return least, max(norms)
    drawn = [norm for norm in norms if 0 < norm < math.inf]
    return (min(drawn), max(drawn)) if drawn else (1.0, 1.0)


def _groups(norms: Sequence[float], positions: Sequence[int], width: int) -> list[Sequence[float]]:
    """Those that share a place: the n-th of `width` equal parts of the positions."""
    if len(norms) <= width:
        return [[norm] for norm in norms]
    first, span = positions[0], positions[-1] - positions[0] + 1
    bounds = [bisect_left(positions, first - -part * span // width) for part in range(width)]
    return [norms[start:stop] for start, stop in pairwise([*bounds, len(norms)]) if start < stop]


def _top(norms: Sequence[float]) -> float:
    return max(norms) if math.isfinite(sum(norms)) else max(norms, key=_finite_last)


def _finite_last(norm: float) -> float:
    return norm if math.isfinite(norm) else math.inf


def _level(norm: float, share: Callable[[float], float], levels: int) -> int | None:
    if not math.isfinite(norm):
        return None
    return min(int(share(norm) * levels), levels - 1) if norm > 0 else 0
