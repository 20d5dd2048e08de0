"""How activation functions answered: small results are kept, and counted once a row instead of once a call."""

from __future__ import annotations

from torch import Tensor

from .statistics import PendingActivity, activity
from .stored import copy_memory, is_plain, is_watched, row_address

_BY_RESULT = frozenset({"relu", "relu_", "tanh", "sigmoid"})
"""Activation functions whose answer is told by what they gave alone."""
_SMALL = 4_096
"""Elements of a result that is kept. To copy 64 numbers takes 1 us, and to count them 9; of many it saves little."""
_MOST = 1 << 19
"""Elements that are kept in all, so that it stays at a few MB."""


class KeptAnswer:
    """A copy of what an activation function gave, the last time; read like `PendingActivity`."""

    __slots__ = ("_counted", "_name", "_nbytes", "_shape", "_start", "values")

    def __init__(self, name: str, values: Tensor) -> None:
        self._name = name
        self.values = values
        self._shape = values.shape
        self._nbytes = values.numel() * values.element_size()
        self._start = row_address(values)
        self._counted: PendingActivity | None = None

    def takes(self, result: Tensor) -> bool:
        """Copy what the function gave this time into the memory at hand, where it fits: 3 us less than a new copy."""
        if self._shape != result.shape or self.values.dtype is not result.dtype:
            return False
        start = row_address(result)
        if not start or not self._start:
            return False
        copy_memory(self._start, start, self._nbytes)
        self._counted = None
        return True

    def counted(self) -> PendingActivity | None:
        """How it answered."""
        if self._counted is None:
            self._counted = activity(self._name, (), {}, self.values)
        return self._counted


class Answers:
    """The small results that are kept, for each place its last."""

    def __init__(self) -> None:
        self._elements = 0

    def keep(self, before: PendingActivity | KeptAnswer | None, name: str, result: Tensor) -> KeptAnswer | None:
        """What an activation function gave, in place of what was kept `before`; None where it is to be counted now.

        It is copied: what the person changes in place afterwards was no answer of the function's.
        """
        if not result.requires_grad or is_watched():
            return None
        if isinstance(before, KeptAnswer):
            if before.takes(result):
                return before
            self._elements -= before.values.numel()
        size = result.numel()
        if name not in _BY_RESULT or not 0 < size <= _SMALL or self._elements + size > _MOST:
            return None
        if not result.is_cpu or not is_plain(result) or result.is_complex():
            return None
        self._elements += size
        return KeptAnswer(name, result.detach().clone())
