"""Report -> how gradients flow: their norms in order of execution, along depth, and over steps. Numbers, no drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from ..curves import GradSeries
from ..loss_scale import unscaled
from ..records import TensorRow
from ..report import Report, is_surprise
from .markup import clean

Group = Literal["activations", "parameters"]
Order = Literal["execution", "depth"]
MOST_ROWS, MOST_COLUMNS = 60, 200
"""A heat map has so many rows and columns at most: more cannot be told apart on a screen."""
LONGEST = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPoint:
    """The gradient at one place of the flow.

    Attributes:
        position: where on the axis: the number of the row among those drawn, or minus its depth.
        group: ``parameters`` are leaves, ``activations`` non-leaves.
        label: what the row is called.
        module: path of its module, or empty.
        norm: of the last occurrence's gradient; None where there is none and one is missed.
        low, high: the smallest and the largest finite norm of its gradients over occurrences and passes.
        largest: the largest magnitude of an element, or None.
    """

    position: int
    group: Group
    label: str
    module: str
    norm: float | None
    low: float | None = None
    high: float | None = None
    largest: float | None = None

    @property
    def is_drawable(self) -> bool:
        """Whether its norm has a place on a log axis."""
        return self.norm is not None and 0 < self.norm < math.inf


@dataclass(frozen=True, slots=True)
class FlowLine:
    """One position of a line: the median norm there, and the band from the smallest to the largest."""

    position: int
    norm: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Norms over steps: a line for each row that got several gradients.

    Attributes:
        labels: what the rows are called, in order of execution.
        columns: the step (or time step) that each column begins with.
        norms: for each row the norm of each column: the largest of the steps that share it (one that is not finite
            counts as the largest); None where the row got none.
        axis: what the columns count: ``step`` (passes of a loss) or ``time step`` (within one pass).
        more: rows that are left out.
    """

    labels: tuple[str, ...]
    columns: tuple[int, ...]
    norms: tuple[tuple[float | None, ...], ...]
    axis: Literal["step", "time step"]
    more: int = 0


def flow_points(report: Report, by: Order = "execution") -> list[FlowPoint]:
    """The rows that have a gradient, or miss one, without the factor that the loss was scaled by."""
    report = unscaled(report)
    depths = depths_of(report) if by == "depth" else []
    points: list[FlowPoint] = []
    for index, row in enumerate(report.rows):
        if not _is_shown(row) or (by == "depth" and depths[index] is None):
            continue
        points.append(_point(row, -(depths[index] or 0) if by == "depth" else len(points)))
    return points


def flow_lines(points: Iterable[FlowPoint], group: Group) -> list[FlowLine]:
    """The norms of one group that can be drawn, position by position."""
    places: dict[int, list[FlowPoint]] = {}
    for point in points:
        if point.group == group and point.is_drawable:
            places.setdefault(point.position, []).append(point)
    return [_line(position, places[position]) for position in sorted(places)]


def depths_of(report: Report) -> list[int | None]:
    """How far each row is from the root: the most tensors on a way there; None where no way leads there.

    Ways back to an earlier row, as loops have them, do not count.
    """
    depths: list[int | None] = [None] * len(report.rows)
    for index in range(len(report.rows) - 1, -1, -1):
        row = report.rows[index]
        if row is report.root:
            depths[index] = 0
        depth = depths[index]
        if depth is not None:
            for source in row.inputs:
                if source < index:
                    depths[source] = max(depths[source] or 0, depth + 1)
    return depths


def heat_map(report: Report) -> HeatMap | None:
    """Norms over the passes of the cell, or over the time steps of its only pass; None where nothing repeats."""
    report = unscaled(report)
    repeated = [row for row in report.rows if len(row.grads) > 1]
    over_passes = any(row.grads.passes[0] != row.grads.passes[-1] for row in repeated)
    found = [(row, _course(row.grads, over_passes)) for row in repeated]
    found = [(row, course) for row, course in found if len(course) > 1]
    if not found:
        return None
    shown = found[:: -(-len(found) // MOST_ROWS)]
    first = min(min(course) for _, course in shown)
    last = max(max(course) for _, course in shown)
    stride = -(-(last - first + 1) // MOST_COLUMNS)
    columns = tuple(range(first, last + 1, stride))
    return HeatMap(
        labels=tuple(_label(row) for row, _ in shown),
        columns=columns,
        norms=tuple(tuple(_cells(course, columns, stride)) for _, course in shown),
        axis="step" if over_passes else "time step",
        more=len(found) - len(shown),
    )


def _is_shown(row: TensorRow) -> bool:
    if row.grad is None:
        return row.kind != "constant" and is_surprise(row)
    return row.grad.is_known and row.grad.numel > 0


def _point(row: TensorRow, position: int) -> FlowPoint:
    grad = row.grad
    group: Group = "activations" if row.kind == "non-leaf" else "parameters"
    low, high = row.grads.extremes
    return FlowPoint(
        position=position,
        group=group,
        label=_label(row),
        module=clean(row.module or ""),
        norm=grad.norm if grad is not None else None,
        low=low.norm if low is not None else None,
        high=high.norm if high is not None else None,
        largest=max(abs(grad.min), abs(grad.max)) if grad is not None else None,
    )


def _label(row: TensorRow) -> str:
    name = clean(row.name or row.module or row.expression)
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def _line(position: int, points: Sequence[FlowPoint]) -> FlowLine:
    norms = [point.norm for point in points if point.norm is not None]
    lows = [point.low for point in points if point.low]
    highs = [point.high for point in points if point.high]
    return FlowLine(position, median(norms), min([*norms, *lows]), max([*norms, *highs]))


def _course(grads: GradSeries, over_passes: bool) -> dict[int, float]:
    """The norm of each step: of a pass, the largest of its occurrences; of the only pass, each occurrence."""
    if not over_passes:
        return dict(zip(grads.times, grads.norm, strict=True))
    peaks = grads.peaks()
    course: dict[int, float] = {}
    for step, norm in zip(peaks.steps, peaks.values, strict=True):
        course[step] = _larger(course.get(step), norm)
    return course


def _cells(course: dict[int, float], columns: Sequence[int], stride: int) -> Iterator[float | None]:
    cells: list[float | None] = [None] * len(columns)
    for step, norm in course.items():
        place = (step - columns[0]) // stride
        cells[place] = _larger(cells[place], norm)
    yield from cells


def _larger(one: float | None, other: float) -> float:
    if one is None or not math.isfinite(other):
        return other
    return one if not math.isfinite(one) else max(one, other)
