"""Gradient tensor -> numbers. Everything is computed on the gradient's device; see `Pending` for when it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .records import GradStats

VALUES_LIMIT = 6
"""Gradients of up to this many elements show their values."""

_NOT_A_NUMBER = float("nan")


class Pending:
    """Statistics of one gradient, possibly still on its device.

    Reading a CUDA scalar waits for the device, so there nothing is read before `result` is called, after the cell.
    On the CPU there is nothing to wait for; the numbers are read at once.
    """

    __slots__ = ("_numbers", "_numel", "_stats", "_values")

    def __init__(self, numbers: Tensor | None, numel: int, values: Tensor | None) -> None:
        self._numbers = numbers
        self._numel = numel
        self._values = values
        self._stats: GradStats | None = None

    @classmethod
    def known(cls, stats: GradStats) -> Pending:
        """Statistics that are numbers already."""
        found = cls(None, stats.numel, None)
        found._stats = stats
        return found

    def result(self) -> GradStats:
        """The numbers; the first call transfers them."""
        if self._stats is None:
            numbers = self._numbers.tolist() if self._numbers is not None else None
            values = tuple(self._values.tolist()) if self._values is not None else None
            self._stats = _stats(numbers, self._numel, values)
            self._numbers = self._values = None
        return self._stats


def measure(gradient: Tensor, layout: Sequence[int] | None = None) -> Pending:
    """Statistics of a gradient: five reductions, in the gradient's own precision (at least float32).

    The norm is ``torch.linalg.vector_norm``, so for float32 and float64 it equals ``gradient.norm()`` bit for bit.
    Complex gradients are described by their magnitudes, sparse ones by their stored values.

    Args:
        gradient: the gradient, as a hook received it.
        layout: strides of the ``.grad`` it will be stored in, where they are known.
    """
    with torch._C.DisableTorchFunction():
        data = _as_stored(_dense(gradient.detach()), layout)
        numel = data.numel()
        shown = data.reshape(-1) if numel <= VALUES_LIMIT and not data.is_meta else None
        reduced = _reduce(data) if numel and not data.is_meta else None
        if data.device.type == "cpu":
            numbers = [number.item() for number in reduced] if reduced is not None else None
            return Pending.known(_stats(numbers, numel, tuple(shown.tolist()) if shown is not None else None))
        return Pending(_stacked(reduced), numel, shown.clone() if shown is not None else None)


def _dense(gradient: Tensor) -> Tensor:
    if gradient.layout is torch.strided:
        return gradient
    if gradient.layout is torch.sparse_coo:
        return gradient.coalesce().values()
    return gradient.values()


def _stacked(numbers: list[Tensor] | None) -> Tensor | None:
    """One vector, so that there is one transfer."""
    if numbers is None:
        return None
    precise = torch.float32 if numbers[0].device.type == "mps" else torch.float64  # MPS has no float64
    return torch.stack([number.to(precise) for number in numbers])


def _as_stored(data: Tensor, layout: Sequence[int] | None) -> Tensor:
    """The gradient in the memory layout that ``.grad`` will have.

    A floating point sum depends on its order, and the order on the layout: without this the norm would differ in
    the last bits from that of ``.grad`` (for an expanded gradient, such as the one of ``sum``).
    """
    if (layout is None and data.is_contiguous()) or data.numel() <= 1:
        return data
    if layout is not None and len(layout) == data.dim() and _is_dense(data.shape, layout):
        if data.stride() == tuple(layout):
            return data
        return torch.empty_strided(data.shape, layout, dtype=data.dtype, device=data.device).copy_(data)
    return data if _is_dense(data.shape, data.stride()) else data.clone()


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie side by side in memory, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _reduce(data: Tensor) -> list[Tensor]:
    """Norm, mean, min, max and number of non-zeros; then, where they can be other than 0, NaNs and infinities."""
    size: Any = data.abs() if data.is_complex() else data
    if size.dtype in (torch.float16, torch.bfloat16):
        size = size.float()
    norm = torch.linalg.vector_norm(data if data.is_complex() else size)
    low, high = torch.aminmax(size)
    numbers = [norm, size.mean(), low, high, torch.count_nonzero(data)]
    if data.device.type != "cpu" or not math.isfinite(norm.item()):
        # On the CPU a finite norm proves that every element is finite, and saves two passes over the data.
        numbers += [size.isnan().sum(), size.isinf().sum()]
    return numbers


def _stats(numbers: list[float] | None, numel: int, values: tuple[float | complex, ...] | None) -> GradStats:
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
