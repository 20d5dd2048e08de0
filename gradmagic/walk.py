"""The autograd graph below the roots of a pass: every node on the way to the leaves, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from .births import Owner, is_risky
from .entries import mark_of, owner_of
from .keeping import Kept
from .places import InnerNode
from .statistics import Pending
from .stored import plain_sizes

_ACCUMULATE = "torch::autograd::AccumulateGrad"
_FOLLOWED = 15_000
"""How deep below a root the graph is walked; with `entries.DEEPEST` this keeps below what PyTorch can free again."""


class Step:
    """A node on the way.

    Attributes:
        node: the node; None once the pass is over.
        consumer: ``id`` of the node it was reached from first; None for a root.
        outputs: a bit for each of its outputs that is used.
        name: see `Kind`.
        mark: of what it belongs to, which also owns the unseen nodes behind it; see `Tensors.marks`.
        others: for one that Python got several outputs of, or another than the first: whose each is.
        inner: which inner step it is, if not.
        layout: for that of a leaf, the memory layout in which its gradient is stored.
        kept: the tensors whose ``.grad`` this pass brings.
        usual: the mark again, where nothing is to be done but to measure what arrives at its first output.
        seen: the statistics of a gradient that arrived here, with the address of its numbers and their version.
    """

    __slots__ = (
        "_others",
        "consumer",
        "inner",
        "kept",
        "layout",
        "mark",
        "name",
        "node",
        "others",
        "outputs",
        "seen",
        "usual",
    )

    def __init__(self, node: Any, consumer: int | None, output: int) -> None:
        self.node = node
        self.consumer = consumer
        # Most nodes have one consumer. A list for each would make Python's collector run through all there is: 100 ms.
        self._others: list[int] | None = None
        self.outputs = 1 << output
        self.name = ""
        # As one number: a dictionary and two tuples a node would be three objects more for Python's collector.
        self.mark: int | None = None
        self.others: dict[int, Owner] | None = None
        self.inner: InnerNode | None = None
        self.usual: int | None = None
        self.layout: tuple[int, ...] | None = None
        self.kept: Kept | None = None
        self.seen: tuple[Pending, int, int] | None = None

    @property
    def owner(self) -> Owner | None:
        """Index of the place it belongs to, and which of its occurrences."""
        return owner_of(self.mark) if self.mark is not None else None

    def marks(self) -> dict[int, int]:
        """The mark of each output that Python got."""
        if self.others is not None:
            return {output: mark_of(owner) for output, owner in self.others.items()}
        return {0: self.mark} if self.mark is not None and self.inner is None else {}

    def of_output(self, output: int) -> Owner | None:
        """Whose an output is; None for one that Python never got."""
        if self.others is not None:
            return self.others.get(output)
        return self.owner if not output and self.inner is None else None

    @property
    def only_consumer(self) -> int | None:
        """``id`` of the one node it is reached from; None where there are several, or none."""
        return self.consumer if self._others is None else None

    @property
    def consumers(self) -> list[int]:
        """``id`` of the nodes it is reached from, the first one first."""
        return [] if self.consumer is None else [self.consumer, *(self._others or ())]

    def reached_again(self, consumer: int | None, output: int) -> None:
        """Another node leads here."""
        self.outputs |= 1 << output
        if self.consumer is None:
            self.consumer = consumer
        elif consumer is not None:
            self._others = self._others or []
            self._others.append(consumer)


class Kind:
    """What nodes of one type have in common. To ask each of them would cost 0.5 us a node."""

    __slots__ = ("is_leaf", "is_persons", "is_risky", "is_usual", "name")

    def __init__(self, node: Any) -> None:
        self.name = str(node.name()).removeprefix("torch::autograd::")
        self.is_leaf = node.name() == _ACCUMULATE
        self.is_persons = isinstance(node, BackwardCFunction)
        self.is_risky = is_risky(self.name)
        self.is_usual = not self.is_leaf and not self.is_persons


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
    pending = [each for each in pending if each[0] is not None]
    complete = True
    while pending:
        node, output, consumer, depth = pending.pop()
        key = id(node)
        step = steps.get(key)
        if step is not None:
            step.reached_again(consumer, output)
            continue
        steps[key] = Step(node, consumer, output)
        if depth == _FOLLOWED:
            complete = False
            continue
        for parent, number in reversed(node.next_functions):
            if parent is not None:
                pending.append((parent, number, key, depth + 1))
    return steps, complete


def _node_of(tensor: Tensor) -> Any:
    """The autograd node a gradient of this tensor flows into first: its grad_fn, or a leaf's AccumulateGrad."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn
    if not tensor.requires_grad:
        return None
    from torch.autograd.graph import get_gradient_edge

    return get_gradient_edge(tensor).node


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
