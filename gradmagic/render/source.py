"""The traced code as it was written, each line with its gradient, and what cuts or kills gradients underlined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

from ..records import RANK, Finding, Location, Severity, TensorRow
from ..report import Report, is_surprise
from .markup import Span, clean
from .numbers import percent, shape_text, short
from .phrases import remark
from .rows import norm_view
from .scale import LogScale
from .syntax import Token, tokens
from .view import GradView, SourceLine, SourcePiece

MOST_LINES = 300
"""So many lines are drawn; with more, those at the end are left out."""
LONGEST = 200
"""So much is drawn of a line."""
LONGEST_LABEL = 80
MOST_TOLD = 6
"""So many tensors of a line are told of when the pointer rests on it."""
_Columns = tuple[int, int]
_Notes = Mapping[tuple[int, int, int, int] | None, str]
"""What the rows of the traced code have to remark, by their span."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """A piece of source that is to blame: how bad it is, and what it does in a few words and in a sentence."""

    severity: Severity
    label: str
    sentence: str


def source_lines(report: Report, scale: LogScale) -> tuple[SourceLine, ...]:
    """The lines of the traced code; none where it is unknown. `scale` spans the norms of all rows."""
    source = report.source
    if source is None:
        return ()
    made = _made_by_line(report.rows)
    marks = _marks_by_line(report, len(source.lines) + source.line)
    code = tokens(source.text)
    return tuple(
        _line(number, code[number - source.line], made.get(number, []), marks.get(number, {}), scale)
        for number in range(source.line, source.line + min(len(code), MOST_LINES))
    )


def _line(
    number: int,
    code: list[Token],
    rows: list[TensorRow],
    marks: Mapping[_Columns, _Mark],
    scale: LogScale,
) -> SourceLine:
    worst = min(marks.values(), key=lambda mark: RANK[mark.severity], default=None)
    row = _representative(rows)
    return SourceLine(
        number=str(number),
        pieces=tuple(_pieces(code, marks)),
        grad=norm_view(row, scale) if _is_told(row) else GradView(norm=""),
        title="; ".join(_told(each) for each in rows[-MOST_TOLD:]),
        severity=worst.severity if worst is not None else None,
        label=clean(worst.label, LONGEST_LABEL) if worst is not None else "",
    )


def _made_by_line(rows: Iterable[TensorRow]) -> dict[int, list[TensorRow]]:
    """What each line of the traced code makes, itself or by what it calls."""
    found: dict[int, list[TensorRow]] = defaultdict(list)
    for row in rows:
        line = row.line if row.location.own else row.cell_line
        if line is not None:
            found[line].append(row)
    return found


def _representative(rows: list[TensorRow]) -> TensorRow | None:
    """The tensor that a line is there for: the last it makes, and its inputs only where it makes none."""
    made = [row for row in rows if row.kind in ("non-leaf", "constant") and row.location.own] or rows
    return made[-1] if made else None


def _is_told(row: TensorRow | None) -> TypeGuard[TensorRow]:
    """Whether a line says something of its tensor: not where nobody expects a gradient, and there is none."""
    return row is not None and (row.grad is not None or is_surprise(row))


def _told(row: TensorRow) -> str:
    """A tensor in words, for a tooltip."""
    what = f"{clean(row.label, LONGEST_LABEL)} {shape_text(row.shape)}"
    grad = row.grad
    if grad is None:
        return clean(f"{what}: None, {remark(row)}".rstrip(", "))
    if not grad.is_known:
        return what
    zeros = f", {percent(grad.zero_fraction)} zeros" if grad.zero_fraction else ""
    return f"{what}: ‖grad‖ {short(grad.norm)}, {short(grad.min)} to {short(grad.max)}{zeros}"


# ---- what is to blame


def _marks_by_line(report: Report, end: int) -> dict[int, dict[_Columns, _Mark]]:
    """Columns that are underlined, by line; of a span over several lines, each line up to its end."""
    found: dict[int, dict[_Columns, _Mark]] = defaultdict(dict)
    for location, mark in _marks(report):
        if location is None or not location.own:
            continue
        if location.span is None:
            found[location.line].setdefault((0, 0), mark)
            continue
        first, begin, last, behind = location.span
        for line in range(first, min(last, end) + 1):
            columns = (begin if line == first else 0, behind if line == last else LONGEST)
            found[line].setdefault(columns, mark)
    return found


def _marks(report: Report) -> Iterator[tuple[Location | None, _Mark]]:
    """What the findings blame, the most severe first; then what the rows blame, and what kills a gradient."""
    notes: _Notes = {row.location.span: remark(row) for row in report.rows if row.location.span is not None}
    for finding in sorted(report.findings, key=lambda finding: RANK[finding.severity]):
        yield finding.location, _mark_of(finding, notes)
    for row in report.rows:
        if row.culprit is not None and is_surprise(row):
            label = notes.get(row.culprit.span) or f"no gradient for {row.label}"
            yield row.culprit, _Mark("warning", label, f"{row.label}: {remark(row)}")
        elif row.grad is not None and row.grad.norm == 0 and row.grad.numel:
            yield row.location, _Mark("warning", "its gradient is zero", f"{row.label}: the gradient is zero")


def _mark_of(finding: Finding, notes: _Notes) -> _Mark:
    span = finding.location.span if finding.location is not None else None
    label = notes.get(span) if span is not None else None
    return _Mark(finding.severity, label or finding.kind.replace("_", " "), finding.message)


def _pieces(code: list[Token], marks: Mapping[_Columns, _Mark]) -> Iterator[SourcePiece]:
    """The line, cut where its style or its underlining changes."""
    bounds = sorted({LONGEST, *(column for columns in marks for column in columns)})
    column = 0
    for text, style in code:
        cuts = [0, *(bound - column for bound in bounds if column < bound < column + len(text)), len(text)]
        for start, stop in pairwise(cuts):
            if column + start >= LONGEST:
                yield SourcePiece(Span("…", "dim"))
                return
            mark = _mark_at(marks, column + start)
            piece = clean(text[start:stop].replace("\t", " "), LONGEST)
            title = clean(mark.sentence) if mark is not None else ""
            yield SourcePiece(Span(piece, style), mark.severity if mark is not None else None, title)
        column += len(text)


def _mark_at(marks: Mapping[_Columns, _Mark], column: int) -> _Mark | None:
    """The innermost mark at a column."""
    there = [(stop - start, mark) for (start, stop), mark in marks.items() if start <= column < stop]
    return min(there, key=lambda each: each[0])[1] if there else None
