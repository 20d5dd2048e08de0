"""What the recorder keeps while the cell runs: places, their gradients, and what is known of each tensor.

Nothing here holds a tensor, a frame or a module, except weakly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from torch import Tensor
from torch.utils.weak import TensorWeakRef

from .bindings import Position
from .curves import GrowingSeries
from .modules import ModuleMark
from .sources import Site
from .statistics import Backlog, Pending, PendingActivity
from .stored import shape_of


class Path:
    """A way through the person's code to a torch call: its sites, innermost first, and the module that ran."""

    __slots__ = ("clip", "function_apply", "line", "module", "outer_module", "sites", "statement")

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
        "device",
        "dtype",
        "forward",
        "given",
        "grad_enabled",
        "grad_fn",
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
        "number",
        "op",
        "order",
        "parents",
        "path",
        "position",
        "read",
        "received",
        "ref",
        "requires_grad",
        "shape",
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
        self.ref: TensorWeakRef | None = None
        self.grad_fn: str | None = None
        self.shape: tuple[int, ...] = ()
        self.dtype = self.device = ""
        self.requires_grad = self.is_leaf = self.is_parameter = self.is_floating = False
        self.asked = False
        """Whether it has required a gradient at any time."""
        self.grad_enabled = True
        self.inference = self.transformed = self.input_requires_grad = False
        self.leaf_view = self.bare = self.given = self.read = False
        self.leaves_torch = self.crowded = self.made_unseen = False
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
        self.activity: PendingActivity | None = None
        """For an activation function: how it answered, the last time."""
        self.forward: Pending | None = None
        """Statistics of its own values: of the first occurrence that was not finite, else of the last."""

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


class Entry:
    """What is known of one tensor object: the place and occurrence of its newest version."""

    __slots__ = ("depth", "given", "gradient_of", "kept", "occurrence", "place", "ref", "requires_grad", "version")

    def __init__(self, ref: TensorWeakRef, place: Place | None, occurrence: int, tensor: Tensor, depth: int) -> None:
        self.ref = ref
        self.place = place
        self.occurrence = occurrence
        self.requires_grad = tensor.requires_grad
        self.version = version_of(tensor)
        self.depth = depth
        """How many operations lie between the tensor and the first inputs, at most."""
        self.gradient_of: TensorWeakRef | None = None
        """For a tensor that was read from ``.grad``: whose gradient it is."""
        self.kept: TensorWeakRef | None = None
        """What a pass of the cell's has left in ``.grad`` for the person to look at; see `keeping`."""
        self.given = False
        """Whether the person has put something into ``.grad``."""

    def forget_gradient(self, tensor: Tensor) -> None:
        """Take what was kept out of the ``.grad`` of the tensor, where it would now count as the person's."""
        if self.kept is not None and tensor.grad is self.kept():
            tensor.grad = None
        self.kept = None


def version_of(tensor: Tensor) -> int:
    """In-place version counter; 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version
