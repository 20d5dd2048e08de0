"""A trace of a program that begins when the program imports PyTorch; what does without PyTorch does not load it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import current_thread, main_thread
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

from .script import Program

if TYPE_CHECKING:
    from .tracing import trace

_AWAITED = "torch"


class LateTrace:
    """Runs a program, traced from the moment on that PyTorch is there.

    Attributes:
        trace: the trace, once it has begun.
        missed: PyTorch was first imported in another thread, where a trace would record that thread.
        fault: what went wrong in gradmagic when the trace was to begin.
    """

    def __init__(self, program: Program, make: Callable[[Program], trace]) -> None:
        """Prepare to run a program; `make` gives the trace, and is called when PyTorch is there."""
        self.trace: trace | None = None
        self.missed = False
        self.fault: Exception | None = None
        self._program = program
        self._make = make

    def run(self) -> None:
        """Run the program. What it raises goes on; the report is made before."""
        frame = sys._getframe()
        watcher = _Watcher(partial(self._begin, frame))
        error: BaseException | None = None
        try:
            if _AWAITED in sys.modules:
                self._begin(frame)
            else:
                sys.meta_path.insert(0, watcher)
            exec(self._program.code, vars(self._program.main))  # noqa: S102 - the person's program
        except BaseException as caught:
            error = caught
            raise
        finally:
            watcher.leave()
            self._end(error)
            del error, frame, watcher  # they refer to each other

    def _begin(self, frame: FrameType) -> None:
        if current_thread() is not main_thread():
            self.missed = True
            return
        try:
            self.trace = self._make(self._program)
            self.trace.start(frame)
        except Exception as fault:  # noqa: BLE001 - a fault of ours must not cost the person their program
            self.fault = fault

    def _end(self, error: BaseException | None) -> None:
        if self.trace is None:
            return
        if isinstance(error, SystemExit) and error.code in (None, 0):
            error = None  # `sys.exit(main())` is how many programs end well
        kind, traceback = (type(error), error.__traceback__) if error is not None else (None, None)
        try:
            self.trace.__exit__(kind, error, traceback)
        finally:
            self.trace.close()


class _Watcher(MetaPathFinder):
    """Waits for the import of PyTorch, lets it happen, tells of it, and is gone."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def leave(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - part of the protocol
        target: ModuleType | None = None,  # noqa: ARG002 - likewise
    ) -> ModuleSpec | None:
        if fullname != _AWAITED:
            return None
        self.leave()
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._then)
        return spec


class _Loader(Loader):
    """Loads a module by its own loader, puts that in its place, and tells when it is done."""

    def __init__(self, real: Loader, then: Callable[[], None]) -> None:
        self._real = real
        self._then = then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._real
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        self._real.exec_module(module)
        self._then()
