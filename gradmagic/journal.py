"""What lines of the cell did to gradients beside backward: clearing them, clipping them. One entry a line."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from .curves import GrowingCurve
from .places import Path
from .statistics import Backlog, Pending, measure


@dataclass(slots=True, eq=False)
class JournalLine:
    """One line that cleared or clipped gradients.

    Attributes:
        kind: ``zero_grad`` or ``clip``.
        path: where.
        clock: when it ran first, by the recorder's clock.
        count: how often it ran.
        values: the total norm before clipping, each time.
        max_norm: the largest norm that was let through, the last time, or None.
        clipped: how often the norm was larger.
    """

    kind: Literal["zero_grad", "clip"]
    path: Path
    clock: int
    count: int = 0
    values: GrowingCurve = field(default_factory=GrowingCurve)
    max_norm: float | None = None
    clipped: int = 0


class Journal:
    """The lines, in the order in which they first ran."""

    def __init__(self, backlog: Backlog) -> None:
        """Prepare; what has to be read from a device waits in the `backlog`."""
        self.lines: list[JournalLine] = []
        self._by_line: dict[tuple[str, object], JournalLine] = {}
        self._backlog = backlog
        self._running: JournalLine | None = None
        self._touched: set[Hashable] = set()

    def cleared(self, what: Hashable, path: Path, clock: int) -> None:
        """One ``.grad`` was cleared; a line that clears many runs once for all of them."""
        self._run_for(self._line("zero_grad", path, clock), what)

    def clipped_values(self, what: Hashable, path: Path, clock: int) -> None:
        """The elements of a ``.grad`` were clipped."""
        self._run_for(self._line("clip", path, clock), what)

    def clipped_norm(self, total: Tensor, max_norm: object, path: Path, clock: int) -> None:
        """``clip_grad_norm_`` has computed the total norm."""
        line = self._line("clip", path, clock)
        line.count += 1
        limit = float(max_norm) if isinstance(max_norm, (int, float)) else None
        pending = measure(total)
        self._backlog.when_known(pending.waiting, partial(_norm_arrived, line, pending, limit, line.count - 1))

    def interrupted(self) -> None:
        """Something else has happened since: the next clearing is a new one."""
        self._running = None

    def _line(self, kind: Literal["zero_grad", "clip"], path: Path, clock: int) -> JournalLine:
        key = (kind, path.statement)
        line = self._by_line.get(key)
        if line is None:
            line = self._by_line[key] = JournalLine(kind, path, clock)
            self.lines.append(line)
        return line

    def _run_for(self, line: JournalLine, what: Hashable) -> None:
        if line is not self._running or what in self._touched:
            line.count += 1
            self._running = line
            self._touched.clear()
        self._touched.add(what)


def _norm_arrived(line: JournalLine, pending: Pending, limit: float | None, step: int) -> None:
    norm = pending.result().mean
    line.values.add(norm, step)
    line.max_norm = limit
    line.clipped += limit is not None and norm > limit
