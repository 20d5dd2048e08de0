"""The backward passes of a trace, while the cell still runs: each loss with its sums, and the passes, thinned."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .births import BirthPoint
from .curves import GrowingCurve
from .failures import PassFailure, UnseenChange
from .places import Path, Place, Source
from .walk import NodeCount

PassFunction = Literal["backward", "autograd.grad"]

KEPT = 512
"""So many passes are kept one by one at most; from then on every second one goes, again and again."""


@dataclass(slots=True, eq=False)
class Loss:
    """The passes that one line runs from what one line makes: what a loop repeats, or calls of one function.

    Attributes:
        index: its number among the losses.
        roots: places the passes start from, as those of the first.
        path: where they are called; None when gradtrace ran it.
        function: ``backward`` or ``autograd.grad``.
        count: how many passes there were.
        freed: number of the last one that freed its graph, or None; and by the recorder's clock, when that was.
        reached: places on the way from the roots to the leaves, in any of the passes.
        reached_freely, reached_limited: likewise, in passes without and with ``inputs=``.
        usual: those of the first pass, which most others share.
        values: the root's value at each pass.
        seconds: wall time of all passes.
        error: text of the last error, or None.
    """

    index: int
    roots: list[Place]
    path: Path | None
    function: PassFunction
    count: int = 0
    freed: int | None = None
    freed_at: int = 0
    reached: set[int] = field(default_factory=set)
    reached_freely: set[int] = field(default_factory=set)
    reached_limited: set[int] = field(default_factory=set)
    usual: set[int] | None = None
    values: GrowingCurve = field(default_factory=GrowingCurve)
    seconds: float = 0.0
    error: str | None = None


@dataclass(slots=True, eq=False)
class Pass:
    """One run of backward, while the cell still runs.

    Attributes:
        number: its number among all passes.
        path: where it was called; None when gradtrace ran it.
        function: ``backward`` or ``autograd.grad``.
        clock: the recorder's clock when it ran: what was made later has no part in it.
        loss: which loss it belongs to; known once its roots are.
        step: its number among the passes of that loss.
        frees_graph: whether the graph could not be used again afterwards.
        limited: it was told which tensors to give a gradient (``inputs=``).
        reached: places on the way from the roots to the leaves.
        complete: whether the graph was followed to its ends.
        nodes: how many nodes it has.
        hidden: places that got their gradient from a graph of its own inside the backward of another place, by that.
        value: the root's value, when it is one number; may arrive only after the cell.
        seconds: wall time.
        error: text of the error it raised, or None.
        shape: shape of the root.
        asked: places that ``autograd.grad`` was asked for, or that ``inputs=`` named.
        failure: where in the graph it stopped with an error, or None.
        freed_by: the loss whose pass, the last one before, had used up the graph there; or None.
        births: where gradients went bad.
        unseen: saved tensors that were changed where autograd does not look.
    """

    number: int
    path: Path | None
    function: PassFunction
    clock: int
    loss: Loss | None = None
    step: int = 0
    frees_graph: bool = True
    limited: bool = False
    reached: set[int] = field(default_factory=set)
    complete: bool = True
    nodes: NodeCount = field(default_factory=NodeCount)
    hidden: dict[int, set[int]] = field(default_factory=dict)
    value: float | None = None
    seconds: float = 0.0
    error: str | None = None
    shape: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()
    failure: PassFailure | None = None
    freed_by: Loss | None = None
    births: list[BirthPoint] = field(default_factory=list)
    unseen: list[UnseenChange] = field(default_factory=list)

    @property
    def roots(self) -> list[Place]:
        """Places it started from."""
        return self.loss.roots if self.loss is not None else []

    @property
    def is_sick(self) -> bool:
        """Whether something in it was not finite."""
        bad_value = self.value is not None and not math.isfinite(self.value)
        return bad_value or any(birth.kind == "not_finite" for birth in self.births)


class PassLog:
    """Every pass of a trace, in order.

    Attributes:
        losses: what the passes started from, and where, in the order of their first pass.
        kept: the passes; from `KEPT` on only every second, fourth... of them, with the first, the last, those that
            failed and the first that was sick.
        count: how many there were.
        complete: whether every graph was followed to its ends.
        nodes: how many nodes all graphs have together.
        hidden: as `Pass.hidden`, of all passes.
    """

    def __init__(self) -> None:
        self.losses: list[Loss] = []
        self.kept: list[Pass] = []
        self.count = 0
        self.complete = True
        self.nodes = NodeCount()
        self.hidden: dict[int, set[int]] = {}
        self._by_key: dict[Hashable, Loss] = {}
        self._stride = 1

    @property
    def is_full(self) -> bool:
        """Whether the next pass makes some others be forgotten."""
        return len(self.kept) == KEPT

    def begin(self, path: Path | None, function: PassFunction, clock: int) -> Pass:
        """A pass is about to run."""
        done = Pass(self.count, path, function, clock)
        self.count += 1
        self.kept.append(done)
        if len(self.kept) > KEPT:
            self._thin()
        return done

    def started_from(self, done: Pass, roots: Sequence[Place]) -> Source:
        """The roots of a pass are known, and with them its loss."""
        loss = self._assign(done, roots)
        return Source(loss.index, done.number, done.step, done.clock)

    def _assign(self, done: Pass, roots: Sequence[Place]) -> Loss:
        made = tuple((root.path.line, root.op, root.position) for root in roots)
        key = (done.path.line if done.path is not None else None, made, done.function)
        loss = self._by_key.get(key)
        if loss is None:
            loss = self._by_key[key] = Loss(len(self.losses), list(roots), done.path, done.function)
            self.losses.append(loss)
        done.loss, done.step = loss, loss.count
        loss.count += 1
        return loss

    def stopped(self, done: Pass, failure: PassFailure) -> None:
        """A pass has failed, and this is where."""
        done.failure = failure
        done.freed_by = self._freed(failure.place)

    def used_up(self, place: Place) -> Loss | None:
        """The loss whose pass has used up the graph of what was last made at a place; None while nothing has."""
        loss = self._freed(place.index)
        return loss if loss is not None and place.last_clock < loss.freed_at else None

    def _freed(self, place: int | None) -> Loss | None:
        """The loss that was the last to free a graph through a place, or None."""
        freeing = [loss for loss in self.losses if loss.freed is not None and place in loss.reached]
        return max(freeing, key=lambda loss: loss.freed or 0, default=None)

    def end(self, done: Pass) -> None:
        """A pass has run: add it to its loss."""
        loss = done.loss or self._assign(done, [])
        loss.seconds += done.seconds
        loss.error = done.error or loss.error
        if done.frees_graph and done.error is None:
            loss.freed, loss.freed_at = done.number, done.clock
        (loss.reached_limited if done.limited else loss.reached_freely).update(done.reached)
        loss.reached |= done.reached
        if loss.usual is None:
            loss.usual = done.reached
        elif loss.usual == done.reached:
            done.reached = loss.usual  # one set for all passes of a loop
        self.complete = self.complete and done.complete
        self.nodes.add(done.nodes)
        for owner, leaves in done.hidden.items():
            self.hidden.setdefault(owner, set()).update(leaves)

    @property
    def last(self) -> Pass | None:
        """The last pass, or None."""
        return self.kept[-1] if self.kept else None

    def _thin(self) -> None:
        if self.count > self._stride * KEPT // 2:
            self._stride *= 2
        sick = next((done for done in self.kept if done.is_sick), None)
        failed = [done for done in self.kept if done.error is not None][-8:]
        special = {0, self.count - 1, *(done.number for done in failed), sick.number if sick is not None else 0}
        self.kept = [done for done in self.kept if done.number % self._stride == 0 or done.number in special]
