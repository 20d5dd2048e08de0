"""A gradient of another shape than its tensor: what could be done to it. Nothing here knows whether that is right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .diagnosis.words import joined

MOST_DIMENSIONS = 4
"""Of so many dimensions every permutation is tried: 24 at the most."""


@dataclass(frozen=True, slots=True)
class Reshaping:
    """What was done, what came of it, why in words, and the code to write behind the name."""

    cause: Literal["sum", "expanded", "reshaped", "transposed"]
    changed: Tensor
    words: str
    code: str


def reshapings(given: Tensor, wanted: tuple[int, ...]) -> Iterator[Reshaping]:
    """Every way to the shape that is wanted."""
    yield from permuted(given, wanted)
    yield from _reshaped(given, wanted)
    yield from _summed(given, wanted)
    yield from _expanded(given, wanted)


def permuted(given: Tensor, wanted: tuple[int, ...]) -> Iterator[Reshaping]:
    """Its dimensions in another order."""
    if not 2 <= given.dim() <= MOST_DIMENSIONS:
        return
    for order in list(itertools.permutations(range(given.dim())))[1:]:
        changed = given.permute(order)
        if tuple(changed.shape) == wanted:
            code = ".T" if given.dim() == 2 else f".permute{order}"
            yield Reshaping("transposed", changed, "it is transposed", code)


def _reshaped(given: Tensor, wanted: tuple[int, ...]) -> Iterator[Reshaping]:
    if given.numel() != math.prod(wanted):
        return
    words = "the numbers are right, their arrangement is not"
    if [size for size in given.shape if size != 1] == [size for size in wanted if size != 1]:
        words = "the numbers are right, but dimensions of size 1 differ (`keepdim=True` keeps them in a sum)"
    yield Reshaping("reshaped", given.reshape(wanted), words, f".reshape({', '.join(map(str, wanted))})")


def _summed(given: Tensor, wanted: tuple[int, ...]) -> Iterator[Reshaping]:
    """What was broadcast in the forward pass is summed over on the way back."""
    try:
        changed = given.sum_to_size(wanted)
    except RuntimeError:
        return
    extra = given.dim() - len(wanted)
    kept = [extra + d for d, size in enumerate(wanted) if size == 1 and given.shape[extra + d] != 1]
    dropped = list(range(extra))
    axes = [*dropped, *kept]
    over = f"dimension{'s' if len(axes) > 1 else ''} {joined([*map(str, axes)])}"
    words = f"it was broadcast over {over}, so its gradient is the sum"
    code = (f".sum({_axes(kept)}, keepdim=True)" if kept else "") + (f".sum({_axes(dropped)})" if dropped else "")
    yield Reshaping("sum", changed, words, code)


def _expanded(given: Tensor, wanted: tuple[int, ...]) -> Iterator[Reshaping]:
    try:
        changed = given.expand(wanted)
    except RuntimeError:
        return
    words = "each of its elements belongs to a whole dimension"
    yield Reshaping("expanded", changed, words, f".expand({', '.join(map(str, wanted))})")


def _axes(axes: Sequence[int]) -> str:
    return str(axes[0]) if len(axes) == 1 else str(tuple(axes))
