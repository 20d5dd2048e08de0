"""Recording one task of an event loop: while it awaits, others run in the same thread, and under the same modes."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from types import CodeType, FrameType

from .modules import ModuleRegistry
from .paths import Paths, is_torchs
from .places import Path
from .recorder import Recorder

_MARKS: ContextVar[tuple[object, ...]] = ContextVar("gradmagic_recorders", default=())
"""The marks of the recorders that the running task is recorded by. A task inherits them from the one that starts it."""


_STEP: CodeType = asyncio.Handle._run.__code__


class TaskPaths(Paths):
    """The paths of a trace in a coroutine: they end where the event loop resumes a task, however it got there."""

    def __init__(self, boundary: FrameType | None, modules: ModuleRegistry) -> None:
        super().__init__(boundary, modules)
        self._entered = boundary

    def release(self) -> None:
        """Let go of the boundary frames and of everything known."""
        super().release()
        self._entered = None

    def of(self, frame: FrameType | None) -> Path:
        """The path from a frame outwards."""
        outer = frame
        while outer is not None and outer is not self._entered and outer.f_code is not _STEP:
            outer = outer.f_back
        self._boundary = outer
        path = super().of(frame)
        self._boundary = None
        return path


class TaskRecorder(Recorder):
    """Records the task that starts it and the tasks which that one starts, and lets the calls of all others pass."""

    _paths_kind = TaskPaths
    _sleeps = False

    def start(self) -> None:
        """Begin recording; each call is looked at before it is recorded."""
        self._resting = True
        _MARKS.set((*_MARKS.get(), self.mark))
        super().start()

    def stop(self) -> None:
        """Stop recording; a task that outlives the trace keeps the mark, which means nothing then."""
        super().stop()
        _MARKS.set(tuple(mark for mark in _MARKS.get() if mark is not self.mark))

    def rest(self) -> None:
        """Record nothing as long as PyTorch's own code makes the calls."""
        self._sleeps = True

    def wake(self) -> None:
        """Record again."""
        self._sleeps = False

    def is_elsewhere(self) -> bool:
        """Whether the running task is another."""
        return self.mark not in _MARKS.get() and not self.runs_for_pass()

    def _still_rests(self, frame: FrameType) -> bool:
        if self.is_elsewhere():
            return True
        self._sleeps = self._sleeps and is_torchs(frame.f_code)
        return self._sleeps
