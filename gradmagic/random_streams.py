"""The states of the random generators that a person's code may draw from."""

from __future__ import annotations

import random
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomStreams:
    """Where PyTorch's generators, Python's and NumPy's stood.

    Attributes:
        cpu: state of PyTorch's generator of the CPU.
        cuda: states of those of CUDA devices, by index.
        python: state of the module `random`.
        numpy: state of NumPy's global generator; None where NumPy is not in use.
    """

    cpu: Tensor
    cuda: dict[int, Tensor]
    python: tuple[Any, ...]
    numpy: Any

    def restore(self) -> None:
        """Go on from there."""
        torch.random.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


def random_streams(devices: Collection[int] = ()) -> RandomStreams:
    """The states of now.

    Args:
        devices: indices of the CUDA devices that count.
    """
    numpy = sys.modules.get("numpy")  # its part `random` is only loaded when it is first used
    return RandomStreams(
        torch.random.get_rng_state(),
        {index: torch.cuda.get_rng_state(index) for index in devices},
        random.getstate(),
        numpy.random.get_state() if numpy is not None else None,
    )
