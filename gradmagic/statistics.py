"""Gradient tensor -> numbers. Everything is computed on the gradient's device; see `Waiting` for when it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .records import GradStats
from .stored import finish, free_to_wait, is_at_hand, is_capturing, is_plain, out_of_sight, values_of

VALUES_LIMIT = 6
"""Gradients of up to this many elements show their values."""

_NOT_A_NUMBER = float("nan")
_REDUCED = 7
"""So many numbers describe a gradient that is not on the CPU."""
_COUNTED = 2**24
"""Up to here float32 counts exactly."""
_MOST_PACKED = 8 * 255
"""So many truth values can be added up in eight bytes, of which none overflows."""
_PACKED = 8 * 128
"""So many are: most sizes are multiples of a power of two, and leave no rest."""
_FEW = 1_024
"""Up to so many numbers are counted in one call, which is faster than several that are faster each..."""
_SOME = 131_072
"""...and up to so many in two."""
_MOST_WAITING = 16_384
"""So much waits for a device at most, half a kilobyte each."""


class Waiting:
    """Numbers that may still be on their device, as one vector.

    Reading a CUDA tensor waits for the device, so nothing is read before it is asked for, after the cell.
    """

    __slots__ = ("_numbers", "_tensor")

    def __init__(self, tensor: Tensor) -> None:
        """Take a vector of real numbers; on the CPU there is nothing to wait for, and it is read at once."""
        self._tensor: Tensor | None = tensor
        self._numbers: list[float] = []
        if is_at_hand(tensor):
            self.arrive(tensor.tolist())

    @property
    def tensor(self) -> Tensor | None:
        """The vector on its device; None once it is read."""
        return self._tensor

    def arrive(self, numbers: list[float]) -> None:
        """The numbers have been read."""
        self._tensor, self._numbers = None, numbers

    def numbers(self) -> list[float]:
        """The numbers; the first call transfers them."""
        if self._tensor is not None:
            _read([self])
        return self._numbers


class Pending:
    """Statistics of one gradient, possibly still on its device; see `Waiting`."""

    __slots__ = ("_numel", "_shown", "_stats", "waiting")

    def __init__(self, waiting: Waiting | None, numel: int, shown: Literal["real", "complex"] | None) -> None:
        self.waiting = waiting
        self._numel = numel
        self._shown = shown
        self._stats: GradStats | None = None

    @classmethod
    def known(cls, stats: GradStats) -> Pending:
        """Statistics that are numbers already."""
        found = cls(None, stats.numel, None)
        found._stats = stats
        return found

    def is_bad(self) -> bool:
        """Whether NaN or infinities are known of; False while the numbers are still on their device."""
        stats = self._known()
        return stats is not None and bool(stats.nan_count or stats.inf_count)

    def is_zero(self) -> bool:
        """Whether every element is known to be exactly zero; False while the numbers are still on their device."""
        stats = self._known()
        return stats is not None and stats.numel > 0 and stats.zero_fraction == 1.0

    def _known(self) -> GradStats | None:
        return self.result() if self.waiting is None or self.waiting.tensor is None else None

    def result(self) -> GradStats:
        """The numbers; the first call transfers them."""
        if self._stats is None:
            numbers = self.waiting.numbers() if self.waiting is not None else []
            *reduced, bad, not_infinite = numbers[:_REDUCED]
            infinite = self._numel - not_infinite
            self._stats = stats_of([*reduced, bad - infinite, infinite], self._numel, self._values(numbers))
            self.waiting = None
        return self._stats

    def _values(self, numbers: list[float]) -> tuple[float | complex, ...] | None:
        values = numbers[_REDUCED:]
        if self._shown == "complex":
            return tuple(map(complex, values[::2], values[1::2]))
        return tuple(values) if self._shown else None


def last_waiting(group: Sequence[Pending]) -> Waiting | None:
    """What is to be waited for so that all of a group are known: the last that waits, as all are read together."""
    waiting = [each.waiting for each in group if each.waiting is not None and each.waiting.tensor is not None]
    return waiting[-1] if waiting else None


class Backlog:
    """What is to be done once numbers have arrived from their device. On the CPU nothing waits."""

    def __init__(self) -> None:
        self._due: list[tuple[Waiting | None, Callable[[], None]]] = []

    def when_known(self, waiting: Waiting | None, then: Callable[[], None]) -> None:
        """Call `then` when the numbers are there: now, or in one go with all others.

        That is after the cell, or when `_MOST_WAITING` have come together, so that memory stays bounded: one wait for
        the device for many thousand gradients.
        """
        if (waiting is None or waiting.tensor is None) and not self._due:
            then()
            return
        self._due.append((waiting, then))
        if len(self._due) >= _MOST_WAITING and not is_capturing():
            self.settle()

    def settle(self) -> None:
        """Read all that waits, with one transfer for each device, and do what was to be done, in order."""
        due, self._due = self._due, []
        by_device: dict[torch.device, list[Waiting]] = {}
        for waiting, _ in due:
            if waiting is not None and waiting.tensor is not None:
                by_device.setdefault(waiting.tensor.device, []).append(waiting)
        with free_to_wait():
            for group in by_device.values():
                _read(group)
        for _, then in due:
            then()


def _read(group: Sequence[Waiting]) -> None:
    """Read what waits on one device, in whatever streams."""
    finish(str(waiting.tensor.device) for waiting in group if waiting.tensor is not None)
    tensors = [waiting.tensor for waiting in group if waiting.tensor is not None]
    numbers = torch.cat([tensor.to(_precision(tensor.device)) for tensor in tensors]).tolist()
    start = 0
    for waiting, tensor in zip(group, tensors, strict=True):
        waiting.arrive(numbers[start : start + tensor.numel()])
        start += tensor.numel()


def measure(gradient: Tensor, layout: Sequence[int] | None = None) -> Pending:
    """Statistics of a gradient: five reductions, in the gradient's own precision (at least float32).

    The norm is ``torch.linalg.vector_norm``, so for float32 and float64 it equals ``gradient.norm()`` bit for bit.
    Complex gradients are described by their magnitudes, those of a whole batch (``is_grads_batched``) by all of them
    together, others by the values they store; see `values_of`.

    Args:
        gradient: the gradient, as a hook received it.
        layout: strides of the ``.grad`` it will be stored in, where they are known.
    """
    with out_of_sight():
        values = values_of(gradient)
        if values is None:
            return Pending.known(stats_of(None, gradient.numel(), None))
        return _measured(_as_stored(values, layout))


def _measured(data: Tensor) -> Pending:
    if not data.is_floating_point() and not data.is_complex():
        data = data.to(torch.float64)
    numel = data.numel()
    shown = data.reshape(-1) if numel <= VALUES_LIMIT else None
    if numel > 1 and not data.is_contiguous():
        data = data.as_strided((numel,), (1,))  # as it lies in memory: so it is reduced to the same bits, and faster
    if is_at_hand(data) or not numel:
        numbers = [number.item() for number in reductions(data)] if numel else None
        return Pending.known(stats_of(numbers, numel, tuple(shown.tolist()) if shown is not None else None))
    kind: Literal["real", "complex"] = "complex" if data.is_complex() else "real"
    return Pending(Waiting(_reduce_there(data, shown)), numel, kind if shown is not None else None)


def stacked(numbers: Sequence[Tensor]) -> Tensor:
    """One vector of many numbers on one device, in double precision where the device has it (MPS has not)."""
    return torch.stack([number.to(_precision(number.device)) for number in numbers])


def _precision(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _reduce_there(data: Tensor, shown: Tensor | None) -> Tensor:
    """What `_reduce` gives, by as few kernels as can be, as one vector; behind it the elements that are shown.

    In place of the numbers of NaNs and infinities stand those of what is not finite (infinity less itself is NaN), and
    of what is not infinite (its reciprocal is not zero). Half precision is widened within the kernels.
    """
    data = _wide(data) if data.is_complex() else data
    size = data.abs() if data.is_complex() else data
    low, high = torch.aminmax(size)
    norm = torch.linalg.vector_norm(data, dtype=torch.promote_types(data.dtype, torch.float32))
    mean = size.mean(dtype=torch.promote_types(size.dtype, torch.float32))
    found = torch.stack([norm, mean, low, high, _count(size), _count(size - size), _count(size.reciprocal())])
    if shown is None:
        return found
    # As a copy: a view of the values of a sparse CSR tensor cannot be viewed once more.
    real = torch.view_as_real(shown.resolve_conj().clone()).reshape(-1) if shown.is_complex() else shown
    return torch.cat([found, real.to(found.dtype)])


def _count(data: Tensor) -> Tensor:
    """How many elements are not zero; a NaN is not. The 0-norm is one kernel, but counts in floating point."""
    wide = torch.promote_types(data.dtype, torch.float32)
    whole = data.numel() <= _COUNTED
    parts: Sequence[Tensor] = (data,) if whole else data.as_strided((data.numel(),), (1,)).split(_COUNTED)
    counts: list[Tensor] = [torch.linalg.vector_norm(part, 0, dtype=wide) for part in parts]
    return counts[0] if whole else stacked(counts).sum()


def _as_stored(data: Tensor, layout: Sequence[int] | None) -> Tensor:
    """The gradient in the memory layout that ``.grad`` will have.

    A floating point sum depends on its order, and the order on the layout: without this the norm would differ in
    the last bits from that of ``.grad`` (for an expanded gradient, such as the one of ``sum``).
    """
    if (layout is None and data.is_contiguous()) or data.numel() <= 1:
        return data
    if layout is not None and len(layout) == data.dim() and is_dense(data.shape, layout):
        if data.stride() == tuple(layout):
            return data
        return torch.empty_strided(data.shape, layout, dtype=data.dtype, device=data.device).copy_(data)
    return data if is_dense(data.shape, data.stride()) else data.clone()


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie side by side in memory, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def reductions(data: Tensor, rows: bool = False) -> list[Tensor]:
    """Norm, mean, min, max and number of non-zeros; then, where they can be other than 0, NaNs and infinities.

    Args:
        data: the numbers, on the CPU, as they lie in memory.
        rows: of each row of a matrix, to the bit what each of them would give alone.
    """
    data = _wide(data)
    size: Any = data.abs() if data.is_complex() else data
    over: dict[str, Any] = {"dim": 1} if rows else {}
    norm = torch.linalg.vector_norm(data, **over)
    # Over all elements one call is faster, from 1.1 times for 4 million to 1.5; over rows it takes 15 times as long.
    low, high = (size.amin(**over), size.amax(**over)) if rows else torch.aminmax(size)
    numbers = [norm, size.mean(**over), low, high, _nonzeros(data, rows)]
    # A finite norm proves that every element is finite, and saves two passes over the data.
    finite = bool(norm.isfinite().all()) if rows else math.isfinite(norm.item())
    return numbers if finite else [*numbers, size.isnan().sum(**over), size.isinf().sum(**over)]


def _nonzeros(data: Tensor, rows: bool) -> Tensor:
    """How many elements are not zero, of all or of each row.

    ``count_nonzero`` is the dearest of the reductions: for 2 million elements it takes 0.5 ms, and 8 ms if every other
    one is zero, where this takes 0.15; for 256 rows of 1,024 it takes 594 us and this 25. PyTorch makes truth values of
    numbers, and adds up integers, many at once; so eight truth values are added as one integer, again and again. With
    caches as cold as in a cell, 65,536 numbers take 33 us.
    """
    if not is_at_hand(data) or not data.is_contiguous() or (not rows and data.numel() <= _FEW):
        return torch.count_nonzero(data, dim=1 if rows else None)
    truths = data.bool()
    if not rows:
        return torch.count_nonzero(truths) if truths.numel() <= _SOME else _packed(truths.view(-1))
    if truths.shape[1] % 8 or truths.shape[1] > _MOST_PACKED:
        return truths.to(torch.float32).sum(1).to(torch.int64)  # exact up to 2 ** 24
    return truths.view(torch.int64).sum(1, keepdim=True).view(torch.uint8).sum(1)


def _packed(truths: Tensor) -> Tensor:
    """How many truth values of a vector are true. With every call that it can do without, it takes 30 us more."""
    rest = truths.numel() % _PACKED
    whole = truths[:-rest] if rest else truths
    counted = whole.view(torch.int64).view(-1, _PACKED // 8).sum(1).view(torch.uint8).sum()
    return counted + torch.count_nonzero(truths[-rest:]) if rest else counted


def _wide(data: Tensor) -> Tensor:
    """At least float32: norms of half precision overflow."""
    if data.dtype is torch.float32:
        return data  # as nearly always: to find that out below takes 2 us
    return data.to(torch.promote_types(data.dtype, torch.float32))


def stats_of(numbers: Sequence[float] | None, numel: int, values: tuple[float | complex, ...] | None) -> GradStats:
    """From what `reductions` gives; None for a gradient without elements, or without numbers."""
    if numbers is None:
        nan = _NOT_A_NUMBER
        size = nan if numel else 0.0  # without elements the norm is 0; a meta tensor has elements but no numbers
        return GradStats(size, size, nan, nan, nan, size, 0, 0, numel, values)
    norm, mean, low, high, nonzero, *bad = numbers
    nan_count, inf_count = (int(bad[0]), int(bad[1])) if bad else (0, 0)
    return GradStats(
        norm=norm,
        rms=norm / math.sqrt(numel),
        mean=mean,
        min=low,
        max=high,
        zero_fraction=1.0 - nonzero / numel,
        nan_count=nan_count,
        inf_count=inf_count,
        numel=numel,
        values=values,
    )


# ---- activation functions

ACTIVATIONS = frozenset({"relu", "relu_", "clamp", "clamp_min", "tanh", "sigmoid", "softmax"})
"""Operations whose answer tells whether they let a gradient through."""

_PASSES = 0.02
"""An element is saturated when less than this share of the largest possible slope is left.

That is where ``1 - y**2`` of tanh (whose slope is at most 1), and ``4 * y * (1 - y)`` of sigmoid and softmax (at most
1/4), fall below 2 %: |tanh| > 0.99, a sigmoid below 0.005 or above 0.995, one probability above 0.995.
"""
_TANH = math.sqrt(1 - _PASSES)
_HALF = _TANH / 2


class PendingActivity:
    """How an activation function answered, possibly still on the device; read like `Pending`."""

    __slots__ = ("_numbers", "samples", "units")

    def __init__(self, idle: Tensor, off: Tensor, counted: Tensor | int, units: int, samples: int) -> None:
        numbers = (idle, off, counted)
        # On the CPU there is nothing to wait for, and plain numbers are smaller.
        self._numbers = tuple(map(int, numbers)) if is_at_hand(off) else numbers
        self.units = units
        self.samples = samples

    def result(self) -> tuple[int, int, int]:
        """Units that never answer, elements that do not, and how many elements count."""
        if isinstance(self._numbers[0], Tensor):
            finish([str(self._numbers[0].device)])
        idle, off, counted = map(int, self._numbers)
        return idle, off, counted


def activity(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> PendingActivity | None:
    """How many units of an activation's result are zero (relu) or saturated (tanh, sigmoid, softmax).

    A unit of a relu is a channel (dimension 1) of a result with four or more dimensions, else a position of the last
    one; it is idle when that holds for every sample. For tanh and sigmoid each element is a unit, for softmax each
    distribution over more than one possibility.

    Args:
        name: one of `ACTIVATIONS`.
        args: what it was called with.
        kwargs: likewise, by keyword.
        result: what it gave.

    Returns:
        None where the call is no activation function (``clamp`` with other bounds) or has nothing to count.
    """
    if not is_plain(result) or not result.numel() or result.is_complex():
        return None
    with out_of_sight():
        return _activity(name, args, kwargs, result.detach())


def _activity(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], data: Tensor) -> PendingActivity | None:
    if name == "softmax":
        return _softmax_activity(args, kwargs, data)
    if name in ("tanh", "sigmoid"):
        count = torch.count_nonzero(data.abs() > _TANH if name == "tanh" else (data - 0.5).abs() > _HALF)
        return PendingActivity(count, count, data.numel(), data.numel(), 1)
    if name.startswith("clamp") and _bounds(args, kwargs) != (0, None):
        return None
    return _relu_activity(data)


def _relu_activity(data: Tensor) -> PendingActivity:
    unit = 1 if data.dim() >= 4 else data.dim() - 1
    others = [dim for dim in range(data.dim()) if dim != unit]
    # Nothing is below zero. To compare every element with zero takes ten times as long as to find the largest.
    idle = (data.amax(dim=others) if others else data) == 0
    off = data.numel() - _nonzeros(data, rows=False)
    return PendingActivity(torch.count_nonzero(idle), off, data.numel(), idle.numel(), data.numel() // idle.numel())


def _bounds(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    low, high = (*args[1:3], None, None)[:2]
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    return (low if isinstance(low, (int, float)) else None, high)


def _softmax_activity(args: tuple[Any, ...], kwargs: Mapping[str, Any], data: Tensor) -> PendingActivity | None:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    given = args[0] if args else None
    if not isinstance(dim, int) or not data.dim() or not isinstance(given, Tensor) or given.is_complex():
        return None
    possible = (given.detach() > -math.inf).sum(dim) > 1
    saturated = ((data.amax(dim) > 0.5 + _HALF) & possible).sum()
    return PendingActivity(saturated, saturated, possible.sum(), possible.numel(), 1)
