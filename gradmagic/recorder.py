"""Which tensors came to be while the cell ran, where, and from what.

A `TorchFunctionMode` sees every Python-level torch call once. What is known of the tensors it is given and returns is
kept in `tensors`; here is what calls do: to tensors, to gradients, and to what leaves torch.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from threading import get_ident
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from .answers import Answers
from .bindings import Position
from .calls import Calls, caller_outside, without_our_frames
from .changes import Change, ChangeLog
from .entries import tells_its_history
from .modules import named
from .operations import (
    TorchFunction,
    argument_of,
    changes_in_place,
    factor_of,
    inside_transform,
    lasts,
    op_name,
    tensors_in,
)
from .paths import is_returned_input, is_torchs
from .places import Entry, FailedCall, Given, Path, Place, version_of
from .repeats import NOTED, Repeats
from .statistics import ACTIVATIONS, activity
from .tensors import FOLDED_OUTPUTS


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

_HOLDS_TENSORS = (Tensor, tuple, list, dict)
_FUNCTIONS = 4_096
"""So many torch functions are known at most."""
_tracing_state = torch._C._get_tracing_state
_other_modes = torch._C._len_torch_function_stack
_KEEPS_VALUES = frozenset({"requires_grad_", "detach_", "share_memory_", "rename_"})


def _outwards(frame: FrameType, steps: int) -> FrameType:
    """The frame so many steps outwards from the one that made a call."""
    frame = caller_outside(frame)
    for _ in range(steps):
        frame = frame.f_back or frame
    return frame


class Recorder(Repeats, TorchFunctionMode):
    """Records tensors from entering to leaving; see the module's text.

    Attributes:
        changes: what was changed in place.
        failed_call: the last torch call that raised, or None.
        watcher: told of what happens beside backward, or None.
        nodes_seen: code other than ours has looked at autograd nodes, and may have hooks there.
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
        super().__init__(boundary, variables, with_values)
        self.changes = ChangeLog()
        self.failed_call: FailedCall | None = None
        self.watcher: Watcher | None = None
        self.nodes_seen = False
        self._interceptors = interceptors
        self._functions: dict[Any, tuple[TorchFunction, Interceptor | None]] = {}
        """Torch functions by themselves: what is known of them, and who runs them instead."""
        self._calls = Calls()
        self._answers = Answers()
        self._others: list[TorchFunctionMode] | None = None
        """The other modes on the stack, once the recorder is about to leave it."""
        self._resting = False
        self._thread = get_ident()
        self._pass: tuple[int, Path] | None = None

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

    def release(self) -> None:
        """Let go of everything that only mattered while the cell ran."""
        super().release()
        self._interceptors = {}
        self._functions = {}
        self.watcher = self._pass = None
        self._calls.release()

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
        return get_ident() != self._thread and not self.runs_for_pass()

    def listens_to(self, task: int, path: Path) -> None:
        """A node of a pass is about to run: its number among autograd's, and where it was called."""
        self._pass = task, path

    def runs_for_pass(self) -> bool:
        """Whether the running code, hooks of the person's, is part of a pass that is listened to.

        For each device but the CPU autograd has a thread of its own, where nodes and hooks run.
        """
        task = torch._C._current_graph_task_id()
        return self._pass is not None and task == self._pass[0]

    def path_here(self, depth: int) -> Path:
        """The path to the code that is running, `depth` frames above the caller; through a pass, if need be."""
        path = self.paths.here(depth + 1)
        if self._pass is not None and get_ident() != self._thread and self.runs_for_pass():
            return self.paths.inside(path, self._pass[1])
        return path

    def _still_rests(self, frame: FrameType) -> bool:
        self._resting = is_torchs(frame.f_code)
        return self._resting

    # ---- the hot path

    def __torch_function__(  # noqa: C901 - split, it would cost 60 ns a part
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a torch call and record the tensors it makes."""
        __tracebackhide__ = True
        if is_dynamo_compiling() or torch.compiler._is_compiling_flag:  # dynamo takes in the call alone
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        frame = sys._getframe(1)
        known_call = self._calls.known.get(id(frame.f_code) + frame.f_lasti)
        call = known_call[0] if known_call is not None else self._calls.by(frame)
        if _tracing_state() is not None or (self._resting and self._still_rests(frame)):
            # While torch.jit.trace takes down what is called, what we look at would get into its graph.
            return call(func, args, kwargs)
        try:
            known = self._functions.get(func)
        except Exception:  # noqa: BLE001 - a callable of the person's, which cannot be hashed
            known = TorchFunction(func), None
        function, interceptor = known or self._learn(func)
        transforming = inside_transform()
        try:
            if interceptor is None or transforming:
                result = call(func, args, kwargs)
            else:
                result = interceptor(partial(call, func), args, kwargs)
        except BaseException as error:  # the person's own: passed on as it is, without our frame in its traceback
            error.__traceback__ = without_our_frames(error.__traceback__)
            self._note_failed(func, args, kwargs, error)
            raise
        kind = type(result)
        if kind is Tensor or function.leaves_torch or result is None or isinstance(result, _HOLDS_TENSORS):
            try:
                in_short = kind is Tensor and function.plain and not transforming and not kwargs
                # Where there is no other mode, nobody sees how plain tensors are looked at; to hide it takes 0.4 us.
                seen = _other_modes()
                if in_short and not seen and self.record_again(frame, function.name, args, result):
                    return result
                with torch._C.DisableTorchFunction():
                    if function.leaves_torch:
                        self._left_torch(function.name, args)
                    elif not (in_short and seen and self.record_again(frame, function.name, args, result)):
                        self._record(func, function, args, kwargs, result)
            except Exception as error:  # noqa: BLE001 - a fault of ours must not become the person's
                self.fault(function.name, error)
        return result

    def _learn(self, func: Any) -> tuple[TorchFunction, Interceptor | None]:
        """What is known of a torch function, and who runs it instead."""
        self.nodes_seen = self.nodes_seen or getattr(func, "__self__", None) is Tensor.grad_fn
        found = TorchFunction(func), self._interceptors.get(func)
        if lasts(func) and len(self._functions) < _FUNCTIONS:
            self._functions[func] = found
        return found

    def _record(
        self, func: Any, function: TorchFunction, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        name = function.name
        outputs = self._outputs(func, function, args, result)
        if not outputs:
            return
        path = self.paths.of(sys._getframe(2))
        if path.function_apply is not None or is_returned_input(name, args):
            outer = self.paths.outside_function(path)
            for _, tensor in itertools.chain(tensors_in(args), tensors_in(kwargs)):
                if tensor.requires_grad and tensor.is_leaf:
                    self.used(tensor, outer)
            return
        changes = function.in_place or (bool(kwargs) and changes_in_place(func, kwargs))
        in_place = {id(tensor) for _, tensor in outputs} if changes else frozenset()
        if in_place and not torch.is_grad_enabled() and self._only_fills(args, kwargs, in_place):
            return
        parents, differentiable = self._consume(path, args, kwargs, {id(tensor) for _, tensor in outputs}, in_place)
        if function.shape_only:
            parents, differentiable = [], False
        self._made(path, name, outputs, parents, differentiable)
        for _, tensor in outputs if in_place and name not in _KEEPS_VALUES else ():
            self.changed(tensor, path, name)
        if path.clip is not None:
            self._clipping(name, args, outputs[0][1], path, _outwards(sys._getframe(2), path.clip))
        elif differentiable:
            self.note_operation(name, args, kwargs, outputs[0][1])

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
        fold = len(outputs) > FOLDED_OUTPUTS
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

    def note_operation(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """What the diagnosis wants to know of some operations: which units answer, what number it multiplies by."""
        if name not in NOTED:
            return
        place = self.place_of(result)
        if place is None or place.transformed:
            return
        if name in ACTIVATIONS:
            kept = self._answers.keep(place.activity, name, result)
            place.activity = kept or activity(name, args, kwargs, result) or place.activity
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
                    place = self.used(tensor, path, argument) if tells_its_history(tensor) else None
                    given.append(Given.of(tensor, place.index if place is not None else None, argument))
                self.failed_call = FailedCall(id(error), op_name(func), path, tuple(given))
        except Exception as fault:  # noqa: BLE001 - the person's error is on its way and must not be replaced
            self.fault(op_name(func), fault)

    def _outputs(
        self, func: Any, function: TorchFunction, args: tuple[Any, ...], result: Any
    ) -> list[tuple[Position, Tensor]]:
        if result is None:
            if function.sets:
                self._property_set(func, args)
                return []
            return list(tensors_in(args[0])) if args and function.in_place else []
        if function.reads_gradient:
            # A gradient that is looked at is no new tensor.
            entry = self._entries[id(result)] = Entry.of(result, None, 0, 1)
            entry.gradient_of = TensorWeakRef(args[0])
            owner = self.place_of(args[0])
            if owner is not None and not is_torchs(sys._getframe(3).f_code):
                owner.read = True
            return []
        return [] if function.initialises else list(tensors_in(result))

    def _property_set(self, func: Any, args: tuple[Any, ...]) -> None:
        if getattr(func, "__self__", None) is not Tensor.grad or len(args) < 2:
            return
        entry = self.entry(args[0])
        if entry is not None:
            entry.given, entry.kept = args[1] is not None, None
        place = entry.place if entry is not None else None
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
