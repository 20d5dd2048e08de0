"""The last report of each cell that was traced, so that the next run of the cell can be compared with it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Report  # not needed for loading the extension

MOST = 32
"""So many cells are remembered, those that ran last."""
ALIKE = 0.6
"""Where cells have no identity, as in a terminal, a cell is an edited one when this share of its lines is the same:
`difflib`'s rule of thumb for a close match."""


@dataclass(frozen=True, slots=True)
class _Run:
    lines: Sequence[str]
    report: Report


class PreviousReports:
    """Remembers reports, which hold no tensors; the front end's id of a cell tells which is which, or else its code."""

    def __init__(self) -> None:
        """Start without any."""
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._count = 0

    def of(self, cell: str | None, code: str) -> Report | None:
        """The last report of a cell, or None.

        Args:
            cell: the front end's id of the cell, or None where it gives none.
            code: what the cell holds now.
        """
        if cell is not None:
            run = self._runs.get(cell)
            return run.report if run is not None else None
        key = self._alike(code)
        return self._runs[key].report if key is not None else None

    def remember(self, cell: str | None, code: str, report: Report) -> None:
        """Keep the report of a cell that has run to its end, in place of the one before."""
        key = cell if cell is not None else self._alike(code)
        if key is None:
            self._count += 1
            key = f"#{self._count}"
        self._runs[key] = _Run(code.split("\n"), report)
        self._runs.move_to_end(key)
        while len(self._runs) > MOST:
            self._runs.popitem(last=False)

    def _alike(self, code: str) -> str | None:
        """The cell without an id whose code is most like this; of several, the one that ran last."""
        best, share = None, ALIKE
        lines = code.split("\n")
        for key, run in self._runs.items():
            if key.startswith("#") and (found := _share_of_same(run.lines, lines)) >= share:
                best, share = key, found
        return best


def _share_of_same(before: Sequence[str], after: Sequence[str]) -> float:
    """How many lines of two cells are the same, in whatever order. Every traced cell asks: the time is linear."""
    same = (Counter(before) & Counter(after)).total()
    return 2 * same / (len(before) + len(after))
