"""Column widths of the terminal table: which columns there is room for, and how they share it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len

from .marks import FOLD
from .markup import plain
from .view import ColumnView, RowView, Spark

COLUMNS = ("line", "place", "tensor", "op", "shape", "norm", "bar", "figures", "update", "note")
GAP = 2
GIVE_WAY = ("place", "zeros", "range", "op", "shape", "update", "bar", "values")
"""What is left out as the width shrinks, in this order; line, tensor, norm and note always stay."""

TENSOR_MIN, OP_MIN, SHAPE_MIN, SHAPE_MAX, NOTE_MIN, NOTE_WORD, BAR_MIN = 16, 12, 14, 20, 18, 24, 4
LINE_MAX, PLACE_MAX = 14, 20
TENSOR_SHARE, NOTE_SHARE = 0.22, 0.22
"""Shares of the width below which tensor and note are not squeezed to keep another column."""

SIGN = 2
"""Width of the mark of a finding, and a space."""

COLUMN_MAX = 12
"""Longest name of a loss above its column."""

BAR_GOOD, BAR_BEST, TENSOR_BEST, NOTE_BEST, VALUES_ONLY_MAX = 6, 16, 32, 48, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Width of each column in terminal cells; 0 leaves the column out.

    `figures` is the column that holds the elements, or minimum, maximum and zeros; `low`, `high` and `zeros`
    are the widths of these three inside it. Likewise `norm` and `norms`, where each of several losses has its own.
    `place` is where the code stands when it is elsewhere.
    """

    line: int
    place: int
    tensor: int
    op: int
    shape: int
    norm: int
    norms: tuple[int, ...]
    bar: int
    figures: int
    low: int
    high: int
    zeros: int
    update: int
    note: int

    @property
    def total(self) -> int:
        """Width of the whole table, gaps included."""
        widths: list[int] = [getattr(self, name) for name in COLUMNS]
        shown = [width for width in widths if width]
        return sum(shown) + GAP * (len(shown) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Natural:
    """What each part of the table would like to have."""

    line: int
    place: int
    label: int
    label_and_beside: int
    op: int
    shape: int
    shape_and_extra: int
    norm: int
    norms: tuple[int, ...]
    bar: bool
    low: int
    high: int
    zeros: int
    values: int
    update: int
    note: int
    note_word: int


def natural(rows: tuple[RowView, ...], inner: bool, columns: Sequence[ColumnView] = ()) -> Natural:
    """Measures the rows; `inner` counts their inner steps too, `columns` are the losses where there are several."""
    norms = tuple(_norms(rows, index, column) for index, column in enumerate(columns))
    steps = [step for row in rows for step in row.inner] if inner else []
    values = [cell_len(row.grad.values) for row in rows]
    labels = [_label(row) for row in rows]
    has_range = any(row.grad.low and not 0 < n <= VALUES_ONLY_MAX for n, row in zip(values, rows, strict=True))
    return Natural(
        line=min(_widest("line", (row.line or row.place for row in rows)), LINE_MAX),
        place=max((cell_len(row.place) for row in rows if row.line), default=0),
        label=max([6, *labels, *(4 + cell_len(step.name) for step in steps)]),
        label_and_beside=max(map(_label_and_beside, rows), default=6),
        op=_widest("made by", (row.op for row in rows)),
        shape=_widest("shape", (*(row.shape for row in rows), *(step.shape for step in steps))),
        shape_and_extra=_widest("shape", (f"{row.shape} {row.extra}".strip() for row in rows)),
        norm=sum(norms) + GAP * (len(norms) - 1)
        if norms
        else _widest("‖grad‖", (*(row.grad.norm for row in rows), *(step.norm for step in steps))),
        norms=norms,
        bar=any(row.grad.bar is not None for row in rows),
        low=_widest("min", (row.grad.low for row in rows)) if has_range else 0,
        high=_widest("max", (row.grad.high for row in rows)),
        zeros=_widest("zeros", (row.grad.zeros for row in rows)),
        values=max(values, default=0),
        update=_widest("‖Δw‖/‖w‖", (row.update for row in rows)) if any(row.update for row in rows) else 0,
        note=max((_note(row) for row in rows), default=0),
        note_word=max((2 + cell_len(word) for row in rows for word in plain(row.note).split()), default=0),
    )


def fit(wish: Natural, width: int) -> Widths:
    """The richest set of columns that `width` has room for, with the rest of the room shared out."""
    for gone in range(len(GIVE_WAY) + 1):
        widths = _narrowest(wish, frozenset(GIVE_WAY[gone:]), width)
        if widths.total <= width:
            return _widened(widths, wish, width)
    return replace(widths, note=max(widths.note - (widths.total - width), 0))


def _narrowest(wish: Natural, parts: frozenset[str], width: int) -> Widths:
    zeros = wish.zeros if "zeros" in parts and wish.low else 0
    low, high = (wish.low, wish.high) if "range" in parts and wish.low else (0, 0)
    figures = low + GAP + high + (GAP + zeros if zeros else 0) if low else 0
    values_only = wish.values > 0 and not wish.low and "values" in parts
    shape = max(min(wish.shape, SHAPE_MAX), min(wish.shape_and_extra, SHAPE_MIN))
    note = max(NOTE_MIN, int(width * NOTE_SHARE), min(wish.note_word, NOTE_WORD))
    return Widths(
        line=wish.line,
        place=min(wish.place, PLACE_MAX) if "place" in parts else 0,
        tensor=min(wish.label, max(TENSOR_MIN, int(width * TENSOR_SHARE))),
        op=min(wish.op, OP_MIN) if "op" in parts else 0,
        shape=shape if "shape" in parts else 0,
        norm=wish.norm,
        norms=wish.norms,
        bar=BAR_MIN if "bar" in parts and wish.bar else 0,
        figures=figures or (max(wish.values, len("values")) if values_only else 0),
        low=low,
        high=high,
        zeros=zeros,
        update=wish.update if "update" in parts else 0,
        note=min(wish.note, note),
    )


def _widened(widths: Widths, wish: Natural, width: int) -> Widths:
    """Gives spare room away, to the most useful first."""
    wishes = [
        ("bar", BAR_GOOD),
        ("shape", wish.shape_and_extra),
        ("tensor", min(wish.label, TENSOR_BEST)),
        ("note", min(wish.note, NOTE_BEST)),
        ("figures", wish.values if widths.low else 0),
        ("op", wish.op),
        ("bar", BAR_BEST),
        ("tensor", min(wish.label_and_beside, 2 * TENSOR_BEST)),
        ("note", wish.note),
    ]
    for column, wanted in wishes:
        now = getattr(widths, column)
        spare = width - widths.total
        if now and wanted > now and spare > 0:
            widths = replace(widths, **{column: min(wanted, now + spare)})
    return widths


def _widest(header: str, texts: Iterable[str]) -> int:
    return max(len(header), max(map(cell_len, texts), default=0))


def _label(row: RowView) -> int:
    marks = (cell_len(FOLD) if row.folded else 0) + (SIGN if row.severity is not None else 0)
    return marks + cell_len(row.label.text) + (1 + len(row.times) if row.times else 0)


def _label_and_beside(row: RowView) -> int:
    return _label(row) + (GAP + cell_len(row.beside) if row.beside else 0)


def _note(row: RowView) -> int:
    ticks = 2 * sum(span.style == "code" for span in row.note)
    return max([cell_len(plain(row.note)) + ticks, *(_spark(spark) for spark in row.sparks)])


def _spark(spark: Spark) -> int:
    label = cell_len(spark.label) + 1 if spark.label else 0
    return label + len(spark.levels) + 1 + cell_len(spark.words)


def _norms(rows: Sequence[RowView], index: int, column: ColumnView) -> int:
    found = (row.grad.norms[index] for row in rows if row.grad.norms)
    return max(min(cell_len(column.name), COLUMN_MAX), max(map(cell_len, found), default=0))
