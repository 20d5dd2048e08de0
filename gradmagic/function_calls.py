"""Watches which custom `torch.autograd.Function`s a cell applies, and keeps copies of what each was given first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from .raised import told_briefly
from .random_streams import RandomStreams, random_streams
from .stored import out_of_sight

MOST_ELEMENTS = 2**22
"""Inputs with more elements together are not copied: 32 MiB in double precision."""
MOST_FUNCTIONS = 64
"""So many Functions are checked at most."""
MOST_IN_ALL = 2**24
"""Once so many elements are kept for all Functions together, no more are copied."""

_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]  # a class method has it

_Profiler = Callable[[FrameType, str, Any], object]


@dataclass(slots=True)
class FunctionCall:
    """The first call of a custom Function, and how many there were.

    Attributes:
        function: the class.
        line: line of the watched code that was running, or None where it was called from elsewhere.
        args: what it was given: tensors as copies in double precision, without a graph.
        kwargs: likewise, by name.
        random: where the random generators stood then.
        devices: indices of the CUDA devices of its inputs.
        untaken: why there are no copies; empty where there are.
        calls: how often it was applied.
    """

    function: type[torch.autograd.Function]
    line: int | None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    random: RandomStreams | None = None
    devices: tuple[int, ...] = ()
    untaken: str = ""
    calls: int = 1


class FunctionWatch:
    """While this is entered, calls of ``Function.apply`` in this thread are seen, by Python's own profiler hook.

    Nothing of PyTorch is replaced. Where a profiler written in Python runs already, it goes on, called from ours, and
    is put back afterwards. One written in C, which Python cannot put back, is left alone, and nothing is seen.

    Attributes:
        calls: the Functions in the order of their first calls.
        disturbed: why nothing, or not everything, was seen; empty otherwise.
    """

    def __init__(self, file: str) -> None:
        """Watch code of this file, as Python knows it."""
        self._file = file
        self._calls: dict[int, FunctionCall] = {}  # by id: the metaclass of a class may refuse to hash it
        self._hook: _Profiler | None = None
        self._before: Any = None
        self._kept = 0
        self.disturbed = ""

    @property
    def calls(self) -> list[FunctionCall]:
        """The Functions in the order of their first calls."""
        return list(self._calls.values())

    def __enter__(self) -> None:
        self._before = sys.getprofile()
        if not isinstance(self._before, FunctionType | MethodType | None):
            self.disturbed = "a profiler was running, which Python has only one of"
            return
        self._hook = self._see
        sys.setprofile(self._hook)

    def __exit__(self, *_: object) -> None:
        hook, self._hook = self._hook, None
        if hook is None:
            return
        if sys.getprofile() is hook:
            sys.setprofile(self._before)
        else:  # the cell has started one of its own, which stays
            self.disturbed = "the cell started a profiler, which Python has only one of"

    def _see(self, frame: FrameType, event: str, value: object) -> None:
        if self._before is not None:
            self._before(frame, event, value)
        if event == "call" and frame.f_code is _APPLY:
            given = frame.f_locals
            self._note(given["cls"], given["args"], given["kwargs"], frame)

    def _note(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> None:
        if id(function) in self._calls:
            self._calls[id(function)].calls += 1
        elif not _is_pytorchs(function) and len(self._calls) < MOST_FUNCTIONS:
            self._calls[id(function)] = call = FunctionCall(function, self._line(frame))
            self._kept += _take(call, args, kwargs, MOST_IN_ALL - self._kept)

    def _line(self, frame: FrameType | None) -> int | None:
        while frame is not None and frame.f_code.co_filename != self._file:
            frame = frame.f_back
        return frame.f_lineno if frame is not None else None


def _is_pytorchs(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).split(".", 1)[0] == "torch"


def _take(call: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any], room: int) -> int:
    """Keeps copies, and tells of how many elements. Whatever happens here is told in the check, never to the cell."""
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    try:
        size = sum(each.numel() for each in tensors)
        if torch._C._are_functorch_transforms_active():
            call.untaken = "it was applied inside a torch.func transform"
        elif size > MOST_ELEMENTS:
            call.untaken = f"its inputs have more than {MOST_ELEMENTS:,} elements"
        elif size > room:
            call.untaken = f"the inputs of all have more than {MOST_IN_ALL:,} elements together"
        elif any(each.is_cuda for each in tensors) and torch.cuda.is_current_stream_capturing():
            call.untaken = "it was applied while a CUDA graph was captured"
        else:
            with out_of_sight(), torch.no_grad():
                call.args = tuple(map(_copied, args))
                call.kwargs = {name: _copied(value) for name, value in kwargs.items()}
            call.devices = tuple(sorted({each.device.index or 0 for each in tensors if each.is_cuda}))
            call.random = random_streams(call.devices)
            return size
    except Exception as error:  # noqa: BLE001 - a tensor that cannot be copied (fake, functional, a subclass)
        call.untaken = f"its inputs could not be copied: {told_briefly(error)}"
    return 0


def _copied(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    dtype = value.dtype
    if value.is_complex():
        dtype = torch.complex128
    elif value.is_floating_point():
        dtype = torch.float64
    copy = value.detach().to(dtype, copy=True)
    return copy.requires_grad_(value.requires_grad)
