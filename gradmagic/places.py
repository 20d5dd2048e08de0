"""What the recorder keeps while the cell runs: places, their gradients, and what is known of each tensor.

Nothing here holds a tensor, a frame or a module, except weakly.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from .answers import KeptAnswer
from .bindings import Position
from .curves import GrowingSeries
from .modules import ModuleMark
from .sites import Site
from .statistics import Backlog, Pending, PendingActivity
from .stored import plain_sizes, shape_of

_SHARED_CLASS = "CppFunction"
"""Class of all nodes that extensions written in C++ have not given one of their own."""


class Path:
    """A way through the person's code to a torch call: its sites, innermost first, and the module that ran."""

    __slots__ = ("clip", "function_apply", "line", "module", "outer_module", "sites", "statement", "usual")

    def __init__(self, sites: tuple[Site, ...], module: ModuleMark | None) -> None:
        self.sites = sites
        self.module = module
        self.outer_module: ModuleMark | None = None
        """The module that ran ``autograd.Function.apply``, when the call is inside a custom forward."""
        self.function_apply: int | None = None
        """Index of the site in ``autograd.Function.apply`` when the call is inside a custom forward."""
        self.statement: object = self
        """What all calls on one line of the innermost function have in common."""
        self.line: object = self
        """The innermost line that is not PyTorch's own."""
        self.usual: dict[str, Place] = {}
        """Places of results that are one new tensor, by the operation that runs here: found faster than by all else."""
        self.clip: int | None = None
        """Index of the site in ``clip_grad_norm_`` or ``clip_grad_value_`` when the call is inside of one."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which pass gradients come from.

    Attributes:
        loss: which loss it started from.
        number: its number among all passes.
        step: its number among those of the loss.
        clock: when it ran.
    """

    loss: int
    number: int
    step: int
    clock: int


class Gradients:
    """The gradients that reached one output of a place, or of an inner step.

    Attributes:
        series: all of them, by the loss they came from.
        last: statistics of the last occurrence's last gradient, behind that occurrence and the number of the pass.
    """

    __slots__ = ("last", "series")

    def __init__(self) -> None:
        self.series: dict[int, GrowingSeries] = {}
        self.last: tuple[int, int, Pending] | None = None

    def __bool__(self) -> bool:
        return bool(self.series)

    def add(self, source: Source, occurrence: int, pending: Pending) -> None:
        """One gradient, whose numbers are known."""
        found = pending.result()
        self._of(source).add(source.number, source.step, occurrence, found)
        self.see(source, occurrence, pending)

    def extend(self, source: Source, occurrences: Sequence[int], columns: Sequence[Sequence[float]]) -> None:
        """Many of one pass; see `GrowingSeries.extend`."""
        self._of(source).extend(source.number, source.step, occurrences, columns)

    def see(self, source: Source, occurrence: int, pending: Pending) -> None:
        """Keep the statistics if there are none of a later occurrence or pass."""
        if self.last is None or (occurrence, source.number) >= self.last[:2]:
            self.last = (occurrence, source.number, pending)

    def _of(self, source: Source) -> GrowingSeries:
        series = self.series.get(source.loss)
        if series is None:
            series = self.series[source.loss] = GrowingSeries(source.loss)
        return series


class InnerNode:
    """An autograd node inside a place's operation that Python never saw, or outputs of one that it never got."""

    __slots__ = ("grad_fn", "gradients", "shapes")

    def __init__(self, grad_fn: str, shapes: dict[int, tuple[int, ...] | None]) -> None:
        self.grad_fn = grad_fn
        self.shapes = shapes
        self.gradients: dict[int, Gradients] = {}
        """By output."""


class Place:
    """One place in the code that makes one tensor, while the cell still runs. Becomes a `TensorRow`.

    Attributes:
        leaf_view: a view of a leaf, made under ``no_grad``: it takes over the leaf's requires_grad and has no grad_fn.
        bare: a leaf whose ``.grad`` was None when it was first seen.
        given: somebody put a gradient into its ``.grad`` by other means than backward.
        read: the person's own code looked at its ``.grad``.
        leaves_torch: no tensor, but what ``.item()`` and the like gave: a number, list or array.
        crowded: for the first of several leaves side by side (see `beside`): they are too many to be told apart.
        made_unseen: the block made it, but not by calls that gradtrace can see.
    """

    __slots__ = (
        "activity",
        "adopted",
        "aliases",
        "asked",
        "bare",
        "beside",
        "changed",
        "cleared",
        "constant_use",
        "count",
        "crowded",
        "device_found",
        "dtype_found",
        "forward",
        "given",
        "grad_enabled",
        "grad_fn_found",
        "gradients",
        "heir",
        "index",
        "inference",
        "inherits",
        "inner",
        "input_requires_grad",
        "is_floating",
        "is_leaf",
        "is_parameter",
        "last_clock",
        "leaf_view",
        "leaves_torch",
        "made_unseen",
        "newest",
        "node_class",
        "number",
        "op",
        "order",
        "parents",
        "path",
        "position",
        "read",
        "received",
        "repeats",
        "requires_grad",
        "shape_found",
        "successor",
        "through_view",
        "transformed",
        "unclaimed",
    )

    def __init__(self, index: int, path: Path, op: str, position: Position) -> None:  # noqa: PLR0915 - one line a field
        self.index = index
        self.order = float(index)
        """Place in the order of execution; one that only the walk of the graph found stands before its consumer."""
        self.path = path
        self.op = op
        self.position = position
        self.count = 0
        self.last_clock = 0
        self.newest: Entry | None = None
        """What is known of the last occurrence's tensor."""
        # As PyTorch gives them: they become text when somebody asks, once a row instead of once an occurrence.
        self.grad_fn_found: str | None = None
        self.node_class: type | None = None
        """Class of the autograd node whose name that is, where it is known."""
        self.shape_found: tuple[Any, ...] = ()
        self.dtype_found: torch.dtype | str = ""
        self.device_found: torch.device | str = ""
        self.requires_grad = self.is_leaf = self.is_parameter = self.is_floating = False
        self.asked = False
        """Whether it has required a gradient at any time."""
        self.grad_enabled = True
        self.inference = self.transformed = self.input_requires_grad = False
        self.leaf_view = self.bare = self.given = self.read = False
        self.leaves_torch = self.crowded = self.made_unseen = False
        self.repeats: bool | None = None
        """Of the results that are recorded in short: whether the last one required a gradient. None: it was another."""
        self.parents: set[int] = set()
        self.gradients = Gradients()
        self.received = 0
        """When the last gradient arrived, by the recorder's clock."""
        self.inner: list[InnerNode] = []
        self.unclaimed: InnerNode | None = None
        """Outputs of the place's own node that Python never got, such as an LSTM layer's inner states."""
        self.aliases: list[tuple[Path, Position]] = []
        self.inherits: Place | None = None
        self.adopted: tuple[int, int] | None = None
        """For a tensor not seen at its birth: which argument of how many it was at its first use."""
        self.beside: Place | None = None
        """For a leaf: the first of those that the same code has made and that live side by side."""
        self.constant_use: Path | None = None
        """Where it was used while it did not require a gradient yet."""
        self.changed: Path | None = None
        """Where an in-place operation last gave the tensor a new version..."""
        self.through_view = False
        """A new version that came about because a view of the tensor was changed in place."""
        self.successor: Place | None = None
        """...and that version."""
        self.heir: Place | None = None
        """For a view that was changed in place: the new version of what it is a view of."""
        self.cleared: tuple[int, Path] | None = None
        """When and where its ``.grad`` was last set to None."""
        self.number: float | None = None
        """A number that its inputs were multiplied by."""
        self.activity: PendingActivity | KeptAnswer | None = None
        """For an activation function: how it answered, the last time."""
        self.forward: Pending | None = None
        """Statistics of its own values: of the first occurrence that was not finite, else of the last."""

    def tensor(self) -> Tensor | None:
        """The last occurrence's tensor, while it is alive."""
        return self.newest.ref() if self.newest is not None else None

    @property
    def ref(self) -> Callable[[], Tensor | None] | None:
        """Gives the last occurrence's tensor while it is alive; None where there was never one."""
        if self.newest is None:
            return None
        tensor = self.newest.ref()
        return TensorWeakRef(tensor) if tensor is not None else _gone

    @property
    def grad_fn(self) -> str | None:
        """Name of the autograd node that made it, as people write it."""
        return self.grad_fn_found.removeprefix("torch::autograd::") if self.grad_fn_found is not None else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The last occurrence's; see `plain_sizes`."""
        return plain_sizes(self.shape_found)

    @property
    def dtype(self) -> str:
        """The last occurrence's, such as ``float32``."""
        return str(self.dtype_found).removeprefix("torch.")

    @property
    def device(self) -> str:
        """The last occurrence's, such as ``cuda:0``."""
        return str(self.device_found)

    def describe(self, tensor: Tensor) -> None:
        """Note what a tensor is like."""
        self.requires_grad = tensor.requires_grad
        self.asked = self.asked or self.requires_grad
        self.is_leaf = tensor.is_leaf
        self.repeats = None
        self.shape_found = shape_of(tensor)
        self.dtype_found = tensor.dtype
        self.device_found = tensor.device
        self.is_floating = tensor.is_floating_point() or tensor.is_complex()
        self.inference = tensor.is_inference()
        # Parameter's ``isinstance`` is slow (0.4 us) where it is not one, and a plain tensor never is.
        self.is_parameter = type(tensor) is not Tensor and isinstance(tensor, torch.nn.Parameter)

    def will_repeat(self, with_grad: bool) -> None:
        """Note what all results have in common that are recorded in short: plain tensors with a grad_fn, or without."""
        self.is_leaf = not with_grad
        self.requires_grad = with_grad
        self.asked = self.asked or with_grad
        self.leaf_view = self.is_parameter = self.transformed = False
        if with_grad:
            self.grad_enabled, self.inference = True, False
        self.repeats = with_grad

    def made_by(self, node: Any) -> None:
        """Note the name of the autograd node that has made its newest tensor."""
        kind = type(node)
        self.grad_fn_found = node.name()
        self.node_class = kind if kind.__name__ != _SHARED_CLASS else None

    def see_values(self, values: Pending, occurrence: int, backlog: Backlog) -> None:
        """Keep the statistics of an occurrence's values, unless those kept show where things went wrong."""
        backlog.when_known(values.waiting, partial(self._saw, values, occurrence))

    def _saw(self, values: Pending, occurrence: int) -> None:
        if self.forward is None or not occurrence or not self.forward.is_bad():
            self.forward = values


@dataclass(frozen=True, slots=True)
class Given:
    """A tensor that an operation was given: its place, which argument of how many it was, and what it was like."""

    place: int | None
    argument: tuple[int, int]
    dtype: str
    device: str
    shape: tuple[int, ...]
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor, place: int | None, argument: tuple[int, int]) -> Self:
        """Describe a tensor."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls(place, argument, dtype, str(tensor.device), shape_of(tensor), tensor.requires_grad)


@dataclass(frozen=True, slots=True)
class FailedCall:
    """A torch function that raised: the ``id`` of the exception, what was called, where, and with what."""

    error: int
    op: str
    path: Path
    given: tuple[Given, ...]


class Entry(weakref.ref[Tensor]):
    """What is known of one tensor object: the place and occurrence of its newest version.

    It is the weak reference itself: one object instead of two for each tensor.
    """

    __slots__ = ("depth", "given", "gradient_of", "kept", "occurrence", "place", "requires_grad", "version")
    # Two weak references are equal when their tensors are, and that is asked of the tensors.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    place: Place | None
    occurrence: int
    requires_grad: bool
    version: int
    depth: int
    """How many operations lie between the tensor and the first inputs, at most."""
    gradient_of: TensorWeakRef | None
    """For a tensor that was read from ``.grad``: whose gradient it is."""
    kept: TensorWeakRef | None
    """What a pass of the cell's has left in ``.grad`` for the person to look at; see `keeping`."""
    given: bool
    """Whether the person has put something into ``.grad``."""

    @classmethod
    def of(cls, tensor: Tensor, place: Place | None, occurrence: int, depth: int) -> Self:
        """What is known of a tensor that was just made, or found."""
        entry = cls(tensor)
        entry.place = place
        entry.occurrence = occurrence
        entry.requires_grad = tensor.requires_grad
        entry.version = version_of(tensor)
        entry.depth = depth
        entry.gradient_of = entry.kept = None
        entry.given = False
        return entry

    def ref(self) -> Tensor | None:
        """The tensor, fit for use, or None when it is gone."""
        tensor = self()
        if tensor is not None:
            tensor._fix_weakref()  # type: ignore[attr-defined]  # as `TensorWeakRef` does
        return tensor

    def forget_gradient(self, tensor: Tensor) -> None:
        """Take what was kept out of the ``.grad`` of the tensor, where it would now count as the person's."""
        if self.kept is not None and tensor.grad is self.kept():
            tensor.grad = None
        self.kept = None


def version_of(tensor: Tensor) -> int:
    """In-place version counter; -1 for inference tensors, which have none."""
    return -1 if tensor.is_inference() else tensor._version


def _gone() -> None:
    """In place of a weak reference to a tensor that is gone."""
    return
