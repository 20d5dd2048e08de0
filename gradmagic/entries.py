"""Which tensors are known, by their identity: the very objects, weakly, and the marks on the nodes that made them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from sys import getrefcount
from typing import TypeVar

import torch
from torch import Tensor

from .places import Entry
from .stored import out_of_sight

DEEPEST = 20_000
"""Autograd nodes deeper than this are left alone.

PyTorch frees a graph without recursion, but not past nodes that Python has looked at: 41,000 of those in a chain
overflow an 8 MiB stack when the graph dies (measured on torch 2.13).
"""
_SWEEP_AT = 1_000
"""The tensors that are gone are forgotten at so many, or when twice as many are known as were alive the last time.

Seldom enough to cost 20 ns a tensor; often enough that the dead take no more memory than the living.
"""
OCCURRENCE = 32
"""A mark on an autograd node is one number: the place's index, and from this bit on which of its occurrences it is."""
INDEX = (1 << OCCURRENCE) - 1
_Key = TypeVar("_Key")


class Entries:
    """What is known of each tensor object.

    Attributes:
        keeps_saved: tensors that nothing but a graph holds count as held.
    """

    def __init__(self) -> None:
        """Start without any."""
        super().__init__()
        self.keeps_saved = False
        self._entries: dict[int, Entry] = {}
        self._learning: dict[int, Entry] = {}
        """Of the leaves that require a gradient, by their ``id``."""
        self._non_leaves: dict[int, Entry] = {}
        """Of the non-leaves that do, by the mark on the node that has made them. A pass looks its own up here: to go
        through all that are alive would take longer with each round of a loop that keeps its losses."""
        self._sweep_at = _SWEEP_AT

    def entry(self, tensor: Tensor) -> Entry | None:
        """What is known of this very tensor object."""
        entry = self._entries.get(id(tensor))
        return entry if entry is not None and entry() is tensor else None

    def sort_in(self, entry: Entry, tensor: Tensor) -> None:
        """Put a tensor where a pass looks for it."""
        if entry.requires_grad and tensor.is_leaf:
            self._learning[id(tensor)] = entry
        elif entry.requires_grad and entry.place is not None:
            self._non_leaves[mark_of((entry.place.index, entry.occurrence))] = entry

    def sweep(self) -> None:
        """Forget the tensors that are gone."""
        self._entries = _of_those_alive(self._entries)
        self._learning = _of_those_alive(self._learning)
        self._non_leaves = _of_those_alive(self._non_leaves)
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._entries), 2 * len(self._non_leaves))

    def leaves(self) -> Iterator[tuple[Tensor, Entry]]:
        """Every recorded leaf that still exists and requires a gradient."""
        for entry in list(self._learning.values()):
            tensor = entry.ref()
            if tensor is not None and tensor.requires_grad and tensor.is_leaf and self.entry(tensor) is entry:
                yield tensor, entry

    def is_held(self, mark: int | None) -> bool:
        """Whether the person can still reach the non-leaf with this mark: quickly, since most are gone."""
        entry = self._non_leaves.get(mark) if mark is not None else None
        return entry is not None and self._is_held(entry)

    def of(self, mark: int) -> tuple[Tensor | None, Entry | None]:
        """The non-leaf with this mark on the node that has made it, if it still exists."""
        entry = self._non_leaves.get(mark)
        tensor = entry.ref() if entry is not None else None
        if tensor is None or self.entry(tensor) is not entry or not tells_its_history(tensor):
            return None, None
        return tensor, entry

    def held(self) -> Iterator[tuple[Tensor, Entry]]:
        """Of those that `alive` gives the ones that the person can still reach."""
        return _with_tensors(entry for entry in list(self._entries.values()) if self._is_held(entry))

    def _is_held(self, entry: Entry) -> bool:
        return entry() is not None if self.keeps_saved else _is_held_beside_graph(entry)

    def alive(self) -> Iterator[tuple[Tensor, Entry]]:
        """Every recorded tensor that still exists, in the order it was last made."""
        return _with_tensors(list(self._entries.values()))


def owner_of(mark: int) -> tuple[int, int]:
    """Index of the place and occurrence, from a mark."""
    return mark & INDEX, mark >> OCCURRENCE


def mark_of(owner: tuple[int, int]) -> int:
    """The mark for the index of a place and an occurrence."""
    return owner[1] << OCCURRENCE | owner[0]


def _of_those_alive(entries: dict[_Key, Entry]) -> dict[_Key, Entry]:
    return {key: entry for key, entry in entries.items() if entry() is not None}


def _with_tensors(entries: Iterable[Entry]) -> Iterator[tuple[Tensor, Entry]]:
    for entry in entries:
        tensor = entry.ref()
        if tensor is not None and entry.place is not None and tells_its_history(tensor):
            yield tensor, entry


def _is_held_beside_graph(entry: Entry) -> bool:
    """Whether anything but an autograd graph holds a tensor: a variable, a list, another object. May say so wrongly.

    What an operation has saved for backward is still there in Python, although nobody can reach it: every activation
    of a network, until its graph is gone. Older releases of PyTorch do not tell it from one that a variable holds.
    """
    if entry() is None:
        return False
    ours = references_of_ours()
    return ours is None or _references(entry) > ours


def _references(find: Callable[[], Tensor | None]) -> int:
    """References to a tensor, all that C++ holds of it left out: that is one, as soon as it holds more than itself."""
    tensor = find()
    graphs: bool = tensor._use_count() > 1  # type: ignore[union-attr]  # PyTorch's stubs leave it out; and it is alive
    return getrefcount(tensor) - graphs


@cache
def references_of_ours() -> int | None:
    """How many of what `_references` counts are its own, which differs between releases of Python.

    None where PyTorch does not count what C++ holds.
    """
    with out_of_sight(), torch.inference_mode(mode=False), torch.enable_grad():
        held = [torch.ones((), requires_grad=True) * 1]
        if not hasattr(held[0], "_use_count"):
            return None
        find = weakref.ref(held[0])
        alone = _references(find)
        graph = held[0] * held[0]
        saved = _references(find)
        return alone - 1 if saved == alone and graph.requires_grad else None


def is_deep(entry: Entry) -> bool:
    """Whether a tensor's autograd node is not to be looked at; see `DEEPEST`."""
    return entry.depth > DEEPEST


def tells_its_history(tensor: Tensor) -> bool:
    """Whether autograd can be asked about a tensor: a view from ``unbind`` whose base was changed raises at a look."""
    try:
        # Others are not looked at: PyTorch cannot free a chain of many nodes that Python has seen, see `DEEPEST`.
        return tensor.is_leaf or not tensor._is_view() or tensor.grad_fn is not None
    except RuntimeError:
        return False
