"""What is known of every tensor of a trace: its place, its versions, and the marks on its autograd node.

A tensor that was seen at its birth is an occurrence of the `Place` that made it; one that was not is taken in where it
is used. The node is marked with the place's index, so that a later walk of the graph knows it again. Only weak
references to tensors are kept.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Collection, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from .bindings import Position
from .entries import DEEPEST, Entries, mark_of, owner_of, tells_its_history
from .modules import ModuleRegistry
from .operations import inside_transform
from .paths import Paths
from .places import Entry, Path, Place, version_of
from .raised import told
from .statistics import Backlog, measure
from .stored import finish, plain_sizes, shape_of

FOLDED_OUTPUTS = 32
"""An operation that returns more tensors than this, such as unbind over time, is one place for all of them."""
HELD = (-1, 0)
"""In place of an argument: the tensor was found in a variable of the person, not in a call."""
_FAULTS = 100
_traces = itertools.count()
"""Tells the marks of traces apart. A dictionary whose keys are text is smaller: by 40 bytes a node."""
_WORDS = 200
"""So many letters of an error are kept."""
_ON_A_VIEW = "on a view"


class Tensors(Entries):
    """The tensors of a trace, by their identity and by their places.

    Attributes:
        places: every place, in order of first execution.
        modules: the ``nn.Module`` objects that ran.
        paths: the ways through the person's code.
        backlog: what waits for numbers from a device.
        faults: what could not be recorded and why, with how often.
        clock: number of events so far.
        with_values: statistics of every tensor's own values are taken as well.
        mark: key of the marks in ``node.metadata``.
        first_node: sequence number of the first autograd node that is made from now on.
    """

    _paths_kind: type[Paths] = Paths

    def __init__(
        self, boundary: FrameType | None, variables: Callable[[], Mapping[str, Any]], with_values: bool
    ) -> None:
        """Start without any.

        Args:
            boundary: frames from this one outwards are not the cell's.
            variables: gives the person's variables.
            with_values: see above.
        """
        super().__init__()
        self.places: list[Place] = []
        self.modules = ModuleRegistry()
        self.paths = self._paths_kind(boundary, self.modules)
        self.backlog = Backlog()
        self.faults: dict[str, int] = {}
        self.clock = 0
        self.with_values = with_values
        self.mark = f"gradmagic {next(_traces)}"
        self._variables = variables
        self._by_key: dict[tuple[int, str, Position], Place] = {}
        self._leaves: dict[tuple[object, ...], list[Place]] = {}
        self._in_short = not with_values
        """Whether it is enough to describe a tensor that is made again."""
        self._depth = 1
        """Depth of the operation that is being recorded; see `Entry`."""
        self._deep: dict[int, dict[int, tuple[int, int]]] = {}
        """Marks of the nodes that lie deeper than `DEEPEST`, by the number autograd has given them."""
        self._sequence: list[tuple[int, int]] = []
        """Sequence number of the autograd node and index of each non-leaf's place, as they were first made."""
        self.first_node: int = torch._C._autograd._get_sequence_nr()
        self._transformed = (0, 0)
        """Sequence numbers between which transforms of torch.func have made nodes."""

    def release(self) -> None:
        """Let go of the boundary frame and everything that only mattered while the cell ran."""
        self._variables = dict
        self.paths.release()
        self._by_key.clear()
        for place in self.places:
            place.path.usual.clear()

    def made_here(self, tensor: Tensor) -> bool:
        """Whether a non-leaf was made since recording began (autograd numbers its nodes as they are made)."""
        node = tensor.grad_fn
        return node is not None and self.is_new(node)

    def is_new(self, node: Any) -> bool:
        """Whether an autograd node was made since recording began."""
        return bool(node._sequence_nr() >= self.first_node)

    def settle(self) -> None:
        """Let every device finish, and read what waits."""
        finish(place.device for place in self.places)
        self.backlog.settle()

    def fault(self, what: str, error: Exception) -> None:
        """Something of ours failed: it is disclosed in the report."""
        text = f"{what}: {_first_words(told(error))}"
        if text in self.faults or len(self.faults) < _FAULTS:
            self.faults[text] = self.faults.get(text, 0) + 1

    def tick(self) -> int:
        """Count one event."""
        self.clock += 1
        return self.clock

    def used(self, tensor: Tensor, path: Path, argument: tuple[int, int] = HELD) -> Place | None:
        """The place of a tensor that is used at `path`; one that was not seen before is taken in."""
        entry = self.entry(tensor)
        if entry is None:
            return self._adopt(tensor, path, argument)
        place = entry.place
        if place is None:
            return None
        if entry.requires_grad != tensor.requires_grad:
            self._asked(entry, place, tensor)
        elif entry.version != version_of(tensor):
            return self._changed_elsewhere(entry, place, tensor, path)
        if not tensor.requires_grad and place.constant_use is None:
            place.constant_use = path
        return place

    def _asked(self, entry: Entry, place: Place, tensor: Tensor) -> None:
        """``requires_grad`` of a leaf was switched on or off."""
        entry.requires_grad = tensor.requires_grad
        self.describe(place, tensor)
        self.sort_in(entry, tensor)

    def _changed_elsewhere(self, entry: Entry, place: Place, tensor: Tensor, path: Path) -> Place:
        """The tensor was changed in place by something that did not return it."""
        entry.version = version_of(tensor)
        known = entry.depth <= DEEPEST and torch.is_grad_enabled() and tells_its_history(tensor)
        node = tensor.grad_fn if known else None
        if node is None or self.marks(node) is not None:
            return place
        if not tensor._is_view():
            return self._changed_unseen(place, tensor, node, path)
        # A view whose base was changed has a new autograd node: its own next occurrence.
        entry.occurrence = place.count
        place.count += 1
        self._mark(node, tensor, place, entry.occurrence)
        self.sort_in(entry, tensor)
        return place

    def _changed_unseen(self, before: Place, tensor: Tensor, node: Any, path: Path) -> Place:
        """A custom ``autograd.Function`` that marks its input dirty, or the like: a new version of the tensor."""
        name = getattr(getattr(node, "_forward_cls", None), "__name__", "")
        applied = self.paths.applied(node) if name else None
        self._new_version(before, applied or path, name or "changed in place", (), tensor, [])
        return self.places[before.successor.index] if before.successor is not None else before

    def place_of(self, tensor: Tensor | None) -> Place | None:
        """The place of the newest version of this very tensor object, or None."""
        entry = self.entry(tensor) if tensor is not None else None
        return entry.place if entry is not None else None

    def take_in(self, tensor: Tensor, path: Path, wanted: Callable[[Tensor], bool]) -> None:
        """Take in a non-leaf that a variable of the person holds, when it is `wanted` and was not seen before."""
        try:
            if self.entry(tensor) is None and tensor.requires_grad and tensor.grad_fn is not None and wanted(tensor):
                self._adopt(tensor, path, HELD)
        except Exception as error:  # noqa: BLE001 - a tensor subclass of the person's may refuse what we ask
            self.fault(type(tensor).__name__, error)

    def _adopt(self, tensor: Tensor, path: Path, argument: tuple[int, int]) -> Place:
        """Take in a tensor that was not seen at its birth: from an earlier cell, or made by unseen code."""
        node = tensor.grad_fn
        marks = self.marks(node) if node is not None else None
        if marks is not None and tensor.output_nr in marks:
            index, occurrence = marks[tensor.output_nr]
            self._remember(tensor, self.places[index], occurrence)
            return self.places[index]
        name = getattr(getattr(node, "_forward_cls", None), "__name__", "")
        applied = self.paths.applied(node) if node is not None and name else None
        if applied is not None:
            several = len(node._input_metadata) > 1 if node is not None else False
            place = self._place(applied, name, (tensor.output_nr,) if several else ())
        else:
            place = self._adopted_place(path, tensor, argument)
            place.adopted = argument
            place.made_unseen = self.made_here(tensor) and not self._made_in_transform(node)
        place.op = name
        self._occurrence(place, tensor)
        if node is not None and place.count == 1:
            self._stand_in_order(place, node)
        return place

    def _made_in_transform(self, node: Any) -> bool:
        """Whether a node was made while a transform of torch.func ran: what happens inside has rows of its own."""
        first, last = self._transformed
        return node is not None and first <= int(node._sequence_nr()) < last

    def _adopted_place(self, path: Path, tensor: Tensor, argument: tuple[int, int]) -> Place:
        """A place for a tensor that was not seen at its birth.

        A leaf gets that of one which is gone and was used just so: a loop may make its parameters anew each round.
        """
        if argument is HELD or not tensor.is_leaf or not tensor.requires_grad:
            return self._place(path, _adopted_key(tensor, argument), ())
        places = self._leaves.setdefault((id(path), argument), [])
        gone = _of_gone(places)
        if gone is not None:
            return gone
        place = self._place(path, _adopted_key(tensor, argument), ())
        if len(places) < FOLDED_OUTPUTS:
            places.append(place)
        return place

    def _leaf_place(self, path: Path, name: str, position: Position) -> Place:
        """A place for a leaf that the person makes: leaves that live side by side are tensors of their own.

        ``q, k, v = (torch.randn(3, requires_grad=True) for _ in range(3))`` makes three, and a loop that binds one
        name anew in each round makes one again and again. Too many are one place.
        """
        places = self._leaves.setdefault((id(path), name, position), [])
        if not places:
            places.append(self._place(path, name, position))
            return places[0]
        gone = _of_gone(places)
        if gone is not None:
            return gone
        if len(places) > FOLDED_OUTPUTS:
            places[0].crowded = True
            return places[-1]
        places.append(self._new_place(path, name, position))
        places[-1].beside = places[0]
        return places[-1]

    def _stand_in_order(self, place: Place, node: Any) -> None:
        """A tensor that is only noticed at its use was made earlier: autograd numbers its nodes as they are made."""
        mark = (node._sequence_nr(), place.index)
        later = bisect.bisect_right(self._sequence, mark)
        if later < len(self._sequence):
            after = self.places[self._sequence[later][1]].order
            before = self.places[self._sequence[later - 1][1]].order if later else after - 1
            place.order = (before + after) / 2
        place.last_clock = self.places[self._sequence[later - 1][1]].last_clock if later else 0
        self._sequence.insert(later, mark)

    # ---- outputs

    def _output(
        self,
        path: Path,
        name: str,
        position: Position,
        tensor: Tensor,
        parents: list[Place],
        differentiable: bool,
    ) -> None:
        known = self.entry(tensor)
        if known is not None:
            self._returned_again(known, path, name, position, tensor, parents)
            return
        makes_leaf = tensor.requires_grad and tensor.is_leaf and not inside_transform()
        place = self._leaf_place(path, name, position) if makes_leaf else self._place(path, name, position)
        place.parents.update(parent.index for parent in parents)
        place.input_requires_grad = differentiable
        place.leaf_view = differentiable and tensor.is_leaf and tensor.requires_grad and bool(tensor._is_view())
        self._occurrence(place, tensor)
        if not position and not makes_leaf and path.function_apply is None and path.clip is None:
            path.usual[name] = place

    def _returned_again(
        self, known: Entry, path: Path, name: str, position: Position, tensor: Tensor, parents: list[Place]
    ) -> None:
        """The operation returned a tensor that was there before: a new version of it, or just the same."""
        before = known.place
        if self._depth > DEEPEST and tensor.requires_grad:
            known.version, known.depth = version_of(tensor), self._depth
            return
        # Without grad mode no history is made, and that of a view made there cannot even be looked at.
        node = tensor.grad_fn if torch.is_grad_enabled() else None
        fresh = node is not None and tensor.output_nr not in (self.marks(node) or {})
        if before is None:
            return
        if name == "detach_" and known.requires_grad:
            known.forget_gradient(tensor)
            self._new_version(before, path, name, position, tensor, parents)
            return
        if node is None or not fresh:
            if not tensor.requires_grad and known.version != version_of(tensor):
                # Values were written into a constant: from now on it is made of them as well.
                if any(parent.requires_grad for parent in parents):
                    self._new_version(before, path, name, position, tensor, parents)
                    return
                before.parents.update(parent.index for parent in parents if parent is not before)
            known.version = version_of(tensor)
            if known.requires_grad != tensor.requires_grad:
                self._asked(known, before, tensor)
            if len(before.aliases) < 8 and (path, position) not in before.aliases:
                before.aliases.append((path, position))
            return
        self._new_version(before, path, name, position, tensor, parents)
        base = tensor._base if tensor._is_view() else None
        base_entry = self.entry(base) if base is not None else None
        if base is not None and base_entry is not None and base_entry.place is not None:
            self._new_version(base_entry.place, path, f"{name} {_ON_A_VIEW}", (), base, parents)
            before.heir = base_entry.place.successor

    def _new_version(
        self, before: Place, path: Path, name: str, position: Position, tensor: Tensor, parents: list[Place]
    ) -> None:
        place = self._place(path, name, position)
        place.op = name.removesuffix(f" {_ON_A_VIEW}")
        place.through_view = place.op != name
        if place is not before:
            place.inherits = before
            before.changed, before.successor = path, place
            place.parents.add(before.index)
        place.parents.update(parent.index for parent in parents if parent is not place)
        place.input_requires_grad = True
        self._occurrence(place, tensor)

    def _place(self, path: Path, name: str, position: Position) -> Place:
        key = (id(path), name, position)
        place = self._by_key.get(key)
        if place is None:
            place = self._by_key[key] = self._new_place(path, name, position)
        return place

    def _new_place(self, path: Path, name: str, position: Position) -> Place:
        place = Place(len(self.places), path, name, position)
        self.places.append(place)
        return place

    def _occurrence(self, place: Place, tensor: Tensor) -> None:
        occurrence = place.count
        place.count += 1
        place.last_clock = self.tick()
        self.describe(place, tensor)
        self._remember(tensor, place, occurrence)
        if self.with_values and not place.transformed and not tensor.is_quantized:
            place.see_values(measure(tensor), occurrence, self.backlog)
        if self._depth > DEEPEST and tensor.requires_grad:
            # The operation's last node is the newest there is; so its number is known without a look at it.
            newest = torch._C._autograd._get_sequence_nr() - 1
            self._deep.setdefault(newest, {})[tensor.output_nr] = (place.index, occurrence)
            return
        if place.transformed:
            newest = torch._C._autograd._get_sequence_nr()
            self._transformed = (self._transformed[0] or (self._sequence[-1][0] if self._sequence else 1), newest)
            return
        node = tensor.grad_fn
        if node is not None:
            self._mark(node, tensor, place, occurrence)
            if not occurrence and place.adopted is None:
                self._sequence.append((node._sequence_nr(), place.index))

    def describe(self, place: Place, tensor: Tensor) -> None:
        """Note what a place's newest tensor is like, and under what circumstances it came to be."""
        place.describe(tensor)
        place.grad_enabled = torch.is_grad_enabled()
        place.transformed = inside_transform()
        if place.is_leaf and place.requires_grad:
            place.bare = tensor.grad is None

    def _remember(self, tensor: Tensor, place: Place, occurrence: int) -> None:
        entry = place.newest = Entry.of(tensor, place, occurrence, self._depth)
        before = self._entries.pop(id(tensor), None)  # a new tensor may have the id of one that is gone: it stands last
        if before is not None and before() is tensor:
            entry.kept, entry.given = before.kept, before.given
        self._entries[id(tensor)] = entry
        self.sort_in(entry, tensor)
        if max(len(self._entries), len(self._non_leaves)) > self._sweep_at:
            self.sweep()

    # ---- marks on the graph

    def marks(self, node: Any) -> dict[int, tuple[int, int]] | None:
        """This recorder's marks on an autograd node: output number -> (place index, occurrence)."""
        mark = self.mark_on(node)
        return {0: owner_of(mark)} if isinstance(mark, int) else mark

    def mark_on(self, node: Any) -> int | dict[int, tuple[int, int]] | None:
        """The same, as one number where there is one output; see `OCCURRENCE`."""
        mark: int | dict[int, tuple[int, int]] | None = node.metadata.get(self.mark)
        return mark if mark is not None or not self._deep else self._deep.get(node._sequence_nr())

    def _mark(self, node: Any, tensor: Tensor, place: Place, occurrence: int) -> None:
        """Mark an autograd node with what it has made.

        Where that is one tensor, as nearly always, with a number: a dictionary and a tuple take 300 bytes a node more.
        """
        place.made_by(node)
        mark = mark_of((place.index, occurrence))
        output = tensor.output_nr
        if output or node.metadata.setdefault(self.mark, mark) is not mark:
            node.metadata[self.mark] = {**(self.marks(node) or {}), output: (place.index, occurrence)}

    def function_node(self, node: Any, path: Path) -> Place:
        """The place of a custom ``autograd.Function`` whose output no later torch call and no name holds."""
        name = node._forward_cls.__name__
        place = self._place(self.paths.applied(node) or path, name, ())
        place.count += 1
        place.requires_grad = place.input_requires_grad = place.is_floating = True
        place.made_by(node)
        metadata = node._input_metadata[0]
        place.shape_found, place.dtype_found = plain_sizes(metadata.shape), metadata.dtype
        node.metadata[self.mark] = mark_of((place.index, place.count - 1))
        if place.count == 1:
            self._stand_in_order(place, node)
        return place

    # ---- what is alive

    def look_again(self) -> None:
        """Note what has changed about leaves without any operation: ``model.half()``, ``w.requires_grad = True``."""
        for tensor, entry in self.alive():
            place = entry.place
            if place is not None and tensor.is_leaf and not place.transformed:
                place.requires_grad, place.shape_found = tensor.requires_grad, shape_of(tensor)
                place.dtype_found, place.device_found = tensor.dtype, tensor.device

    def persons_tensors(self) -> list[Tensor]:
        """The tensors that plain variables of the person hold."""
        return [value for value in list(self._variables().values()) if issubclass(type(value), Tensor)]


def _first_words(text: str) -> str:
    """What an error says first: PyTorch's go on with a list of every backend there is."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _WORDS else f"{line[:_WORDS].rstrip()}…"


def _of_gone(places: Collection[Place]) -> Place | None:
    """The first of some places whose tensor is gone."""
    return next((place for place in places if place.newest is not None and place.newest() is None), None)


def _adopted_key(tensor: Tensor, argument: tuple[int, int]) -> str:
    """What tells adopted tensors at one path apart: themselves where they last, else which argument they are."""
    lasting = tensor.requires_grad or isinstance(tensor, torch.nn.Parameter)
    if argument is HELD or (tensor.is_leaf and lasting):
        return f"adopted {id(tensor)}"
    return f"adopted as {argument[0]}"
