"""Every in-place change of the cell, by the memory it changed: who changed what PyTorch had saved for backward?"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .places import Path
from .stored import memory_at

_KEPT = 64
"""So many changes are kept for each piece of memory, the newest; a loop that fills a buffer makes one a round."""
_MEMORIES = 4_096
"""So many pieces of memory are known at most, the last changed."""


@dataclass(frozen=True, slots=True)
class Change:
    """One in-place change.

    Attributes:
        place: index of the place the changed tensor belongs to now.
        base: index of the place of what it is a view of, or None.
        version: the tensor's version counter afterwards.
        path: where it was changed.
        op: what changed it.
        clock: when.
        unseen: through ``.data``, which has a version counter of its own, so that autograd takes no notice.
    """

    place: int
    base: int | None
    version: int
    path: Path
    op: str
    clock: int
    unseen: bool


class ChangeLog:
    """The changes of one trace, bounded in number. Holds no tensors."""

    def __init__(self) -> None:
        self._by_memory: dict[int, deque[Change]] = {}
        self.any_unseen = False

    def note(self, tensor: Tensor, change: Change) -> None:
        """Remember a change."""
        memory = memory_of(tensor)
        if memory is None:
            return
        changes = self._by_memory.pop(memory, None) or deque(maxlen=_KEPT)
        changes.append(change)
        self._by_memory[memory] = changes
        self.any_unseen = self.any_unseen or change.unseen
        if len(self._by_memory) > _MEMORIES:
            del self._by_memory[next(iter(self._by_memory))]

    def of(self, memory: int | None) -> Iterator[Change]:
        """Changes of one piece of memory, oldest first."""
        yield from self._by_memory.get(memory, ()) if memory is not None else ()

    def __iter__(self) -> Iterator[tuple[int, Change]]:
        for memory, changes in self._by_memory.items():
            for change in changes:
                yield memory, change


def memory_of(tensor: Tensor) -> int | None:
    """Address of the memory behind a tensor and all its views; None where it has none (sparse, meta, fake)."""
    try:
        return memory_at(tensor) or None
    except (RuntimeError, NotImplementedError):
        return None
