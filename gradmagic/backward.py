"""Which tensor backward starts from, running it, and the ledger of every pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .accumulation import GradientBook
from .entries import is_deep
from .failures import failure_of, is_freed, unseen_changes
from .graph import Listener
from .guest import GuestParty, guest_of
from .journal import Journal
from .keeping import retain
from .operations import tensors_in
from .passes import Loss, Pass, PassFunction, PassLog
from .places import Entry, Path, Place, Source
from .raised import told
from .recorder import Interceptor, Recorder
from .statistics import Pending, measure
from .stored import is_capturing, out_of_sight, shape_of, values_of
from .walk import nodes_below


class Ledger:
    """Runs every backward pass of a trace, and keeps the log of them.

    Attributes:
        log: the passes.
        book: what the ``.grad`` of each leaf is made of.
        journal: the lines that cleared and clipped gradients.
        after_pass: called after each pass that the cell has run, or None.
    """

    def __init__(self, zero_grad: bool) -> None:
        self.log = PassLog()
        self.book = GradientBook()
        self.journal = Journal()
        self.after_pass: Callable[[], None] | None = None
        self._zero_grad = zero_grad
        self._zeroed: set[int] = set()
        self._recorder: Recorder | None = None
        self._listeners: list[Listener] = []
        self._visit: _Visit | None = None

    def interceptors(self) -> dict[Any, Interceptor]:
        """The torch functions that run backward, and what to run in their place."""
        return {
            Tensor.backward: self._tensor_backward,
            torch.autograd.backward: self._autograd_backward,
            torch.autograd.grad: self._autograd_grad,
        }

    def watch(self, recorder: Recorder) -> None:
        """Work for this recorder."""
        self._recorder = recorder
        recorder.watcher = self

    def hang_up(self) -> None:
        """End what a pass has begun and an interrupt has kept from being ended."""
        while self._listeners:
            self._listeners[-1].detach()
            self._listeners.pop()
        if self._visit is not None:
            self._visit.end(failed=True)
            self._visit = None

    def release(self) -> None:
        """Let go of the recorder."""
        self._recorder = self.after_pass = None

    @property
    def ran_by_cell(self) -> bool:
        """Whether the cell itself ran backward (``autograd.grad`` alone does not count)."""
        return any(loss.function == "backward" and loss.path is not None for loss in self.log.losses)

    # ---- what happens to gradients beside backward (`recorder.Watcher`)

    def updated(self, place: Place, path: Path) -> None:
        """A leaf was changed in place."""
        self.book.updated(place, path)
        self.journal.interrupted()

    def cleared(self, tensor: Tensor, place: Place | None, path: Path) -> None:
        """The ``.grad`` of a tensor was cleared."""
        if place is not None and self.book.cleared(place, path):
            self.journal.cleared(id(tensor), path)

    def given(self, place: Place | None) -> None:
        """A gradient was put into ``.grad`` by hand."""
        self.book.given(place)

    def clipped_norm(self, total: Tensor, max_norm: object, path: Path) -> None:
        """``clip_grad_norm_`` has computed the total norm."""
        if max_norm == math.inf:
            self.book.measured()
        if self._recorder is None:
            return
        line, pending = self.journal.clipped_norm(path), measure(total)
        limit = float(max_norm) if isinstance(max_norm, (int, float)) else None
        step = line.count - 1
        self._recorder.backlog.when_known(pending.waiting, lambda: line.norm_was(pending.result().mean, limit, step))

    def clipped_values(self, gradient: Tensor, path: Path) -> None:
        """``clip_grad_value_`` is at work."""
        self.journal.clipped_values(id(gradient), path)

    # ---- passes that the cell runs

    def _tensor_backward(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = _argument(args, kwargs, 4, "inputs")
        keeps = _argument(args, kwargs, 2, "retain_graph"), _argument(args, kwargs, 3, "create_graph")
        with self._running("backward", args[:1], inputs, keeps):
            return call(args, kwargs)

    def _autograd_backward(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        roots = _argument(args, kwargs, 0, "tensors")
        inputs = _argument(args, kwargs, 5, "inputs")
        keeps = _argument(args, kwargs, 2, "retain_graph"), _argument(args, kwargs, 3, "create_graph")
        with self._running("backward", roots, inputs, keeps):
            return call(args, kwargs)

    def _autograd_grad(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        roots = _argument(args, kwargs, 0, "outputs")
        inputs = _argument(args, kwargs, 1, "inputs")
        keeps = _argument(args, kwargs, 3, "retain_graph"), _argument(args, kwargs, 4, "create_graph")
        with self._running("autograd.grad", roots, inputs, keeps) as listener:
            result = call(args, kwargs)
            self._returned(listener, inputs, result)
        return result

    def _returned(self, listener: Listener | None, inputs: Any, gradients: Any) -> None:
        """Gradients that ``autograd.grad`` returns flow past the hooks of the tensors they were asked for."""
        recorder = self._recorder
        if recorder is None or listener is None:
            return
        for (_, tensor), (_, gradient) in zip(tensors_in(inputs), _results(gradients), strict=False):
            entry = recorder.entry(tensor)
            place = entry.place if entry is not None else None
            if entry is None or place is None or gradient is None or place.index in listener.received_by:
                continue
            listener.received(place.index, entry.occurrence, gradient)

    @contextmanager
    def _running(
        self, function: PassFunction, roots: Any, inputs: Any, keeps: tuple[Any, Any]
    ) -> Iterator[Listener | None]:
        """Listen to a pass that the cell runs."""
        recorder = self._recorder
        if recorder is None:
            yield None
            return
        # Two frames of contextlib and one of ours lie between here and the recorder's handler.
        path = recorder.paths.here(4)
        keep, create = keeps
        if self.log.is_full and not is_capturing():
            recorder.backlog.settle()  # which passes are sick, and so not to be forgotten
        done = self.log.begin(path, function, recorder.tick())
        done.frees_graph = not (create if keep is None else keep)
        if inputs is not None:
            asked = [recorder.place_of(tensor) for _, tensor in tensors_in(inputs)]
            done.asked = tuple(place.index for place in asked if place is not None)
            done.limited = True
        with self._listening(recorder, path, done, [tensor for _, tensor in tensors_in(roots)]) as listener:
            yield listener
        if self.after_pass is not None:
            self.after_pass()

    @contextmanager
    def _listening(self, recorder: Recorder, path: Path, done: Pass, roots: Sequence[Tensor]) -> Iterator[Listener]:
        listener = Listener(recorder, path)
        self._listeners.append(listener)
        start = time.perf_counter()
        try:
            with out_of_sight():
                self._prepare(recorder, listener, done, roots)
            self.journal.interrupted()
            start = time.perf_counter()
            yield listener
        except BaseException as error:  # noted, and passed on: the person's own
            done.error = told(error)
            self._note_failure(recorder, listener, done, roots, error)
            raise
        finally:
            done.seconds = time.perf_counter() - start
            listener.detach()
            self._listeners.remove(listener)
            with out_of_sight():
                listener.settle()
            done.births, done.nodes, done.hidden = listener.watch.births, listener.nodes, listener.hidden
            self.log.end(done)

    def _note_failure(
        self, recorder: Recorder, listener: Listener, done: Pass, roots: Sequence[Tensor], error: BaseException
    ) -> None:
        try:
            with out_of_sight():
                self.log.stopped(done, failure_of(recorder, roots, listener.now_at, error))
        except Exception as fault:  # noqa: BLE001 - the person's error is on its way and must not be replaced
            recorder.fault("backward", fault)

    def _prepare(self, recorder: Recorder, listener: Listener, done: Pass, roots: Sequence[Tensor]) -> None:
        try:
            steps, listener.complete = nodes_below(roots)
            done.unseen = unseen_changes(recorder, steps)
            by_cell = done.function == "backward" and done.path is not None
            again = not done.frees_graph and done.path is not None
            # The shared hook is called for nodes as well that need not run, where only some inputs are asked for.
            leaves = listener.attach(roots, steps, by_cell and listener.complete, again or done.limited)
            done.reached, done.complete = listener.reached, listener.complete
            places = [place for root in roots if (place := recorder.place_of(root)) is not None]
            listener.gathering.source = source = self.log.started_from(done, places)
            _note_value(recorder, done, roots)
            done.shape = shape_of(roots[0]) if len(roots) == 1 else ()
            if done.function == "backward":
                if by_cell and not listener.complete:
                    retain(recorder)
                self._clear(leaves)
                self._keep_book(recorder, leaves, source)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not keep backward from running
            recorder.fault("backward", error)

    def _clear(self, leaves: Sequence[Tensor]) -> None:
        """``--zero-grad``: the first pass that reaches a leaf starts from an empty ``.grad``."""
        if not self._zero_grad:
            return
        for leaf in leaves:
            if id(leaf) not in self._zeroed:
                self._zeroed.add(id(leaf))
                leaf.grad = None

    def _keep_book(self, recorder: Recorder, leaves: Sequence[Tensor], source: Source) -> None:
        found = [(place.index, leaf) for leaf in leaves if (place := recorder.place_of(leaf)) is not None]
        self.book.before_pass(found, source, recorder.backlog)

    # ---- the pass that gradtrace runs

    def run(self, root: Tensor) -> None:
        """Run backward from `root` as the person would; the gradients it leaves are guests.

        Raises:
            KeyboardInterrupt: when the person interrupts; any error of backward itself is noted in the ledger.
        """
        recorder = self._recorder
        if recorder is None:
            return
        path = recorder.paths.here(1)
        done = self.log.begin(None, "backward", recorder.tick())
        done.frees_graph = False
        try:
            with self._listening(recorder, path, done, [root]):
                self._visit = visit = _Visit()
                try:
                    visit.begin(recorder, self._zero_grad)
                    torch.autograd.backward(root, retain_graph=True)
                except BaseException:
                    visit.end(failed=True)
                    raise
                visit.end(failed=False)
        except Exception:  # noqa: BLE001, S110 - backward's own error is in the ledger; the report retells it
            pass


class _Visit:
    """Around gradtrace's own backward: earlier guests leave before it, its gradients are guests after it.

    `end` can be interrupted anywhere, and finishes when it is called again.
    """

    def __init__(self) -> None:
        self._before: list[tuple[Tensor, Tensor | None]] = []
        self._hooks: list[tuple[dict[int, Any], dict[int, Any]]] = []
        self._random: Callable[[], None] | None = None

    def begin(self, recorder: Recorder, forget: bool) -> None:
        """Make room; `forget` what the ``.grad`` of the leaves held (``--zero-grad``)."""
        for tensor, _ in recorder.alive():
            if tensor.requires_grad and (tensor.is_leaf or tensor.retains_grad):
                guest = guest_of(tensor)
                if guest is not None:
                    guest.leave()
                # What the attribute refuses, such as the strided gradient of a sparse CSR leaf, could not be put back.
                tensor.grad = held = tensor.grad
                self._before.append((tensor, None if forget and tensor.is_leaf else held))
                # Set aside, not added to in place: the person may hold this very tensor.
                tensor.grad = None
                if tensor.is_leaf and tensor._post_accumulate_grad_hooks:
                    # An optimizer may step there (optimizer-in-backward), which the plain cell would not have done.
                    # Emptied in place: setting the attribute to None does not reach the engine.
                    hooks = tensor._post_accumulate_grad_hooks
                    self._hooks.append((hooks, dict(hooks)))
                    hooks.clear()
        self._random = _random_numbers_as_now()

    def end(self, failed: bool) -> None:
        """Put everything back, but for the gradients of a backward that has not failed: those are guests now."""
        if self._random is not None:
            self._random()
            self._random = None
        for hooks, were in self._hooks:
            hooks.update(were)
        party = GuestParty()
        while self._before:
            tensor, before = self._before[-1]
            if tensor.grad is None or failed:
                tensor.grad = before
            else:
                party.invite(tensor, tensor.grad if before is None else _sum(before, tensor.grad), before)
            self._before.pop()
        self._hooks.clear()


def _sum(before: Tensor, gradient: Tensor) -> Tensor:
    with torch.no_grad():
        return before + gradient


def _random_numbers_as_now() -> Callable[[], None]:
    """What puts the random streams back to where they are: a recomputed dropout draws from them in backward."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    cpu = torch.get_rng_state()

    def put_back() -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)

    return put_back


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], index: int, name: str) -> Any:
    return args[index] if len(args) > index else kwargs.get(name)


def _results(value: Any) -> Iterator[tuple[int, Tensor | None]]:
    """The gradients ``autograd.grad`` returned, with the Nones of unused inputs kept in place."""
    values = value if isinstance(value, (tuple, list)) else list(value.values()) if isinstance(value, dict) else [value]
    yield from enumerate(values)


def _note_value(recorder: Recorder, done: Pass, roots: Sequence[Tensor]) -> None:
    """Take down the root's value where it is one real number; from a device it comes after the cell."""
    if len(roots) != 1 or roots[0].is_nested or roots[0].numel() != 1 or roots[0].is_complex():
        return
    if values_of(roots[0]) is None:
        return
    pending = measure(roots[0])
    recorder.backlog.when_known(pending.waiting, partial(_value_arrived, done, pending))


def _value_arrived(done: Pass, pending: Pending) -> None:
    done.value = pending.result().mean
    if done.loss is not None:
        done.loss.values.add(done.value, done.step)


def is_scalar(value: object) -> bool:
    """Whether backward could start here: one real number with a grad_fn."""
    return (
        isinstance(value, Tensor)
        and value.numel() == 1
        and value.requires_grad
        and not value.is_leaf
        and not value.is_complex()
        and not value.is_meta
    )


def _made_as(tensor: Tensor, entry: Entry) -> float:
    """Which of all autograd nodes made a tensor; of those that are not looked at, only that they come last."""
    return math.inf if is_deep(entry) or tensor.grad_fn is None else tensor.grad_fn._sequence_nr()


@dataclass(frozen=True, slots=True)
class RootChoice:
    """The tensor to start from, or why there is none; and what else it could have been."""

    root: Tensor | None
    candidates: tuple[Tensor, ...] = ()


def choose_root(
    offered: object, named: Mapping[int, object], recorder: Recorder, never: Collection[int] = ()
) -> RootChoice:
    """Choose the root as DESIGN's "The root" says.

    Args:
        offered: value of the cell's last expression.
        named: names of the tensors in the namespace, by id.
        recorder: knows which tensors this cell made, and when.
        never: ids of tensors that are not chosen.
    """
    scalar = ((tensor, entry) for tensor, entry in recorder.alive() if id(tensor) not in never and is_scalar(tensor))
    alive = [(tensor, entry) for tensor, entry in scalar if entry.place is not None]
    made = [
        (_made_as(tensor, entry), tensor) for tensor, entry in alive if is_deep(entry) or recorder.made_here(tensor)
    ]
    made.sort(key=lambda pair: pair[0])
    scalars = [tensor for _, tensor in made]
    bound = [tensor for tensor in scalars if id(tensor) in named]
    last = (bound or scalars)[-1] if scalars else None
    root = offered if isinstance(offered, Tensor) and is_scalar(offered) and id(offered) not in never else last
    others = tuple(tensor for tensor in bound if tensor is not root)
    return RootChoice(root, others)


def freed_below(recorder: Recorder, log: PassLog, root: Tensor) -> Loss | None:
    """The loss whose pass has used up a part of the graph below a root; None where all of it is there."""
    if not any(loss.freed is not None for loss in log.losses):
        return None
    for step in nodes_below([root])[0].values():
        for index, _ in (recorder.marks(step.node) or {}).values():
            loss = log.used_up(recorder.places[index])
            if loss is not None and is_freed(step.node):
                return loss
    return None
