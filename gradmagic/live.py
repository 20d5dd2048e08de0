"""When to look at a trace that is still running: not too often, and never so that it costs the cell much."""

from __future__ import annotations

import time
from collections.abc import Callable

INTERVAL = 0.5
"""Seconds between two looks, at least."""
SHARE = 0.1
"""Share of the cell's time that looking may take, at most; a report that takes long to draw is drawn less often."""


class Clock:
    """Says when the next look is due."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._due = now()

    def is_due(self) -> bool:
        """Whether it is time."""
        return self._now() >= self._due

    def looked(self, began: float) -> None:
        """A look that began at `began` has ended now."""
        ended = self._now()
        self._due = ended + max(INTERVAL, (ended - began) / SHARE)

    def now(self) -> float:
        """The time, in seconds."""
        return self._now()
