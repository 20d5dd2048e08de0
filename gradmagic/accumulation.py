"""What the ``.grad`` of each leaf is made of: one pass, or several that have added up, some of them used already.

A *turn* lasts from one pass to the next. Weights that are updated in a turn use what its pass brought; a gradient
that lies about while only other weights are updated belongs to somebody else's turn.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from .guest import guest_of
from .places import Path, Place, Source
from .recorder import Recorder
from .statistics import Backlog, Pending, measure

BEFORE_THE_CELL = -1
"""In place of a loss: what lay in ``.grad`` when the cell began."""


@dataclass(slots=True)
class Grown:
    """The first update that used gradients which an earlier update had used already.

    Attributes:
        path: the update.
        loss: the loss whose pass was added.
        passes: how many passes had added up, at most.
    """

    path: Path
    loss: int
    passes: int


@dataclass(slots=True)
class Mixed:
    """The first update that used a gradient of somebody else's turn along with its own.

    Attributes:
        path: the update.
        foreign: the loss whose gradient was still there.
        own: the first loss whose pass was added to it.
    """

    path: Path
    foreign: int
    own: int


@dataclass(slots=True)
class Account:
    """The gradient of one leaf.

    Attributes:
        held: what ``.grad`` held when the first pass of this trace came, where that was not nothing.
        sums: how many passes of each loss ``.grad`` is the sum of; see `BEFORE_THE_CELL`.
        first, newest: numbers of the first and of the last pass in that sum.
        is_fresh: there is a gradient that no update has used yet.
        is_due: there is a gradient that no optimizer's step has used yet.
        is_stepped: an optimizer's step has used a gradient of its.
        is_read: ``clip_grad_norm_`` has only measured it, with no limit.
        used: the newest pass at the last update, or None.
        turn: the turn in which it was updated last.
        foreign: losses whose gradient lies in ``.grad`` from a turn in which only others were updated.
        on_foreign: the first loss that was added to such a gradient, or None.
        strays: losses in whose turns it got a gradient while only others were updated.
        own: losses in whose turns it was updated.
        grown, mixed: the updates that used more than they should have.
        thrown_away: where its last unused gradient was cleared, and number and loss of the pass it came from.
        thrown: how often that happened at all.
        updates: how often it was updated.
    """

    held: Pending | None = None
    sums: dict[int, int] = field(default_factory=dict)
    first: int = 0
    newest: int = -1
    newest_loss: int = 0
    is_fresh: bool = False
    is_due: bool = False
    is_stepped: bool = False
    is_read: bool = False
    used: int | None = None
    turn: int = -1
    foreign: set[int] = field(default_factory=set)
    on_foreign: int | None = None
    strays: set[int] = field(default_factory=set)
    own: set[int] = field(default_factory=set)
    grown: Grown | None = None
    mixed: Mixed | None = None
    thrown_away: tuple[Path, int, int] | None = None
    thrown: int = 0
    updates: int = 0

    @property
    def is_uneventful(self) -> bool:
        """Whether there is nothing to tell: one pass, and no update."""
        nothing_used = self.grown is None and self.mixed is None and self.thrown_away is None
        quiet = not (self.strays or self.own or self.thrown or self.updates or self.is_read)
        return self.held is None and nothing_used and quiet

    def began_with(self, held: Pending, number: int) -> None:
        """What ``.grad`` held when pass `number`, the first, came is known only now: zeros are nothing."""
        if not held.is_zero():
            return
        self.held = None
        self.sums.pop(BEFORE_THE_CELL, None)
        self.foreign.discard(BEFORE_THE_CELL)
        if self.first == BEFORE_THE_CELL:
            self.first = number

    def empty(self) -> None:
        """Nothing is left of earlier passes."""
        self.sums.clear()
        self.foreign.clear()
        self.on_foreign = None
        self.is_fresh = self.is_due = False


class GradientBook:
    """The accounts of all leaves, by the index of their place.

    Attributes:
        accounts: the accounts.
        turn: number of the last pass that stored gradients, or -1.
        by_hand: how often a gradient was put into ``.grad`` by other means than backward.
    """

    def __init__(self) -> None:
        self.accounts: dict[int, Account] = {}
        self.turn = -1
        self.by_hand = 0
        self._loss = 0
        self._leaves: list[int] = []
        self._updated = False

    def before_pass(self, leaves: Collection[tuple[int, Tensor]], source: Source, backlog: Backlog) -> None:
        """A pass is about to add to the ``.grad`` of these leaves, given with the index of their place."""
        self.end_turn()
        self.turn, self._loss = source.number, source.loss
        self._leaves = [place for place, _ in leaves]
        for place, leaf in leaves:
            self._add(leaf, place, source, backlog)

    def _add(self, leaf: Tensor, place: int, source: Source, backlog: Backlog) -> None:
        new = place not in self.accounts
        account = self.accounts.setdefault(place, Account())
        held = None if leaf.grad is None or not (new or account.sums) else _held(leaf)
        if held is None or held.is_zero():
            account.empty()
        elif new:
            account.held = held
            account.sums = {BEFORE_THE_CELL: 1}
            account.first = BEFORE_THE_CELL
            backlog.when_known(held.waiting, partial(account.began_with, held, source.number))
        if not account.sums:
            account.first = source.number
        if account.foreign and account.on_foreign is None and source.loss not in account.foreign:
            account.on_foreign = source.loss
        account.sums[source.loss] = account.sums.get(source.loss, 0) + 1
        account.newest, account.newest_loss = source.number, source.loss
        account.is_fresh = account.is_due = True

    def end_turn(self) -> None:
        """The next pass comes, or the end: who was updated since the last one, and who was not?"""
        if self._updated:
            for place in self._leaves:
                account = self.accounts[place]
                if account.turn == self.turn:
                    account.own.add(self._loss)
                else:
                    account.strays.add(self._loss)
                    account.foreign.update({self._loss} & set(account.sums))
        self._leaves, self._updated = [], False

    def updated(self, place: Place, path: Path) -> None:
        """A leaf was changed in place: by an optimizer's step, or by hand."""
        account = self.accounts.get(place.index)
        if account is None or not account.sums:
            return
        self._updated = True
        if account.is_fresh:
            account.updates += 1
            self._judge(account, path)
        account.turn, account.used, account.is_fresh = self.turn, account.newest, False

    @staticmethod
    def _judge(account: Account, path: Path) -> None:
        """Whether an update uses more than what the passes since the last update brought."""
        if account.used is not None and account.first <= account.used < account.newest:
            grown = account.grown = account.grown or Grown(path, account.newest_loss, 0)
            grown.passes = max(grown.passes, sum(account.sums.values()))
        foreign = account.foreign - {account.newest_loss}
        if foreign and account.on_foreign is not None:
            account.mixed = account.mixed or Mixed(path, min(foreign), account.on_foreign)

    def cleared(self, place: Place, path: Path) -> bool:
        """The ``.grad`` of a leaf was set to None, or to zeros; whether there was a gradient of this trace in it."""
        account = self.accounts.get(place.index)
        if account is None or not (account.sums or account.is_due):
            return False
        if account.is_fresh and account.sums:
            account.thrown_away = (path, account.newest, account.newest_loss)
            account.thrown += 1
        account.empty()
        return True

    def given(self, place: Place | None) -> None:
        """Somebody put a gradient into ``.grad`` by hand, or changed it there."""
        self.by_hand += 1
        account = self.accounts.get(place.index) if place is not None else None
        if account is not None:
            account.is_fresh = account.is_due = True

    def measured(self) -> None:
        """The gradients that are there have been measured, and left as they are."""
        for account in self.accounts.values():
            account.is_read = account.is_read or account.is_fresh


def given_unseen(recorder: Recorder) -> Tensor | None:
    """A leaf with a ``.grad`` that it had not when it was first seen, and that nothing seen has put there, or None."""
    for tensor, entry in recorder.alive():
        place = entry.place
        if place is None or not place.bare or place.given or place.transformed or not tensor.is_leaf:
            continue
        if tensor.grad is not None and guest_of(tensor) is None:
            return tensor
    return None


def _held(leaf: Tensor) -> Pending | None:
    """What a leaf's ``.grad`` holds, if anything; a guest of gradtrace's does not count."""
    guest = guest_of(leaf)
    gradient = guest.makes_way_for() if guest is not None else leaf.grad
    return measure(gradient) if gradient is not None else None
