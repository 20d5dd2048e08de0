"""Which tensors came to be while the cell ran, where, and from what.

A `TorchFunctionMode` sees every Python-level torch call once. Each tensor it returns becomes an occurrence of a
`Place`; its autograd node is marked with the place's index, so that a later walk of the graph knows it again.
Only weak references to tensors are kept.
"""

from __future__ import annotations

import bisect
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from threading import get_ident
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from .bindings import Position
from .calls import Calls, caller_outside, without_our_frames
from .changes import Change, ChangeLog
from .modules import ModuleRegistry, named
from .operations import (
    LEAVES_TORCH,
    argument_of,
    changes_in_place,
    factor_of,
    inside_transform,
    op_name,
    takes_shape_only,
    tensors_in,
)
from .paths import Paths, is_torchs
from .places import Entry, FailedCall, Given, Path, Place, version_of
from .raised import told
from .statistics import ACTIVATIONS, Backlog, activity, measure
from .stored import is_closed, is_watched, plain_sizes, shape_of


class Watcher(Protocol):
    """Told of what happens to leaves and their gradients beside backward."""

    def updated(self, place: Place, path: Path) -> None:
        """A leaf that requires a gradient was changed in place: by an optimizer's step, or by hand."""

    def cleared(self, tensor: Tensor, place: Place | None, path: Path) -> None:
        """The ``.grad`` of a tensor was set to None, or to zeros."""

    def given(self, place: Place | None) -> None:
        """A gradient was put into ``.grad`` by hand, or changed there."""

    def clipped_norm(self, total: Tensor, max_norm: object, path: Path) -> None:
        """``clip_grad_norm_`` has computed the total norm of the gradients."""

    def clipped_values(self, gradient: Tensor, path: Path) -> None:
        """``clip_grad_value_`` is at work on a gradient."""


Interceptor = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Runs a torch function in the recorder's place: gets what calls it with its arguments, and the arguments."""

_GRADIENT_GETTERS = frozenset({"grad", "_grad"})
_FOLDED_OUTPUTS = 32
"""An operation that returns more tensors than this, such as unbind over time, is one place for all of them."""
_KEEPS_VALUES = frozenset({"requires_grad_", "detach_", "share_memory_", "rename_"})
_FAULTS = 100
_WORDS = 200
"""So many letters of an error are kept."""
_SWEEP_AT = 20_000
DEEPEST = 20_000
"""Autograd nodes deeper than this are left alone.

PyTorch frees a graph without recursion, but not past nodes that Python has looked at: 41,000 of those in a chain
overflow an 8 MiB stack when the graph dies (measured on torch 2.13).
"""
_ON_A_VIEW = "on a view"
_HELD = (-1, 0)
"""In place of an argument: the tensor was found in a variable of the person, not in a call."""


def _outwards(frame: FrameType, steps: int) -> FrameType:
    """The frame so many steps outwards from the one that made a call."""
    frame = caller_outside(frame)
    for _ in range(steps):
        frame = frame.f_back or frame
    return frame


class Recorder(TorchFunctionMode):
    """Records tensors from entering to leaving; see the module's text.

    Attributes:
        places: every place, in order of first execution.
        modules: the ``nn.Module`` objects that ran.
        faults: what could not be recorded and why, with how often.
    """

    def __init__(
        self,
        boundary: FrameType | None,
        interceptors: dict[Any, Interceptor],
        variables: Callable[[], Mapping[str, Any]],
        with_values: bool = False,
    ) -> None:
        """Prepare a recorder.

        Args:
            boundary: frames from this one outwards are not the cell's.
            interceptors: torch functions that are run by somebody else (backward), by function.
            variables: gives the person's variables.
            with_values: take statistics of every tensor's own values as well.
        """
        super().__init__()
        self.places: list[Place] = []
        self.modules = ModuleRegistry()
        self.paths = Paths(boundary, self.modules)
        self.changes = ChangeLog()
        self.backlog = Backlog()
        self.faults: dict[str, int] = {}
        self.failed_call: FailedCall | None = None
        self.watcher: Watcher | None = None
        self.clock = 0
        self.with_values = with_values
        self.mark = object()
        """Key of this recorder's marks in ``node.metadata``."""
        self._interceptors = interceptors
        self._variables = variables
        self._by_key: dict[tuple[int, str, Position], Place] = {}
        self._entries: dict[int, Entry] = {}
        self._leaves: dict[tuple[object, ...], list[Place]] = {}
        self._sweep_at = _SWEEP_AT
        self._calls = Calls()
        self._others: list[TorchFunctionMode] | None = None
        """The other modes on the stack, once the recorder is about to leave it."""
        self._resting = False
        self._thread = get_ident()
        self._depth = 1
        """Depth of the operation that is being recorded; see `Entry`."""
        self._deep: dict[int, dict[int, tuple[int, int]]] = {}
        """Marks of the nodes that lie deeper than `DEEPEST`, by the number autograd has given them."""
        self._sequence: list[tuple[int, int]] = []
        """Sequence number of the autograd node and index of each non-leaf's place, as they were first made."""
        self._first_node: int = torch._C._autograd._get_sequence_nr()
        self._transformed = (0, 0)
        """Sequence numbers between which transforms of torch.func have made nodes."""

    def start(self) -> None:
        """Begin recording."""
        self.__enter__()  # type: ignore[no-untyped-call]  # TorchFunctionMode's own

    def stop(self) -> None:
        """Stop recording: leave the mode stack, also from below a mode that the block left behind.

        Once more does no harm, and finishes what an interrupt kept from being done.
        """
        stack: Any = torch.overrides._get_current_function_mode_stack
        if self._others is None:
            self._others = [mode for mode in stack() if mode is not self]
        while len(stack()) > len(self._others) or self in stack():
            torch.overrides._pop_mode()
        for mode in self._others[len(stack()) :]:
            torch.overrides._push_mode(mode)
        self._others = None

    def made_here(self, tensor: Tensor) -> bool:
        """Whether a non-leaf was made since recording began (autograd numbers its nodes as they are made)."""
        node = tensor.grad_fn
        return node is not None and node._sequence_nr() >= self._first_node

    def release(self) -> None:
        """Let go of the boundary frame and everything that only mattered while the cell ran."""
        self._interceptors = {}
        self._variables = dict
        self.watcher = None
        self.paths.release()
        self._by_key.clear()
        self._calls.release()

    def fault(self, what: str, error: Exception) -> None:
        """Something of ours failed: it is disclosed in the report."""
        text = f"{what}: {_first_words(told(error))}"
        if text in self.faults or len(self.faults) < _FAULTS:
            self.faults[text] = self.faults.get(text, 0) + 1

    def tick(self) -> int:
        """Count one event."""
        self.clock += 1
        return self.clock

    def rest(self) -> None:
        """Record nothing as long as PyTorch's own code makes the calls: an optimizer of its own is at work.

        The recorder wakes up by itself at the first call from elsewhere, should the optimizer raise.
        """
        self._resting = True

    def wake(self) -> None:
        """Record again."""
        self._resting = False

    def is_elsewhere(self) -> bool:
        """Whether the code that is running now, in another thread, is not what is recorded."""
        return get_ident() != self._thread

    def _still_rests(self, frame: FrameType) -> bool:
        self._resting = is_torchs(frame.f_code)
        return self._resting

    # ---- the hot path

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a torch call and record the tensors it makes."""
        __tracebackhide__ = True
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # dynamo follows the code up to here and takes in the call alone
            return func(*args, **kwargs)
        frame = sys._getframe(1)
        call = self._calls.by(frame)
        if torch._C._get_tracing_state() is not None or (self._resting and self._still_rests(frame)):
            # While torch.jit.trace takes down what is called, what we look at would get into its graph.
            return call(func, args, kwargs)
        interceptor = None if inside_transform() else self._interceptors.get(func)
        try:
            result = call(func, args, kwargs) if interceptor is None else interceptor(partial(call, func), args, kwargs)
        except BaseException as error:  # the person's own: passed on as it is, without our frame in its traceback
            error.__traceback__ = without_our_frames(error.__traceback__)
            self._note_failed(func, args, kwargs, error)
            raise
        leaves = getattr(func, "__name__", "") in LEAVES_TORCH
        if leaves or result is None or isinstance(result, (Tensor, tuple, list, dict)):
            try:
                with torch._C.DisableTorchFunction():
                    if leaves:
                        self._left_torch(op_name(func), args)
                    else:
                        self._record(func, args, kwargs, result)
            except Exception as error:  # noqa: BLE001 - a fault of ours must not become the person's
                self.fault(op_name(func), error)
        return result

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = op_name(func)
        outputs = self._outputs(func, name, args, result)
        if not outputs:
            return
        path = self.paths.of(sys._getframe(2))
        if path.function_apply is not None:
            outer = self.paths.outside_function(path)
            for _, tensor in itertools.chain(tensors_in(args), tensors_in(kwargs)):
                if tensor.requires_grad and tensor.is_leaf:
                    self.used(tensor, outer)
            return
        in_place = {id(tensor) for _, tensor in outputs} if changes_in_place(func, kwargs) else frozenset()
        if in_place and not torch.is_grad_enabled() and self._only_fills(args, kwargs, in_place):
            return
        parents, differentiable = self._consume(path, args, kwargs, {id(tensor) for _, tensor in outputs}, in_place)
        if takes_shape_only(name):
            parents, differentiable = [], False
        self._made(path, name, outputs, parents, differentiable)
        for _, tensor in outputs if in_place and name not in _KEEPS_VALUES else ():
            self.changed(tensor, path, name)
        if path.clip is not None:
            self._clipping(name, args, outputs[0][1], path, _outwards(sys._getframe(2), path.clip))
        elif differentiable:
            self._note_operation(name, args, kwargs, outputs[0][1])

    def _only_fills(self, args: tuple[Any, ...], kwargs: dict[str, Any], changed: Collection[int]) -> bool:
        """Whether a tensor that nothing here has used gets new values, as when a module initialises its parameters.

        Not so where the person writes what was computed here into a constant: ``wanted[mask] = target(x)``.
        """
        given = [tensor for _, tensor in itertools.chain(tensors_in(args), tensors_in(kwargs))]
        filled = [tensor for tensor in given if id(tensor) in changed]
        if any(self.entry(tensor) for tensor in filled):
            return False
        learns = any(isinstance(tensor, torch.nn.Parameter) or tensor.requires_grad for tensor in filled)
        known = any(self.entry(tensor) for tensor in given if id(tensor) not in changed)
        return learns or not known or is_torchs(sys._getframe(3).f_code)

    def _made(
        self, path: Path, name: str, outputs: list[tuple[Position, Tensor]], parents: list[Place], differentiable: bool
    ) -> None:
        fold = len(outputs) > _FOLDED_OUTPUTS
        for position, tensor in outputs:
            self._output(path, name, () if fold else position, tensor, parents, differentiable)

    def _left_torch(self, name: str, args: tuple[Any, ...]) -> None:
        """``.item()`` and the like: what comes out is no tensor, and no gradient follows it."""
        tensor = args[0]
        entry = self.entry(tensor)
        made_here = entry is not None and entry.place is not None and bool(entry.place.parents)
        if not (tensor.requires_grad or made_here):
            return
        path = self.paths.of(sys._getframe(2))
        parent = self.used(tensor, path, (0, len(args)))
        place = self._place(path, name, ())
        place.leaves_torch = True
        place.count += 1
        place.last_clock = self.tick()
        place.parents.update(() if parent is None else (parent.index,))
        place.input_requires_grad = place.input_requires_grad or tensor.requires_grad

    def ran_alone(self, module: Any, call: FrameType, given: Any, result: Any) -> None:
        """A module has run without the recorder: its result is one row.

        Args:
            module: what ran.
            call: frame of its ``Module._call_impl``.
            given: its arguments.
            result: what it returned.
        """
        path = self.paths.outside_module(call)
        outputs = list(tensors_in(result))
        parents, asks = self._consume(path, given, {}, {id(tensor) for _, tensor in outputs}, ())
        for _, parameter in named(module, "named_parameters"):
            parent = self.used(parameter, path)
            parents.extend([parent] if parent is not None else [])
            asks = asks or parameter.requires_grad
        self._made(path, type(module).__name__, outputs, parents, asks)

    def changed(self, tensor: Tensor, path: Path, name: str) -> None:
        """Remember who changed a tensor in place, and tell whom it concerns when that is an update of a leaf."""
        entry = self.entry(tensor)
        place = entry.place if entry is not None else None
        if entry is not None and entry.gradient_of is not None and self.watcher is not None:
            self._gradient_changed(entry.gradient_of, path, name, self.watcher)
        if place is None:
            return
        base = self.place_of(tensor._base)
        unseen = place.op == "data"
        of_base = base.index if base is not None else None
        change = Change(place.index, of_base, version_of(tensor), path, name, self.tick(), unseen)
        self.changes.note(tensor, change)
        if self.watcher is None:
            return
        for leaf in [self.places[index] for index in place.parents] if unseen else [place]:
            if leaf.is_leaf and leaf.requires_grad:
                self.watcher.updated(leaf, path)

    def _gradient_changed(self, ref: TensorWeakRef, path: Path, name: str, watcher: Watcher) -> None:
        """A ``.grad`` was changed in place."""
        if path.clip is not None:
            return
        owner = ref()
        place = self.place_of(owner)
        if name.removeprefix("_foreach_") in ("zero_", "zero"):
            self._cleared(owner, place, path)
        else:
            watcher.given(place)

    def _cleared(self, tensor: Tensor, place: Place | None, path: Path) -> None:
        if place is not None:
            place.cleared = (self.tick(), path)
        if self.watcher is not None:
            self.watcher.cleared(tensor, place, path)

    def _clipping(self, name: str, args: tuple[Any, ...], result: Tensor, path: Path, frame: FrameType) -> None:
        """Inside `clip_grad_norm_` and `clip_grad_value_`: the total norm is the norm of the stacked single norms."""
        if self.watcher is None:
            return
        given = self.place_of(args[0]) if args and isinstance(args[0], Tensor) else None
        stacked = given is not None and given.op == "stack"
        if name.endswith("vector_norm") and stacked and "max_norm" in frame.f_locals:
            self.watcher.clipped_norm(result, frame.f_locals["max_norm"], self.paths.outside_clipping(path))
        elif name.removeprefix("_foreach_") in ("clamp_", "clamp_min_") and "clip_value" in frame.f_locals:
            self.watcher.clipped_values(result, self.paths.outside_clipping(path))

    def _note_operation(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """What the diagnosis wants to know of some operations: which units answer, what number it multiplies by."""
        if name not in ACTIVATIONS and name not in ("mul", "div"):
            return
        place = self.place_of(result)
        if place is None or place.transformed:
            return
        if name in ACTIVATIONS:
            place.activity = activity(name, args, kwargs, result) or place.activity
        elif (factor := factor_of(name, args)) is not None:
            place.number = factor

    def _note_failed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: BaseException) -> None:
        """What a torch function was given when it raised, should this be what ends the cell."""
        try:
            with torch._C.DisableTorchFunction():
                given = []
                path = self.paths.of(sys._getframe(2))
                for position, tensor in itertools.chain(tensors_in(args), tensors_in(kwargs)):
                    argument = argument_of(position, args)
                    place = self.used(tensor, path, argument) if _tells_its_history(tensor) else None
                    given.append(Given.of(tensor, place.index if place is not None else None, argument))
                self.failed_call = FailedCall(id(error), op_name(func), path, tuple(given))
        except Exception as fault:  # noqa: BLE001 - the person's error is on its way and must not be replaced
            self.fault(op_name(func), fault)

    def _outputs(self, func: Any, name: str, args: tuple[Any, ...], result: Any) -> list[tuple[Position, Tensor]]:
        method = getattr(func, "__name__", "")
        if result is None:
            if method == "__set__":
                self._property_set(func, args)
                return []
            return list(tensors_in(args[0])) if args and changes_in_place(func, {}) else []
        if method == "__get__" and name in _GRADIENT_GETTERS:
            # A gradient that is looked at is no new tensor.
            entry = self._entries[id(result)] = Entry(TensorWeakRef(result), None, 0, result, 1)
            entry.gradient_of = TensorWeakRef(args[0])
            owner = self.place_of(args[0])
            if owner is not None and not is_torchs(sys._getframe(3).f_code):
                owner.read = True
            return []
        if getattr(func, "__module__", None) == "torch.nn.init":
            return []
        return list(tensors_in(result))

    def _property_set(self, func: Any, args: tuple[Any, ...]) -> None:
        if getattr(func, "__self__", None) is not Tensor.grad or len(args) < 2:
            return
        place = self.place_of(args[0])
        if args[1] is None:
            self._cleared(args[0], place, self.paths.of(sys._getframe(4)))
        elif self.watcher is not None:
            self.watcher.given(place)
            if place is not None:
                place.given = True

    # ---- inputs

    def _consume(
        self,
        path: Path,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        returned: Collection[int],
        changed: Collection[int],
    ) -> tuple[list[Place], bool]:
        """The places of an operation's inputs, and whether any of them asks for a gradient.

        `returned` are the ids of the inputs that came back as outputs: what they are now is the output's matter.
        `changed` are those of them that the operation changed in place.
        """
        parents = []
        differentiable = False
        depth = self._depth = 1
        for position, tensor in itertools.chain(tensors_in(args), tensors_in(kwargs)):
            if id(tensor) in returned:
                entry = self.entry(tensor)
                place = entry.place if entry is not None else None
                asks = entry.requires_grad if entry is not None else False
                if entry is None and (id(tensor) not in changed or isinstance(tensor, torch.nn.Parameter)):
                    place, asks = self._adopt(tensor, path, argument_of(position, args)), tensor.requires_grad
            else:
                place, asks = self.used(tensor, path, argument_of(position, args)), tensor.requires_grad
            if place is not None:
                parents.append(place)
            if asks and (entry := self._entries.get(id(tensor))) is not None:
                depth = max(depth, entry.depth + 1)
            differentiable = differentiable or asks
        self._depth = depth
        return parents, differentiable

    def used(self, tensor: Tensor, path: Path, argument: tuple[int, int] = _HELD) -> Place | None:
        """The place of a tensor that is used at `path`; one that was not seen before is taken in."""
        entry = self.entry(tensor)
        if entry is None:
            return self._adopt(tensor, path, argument)
        place = entry.place
        if place is None:
            return None
        if entry.requires_grad != tensor.requires_grad:
            entry.requires_grad = tensor.requires_grad
            self._describe(place, tensor)
        elif entry.version != version_of(tensor):
            return self._changed_elsewhere(entry, place, tensor, path)
        if not tensor.requires_grad and place.constant_use is None:
            place.constant_use = path
        return place

    def _changed_elsewhere(self, entry: Entry, place: Place, tensor: Tensor, path: Path) -> Place:
        """The tensor was changed in place by something that did not return it."""
        entry.version = version_of(tensor)
        known = entry.depth <= DEEPEST and torch.is_grad_enabled() and _tells_its_history(tensor)
        node = tensor.grad_fn if known else None
        if node is None or self.marks(node) is not None:
            return place
        if not tensor._is_view():
            return self._changed_unseen(place, tensor, node, path)
        # A view whose base was changed has a new autograd node: its own next occurrence.
        entry.occurrence = place.count
        place.count += 1
        self._mark(node, tensor, place, entry.occurrence)
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

    def entry(self, tensor: Tensor) -> Entry | None:
        """What is known of this very tensor object."""
        entry = self._entries.get(id(tensor))
        return entry if entry is not None and entry.ref() is tensor else None

    def take_in(self, tensor: Tensor, path: Path, wanted: Callable[[Tensor], bool]) -> None:
        """Take in a non-leaf that a variable of the person holds, when it is `wanted` and was not seen before."""
        try:
            if self.entry(tensor) is None and tensor.requires_grad and tensor.grad_fn is not None and wanted(tensor):
                self._adopt(tensor, path, _HELD)
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
        if argument is _HELD or not tensor.is_leaf or not tensor.requires_grad:
            return self._place(path, _adopted_key(tensor, argument), ())
        places = self._leaves.setdefault((id(path), argument), [])
        gone = _of_gone(places)
        if gone is not None:
            return gone
        place = self._place(path, _adopted_key(tensor, argument), ())
        if len(places) < _FOLDED_OUTPUTS:
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
        if len(places) > _FOLDED_OUTPUTS:
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
                known.requires_grad = tensor.requires_grad
                self._describe(before, tensor)
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
        self._describe(place, tensor)
        self._remember(tensor, place, occurrence)
        if self.with_values and not place.transformed and not tensor.is_quantized:
            place.see_values(measure(tensor), occurrence)
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

    def _describe(self, place: Place, tensor: Tensor) -> None:
        place.requires_grad = tensor.requires_grad
        place.is_leaf = tensor.is_leaf
        place.is_parameter = isinstance(tensor, torch.nn.Parameter)
        place.is_floating = tensor.is_floating_point() or tensor.is_complex()
        place.shape = shape_of(tensor)
        place.dtype = str(tensor.dtype).removeprefix("torch.")
        place.device = str(tensor.device)
        place.grad_enabled = torch.is_grad_enabled()
        place.inference = tensor.is_inference()
        place.transformed = inside_transform()
        if place.is_leaf and place.requires_grad:
            place.bare = tensor.grad is None

    def _remember(self, tensor: Tensor, place: Place, occurrence: int) -> None:
        place.ref = TensorWeakRef(tensor)
        self._entries.pop(id(tensor), None)  # a new tensor may have the id of one that is gone: it stands at the end
        self._entries[id(tensor)] = Entry(place.ref, place, occurrence, tensor, self._depth)
        if len(self._entries) > self._sweep_at:
            self._sweep()

    def _sweep(self) -> None:
        """Forget the tensors that are gone."""
        self._entries = {key: entry for key, entry in self._entries.items() if entry.ref() is not None}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._entries))

    # ---- marks on the graph

    def marks(self, node: Any) -> dict[int, tuple[int, int]] | None:
        """This recorder's marks on an autograd node: output number -> (place index, occurrence)."""
        marks: dict[int, tuple[int, int]] | None = node.metadata.get(self.mark)
        return marks or (self._deep.get(node._sequence_nr()) if self._deep else None)

    def _mark(self, node: Any, tensor: Tensor, place: Place, occurrence: int) -> None:
        place.grad_fn = node.name().removeprefix("torch::autograd::")
        marks = node.metadata.setdefault(self.mark, {})
        marks[tensor.output_nr] = (place.index, occurrence)

    def function_node(self, node: Any, path: Path) -> Place:
        """The place of a custom ``autograd.Function`` whose output no later torch call and no name holds."""
        name = node._forward_cls.__name__
        place = self._place(self.paths.applied(node) or path, name, ())
        place.count += 1
        place.requires_grad = place.input_requires_grad = place.is_floating = True
        place.grad_fn = node.name()
        metadata = node._input_metadata[0]
        place.shape, place.dtype = plain_sizes(metadata.shape), str(metadata.dtype).removeprefix("torch.")
        node.metadata[self.mark] = {0: (place.index, place.count - 1)}
        if place.count == 1:
            self._stand_in_order(place, node)
        return place

    # ---- what is alive

    def look_again(self) -> None:
        """Note what has changed about leaves without any operation: ``model.half()``, ``w.requires_grad = True``."""
        for tensor, entry in self.alive():
            place = entry.place
            if place is not None and tensor.is_leaf and not place.transformed:
                place.requires_grad, place.shape = tensor.requires_grad, shape_of(tensor)
                place.dtype, place.device = str(tensor.dtype).removeprefix("torch."), str(tensor.device)

    def persons_tensors(self) -> list[Tensor]:
        """The tensors that plain variables of the person hold."""
        return [value for value in list(self._variables().values()) if issubclass(type(value), Tensor)]

    def alive(self) -> Iterator[tuple[Tensor, Entry]]:
        """Every recorded tensor that still exists, in the order it was last made."""
        for entry in list(self._entries.values()):
            tensor = entry.ref()
            if tensor is not None and entry.place is not None and _tells_its_history(tensor):
                yield tensor, entry

    def retain(self) -> None:
        """Ask PyTorch to keep ``.grad`` of every non-leaf that is still alive.

        Done just before backward rather than at birth: retain_grad does not follow every in-place operation
        (``t_``, ``squeeze_``, ``unsqueeze_``...) to the newest version.
        """
        with torch._C.DisableTorchFunction():
            self._sweep()
            for tensor, entry in self.alive():
                if tensor.requires_grad and not tensor.is_leaf and not tensor.retains_grad:
                    self._retain(tensor, entry)

    def _retain(self, tensor: Tensor, entry: Entry) -> None:
        if tensor.layout is not torch.strided or (entry.place is not None and entry.place.transformed):
            return  # retain_grad on a sparse CSR tensor makes backward itself raise
        if is_watched() or is_closed(tensor):
            return  # to keep a gradient, PyTorch clones it, and a mode or class of the person's would see that
        try:
            tensor.retain_grad()
        except RuntimeError as error:
            self.fault("retain_grad", error)


def _tells_its_history(tensor: Tensor) -> bool:
    """Whether autograd can be asked about a tensor: a view from ``unbind`` whose base was changed raises at a look."""
    try:
        return tensor.is_leaf or tensor.grad_fn is not None
    except RuntimeError:
        return False


def _first_words(text: str) -> str:
    """What an error says first: PyTorch's go on with a list of every backend there is."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _WORDS else f"{line[:_WORDS].rstrip()}…"


def _of_gone(places: Collection[Place]) -> Place | None:
    """The first of some places whose tensor is gone."""
    return next((place for place in places if place.ref is not None and place.ref() is None), None)


def _adopted_key(tensor: Tensor, argument: tuple[int, int]) -> str:
    """What tells adopted tensors at one path apart: themselves where they last, else which argument they are."""
    lasting = tensor.requires_grad or isinstance(tensor, torch.nn.Parameter)
    if argument is _HELD or (tensor.is_leaf and lasting):
        return f"adopted {id(tensor)}"
    return f"adopted as {argument[0]}"
