"""Where in a backward pass a gradient first stopped being finite, or became exactly zero.

A node's gradient is a birth when it is bad and the gradients of all nodes it came from are not. Which of these made
it, and from what value, is only known right after that node ran, while it still holds what it had saved: so nodes
whose derivative can be infinite are looked at then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from .statistics import Pending
from .stored import is_plain, out_of_sight, unbatched

Owner = tuple[int, int]
"""Index of a place, and which of its occurrences."""

_ZERO, _BAD = 1, 2
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


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen right after a risky node had run: the value it went wrong at, and the gradient that came in."""

    saved: float | None
    upstream: bool


class BirthWatch:
    """The births of one pass. Knows nodes by their ``id`` only.

    Attributes:
        births: those found, in the order of backward.
    """

    def __init__(self, consumers: Mapping[int, Sequence[int]]) -> None:
        """Prepare; `consumers` tells from which nodes each node receives gradients."""
        self.births: list[BirthPoint] = []
        self._consumers = consumers
        self._owners: dict[int, tuple[Owner | None, str]] = {}
        self._states: dict[int, int] = {}
        self._ran: set[int] = set()
        self._made_bad: dict[int, _Seen] = {}
        self._risky: dict[int, _AfterNode] = {}

    def know(self, key: int, owner: Owner | None, grad_fn: str) -> None:
        """Whom a node belongs to."""
        self._owners[key] = (owner, grad_fn)

    def look_after(self, node: Any, key: int, grad_fn: str) -> _AfterNode | None:
        """The hook that looks at a node right after it has run, or None where there is no need."""
        if _plain(grad_fn) not in _RISKY or not _on_cpu(node):
            return None
        hook = self._risky[key] = _AfterNode(self, node, key)
        return hook

    def let_go(self) -> None:
        """The pass is over: hold no node any more."""
        for hook in self._risky.values():
            hook.let_go()
        self._risky.clear()

    def received(self, key: int, gradients: Sequence[Pending]) -> None:
        """A node received its gradients."""
        self._ran.add(key)
        bad = any(gradient.is_bad() for gradient in gradients)
        if not bad and not (gradients and all(gradient.is_zero() for gradient in gradients)):
            return
        state = self._states[key] = _BAD if bad else _ZERO
        givers = [giver for giver in self._consumers.get(key, ()) if giver in self._ran]
        inherited = [self._states.get(giver) in ((_BAD,) if bad else (_ZERO, _BAD)) for giver in givers]
        if givers and not (any(inherited) if bad else all(inherited)):
            self._born(key, state, givers, gradients)

    def _born(self, key: int, state: int, givers: Sequence[int], gradients: Sequence[Pending]) -> None:
        owner, _ = self._owners[key]
        kind: Literal["not_finite", "zero"] = "not_finite" if state == _BAD else "zero"
        if owner is None or sum(birth.kind == kind for birth in self.births) >= _KEPT:
            return
        giver = self._guilty(givers, state)
        consumer, grad_fn = self._owners[giver] if giver is not None else (None, "")
        seen = self._made_bad.get(giver, _Seen(None, False)) if giver is not None else _Seen(None, False)
        stats = next((g.result() for g in gradients if g.is_bad()), gradients[0].result())
        counts = stats.nan_count, stats.inf_count, stats.numel
        self.births.append(BirthPoint(kind, owner, consumer, grad_fn, *counts, seen.saved, seen.upstream))

    def _guilty(self, givers: Sequence[int], state: int) -> int | None:
        """Which of several nodes made it: the one that was seen doing so, else one nobody has looked at."""
        if state == _ZERO:
            return next((giver for giver in givers if self._states.get(giver) != _ZERO), None)
        seen = [giver for giver in givers if giver in self._made_bad]
        open_to_doubt = [giver for giver in givers if giver not in self._risky]
        return next(iter(seen + open_to_doubt), None)

    def is_bad(self, key: int) -> bool:
        """Whether a node's own gradient was bad already."""
        return self._states.get(key) == _BAD

    def made_bad(self, key: int, saved: float | None, upstream: bool) -> None:
        """A node turned a finite gradient into one that is not."""
        self._made_bad[key] = _Seen(saved, upstream)


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
        if self._node is None or self._watch.is_bad(self._key):
            return
        with out_of_sight(), torch.no_grad():
            for gradient in given_on:
                if gradient is not None and _is_bad(unbatched(gradient)):
                    self._watch.made_bad(self._key, *_where(self._node, gradient, received))
                    return


def _is_bad(gradient: Tensor) -> bool:
    if not is_plain(gradient):
        return False
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
    edge = [value for value in values if value in (0.0, 1.0, -1.0) or abs(value) == float("inf") or value != value]
    return next(iter(edge + values), None), upstream


def saved_tensors(node: Any) -> Iterator[Tensor]:
    """The tensors a node has saved for its backward, as far as PyTorch still hands them out."""
    for name in dir(node):
        if name.startswith("_saved_"):
            try:
                value = getattr(node, name)
            except Exception:  # noqa: BLE001, S112 - a saved-tensor hook of the person's may refuse to give it twice
                continue
            if isinstance(value, Tensor):
                yield value.detach()


@cache
def _plain(grad_fn: str) -> str:
    return re.sub(r"Backward\d*$", "", grad_fn)


def _on_cpu(node: Any) -> bool:
    try:
        return all(metadata.device.type == "cpu" for metadata in node._input_metadata)
    except (RuntimeError, AttributeError):
        return False
