"""What the findings of a report point at: which rows they name, how bad it is, and where a link leads."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..records import RANK, Finding, Severity, TensorRow
from ..report import Report
from .folding import Item, rows_of
from .view import RowView


class Pointing:
    """The findings of a report by the rows that they name."""

    def __init__(self, report: Report) -> None:
        """Look through the findings."""
        self._named: dict[int, Severity] = {}
        """By the ``id`` of the row: the worst that is said of it."""
        for finding in sorted(report.findings, key=lambda finding: RANK[finding.severity]):
            for row in _rows(report.rows, finding):
                self._named.setdefault(id(row), finding.severity)
        self._prefix = f"gt{zlib.crc32(_identity(report).encode(errors='replace')):08x}"
        self._anchors: dict[int, str] = {}
        self._rows = report.rows

    def point(self, items: Sequence[Item], views: Iterable[RowView]) -> tuple[RowView, ...]:
        """The lines with the signs of the findings that name them, and with what links to them lead to."""
        return tuple(self._pointed(item, view) for item, view in zip(items, views, strict=True))

    def anchor(self, finding: Finding) -> str:
        """What a link to the first of its rows that are shown leads to; empty for none."""
        anchors = (self._anchors.get(id(row)) for row in _rows(self._rows, finding))
        return next((anchor for anchor in anchors if anchor), "")

    def worst(self, item: Item) -> Severity | None:
        """How bad the worst is that is said of a row, or of those in a fold; None for nothing."""
        named = (self._named[id(row)] for row in rows_of(item) if id(row) in self._named)
        return min(named, key=RANK.__getitem__, default=None)

    def _pointed(self, item: Item, view: RowView) -> RowView:
        worst = self.worst(item)
        if worst is None:
            return view
        anchor = f"{self._prefix}-{len(self._anchors)}"
        self._anchors.update((id(row), anchor) for row in rows_of(item) if id(row) in self._named)
        return replace(view, severity=worst, anchor=anchor)


def _rows(rows: Sequence[TensorRow], finding: Finding) -> list[TensorRow]:
    """The rows that a finding names; a report may have been made with fewer."""
    return [rows[index] for index in finding.rows if index < len(rows)]


def _identity(report: Report) -> str:
    """What tells this report from the others of a notebook, and is the same when the notebook runs again."""
    first = report.rows[0].location if report.rows else None
    names = " ".join(row.label for row in report.rows[:50])
    return f"{first.cell if first else ''} {report.root_value} {names} {report.source.text if report.source else ''}"
