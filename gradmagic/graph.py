"""Listening to one backward pass: every autograd node between the roots and the leaves, as gradients flow through it.

The graph is walked just before the pass, so nothing is hooked that backward does not reach, and tensors that died
long ago are found through their nodes. Hooks sit on the nodes (``Node.register_prehook``): those run after every
tensor hook of the person's, so a gradient that such a hook changed is seen as changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from .births import BirthWatch, Owner
from .calls import without_our_lines
from .keeping import Kept, keep, kept_below
from .numbering import numbered_apart
from .places import Entry, InnerNode, Path, Source
from .recorder import Recorder
from .statistics import Pending, measure
from .stored import plain_sizes, shape_of

_ACCUMULATE = "torch::autograd::AccumulateGrad"
_FOLLOWED = 15_000
"""How deep below a root the graph is walked; with `tensors.DEEPEST` this keeps below what PyTorch can free again."""


class _Wire:
    """What leads from the hooks of a pass to its listener, until it is cut: then those not taken off yet are deaf."""

    __slots__ = ("listener",)

    def __init__(self, listener: Listener) -> None:
        self.listener: Listener | None = listener


class _KnownNode:
    """Prehook of a node whose outputs have places."""

    __slots__ = ("grad_fn", "kept", "key", "layout", "marks", "wire")

    def __init__(self, wire: _Wire, node: Any, marks: dict[int, Owner], kept: Kept | None) -> None:
        self.wire = wire
        self.key = id(node)
        self.marks = marks
        self.kept = kept
        self.grad_fn = _name_of(node)
        # AccumulateGrad stores the gradient in the leaf's own memory layout.
        self.layout = node.variable.stride() if node.name() == _ACCUMULATE and _is_strided(node.variable) else None

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        listener = self.wire.listener
        if listener is None:
            return
        listener.runs(self.key)
        found = []
        for output, gradient in enumerate(gradients):
            if gradient is None:
                continue
            if output in self.marks:
                found.append(listener.received(*self.marks[output], gradient, self.layout))
            else:
                found.append(listener.received_unclaimed(self, output, gradient))
            if self.kept is not None and output in self.kept:
                listener.keep(self.kept[output], gradient)
        listener.watch.received(self.key, [pending for pending in found if pending is not None])


class _InnerHook:
    """Prehook of a node that Python never saw."""

    __slots__ = ("inner", "key", "occurrence", "wire")

    def __init__(self, wire: _Wire, node: Any, inner: InnerNode, occurrence: int) -> None:
        self.wire = wire
        self.key = id(node)
        self.inner = inner
        self.occurrence = occurrence

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        listener = self.wire.listener
        if listener is None:
            return
        listener.runs(self.key)
        found = [
            listener.received_inside(self.inner, output, self.occurrence, gradient)
            for output, gradient in enumerate(gradients)
            if gradient is not None
        ]
        listener.watch.received(self.key, [pending for pending in found if pending is not None])


@dataclass(slots=True)
class Step:
    """A node on the way: from which nodes it is reached (the first one first), and which of its outputs are used."""

    node: Any
    consumers: list[int]
    outputs: set[int]


@dataclass(slots=True)
class NodeCount:
    """Autograd nodes on the way from roots to leaves; see `records.Coverage`."""

    seen: int = 0
    named: int = 0
    inner: int = 0

    def add(self, other: NodeCount) -> None:
        """Count those of another pass too."""
        self.seen += other.seen
        self.named += other.named
        self.inner += other.inner


def nodes_below(roots: Sequence[Tensor]) -> tuple[dict[int, Step], bool]:
    """Every node below the roots by its ``id``, each after a node that consumes it; and whether that is all.

    Not recursive: graphs are deep. Those deeper than `_FOLLOWED` are not followed to their ends.
    """
    steps: dict[int, Step] = {}
    pending: list[tuple[Any, int, int | None, int]] = [(_node_of(root), root.output_nr, None, 0) for root in roots]
    complete = True
    while pending:
        node, output, consumer, depth = pending.pop()
        if node is None:
            continue
        if id(node) in steps:
            steps[id(node)].outputs.add(output)
            if consumer is not None:
                steps[id(node)].consumers.append(consumer)
            continue
        steps[id(node)] = Step(node, [] if consumer is None else [consumer], {output})
        if depth == _FOLLOWED:
            complete = False
            continue
        pending.extend((parent, number, id(node), depth + 1) for parent, number in reversed(node.next_functions))
    return steps, complete


class Listener:
    """Walks the graph of one pass, hooks its nodes, and takes the hooks off again.

    Attributes:
        complete: whether the graph is walked to its ends.
        reached: indices of the places on the way from the roots to the leaves.
        received_by: indices of the places a gradient arrived at.
        now_at: ``id`` of the node that is running, or ran last.
        watch: where gradients went bad.
        source: which pass it is; known before the first gradient flows.
        nodes: how many nodes the graph has.
        hidden: see `passes.Pass.hidden`.
    """

    def __init__(self, recorder: Recorder, path: Path) -> None:
        """Prepare to listen to a pass that is run at `path`."""
        self._recorder = recorder
        self._path = path
        self._wire = _Wire(self)
        self._handles: list[Any] = []
        self._setting: tuple[Callable[[Any], Any], Any] | None = None
        self._inner_counts: dict[tuple[int, int], int] = {}
        self._marks: dict[int, dict[int, Owner]] = {}
        self.complete = True
        self.reached: set[int] = set()
        self.received_by: set[int] = set()
        self.now_at: int | None = None
        self.watch = BirthWatch({}, recorder.backlog, recorder.fault)
        self.source = Source(0, 0, 0, 0)
        self.nodes = NodeCount()
        self.hidden: dict[int, set[int]] = {}
        self._owners: dict[int, Owner | None] = {}
        self._kept: dict[int, Kept] = {}
        self._steps: dict[int, Step] = {}
        """What was walked, while the pass runs: a node's ``id`` is its own only while something in Python holds it."""

    @numbered_apart()
    def attach(self, roots: Sequence[Tensor], steps: dict[int, Step], keep: bool) -> list[Tensor]:
        """Hook every node below the roots, and `keep` the gradients of non-leaves; returns the leaves found."""
        for root in roots:
            self._recorder.used(root, self._path)
        self._take_in_persons(steps)
        if keep:
            self._kept = kept_below(self._recorder, [step.node for step in steps.values()])
        if torch.is_anomaly_enabled():
            _tell_persons_lines(steps)
        leaves: list[Tensor] = []
        consumers = {key: step.consumers for key, step in steps.items()}
        self.watch = BirthWatch(consumers, self._recorder.backlog, self._recorder.fault)
        owners, self._steps = self._owners, steps
        self.nodes.seen = len(steps)
        for key, step in steps.items():
            consumer = owners[step.consumers[0]] if step.consumers else None
            owners[key] = owner = self._listen(step.node, consumer, leaves)
            self._watch(step.node, key, owner)
        self._note_reached(steps)
        if not self.complete or any(isinstance(step.node, BackwardCFunction) for step in steps.values()):
            self._listen_at_leaves()
        return leaves

    def _watch(self, node: Any, key: int, owner: Owner | None) -> None:
        name = _name_of(node)
        self.watch.know(key, owner, name)
        hook = self.watch.look_after(node, key, name)
        if hook is not None:
            self._set(node.register_hook, hook)

    def _set(self, register: Callable[[Any], Any], hook: Any) -> None:
        """Set a hook; until its handle is noted, it is known where it may be."""
        self._setting = register, hook
        self._handles.append(register(hook))
        self._setting = None

    def _take_off_unnoted(self) -> None:
        """An interrupt came between setting a hook and noting its handle: another one's handle leads to it."""
        if self._setting is None:
            return
        register, unnoted = self._setting
        handle = register(_nothing)
        hooks = handle.hooks_dict_ref()
        for number in [number for number, hook in hooks.items() if hook is unnoted or hook is _nothing]:
            del hooks[number]
        self._setting = None

    def _listen_at_leaves(self) -> None:
        """Leaves that the walk cannot find: too deep, or in a graph that a custom backward makes (checkpoint)."""
        for tensor, entry in self._recorder.leaves():
            place = entry.place
            if place is not None and place.index not in self.reached:
                hook = partial(_received_at_leaf, self._wire, place.index, entry.occurrence)
                self._set(tensor.register_hook, hook)

    def received_at_leaf(self, place: int, occurrence: int, gradient: Tensor) -> None:
        """A gradient arrived at a leaf that the walk has not found: it is too deep, or in a graph of another's."""
        owner = self._owners.get(self.now_at) if self.now_at is not None else None
        if owner is not None and self.complete:
            self.hidden.setdefault(owner[0], set()).add(place)
        self.received(place, occurrence, gradient, None)

    def _take_in_persons(self, steps: dict[int, Step]) -> None:
        """Tensors of an earlier cell that the person's variables hold are rows, when the pass goes through them."""
        recorder = self._recorder
        for tensor in recorder.persons_tensors():
            recorder.take_in(tensor, self._path, lambda found: id(found.grad_fn) in steps)

    def _note_reached(self, steps: dict[int, Step]) -> None:
        """Of a node with several outputs, only those that somebody used lie on the way."""
        for key, step in steps.items():
            marks = self._marks.get(key) or {}
            self.reached.update(place for output, (place, _) in marks.items() if output in step.outputs)
        self._marks.clear()

    @numbered_apart()
    def detach(self) -> None:
        """Take every hook off. Once more does no harm, and finishes what an interrupt kept from being done."""
        self._wire.listener = None
        self.watch.let_go()
        self._owners.clear()
        self._kept.clear()
        self._steps = {}
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._take_off_unnoted()

    def _listen(self, node: Any, consumer: Owner | None, leaves: list[Tensor]) -> Owner | None:
        """Hook one node; returns the place it belongs to, which also owns the unseen nodes behind it."""
        recorder = self._recorder
        marks = recorder.marks(node)
        known = len(recorder.places)
        path = recorder.places[consumer[0]].path if consumer is not None else self._path
        if node.name() == _ACCUMULATE:
            leaves.append(node.variable)
            marks = self._marks_of_leaf(node.variable, path)
        elif marks is None and getattr(node, "_forward_cls", None) is not None and shapes_of(node):
            recorder.function_node(node, path)
            marks = recorder.marks(node)
        if not marks:
            return self._listen_inside(node, consumer)
        for late in recorder.places[known:]:
            if late.is_leaf and consumer is not None:
                late.order = recorder.places[consumer[0]].order - 0.25
        self.nodes.named += 1
        self._marks[id(node)] = marks
        if consumer is not None:
            recorder.places[consumer[0]].parents.update(place for place, _ in marks.values())
        self._set(node.register_prehook, _KnownNode(self._wire, node, marks, self._kept.get(id(node))))
        return next(iter(marks.values()))

    def _marks_of_leaf(self, leaf: Tensor, path: Path) -> dict[int, Owner] | None:
        place = self._recorder.used(leaf, path)
        entry = self._recorder.entry(leaf)
        return {0: (place.index, entry.occurrence)} if place is not None and entry is not None else None

    def _listen_inside(self, node: Any, consumer: Owner | None) -> Owner | None:
        if consumer is None:
            return None
        self.nodes.inner += 1
        # The k-th unseen node of every occurrence is the same inner step.
        number = self._inner_counts.get(consumer, 0)
        self._inner_counts[consumer] = number + 1
        steps = self._recorder.places[consumer[0]].inner
        name = _name_of(node)
        if number >= len(steps):
            steps.append(InnerNode(name, shapes_of(node)))
        elif steps[number].grad_fn != name:
            steps.insert(number, InnerNode(name, shapes_of(node)))
        self._set(node.register_prehook, _InnerHook(self._wire, node, steps[number], consumer[1]))
        return consumer

    def runs(self, key: int) -> None:
        """A node is about to run."""
        self.now_at = key
        self._recorder.listens_to(torch._C._current_graph_task_id(), self._path)

    def received(self, place: int, occurrence: int, gradient: Tensor, layout: Sequence[int] | None) -> Pending | None:
        """A gradient arrived at an occurrence of a place."""
        pending = self._measured(gradient, layout)
        if pending is not None:
            self.received_by.add(place)
            self._recorder.places[place].receive(self.source, occurrence, pending, self._recorder.backlog)
        return pending

    def received_unclaimed(self, known: _KnownNode, output: int, gradient: Tensor) -> Pending | None:
        """A gradient arrived at an output of a known node that Python never got."""
        index, occurrence = next(iter(known.marks.values()))
        place = self._recorder.places[index]
        if place.unclaimed is None:
            place.unclaimed = InnerNode(known.grad_fn, {})
        place.unclaimed.shapes[output] = shape_of(gradient)
        return self.received_inside(place.unclaimed, output, occurrence, gradient)

    def received_inside(self, inner: InnerNode, output: int, occurrence: int, gradient: Tensor) -> Pending | None:
        """A gradient arrived at an inner step."""
        pending = self._measured(gradient, None)
        if pending is not None:
            inner.receive(output, self.source, occurrence, pending, self._recorder.backlog)
        return pending

    def keep(self, entry: Entry, gradient: Tensor) -> None:
        """A gradient arrived at a tensor that is there to look at afterwards."""
        try:
            keep(entry, gradient)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not become backward's
            self._recorder.fault("gradients of non-leaves", error)

    def _measured(self, gradient: Tensor, layout: Sequence[int] | None) -> Pending | None:
        try:
            return measure(gradient, layout)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not become backward's
            self._recorder.fault("gradient statistics", error)
            return None


def _nothing(*_: object) -> None:
    return None


def _received_at_leaf(wire: _Wire, place: int, occurrence: int, gradient: Tensor) -> None:
    if wire.listener is not None:
        wire.listener.received_at_leaf(place, occurrence, gradient)


def _node_of(tensor: Tensor) -> Any:
    """The autograd node a gradient of this tensor flows into first: its grad_fn, or a leaf's AccumulateGrad."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn
    if not tensor.requires_grad:
        return None
    from torch.autograd.graph import get_gradient_edge

    return get_gradient_edge(tensor).node


def _tell_persons_lines(steps: dict[int, Step]) -> None:
    """When anomaly mode tells where an operation was called, it is the person's code that it names."""
    for step in steps.values():
        stack = step.node.metadata.get("traceback_")
        if isinstance(stack, list):
            stack[:] = without_our_lines(stack)


def _name_of(node: Any) -> str:
    return str(node.name()).removeprefix("torch::autograd::")


def _is_strided(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def shapes_of(node: Any) -> dict[int, tuple[int, ...] | None]:
    """Shapes of the tensors a node made; None for one that PyTorch does not tell (nested tensors)."""
    try:
        return {output: _shape(metadata) for output, metadata in enumerate(node._input_metadata)}
    except (RuntimeError, AttributeError):  # some fused nodes carry no metadata
        return {}


def _shape(metadata: Any) -> tuple[int, ...] | None:
    try:
        return plain_sizes(metadata.shape)
    except (RuntimeError, TypeError):
        return None
