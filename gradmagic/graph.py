"""Listening to one backward pass: every autograd node between the roots and the leaves, as gradients flow through it.

The graph is walked just before the pass, so nothing is hooked that backward does not reach, and tensors that died
long ago are found through their nodes. Hooks sit on the nodes: those run after every tensor hook of the person's that
was there before, so a gradient that such a hook changed is seen as changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .births import BirthWatch, Owner
from .calls import without_our_lines
from .entries import INDEX, mark_of, owner_of
from .gathering import SMALL, Gathering
from .keeping import keep, kept_by
from .numbering import numbered_apart
from .places import Gradients, InnerNode, Path, Place
from .recorder import Recorder
from .statistics import is_dense
from .stored import is_plain, shape_of
from .walk import Kind, NodeCount, Step, shapes_of


class _Wire:
    """What leads from the hooks of a pass to its listener, until it is cut: then those not taken off yet are deaf."""

    __slots__ = ("listener",)

    def __init__(self, listener: Listener) -> None:
        self.listener: Listener | None = listener


class _Prehook:
    """Hook of one node that can be taken off again; see `_Hooks`."""

    __slots__ = ("key", "wire")

    def __init__(self, wire: _Wire, key: int) -> None:
        self.wire = wire
        self.key = key

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        listener = self.wire.listener
        step = listener.steps.get(self.key) if listener is not None else None
        if listener is None or step is None:
            return
        listener.runs()
        for output, gradient in enumerate(gradients):
            if gradient is not None:
                listener.arrived(step, self.key, output, gradient)


class _Hooks:
    """The hooks of one pass.

    A node whose graph this pass uses up gets a hook that all such nodes share, and that asks which of them is running:
    ``register_prehook`` and taking it off again cost 3 us a node, this 0.2. It cannot be taken off a node, only be made
    empty. So nodes that may see many passes get a prehook: leaves, those of earlier cells, and retained graphs.
    """

    def __init__(self, hook_of: Callable[[int], Callable[[Tensor | None], None]]) -> None:
        """Prepare; `hook_of` gives the shared hook of an output."""
        self._hook_of = hook_of
        self._shared: list[tuple[OrderedDict[int, Any], Tensor]] = []
        self._handles: list[Any] = []
        self._setting: tuple[Callable[[Any], Any], Any] | None = None

    def share(self, node: Any, outputs: int) -> None:
        """Listen to these outputs of a node that dies with its graph."""
        while len(self._shared) < outputs.bit_length():
            self._shared.append(self._stand_in(len(self._shared)))
        for output, (_, tensor) in enumerate(self._shared):
            if outputs >> output & 1:
                node._register_hook_dict(tensor)

    def set(self, register: Callable[[Any], Any], hook: Any) -> None:
        """Set a hook; until its handle is noted, it is known where it may be."""
        self._setting = register, hook
        self._handles.append(register(hook))
        self._setting = None

    def take_off(self) -> None:
        """Take every hook off. Once more does no harm, and finishes what an interrupt kept from being done."""
        for hooks, _ in self._shared:
            hooks.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._take_off_unnoted()

    def _stand_in(self, output: int) -> tuple[OrderedDict[int, Any], Tensor]:
        """A tensor with this output number and with the shared hook: PyTorch takes both from a tensor."""
        hooks: OrderedDict[int, Any] = OrderedDict({0: self._hook_of(output)})
        with torch.enable_grad():
            tensor = torch.zeros(output + 1, 1, requires_grad=True).unbind()[output]
        tensor._backward_hooks = hooks
        return hooks, tensor

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


class Listener:
    """Hooks the nodes of one pass, and takes the hooks off again.

    Attributes:
        steps: the nodes, by ``id``.
        complete: whether the graph is walked to its ends.
        reached: indices of the places on the way from the roots to the leaves.
        received_by: indices of the places a gradient arrived at.
        watch: where gradients went bad.
        gathering: the gradients.
        nodes: how many nodes the graph has.
        hidden: see `passes.Pass.hidden`.
    """

    def __init__(self, recorder: Recorder, path: Path) -> None:
        """Prepare to listen to a pass that is run at `path`."""
        self._recorder = recorder
        self._path = path
        self._wire = _Wire(self)
        self._hooks = _Hooks(self._hook_of)
        self._inner_counts: dict[int, int] = {}
        self._kinds: dict[type, Kind] = {}
        self.steps: dict[int, Step] = {}
        self.complete = True
        self.reached: set[int] = set()
        self.received_by: set[int] = set()
        self.watch = BirthWatch(recorder.backlog, recorder.fault)
        self.gathering = Gathering(recorder.backlog, self.watch, recorder.fault, recorder.places)
        self.nodes = NodeCount()
        self.hidden: dict[int, set[int]] = {}

    @numbered_apart()
    def attach(self, roots: Sequence[Tensor], steps: dict[int, Step], keep: bool, again: bool) -> list[Tensor]:
        """Hook every node below the roots; returns the leaves found.

        Args:
            roots: where the pass starts.
            steps: what `nodes_below` gave.
            keep: store the gradients of non-leaves.
            again: set hooks that can be taken off again; see `_Hooks`.
        """
        # The shared hook runs before those that the person may have set on nodes, and those may change the gradient.
        again = again or self._recorder.nodes_seen or not self.complete
        for root in roots:
            self._recorder.used(root, self._path)
        self.steps = steps
        self.gathering.waits = not torch.overrides._get_current_function_mode_stack()
        self._take_in_persons(steps)
        if torch.is_anomaly_enabled():
            _tell_persons_lines(steps)
        self.watch.know(steps)
        self.nodes.seen = len(steps)
        leaves, theirs = self._listen_to_all(steps, keep, again)
        if theirs or not self.complete:
            self._listen_at_leaves()
        return leaves

    def _listen_to_all(self, steps: dict[int, Step], keep: bool, again: bool) -> tuple[list[Tensor], bool]:
        """Hook every node; returns the leaves found, and whether there are custom Functions."""
        leaves: list[Tensor] = []
        theirs = False
        kinds, share = self._kinds, self._hooks.share
        is_held, first_node, marked = self._recorder.is_held, self._recorder.first_node, self._recorder.mark
        for key, step in steps.items():
            node = step.node
            kind = kinds.get(type(node)) or self._kind(node)
            step.name = kind.name
            mark = node.metadata.get(marked)
            if type(mark) is int and kind.is_usual:
                self._listen_as_usual(step, mark)
                if keep and is_held(mark):
                    step.kept = kept_by(self._recorder, node, step.marks())
                if step.kept is None:
                    step.usual = mark
                    if not kind.is_risky and step.outputs == 1 and not again and node._sequence_nr() >= first_node:
                        share(node, 1)
                        continue
            else:
                self._listen(step, kind, leaves)
                theirs = theirs or kind.is_persons
                if keep and step.inner is None and (step.others or is_held(step.mark)):
                    step.kept = kept_by(self._recorder, node, step.marks())
            if step.mark is not None:
                self._hook(step, key, kind, again)
        return leaves, theirs

    @property
    def now_at(self) -> int | None:
        """``id`` of the node that is running, or ran last."""
        return self.watch.order[-1] if self.watch.order else None

    def _hook_of(self, output: int) -> Callable[[Tensor | None], None]:
        """The hook that nodes share, for one of their outputs."""
        hook = partial(self._arrived_somewhere, output)
        if output or not self.gathering.waits:
            return hook
        return self.gathering.hook(self.steps, self.received_by, hook)

    def _kind(self, node: Any) -> Kind:
        kind = self._kinds.get(type(node))
        if kind is None:
            kind = self._kinds[type(node)] = Kind(node)
        return kind

    def _hook(self, step: Step, key: int, kind: Kind, again: bool) -> None:
        node = step.node
        if again or kind.is_leaf or kind.is_persons or not self._recorder.is_new(node):
            self._hooks.set(node.register_prehook, _Prehook(self._wire, key))
        else:
            self._hooks.share(node, step.outputs)
        if kind.is_risky:
            self._hooks.set(node.register_hook, self.watch.look_after(node, key))

    def _listen_at_leaves(self) -> None:
        """Leaves that the walk cannot find: too deep, or in a graph that a custom backward makes (checkpoint)."""
        for tensor, entry in self._recorder.leaves():
            place = entry.place
            if place is not None and place.index not in self.reached:
                hook = partial(_received_at_leaf, self._wire, place.index, entry.occurrence)
                self._hooks.set(tensor.register_hook, hook)

    def received_at_leaf(self, place: int, occurrence: int, gradient: Tensor) -> None:
        """A gradient arrived at a leaf that the walk has not found: it is too deep, or in a graph of another's."""
        running = self.steps.get(self.now_at) if self.now_at is not None else None
        if running is not None and running.owner is not None and self.complete:
            self.hidden.setdefault(running.owner[0], set()).add(place)
        self.received(place, occurrence, gradient)

    def _take_in_persons(self, steps: dict[int, Step]) -> None:
        """Tensors of an earlier cell that the person's variables hold are rows, when the pass goes through them."""
        recorder = self._recorder
        for tensor in recorder.persons_tensors():
            recorder.take_in(tensor, self._path, lambda found: id(found.grad_fn) in steps)

    @numbered_apart()
    def detach(self) -> None:
        """Take every hook off. Once more does no harm, and finishes what an interrupt kept from being done."""
        self._wire.listener = None
        self.watch.let_go()
        self._hooks.take_off()
        for step in self.steps.values():
            step.node = step.kept = None

    def settle(self) -> None:
        """The pass is over: make numbers of the gradients that still wait."""
        self.gathering.settle()
        self._recorder.backlog.when_known(None, self.watch.judge)
        self.steps = {}

    def _listen_as_usual(self, step: Step, mark: int) -> None:
        """A node of PyTorch's own with one output that Python got: like `_listen` in short, 0.6 us instead of 1.4."""
        index = mark & INDEX
        self.nodes.named += 1
        step.mark = mark
        consumer = self.steps[step.consumer].mark if step.consumer is not None else None
        if consumer is not None:
            self._recorder.places[consumer & INDEX].parents.add(index)
        if step.outputs & 1:
            self.reached.add(index)

    def _listen(self, step: Step, kind: Kind, leaves: list[Tensor]) -> None:
        """Find out whose a node is."""
        consumer = self.steps[step.consumer].mark if step.consumer is not None else None
        mark = self._recorder.mark_on(step.node)
        if kind.is_leaf or (mark is None and kind.is_persons):
            mark = self._take_in(step, kind, consumer, leaves)
        if not isinstance(mark, int):
            step.others = mark or None
            mark = mark_of(next(iter(mark.values()))) if mark else None
        if mark is None:
            self._listen_inside(step, consumer)
            return
        self.nodes.named += 1
        step.mark = mark
        made = [owner_of(mark)[0]] if step.others is None else [place for place, _ in step.others.values()]
        if consumer is not None:
            self._recorder.places[owner_of(consumer)[0]].parents.update(made)
        # Of several outputs, only those that somebody used lie on the way.
        for output, place in zip(step.others or (0,), made, strict=True):
            if step.outputs >> output & 1:
                self.reached.add(place)

    def _take_in(
        self, step: Step, kind: Kind, consumer: int | None, leaves: list[Tensor]
    ) -> int | dict[int, Owner] | None:
        """The mark of a leaf, or of a custom Function, that is noticed only now."""
        recorder, node = self._recorder, step.node
        known = len(recorder.places)
        after = recorder.places[owner_of(consumer)[0]] if consumer is not None else None
        path = after.path if after is not None else self._path
        mark: int | dict[int, Owner] | None = None
        if kind.is_leaf:
            leaves.append(node.variable)
            mark = self._mark_of_leaf(node.variable, path)
            step.layout = node.variable.stride() if _is_strided(node.variable) else None
        elif getattr(node, "_forward_cls", None) is not None and shapes_of(node):
            recorder.function_node(node, path)
            mark = recorder.mark_on(node)
        for late in recorder.places[known:]:
            if late.is_leaf and after is not None:
                late.order = after.order - 0.25
        return mark

    def _mark_of_leaf(self, leaf: Tensor, path: Path) -> int | None:
        place = self._recorder.used(leaf, path)
        entry = self._recorder.entry(leaf)
        return mark_of((place.index, entry.occurrence)) if place is not None and entry is not None else None

    def _listen_inside(self, step: Step, consumer: int | None) -> None:
        if consumer is None:
            return
        self.nodes.inner += 1
        # The k-th unseen node of every occurrence is the same inner step.
        number = self._inner_counts.get(consumer, 0)
        self._inner_counts[consumer] = number + 1
        inner = self._recorder.places[owner_of(consumer)[0]].inner
        if number >= len(inner):
            inner.append(InnerNode(step.name, shapes_of(step.node)))
        elif inner[number].grad_fn != step.name:
            inner.insert(number, InnerNode(step.name, shapes_of(step.node)))
        step.mark, step.inner = consumer, inner[number]

    # ---- while gradients flow

    def runs(self) -> None:
        """A node with a hook of its own is about to run: a leaf's, after which hooks of the person's may run."""
        self._recorder.listens_to(torch._C._current_graph_task_id(), self._path)

    def _arrived_somewhere(self, output: int, gradient: Tensor | None) -> None:
        key = id(_current_node())
        step = self.steps.get(key)
        if step is not None and gradient is not None:
            self.arrived(step, key, output, gradient)

    def arrived(self, step: Step, key: int, output: int, gradient: Tensor) -> None:
        """A gradient arrived at an output of a node, whose ``id`` is `key`."""
        try:
            if (owner := step.of_output(output)) is not None:
                index, occurrence = owner
                to = self._of_place(index)
            elif step.owner is not None:
                index, occurrence = step.owner
                to = self._inside(step, self._recorder.places[index], output, gradient)
            else:
                return
            self._take(step, gradient, to, occurrence, key)
            if step.kept is not None and output in step.kept:
                keep(step.kept[output], gradient)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not become backward's
            self._recorder.fault("gradients", error)

    def _of_place(self, index: int) -> Gradients:
        place = self._recorder.places[index]
        if index not in self.received_by:
            self.received_by.add(index)
            place.received = self.gathering.source.clock
        return place.gradients

    def _take(self, step: Step, gradient: Tensor, to: Gradients, occurrence: int, key: int) -> None:
        at = _address(gradient, step.layout) if self.gathering.waits else None
        if at is None:
            self.gathering.take(gradient, step.layout, to, occurrence, key)
            return
        # What arrived at the only node that leads here lay in memory while it made this gradient. So where this one
        # begins at the same address, it is that one passed on, as views and additions do, and need not be measured.
        before = self.steps.get(step.only_consumer) if step.only_consumer is not None else None
        seen = before.seen if before is not None else None
        if seen is not None and seen[1:] == at:
            step.seen = seen
            self.gathering.take_again(seen[0], to, occurrence, key)
            return
        pending = self.gathering.take(gradient, step.layout, to, occurrence, key)
        # A custom Function may change what it is given, and hide that from the version.
        if pending is not None and not self._kind(step.node).is_persons:
            step.seen = (pending, *at)

    def received(self, place: int, occurrence: int, gradient: Tensor) -> None:
        """A gradient arrived at an occurrence of a place, past the hooks of its node."""
        self.gathering.take(gradient, None, self._of_place(place), occurrence, 0)

    def _inside(self, step: Step, place: Place, output: int, gradient: Tensor) -> Gradients:
        """Whose a gradient is that Python never sees: of an inner step, or of an unknown output of a known node."""
        inner = step.inner
        if inner is None:
            inner = place.unclaimed = place.unclaimed or InnerNode(step.name, {})
            inner.shapes[output] = shape_of(gradient)
        found = inner.gradients.get(output)
        if found is None:
            found = inner.gradients[output] = Gradients()
        return found


_current_node = torch._C._current_autograd_node


def _address(gradient: Tensor, layout: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Where the numbers of a large gradient lie, and their version; None if they do not lie as `layout` says."""
    if type(gradient) is not Tensor or gradient.numel() <= SMALL:
        return None
    if not is_plain(gradient) or torch._C._functorch.is_functorch_wrapped_tensor(gradient):
        return None
    if not (gradient.is_contiguous() or is_dense(gradient.shape, gradient.stride())):
        return None
    if layout is not None and gradient.stride() != layout:
        return None
    return gradient.data_ptr(), gradient._version


def _nothing(*_: object) -> None:
    return None


def _received_at_leaf(wire: _Wire, place: int, occurrence: int, gradient: Tensor) -> None:
    if wire.listener is not None:
        wire.listener.received_at_leaf(place, occurrence, gradient)


def _tell_persons_lines(steps: dict[int, Step]) -> None:
    """When anomaly mode tells where an operation was called, it is the person's code that it names."""
    for step in steps.values():
        stack = step.node.metadata.get("traceback_")
        if isinstance(stack, list):
            stack[:] = without_our_lines(stack)


def _is_strided(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested
