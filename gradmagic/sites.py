"""Positions in running code, and the pieces of source they were compiled from (PEP 657). No torch here."""

from __future__ import annotations

import weakref
from functools import partial
from types import CodeType

from .source_tree import Span

_POSITIONS: dict[int, tuple[weakref.ref[CodeType], list[Span]]] = {}
"""What `positions` gave, by the ``id`` of the code: every trace goes through the same functions of PyTorch."""


def positions(code: CodeType) -> list[Span]:
    """The span of each instruction. To ask takes 20 us a function, and to hash code 1 us: so it goes by its ``id``."""
    number = id(code)
    known = _POSITIONS.get(number)
    if known is None or known[0]() is not code:
        forgets = weakref.ref(code, partial(_POSITIONS.pop, number))
        known = _POSITIONS[number] = forgets, list(code.co_positions())
    return known[1]


class Site:
    """A position in running code: a code object and the offset of the instruction that ran.

    A trace has one object for each, so that they are compared by identity: to hash the code each time takes 1 us.

    Attributes:
        code: the code object.
        lasti: the offset.
        span: line, end line, column and end column of the piece of source.
    """

    __slots__ = ("code", "lasti", "span")

    def __init__(self, code: CodeType, lasti: int) -> None:
        self.code = code
        self.lasti = lasti
        spans, index = positions(code), lasti // 2
        self.span: Span = spans[index] if 0 <= index < len(spans) else (code.co_firstlineno, None, None, None)
