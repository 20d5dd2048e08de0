"""Two gradients of one shape -> exact, close or different, and where they differ most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

_RELATIVE: Mapping[torch.dtype, tuple[float, float]] = MappingProxyType(
    {
        torch.float16: (1e-3, 1e-5),
        torch.bfloat16: (1.6e-2, 1e-5),
        torch.float32: (1.3e-6, 1e-5),
        torch.float64: (1e-7, 1e-7),
        torch.complex32: (1e-3, 1e-5),
        torch.complex64: (1.3e-6, 1e-5),
        torch.complex128: (1e-7, 1e-7),
    }
)
"""`rtol` and `atol` by dtype, from the documentation of `torch.testing.assert_close`."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How two gradients differ.

    Attributes:
        verdict: ``exact``, ``close`` or ``different``.
        largest: the largest absolute difference, or None without elements; NaN where only one of the two is NaN.
        index: where that is.
        given, gradient: both elements there.
        beyond: how many elements differ by more than rounding.
    """

    verdict: Literal["exact", "close", "different"]
    largest: float | None = None
    index: tuple[int, ...] | None = None
    given: float | complex | None = None
    gradient: float | complex | None = None
    beyond: int = 0


def as_tensor(value: Any, like: Tensor) -> Tensor:
    """A tensor, array or number as a dense tensor without a graph, where `like` is.

    Raises:
        Exception: of any kind that PyTorch raises; it is none of these.
    """
    found = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, device=like.device)
    return (found if found.layout is torch.strided else found.to_dense()).to(like.device)


def tolerance_of(given: Tensor, gradient: Tensor) -> tuple[float, float]:
    """How far two elements may be apart: a share of the element, and a share of the gradient's largest one.

    The shares are the tolerances of `torch.testing.assert_close` for the less precise of both dtypes. Its absolute one
    is for numbers of size 1; gradients are often much smaller, and all of them would pass. So it is taken relative to
    the largest element: that is also what the rounding of sums and of differences depends on.
    """
    known = [_RELATIVE[each.dtype] for each in (given, gradient) if each.dtype in _RELATIVE]
    relative, absolute = (max(shares) for shares in zip(*known, strict=True)) if known else (0.0, 0.0)
    return relative, max(relative, absolute)


def is_close(given: Tensor, gradient: Tensor, floor: float = 0.0) -> bool:
    """Whether two tensors are of one shape and differ by rounding only."""
    return given.shape == gradient.shape and difference(given, gradient, floor).verdict != "different"


def difference(given: Tensor, gradient: Tensor, floor: float = 0.0) -> Difference:
    """Compare two tensors of one shape. NaN equals NaN, and an infinity itself.

    Args:
        given: what was derived: a dense tensor without a graph.
        gradient: what PyTorch computed, likewise, on the same device.
        floor: an absolute difference that is rounding in any case: the gradient of a bias in front of a batch norm is
            zero in exact arithmetic, and what is there instead has nothing in common with another's.
    """
    if not gradient.numel():
        return Difference("exact")
    dtype = torch.promote_types(given.dtype, gradient.dtype)
    one, other = given.to(dtype), gradient.to(dtype)
    same = (one == other) | (one.isnan() & other.isnan())
    apart = (one - other).abs().masked_fill(same, 0)
    beyond = int((~(apart <= _allowed(given, gradient, apart.dtype) + floor)).sum())  # a NaN is beyond
    position = int(apart.argmax())  # and counts as the largest
    return Difference(
        "exact" if same.all() else "different" if beyond else "close",
        float(apart.flatten()[position]),
        unraveled(position, gradient.shape),
        one.flatten()[position].item(),
        other.flatten()[position].item(),
        beyond,
    )


def _allowed(given: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    size = gradient.abs().to(dtype).nan_to_num(0.0, 0.0, 0.0)
    relative, of_largest = tolerance_of(given, gradient)
    return relative * size + of_largest * float(size.max())


def unraveled(position: int, shape: torch.Size) -> tuple[int, ...]:
    """The index of an element by its position in the flattened tensor; ``()`` in a scalar."""
    return tuple(map(int, torch.unravel_index(torch.tensor(position, device="cpu"), shape)))


def constant_factor(given: Tensor, gradient: Tensor) -> float | None:
    """The factor k of the least squares fit ``given = k * gradient``; None where it is no finite number, or zero."""
    if gradient.is_complex() or given.is_complex() or not gradient.numel():
        return None
    one, other = given.double().flatten(), gradient.double().flatten()
    square = float(other @ other)
    factor = float(one @ other) / square if square else math.nan
    return factor if math.isfinite(factor) and factor else None
