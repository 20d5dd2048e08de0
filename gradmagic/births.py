"""Where in a backward pass a gradient first stopped being finite, or became exactly zero.

A node's gradient is a birth when it is bad and the gradients of all nodes it came from are not. Which of these made
it, and from what value, is only known right after that node ran, while it still holds what it had saved: so nodes
whose derivative can be infinite are looked at then.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from .records import GradStats
from .statistics import Backlog, Waiting, stacked
from .stored import is_at_hand, is_plain, out_of_sight, unbatched

Owner = tuple[int, int]
"""Index of a place, and which of its occurrences."""

_TELLS_PACKED = hasattr(torch._C._autograd.SavedTensor, "data")
"""Whether a saved tensor tells, without unpacking, that hooks of the person's have packed it."""
_FINE, _ZERO, _BAD = range(3)
_KEPT = 8
"""So many births of each kind are kept for a pass; the first ones are the causes."""

_RISKY = frozenset(
    [
        "Sqrt",
        "Rsqrt",
        "Pow",
        "Div",
        "Reciprocal",
        "Log",
        "Log2",
        "Log10",
        "Log1P",
        "Norm",
        "LinalgVectorNorm",
        "Atan2",
        "Acos",
        "Asin",
        "Acosh",
        "Atanh",
        "Logit",
        "Erfinv",
        "Prod",
        "Cumprod",
        "LinalgEigh",
        "LinalgSvd",
        "LinalgInvEx",
        "LinalgSolveEx",
        "LinalgDet",
        "LinalgSlogdet",
        "LinalgCholeskyEx",
        "Std",
        "StdMean",
        "Logsumexp",
        "Softmax",
        "LogSoftmax",
        "Exp",
        "Xlogy",
        "BinaryCrossEntropy",
        "Tan",
        "Cdist",
        "Hypot",
        "Lgamma",
        "Digamma",
    ]
)
"""Autograd nodes that can turn a finite gradient into one that is not (without Backward0)."""


@dataclass(frozen=True, slots=True)
class BirthPoint:
    """A birth, by places; see `diagnosis.facts.Birth`."""

    kind: Literal["not_finite", "zero"]
    owner: Owner
    consumer: Owner | None
    grad_fn: str
    nan_count: int
    inf_count: int
    numel: int
    saved: float | None
    upstream: bool


class KnownNode(Protocol):
    """What a birth tells of a node: whose it is, what it is called, and which nodes it receives gradients from."""

    name: str

    @property
    def owner(self) -> Owner | None:
        """Whose it is."""

    @property
    def consumers(self) -> Sequence[int]:
        """``id`` of each."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen right after a risky node had run: the value it went wrong at, and the gradient that came in."""

    saved: float | None
    upstream: bool


class BirthWatch:
    """The births of one pass. Knows nodes by their ``id`` only.

    Which gradient is bad may be known only after the pass. So they are noted as they come, and judged in the end.

    Attributes:
        births: those found, in the order of backward.
        order: the nodes as gradients arrived there, one entry for each gradient.
        fault: told of what failed here.
    """

    def __init__(self, backlog: Backlog, fault: Callable[[str, Exception], None]) -> None:
        """Prepare.

        Args:
            backlog: what waits for numbers from a device.
            fault: told of what failed here.
        """
        self.births: list[BirthPoint] = []
        self.fault = fault
        self._backlog = backlog
        self.order: list[int] = []
        self._nodes: Mapping[int, KnownNode] = {}
        self._bad: dict[int, tuple[int, int, int]] = {}
        self._zeros: dict[int, int] = {}
        """How many gradients of each node were all zero..."""
        self._numels: dict[int, int] = {}
        """...and how many elements the last of them had."""
        self._states: dict[int, int] = {}
        self._made_bad: dict[int, _Seen] = {}
        self._risky: set[int] = set()
        self._hooks: list[_AfterNode] = []

    def know(self, nodes: Mapping[int, KnownNode]) -> None:
        """The nodes of the pass, by ``id``."""
        self._nodes = nodes

    def look_after(self, node: Any, key: int) -> _AfterNode:
        """The hook that looks at a risky node right after it has run."""
        hook = _AfterNode(self, node, key)
        self._hooks.append(hook)
        self._risky.add(key)
        return hook

    def let_go(self) -> None:
        """The pass is over: hold no node any more."""
        for hook in self._hooks:
            hook.let_go()
        self._hooks.clear()

    def bad(self, key: int, stats: GradStats) -> None:
        """A gradient that arrived at a node has elements that are not finite."""
        self._bad.setdefault(key, (stats.nan_count, stats.inf_count, stats.numel))

    def zero(self, key: int, numel: int) -> None:
        """A gradient that arrived at a node is zero in all of its elements."""
        # Numbers alone: in a deep graph that vanishes there are many, and Python's collector looks at anything else.
        self._zeros[key] = self._zeros.get(key, 0) + 1
        self._numels[key] = numel

    def judge(self) -> None:
        """All numbers are known: go through the pass again."""
        if self._bad or self._zeros:
            for key, count in Counter(self.order).items():  # in the order of first arrival
                self._states[key] = self._judge(key, count)
        self.order, self._nodes = [], {}

    def _judge(self, key: int, count: int) -> int:
        """The state of a node; those that ran before it have been judged."""
        bad = key in self._bad
        if not bad and self._zeros.get(key, 0) < count:
            return _FINE
        state = _BAD if bad else _ZERO
        givers = [giver for giver in self._nodes[key].consumers if giver in self._states] if key in self._nodes else []
        inherited = [self._states[giver] in ((_BAD,) if bad else (_ZERO, _BAD)) for giver in givers]
        if givers and not (any(inherited) if bad else all(inherited)):
            self._born(key, state, givers)
        return state

    def _born(self, key: int, state: int, givers: Sequence[int]) -> None:
        owner = self._nodes[key].owner
        kind: Literal["not_finite", "zero"] = "not_finite" if state == _BAD else "zero"
        if owner is None or sum(birth.kind == kind for birth in self.births) >= _KEPT:
            return
        giver = self._guilty(givers, state)
        consumer, grad_fn = (self._nodes[giver].owner, self._nodes[giver].name) if giver is not None else (None, "")
        seen = self._made_bad.get(giver, _Seen(None, False)) if giver is not None else _Seen(None, False)
        counts = self._bad[key] if state == _BAD else (0, 0, self._numels[key])
        self.births.append(BirthPoint(kind, owner, consumer, grad_fn, *counts, seen.saved, seen.upstream))

    def _guilty(self, givers: Sequence[int], state: int) -> int | None:
        """Which of several nodes made it: the one that was seen doing so, else one nobody has looked at."""
        if state == _ZERO:
            return next((giver for giver in givers if self._states.get(giver) != _ZERO), None)
        seen = [giver for giver in givers if giver in self._made_bad]
        open_to_doubt = [giver for giver in givers if giver not in self._risky]
        return next(iter(seen + open_to_doubt), None)

    def made_bad(self, key: int, saved: float | None, upstream: bool) -> None:
        """A node turned a finite gradient into one that is not."""
        self._made_bad[key] = _Seen(saved, upstream)

    def made(self, key: int, made: _Made) -> None:
        """What a node has made on its device: whether it is bad is known later."""
        self._backlog.when_known(made.waiting, partial(self._made, key, made))

    def _made(self, key: int, made: _Made) -> None:
        if key not in self._made_bad and made.is_bad():
            self.made_bad(key, *made.where())


class _AfterNode:
    """Hook that runs after a node. The node is let go of at the end of the pass, or the two would keep each other."""

    def __init__(self, watch: BirthWatch, node: Any, key: int) -> None:
        self._watch = watch
        self._node: Any = node
        self._key = key

    def let_go(self) -> None:
        """Hold the node no longer."""
        self._node = None

    def __call__(self, given_on: Sequence[Tensor | None], received: Sequence[Tensor | None]) -> None:
        if self._node is None:
            return
        try:
            with out_of_sight(), torch.no_grad():
                self._look(given_on, received)
        except Exception as fault:  # noqa: BLE001 - a fault of ours must not become backward's
            self._watch.fault("gradient births", fault)

    def _look(self, given_on: Sequence[Tensor | None], received: Sequence[Tensor | None]) -> None:
        for gradient in given_on:
            if gradient is None or not gradient.numel() or not is_plain(unbatched(gradient)):
                continue
            if not is_at_hand(gradient):
                self._watch.made(self._key, _Made(self._node, gradient, received))
            elif _is_bad(unbatched(gradient)):
                if any(map(_was_bad, received)):
                    return
                self._watch.made_bad(self._key, *_where(self._node, gradient, received))
                return


class _Made:
    """A gradient that a node made on a device: what it is like where it is worst, and what the node saw there."""

    __slots__ = ("_came", "waiting")

    def __init__(self, node: Any, gradient: Tensor, received: Sequence[Tensor | None]) -> None:
        whole = unbatched(gradient)
        came, saved = [], []
        if whole is gradient:  # else one element of a batch stands for many
            like = gradient.shape, gradient.device
            came = [each.abs() for each in received if each is not None and (each.shape, each.device) == like]
            kept = saved_tensors(node) if _TELLS_PACKED else ()
            saved = [each for each in kept if (each.shape, each.device) == like and not each.is_complex()]
        self._came = len(came)
        flat = _real(whole).reshape(-1)
        # Of equal ones the first, and of all numbers NaN is the largest: that is what infinity less itself is.
        worst = (flat - flat).argmax().reshape(1)
        parts = [flat, *(each.reshape(-1) for each in (*came, *saved))]
        self.waiting = Waiting(stacked([part.index_select(0, worst) for part in parts]).reshape(-1))

    def is_bad(self) -> bool:
        """Whether it is not finite; only once the numbers are there."""
        return not math.isfinite(self.waiting.numbers()[0])

    def where(self) -> tuple[float | None, bool]:
        """The saved value at the first bad element, and whether the gradient that came in was zero there."""
        values = self.waiting.numbers()[1:]
        return _edge(values[self._came :]), 0 in values[: self._came]


def _real(gradient: Tensor) -> Tensor:
    return gradient.abs() if gradient.is_complex() else gradient


def _was_bad(received: Tensor | None) -> bool:
    gradient = unbatched(received) if received is not None else None
    return gradient is not None and is_plain(gradient) and is_at_hand(gradient) and _is_bad(gradient)


def _is_bad(gradient: Tensor) -> bool:
    # A sum that is finite proves that every element is, in one pass over the data.
    return not bool(gradient.sum().isfinite()) and not bool(gradient.isfinite().all())


def _where(node: Any, gradient: Tensor, received: Sequence[Tensor | None]) -> tuple[float | None, bool]:
    """The saved value at the first bad element, and whether the gradient that came in was zero there."""
    if unbatched(gradient) is not gradient:
        return None, False  # one element of a batch stands for many
    index = tuple((~gradient.isfinite()).nonzero()[0].tolist())
    upstream = any(
        came is not None and came.shape == gradient.shape and float(came[index].abs()) == 0 for came in received
    )
    values = [
        float(saved[index]) for saved in saved_tensors(node) if saved.shape == gradient.shape and not saved.is_complex()
    ]
    return _edge(values), upstream


def _edge(values: Sequence[float]) -> float | None:
    """The first of some values at which a derivative may be infinite, else the first of all."""
    edge = (value for value in values if value in (0.0, 1.0, -1.0) or abs(value) == float("inf") or value != value)
    return next(iter([*edge, *values]), None)


def saved_tensors(node: Any) -> Iterator[Tensor]:
    """The tensors a node has saved for its backward, as far as PyTorch still hands them out.

    Those that hooks of the person's have packed (checkpointing, offloading) stay packed.
    """
    kind: Any = type(node)
    # The class of a custom Function's node is the person's, and has no such attributes.
    for name in () if issubclass(kind, BackwardCFunction) else _saved_names(kind):
        try:
            packed = _TELLS_PACKED and not isinstance(getattr(node, f"_raw{name}").data, Tensor)
            value = getattr(node, name) if not packed else None
        except Exception:  # noqa: BLE001, S112 - PyTorch refuses what was freed, or changed since
            continue
        if isinstance(value, Tensor):
            yield value.detach()


@cache
def _saved_names(kind: Any) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_saved_"))


@cache
def is_risky(grad_fn: str) -> bool:
    """Whether a node of this name can turn a finite gradient into one that is not."""
    return re.sub(r"Backward\d*$", "", grad_fn) in _RISKY
