"""What happened again and again, as numbers: frozen arrays, and the growing ones they are made from.

All are bounded. From `POINTS` on they are thinned to about half of that: what is left is evenly spaced, with the first
point, the last, the smallest, the largest and the first that is not finite always among them; what comes after is kept
whole until the next time. No torch here.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import compress, pairwise
from operator import ne
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

POINTS = 2_000
"""So many points are kept at most; a point takes 16 bytes in a curve, 64 in a growing series, 80 in a frozen one."""
_ENOUGH = POINTS // 2 + 16
"""So many are left when a series is thinned: an even share, and room for the landmarks."""
_FEW_PASSES = 16
"""With fewer passes than this it is the occurrences within them that are thinned."""

_Number = TypeVar("_Number", int, float)
_Point = TypeVar("_Point")


class CurvePoint(NamedTuple):
    """One point of a curve."""

    step: int
    value: float


class GradPoint(NamedTuple):
    """One gradient of a series: which step of its loss, which time step within the pass, and its norm."""

    step: int
    time: int
    norm: float


def _integers() -> array[int]:
    return array("q")


def _floats() -> array[float]:
    return array("d")


class _Points(Generic[_Point]):
    """Points in order, of which the ends and the extremes have names."""

    __slots__ = ()

    @property
    def first(self) -> _Point | None:
        """The first, or None."""
        return self._point(0) if len(self._sizes) else None

    @property
    def last(self) -> _Point | None:
        """The last, or None."""
        return self._point(-1) if len(self._sizes) else None

    @property
    def smallest(self) -> _Point | None:
        """The first of the smallest that are finite, or None."""
        return self.extremes[0]

    @property
    def largest(self) -> _Point | None:
        """The first of the largest that are finite, or None."""
        return self.extremes[1]

    @property
    def extremes(self) -> tuple[_Point | None, _Point | None]:
        """`smallest` and `largest`, for the work of one."""
        low, high = _extremes(self._sizes) or (None, None)
        return (None, None) if low is None or high is None else (self._point(low), self._point(high))

    @property
    def _sizes(self) -> array[float]:
        raise NotImplementedError

    def _point(self, index: int) -> _Point:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Curve(_Points[CurvePoint]):
    """One number for each time that something ran.

    Attributes:
        steps: which time it was, from 0.
        values: the number.
        total: how many there were; more than ``len()`` when the curve was thinned.
    """

    steps: array[int] = field(default_factory=_integers)
    values: array[float] = field(default_factory=_floats)
    total: int = 0

    def __len__(self) -> int:
        return len(self.values)

    @property
    def _sizes(self) -> array[float]:
        return self.values

    def _point(self, index: int) -> CurvePoint:
        return CurvePoint(self.steps[index], self.values[index])


@dataclass(frozen=True, slots=True)
class PassSummary:
    """What the occurrences of a row got in one pass; norms in execution order.

    Attributes:
        number: number of the pass in the run.
        step: number of the pass among those of its loss.
        count: how many occurrences got a gradient (of those that are kept).
        first, last: norm of the first and of the last occurrence.
        smallest, largest: the extremes of the finite norms; NaN without any.
        factor: what the norm is multiplied by from each time step to the one before it, as backward goes: the geometric
            mean ``(first / last) ** (1 / steps between them)``; None for one occurrence, or where a norm is zero or not
            finite.
    """

    number: int
    step: int
    count: int
    first: float
    last: float
    smallest: float
    largest: float
    factor: float | None


@dataclass(frozen=True, slots=True)
class GradSeries(_Points[GradPoint]):
    """The gradients that reached a row, in execution order: by pass, then by occurrence. The arrays have equal length.

    Attributes:
        passes: number of the pass, from 0 (``BackwardPass.number``).
        losses: which loss it started from (index into ``Report.losses``).
        steps: number of the pass among those of its loss, from 0.
        occurrences: which occurrence of the row received it, from 0.
        times: which time step within the pass: the occurrence, counted from the first that a pass reaches where there
            are several passes.
        norm, min, max, zero_fraction: see `GradStats`.
        nan_count: number of NaN elements.
        total: how many gradients there were; more than ``len()`` when the series was thinned.
    """

    passes: array[int] = field(default_factory=_integers)
    losses: array[int] = field(default_factory=_integers)
    steps: array[int] = field(default_factory=_integers)
    occurrences: array[int] = field(default_factory=_integers)
    times: array[int] = field(default_factory=_integers)
    norm: array[float] = field(default_factory=_floats)
    min: array[float] = field(default_factory=_floats)
    max: array[float] = field(default_factory=_floats)
    zero_fraction: array[float] = field(default_factory=_floats)
    nan_count: array[int] = field(default_factory=_integers)
    total: int = 0

    def __len__(self) -> int:
        return len(self.norm)

    def of(self, loss: int) -> GradSeries:
        """Those of one loss (index into ``Report.losses``)."""
        count = self.losses.count(loss)
        if count in (0, len(self)):
            return replace(self, total=count) if count else GradSeries()
        indices = [index for index, other in enumerate(self.losses) if other == loss]
        return GradSeries(**{name: _at(getattr(self, name), indices) for name in _ARRAYS}, total=count)

    def summaries(self) -> list[PassSummary]:
        """One summary for each pass that is kept, in order."""
        return [self._summary(group) for group in _runs(self.passes)]

    def peaks(self) -> Curve:
        """The largest finite norm of each pass that is kept, or its last norm where none is finite; by step."""
        starts = _starts(self.passes)
        if len(starts) == len(self):
            return Curve(self.steps, self.norm, len(self))
        norms = self.norm.tolist()
        peak = max if math.isfinite(sum(norms)) else _peak
        peaks = [peak(norms[start:stop]) for start, stop in pairwise([*starts, len(self)])]
        return Curve(_at(self.steps, starts), array("d", peaks), len(peaks))

    @property
    def factor(self) -> float | None:
        """That of the last pass; see `PassSummary`."""
        return self._factor(self._last_run()) if len(self) else None

    def last_pass(self) -> GradSeries:
        """The gradients of the last pass that reached the row."""
        group = self._last_run()
        return GradSeries(**{name: getattr(self, name)[group.start :] for name in _ARRAYS}, total=len(group))

    def _last_run(self) -> range:
        return range(bisect_left(self.passes, self.passes[-1]) if len(self) else 0, len(self))

    def _factor(self, group: range) -> float | None:
        between = self.occurrences[group[-1]] - self.occurrences[group[0]]
        return _factor(self.norm[group[0]], self.norm[group[-1]], between)

    def _summary(self, group: range) -> PassSummary:
        norms = self.norm[group.start : group.stop]
        low, high = _extremes(norms) or (None, None)
        return PassSummary(
            number=self.passes[group.start],
            step=self.steps[group.start],
            count=len(norms),
            first=norms[0],
            last=norms[-1],
            smallest=norms[low] if low is not None else math.nan,
            largest=norms[high] if high is not None else math.nan,
            factor=self._factor(group),
        )

    @property
    def _sizes(self) -> array[float]:
        return self.norm

    def _point(self, index: int) -> GradPoint:
        return GradPoint(self.steps[index], self.times[index], self.norm[index])


NO_CURVE = Curve()
NO_GRADIENTS = GradSeries()
"""One for all rows without any: each array is an object more for Python's collector, and they have ten."""
_COLUMNS = {
    **dict.fromkeys(("passes", "steps", "occurrences"), "q"),
    **dict.fromkeys(("norm", "min", "max", "zero_fraction"), "d"),
    "nan_count": "q",
}
"""What a growing series has arrays of, with their type codes."""
_ARRAYS = MappingProxyType(
    {each.name: getattr(NO_GRADIENTS, each.name).typecode for each in fields(GradSeries) if each.name != "total"}
)
"""The arrays of a `GradSeries`, likewise."""


def _factor(first: float, last: float, between: int) -> float | None:
    if not between or not 0 < first < math.inf or not 0 < last < math.inf:
        return None
    return math.exp((math.log(first) - math.log(last)) / between)


def _extremes(values: Sequence[float]) -> tuple[int, int] | None:
    """Indices of the first smallest and the first largest finite value; None without any.

    Everything here runs in C where all are finite: drawing a table of long series asks for little else.
    """
    listed = list(values)  # an array makes each number anew whenever it is looked at
    finite = listed if math.isfinite(sum(listed)) else [value for value in listed if -math.inf < value < math.inf]
    return (listed.index(min(finite)), listed.index(max(finite))) if finite else None


def _peak(norms: Sequence[float]) -> float:
    found = _extremes(norms)
    return norms[-1] if found is None else norms[found[1]]


def _runs(keys: Sequence[int]) -> Iterator[range]:
    """Where equal keys stand side by side."""
    start = 0
    for _, group in itertools.groupby(keys):
        stop = start + sum(1 for _ in group)
        yield range(start, stop)
        start = stop


def _starts(keys: Sequence[int]) -> list[int]:
    """Where each run of equal keys begins."""
    listed = list(keys)  # else every number would be made twice
    return [0, *compress(range(1, len(listed)), map(ne, listed[1:], listed))] if listed else []


def _at(values: array[_Number], indices: Iterable[int]) -> array[_Number]:
    return array(values.typecode, list(map(values.__getitem__, indices)))


def _append(columns: Iterable[array[Any]], numbers: Iterable[float]) -> None:
    """One more number for each column: all at once, in C, so that no Ctrl-C leaves columns of different lengths."""
    any(map(array.append, columns, numbers))


def _landmarks(values: Sequence[float]) -> set[int]:
    """Indices of what is never thinned out."""
    if not values:
        return set()
    bad = next((index for index, value in enumerate(values) if not math.isfinite(value)), 0)
    return {0, len(values) - 1, bad, *(_extremes(values) or ())}


class GrowingCurve:
    """A `Curve` in the making."""

    __slots__ = ("_steps", "_stride", "_values", "total")

    def __init__(self) -> None:
        self._steps = _integers()
        self._values = _floats()
        self._stride = 1
        self.total = 0

    def add(self, value: float, step: int | None = None) -> None:
        """Add the number of one more time (or of the time `step`)."""
        _append((self._steps, self._values), (self.total if step is None else step, value))
        self.total += 1
        if len(self._values) > POINTS:
            self._thin()

    def frozen(self) -> Curve:
        """As it is now."""
        return Curve(self._steps[:], self._values[:], self.total)

    def _thin(self) -> None:
        landmarks = {self._steps[index] for index in _landmarks(self._values)}
        while True:
            kept = [i for i, step in enumerate(self._steps) if step % self._stride == 0 or step in landmarks]
            self._steps, self._values = _at(self._steps, kept), _at(self._values, kept)
            if len(kept) <= _ENOUGH:
                return
            self._stride *= 2


class _Statistics(Protocol):
    """What of a gradient's statistics goes into a series."""

    @property
    def norm(self) -> float: ...
    @property
    def min(self) -> float: ...
    @property
    def max(self) -> float: ...
    @property
    def zero_fraction(self) -> float: ...
    @property
    def nan_count(self) -> int: ...


class GrowingSeries:
    """The gradients of one place from one loss, as backward delivers them: pass after pass, last occurrence first."""

    __slots__ = ("_arrays", "_only", "_pass_stride", "_stride", "loss", "total")

    def __init__(self, loss: int) -> None:
        self.loss = loss
        self.total = 0
        self._only: tuple[float, ...] = ()
        """The first gradient. Most series have no other, and eight arrays are eight objects for Python's collector."""
        self._arrays: dict[str, array[Any]] = {}
        """From the second on."""
        self._pass_stride = self._stride = 1

    @property
    def _norm(self) -> array[float]:
        norms: array[float] = self._arrays["norm"]
        return norms

    def _spread(self) -> Iterable[array[Any]]:
        """The arrays, with what there was before."""
        if not self._arrays:
            numbers: Iterable[tuple[float, ...]] = [(number,) for number in self._only] or [()] * len(_COLUMNS)
            columns = zip(_COLUMNS.items(), numbers, strict=True)
            self._arrays = {name: array(kind, before) for (name, kind), before in columns}
        return self._arrays.values()

    def add(self, number: int, step: int, occurrence: int, found: _Statistics) -> None:
        """Add one gradient: of which pass, of which step of its loss, of which occurrence of the place."""
        numbers = (number, step, occurrence, found.norm, found.min, found.max, found.zero_fraction, found.nan_count)
        if not self.total:
            self._only, self.total = numbers, 1
            return
        _append(self._spread(), numbers)
        self.total += 1
        if len(self._norm) > POINTS:
            self._thin()

    def extend(self, number: int, step: int, occurrences: Sequence[int], columns: Sequence[Sequence[float]]) -> None:
        """Add gradients of one pass: norms, minima, maxima, zero fractions and NaN counts, in columns."""
        count = len(occurrences)
        if count == 1 and not self.total:
            self._only, self.total = (number, step, occurrences[0], *[column[0] for column in columns]), 1
            return
        found = ([number] * count, [step] * count, occurrences, *columns)
        any(map(array.extend, self._spread(), found))  # all at once, as in `_append`
        self.total += count
        if len(self._norm) > POINTS:
            self._thin()

    def columns(self, offset: int) -> Iterator[Sequence[float]]:
        """The columns of a `GradSeries`, with the occurrences (and times) counted from `offset`."""
        arrays: Iterable[Sequence[Any]] = self._arrays.values() or [(number,) for number in self._only]
        passes, steps, occurrences, *statistics = arrays
        counted = [occurrence + offset for occurrence in occurrences] if offset else occurrences
        yield from (passes, [self.loss] * len(passes), steps, counted, counted, *statistics)

    def _thin(self) -> None:
        """Whole passes go first; where there are few, occurrences within them."""
        self._keep(self._kept_passes())
        self._keep(self._kept_occurrences())
        while len(self._norm) > _ENOUGH:
            if len(list(self._groups())) >= _FEW_PASSES:
                self._pass_stride *= 2
                self._keep(self._kept_passes())
            else:
                self._stride *= 2
                self._keep(self._kept_occurrences())

    def _keep(self, kept: Sequence[int]) -> None:
        if len(kept) < len(self._norm):
            self._arrays = {name: _at(values, kept) for name, values in self._arrays.items()}

    def _groups(self) -> Iterator[range]:
        return _runs(self._arrays["passes"])

    def _kept_passes(self) -> list[int]:
        landmarks = _landmarks(self._norm)
        steps = self._arrays["steps"]
        kept: list[int] = []
        for group in self._groups():
            if steps[group.start] % self._pass_stride == 0 or any(index in landmarks for index in group):
                kept.extend(group)
        return kept

    def _kept_occurrences(self) -> list[int]:
        occurrences = self._arrays["occurrences"]
        kept: list[int] = []
        for group in self._groups():
            landmarks = _landmarks(self._norm[group.start : group.stop])
            kept += [i for i in group if occurrences[i] % self._stride == 0 or i - group.start in landmarks]
        return kept


def _single(offset: int, series: GrowingSeries) -> GradSeries:
    columns = zip(_ARRAYS.items(), series.columns(offset), strict=True)
    arrays: dict[str, Any] = {name: array(kind, column) for (name, kind), column in columns}
    return GradSeries(**arrays, total=series.total)


def joined(parts: Iterable[tuple[int, GrowingSeries]]) -> GradSeries:
    """The series of a row from those of its places and losses, each with what its occurrences are counted from.

    Column by column: point by point, it takes three times as long.
    """
    parts = [(offset, series) for offset, series in parts if series.total]
    if not parts:
        return NO_GRADIENTS
    if len(parts) == 1 and parts[0][1].total == 1:
        return _single(*parts[0])  # most rows of a cell without loops: a tenth of the time
    total = 0
    columns: list[list[Any]] = [[] for _ in _ARRAYS]
    for offset, series in parts:
        total += series.total
        for column, values in zip(columns, series.columns(offset), strict=True):
            column.extend(values)
    passes, _, _, occurrences, *_ = columns
    points = sorted(zip(passes, occurrences, range(len(passes)), strict=True))
    order = [index for _, _, index in points]
    found = GradSeries(total=total)
    for name, column in zip(_ARRAYS, columns, strict=True):
        getattr(found, name).extend([column[index] for index in order])
    if points and points[0][0] != points[-1][0]:
        for group in _runs(found.passes):
            start = found.occurrences[group.start]
            for index in group:
                found.times[index] -= start
    return found
