"""What lines of the cell did to gradients beside backward: clearing them, clipping them. One entry a line."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

from .curves import GrowingCurve
from .places import Path


@dataclass(slots=True, eq=False)
class JournalLine:
    """One line that cleared or clipped gradients.

    Attributes:
        kind: ``zero_grad`` or ``clip``.
        path: where.
        count: how often it ran.
        values: the total norm before clipping, each time.
        max_norm: the largest norm that was let through, the last time, or None.
        clipped: how often the norm was larger.
    """

    kind: Literal["zero_grad", "clip"]
    path: Path
    count: int = 0
    values: GrowingCurve = field(default_factory=GrowingCurve)
    max_norm: float | None = None
    clipped: int = 0

    def norm_was(self, norm: float, limit: float | None, step: int) -> None:
        """The norm of its call `step` is known, and what was let through."""
        self.values.add(norm, step)
        self.max_norm = limit
        self.clipped += limit is not None and norm > limit


class Journal:
    """The lines, in the order in which they first ran."""

    def __init__(self) -> None:
        self.lines: list[JournalLine] = []
        self._by_line: dict[tuple[str, object], JournalLine] = {}
        self._running: JournalLine | None = None
        self._touched: set[Hashable] = set()

    def cleared(self, what: Hashable, path: Path) -> None:
        """One ``.grad`` was cleared; a line that clears many runs once for all of them."""
        self._run_for(self._line("zero_grad", path), what)

    def clipped_values(self, what: Hashable, path: Path) -> None:
        """The elements of a ``.grad`` were clipped."""
        self._run_for(self._line("clip", path), what)

    def clipped_norm(self, path: Path) -> JournalLine:
        """``clip_grad_norm_`` is at work; the norm is to follow."""
        line = self._line("clip", path)
        line.count += 1
        return line

    def interrupted(self) -> None:
        """Something else has happened since: the next clearing is a new one."""
        self._running = None

    def _line(self, kind: Literal["zero_grad", "clip"], path: Path) -> JournalLine:
        key = (kind, path.statement)
        line = self._by_line.get(key)
        if line is None:
            line = self._by_line[key] = JournalLine(kind, path)
            self.lines.append(line)
        return line

    def _run_for(self, line: JournalLine, what: Hashable) -> None:
        if line is not self._running or what in self._touched:
            line.count += 1
            self._running = line
            self._touched.clear()
        self._touched.add(what)
