"""Calling a torch function as from the person's line, although the recorder stands between."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any

import torch

_CALL: CodeType = (lambda func, args, kwargs: func(*args, **kwargs)).__code__
CALL_NAME = "<gradtrace call>"
_PACKAGE = __name__.partition(".")[0] + "."
_OPERATOR: CodeType = torch._ops.OpOverloadPacket.__call__.__code__
_HANDLER: CodeType = torch.overrides.handle_torch_function.__code__


class Calls:
    """What calls torch functions, one for each place in the code.

    A warning names the file and line of the frame that makes the call, and is shown once for each such place. So the
    call runs in a frame that has the caller's: without it, every warning would point at the recorder.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[Callable[..., Any], CodeType]] = {}
        """By the place in the code, see `by`; the recorder looks here itself, which saves a call of ours (60 ns)."""

    def release(self) -> None:
        """Let go of the code seen."""
        self.known.clear()

    def by(self, frame: FrameType) -> Callable[..., Any]:
        """What calls a torch function for this frame: ``call(func, args, kwargs)``."""
        if frame.f_code is _HANDLER and frame.f_back is not None and frame.f_back.f_back is not None:
            # A function of PyTorch that is written in Python, on its first time through: its caller counts.
            frame = frame.f_back.f_back
        key = id(frame.f_code) + frame.f_lasti
        found = self.known.get(key)
        if found is None:
            code = _CALL.replace(co_filename=frame.f_code.co_filename, co_firstlineno=frame.f_lineno, co_name=CALL_NAME)
            found = self.known[key] = (FunctionType(code, frame.f_globals), frame.f_code)
        return found[0]


def caller_outside(frame: FrameType) -> FrameType:
    """The frame that made a call, for one that reached us through the recorder of a trace inside of ours."""
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
    return frame


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_name == CALL_NAME or str(frame.f_globals.get("__name__")).startswith(_PACKAGE)


def without_our_lines(stack: list[str]) -> list[str]:
    """What `traceback.format_stack` gave (anomaly mode keeps it with each autograd node), without lines of ours."""
    kept: list[str] = []
    for entry in stack:
        where = entry.partition("\n")[0]
        if where.endswith(f", in {CALL_NAME}"):
            kept.pop()  # the recorder's own line
            if kept and kept[-1].partition("\n")[0].endswith(f", in {_HANDLER.co_name}"):
                del kept[-2:]  # a function of PyTorch that is written in Python asks for the recorder, then starts anew
        else:
            kept.append(entry)
    return kept


def without_our_frames(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback from its first frame on that is not gradmagic's."""
    while traceback is not None and _is_ours(traceback.tb_frame):
        traceback = traceback.tb_next
    return traceback


def straighten(traceback: TracebackType | None) -> None:
    """Take the detour by way of the recorder out of a traceback, in place.

    A function of PyTorch that is written in Python first hands itself over (``F.batch_norm`` ->
    ``handle_torch_function``) and is then called again: the traceback would show it twice. ``torch.ops`` do so in C.
    """
    steps = []
    while traceback is not None:
        steps.append(traceback)
        traceback = traceback.tb_next
    for index in range(len(steps) - 2, 0, -1):
        if steps[index].tb_frame.f_code is steps[index + 1].tb_frame.f_code is _OPERATOR:
            steps[index - 1].tb_next = steps[index + 1]
        if steps[index].tb_frame.f_code is _HANDLER:
            again = steps[index + 1]
            first = [step for step in steps[1:index] if step.tb_frame.f_code is again.tb_frame.f_code]
            if first:
                steps[steps.index(first[-1]) - 1].tb_next = again
