"""Ctrl-C at a chosen moment: wherever Python looks for signals while gradmagic's own code runs."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import gradmagic

PACKAGE = str(Path(gradmagic.__file__).parent)
Moment = tuple[CodeType, int]
"""A code object and an offset in it; -1 is its entry."""


@cache
def checks(code: CodeType) -> frozenset[int]:
    """Offsets at which the interpreter has just looked for signals: after calls, and where loops go back."""
    found, after_call = set(), False
    for instruction in dis.get_instructions(code):
        if after_call or instruction.opname == "JUMP_BACKWARD":
            found.add(instruction.offset)
        calls = instruction.opname.startswith("CALL") and "INTRINSIC" not in instruction.opname
        after_call = calls or (after_call and instruction.opname == "CACHE")
    return frozenset(found)


def moments_of(program: Callable[[], Any]) -> list[Moment]:
    """Every moment of gradmagic's own code that a program comes to, once, in the order it comes to them."""
    found: dict[Moment, None] = {}

    def step(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and frame.f_lasti in checks(frame.f_code):
            found[frame.f_code, frame.f_lasti] = None
        return step

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        found[frame.f_code, -1] = None
        return step

    traced(enter, program)
    return list(found)


def interrupted(program: Callable[[], Any], moment: Moment) -> bool:
    """Run a program with Ctrl-C at the first time it comes to a moment; whether it came there."""
    code, offset = moment
    fired = False

    def fire() -> None:
        nonlocal fired
        fired = True
        raise KeyboardInterrupt("the person's")

    def step(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and frame.f_lasti == offset and not fired:
            fire()
        return step

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not code or fired:
            return None
        if offset < 0:
            fire()
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    traced(enter, program)
    return fired


def traced(function: Any, program: Callable[[], Any]) -> None:
    """Run a program under a trace function; what was set before is set again."""
    before = sys.gettrace()
    sys.settrace(function)
    try:
        program()
    finally:
        sys.settrace(before)


def told(moment: Moment) -> str:
    """A moment in words."""
    code, offset = moment
    line = next((line for start, end, line in code.co_lines() if start <= max(offset, 0) < end), None)
    return f"{Path(code.co_filename).name}:{line} {code.co_qualname} {'entry' if offset < 0 else offset}"
