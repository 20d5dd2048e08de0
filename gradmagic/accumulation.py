"""What the ``.grad`` of each leaf is made of: one pass, or several that have added up, some of them used already."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .guest import guest_of
from .places import Path, Place
from .statistics import Pending, measure

_BEFORE_THE_CELL = -1


@dataclass(slots=True)
class Account:
    """The gradient of one leaf.

    Attributes:
        held: what ``.grad`` held when the first pass of this trace came, where that was not nothing.
        passes: the passes whose gradients ``.grad`` is the sum of; -1 for those of earlier cells.
        used: the last pass before the last update of the leaf, or None.
        stepped_on_old: the pass that was added to gradients an earlier update had used, where the leaf was updated with
            the sum, and how many passes had added up.
    """

    held: Pending | None = None
    passes: list[int] = field(default_factory=list)
    used: int | None = None
    stepped_on_old: tuple[int, Path, int] | None = None


class GradientBook:
    """The accounts of all leaves, by the index of their place."""

    def __init__(self) -> None:
        self.accounts: dict[int, Account] = {}

    def before_pass(self, leaf: Tensor, place: int, index: int) -> None:
        """Pass `index` is about to add to a leaf's ``.grad``."""
        new = place not in self.accounts
        account = self.accounts.setdefault(place, Account())
        held = _held(leaf)
        if held is None:
            account.passes = [index]
            return
        if new:
            account.held = held
            account.passes = [_BEFORE_THE_CELL]
        account.passes.append(index)

    def updated(self, place: Place, path: Path) -> None:
        """A leaf was changed in place: by an optimizer's step, or by hand."""
        account = self.accounts.get(place.index)
        if account is None or not account.passes:
            return
        newest = account.passes[-1]
        if account.used is not None and account.passes[0] <= account.used < newest:
            account.stepped_on_old = account.stepped_on_old or (newest, path, len(account.passes))
        account.used = newest


def _held(leaf: Tensor) -> Pending | None:
    """What a leaf's ``.grad`` holds, if anything but zeros; a guest of gradtrace's does not count."""
    guest = guest_of(leaf)
    gradient = guest.makes_way_for() if guest is not None else leaf.grad
    if gradient is None:
        return None
    held = measure(gradient)
    return None if held.is_zero() else held
