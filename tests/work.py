"""How much work a call is, counted: what a clock says is as much about the machine and its other work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType


def calls_in(work: Callable[[], object]) -> int:
    """How many functions of Python and of C it calls in this thread; the same number on any machine."""
    count = 0

    def seen(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def cpu_seconds(work: Callable[[], object]) -> float:
    """The least of three runs' own time on a processor: only good for a ratio to other work, with a wide margin."""
    runs = []
    for _ in range(3):
        began = time.process_time()
        work()
        runs.append(time.process_time() - began)
    return min(runs)
