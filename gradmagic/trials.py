"""A custom Function with what it was given, to be run again and again, whole or along a few directions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .function_calls import FunctionCall

DIRECTIONS = 4
"""Steps of an input go along so many random directions, and so many sums of an output are taken."""
_SEED = 0
_SINGLE: Mapping[torch.dtype, torch.dtype] = MappingProxyType(
    {torch.float64: torch.float32, torch.complex128: torch.complex64}
)


class Trial:
    """A Function with what it was given.

    Attributes:
        inputs: tensors in double precision that require grad.
        names: what ``forward`` calls them.
        outputs: which of its outputs have a gradient, by position.
        sums: what the sum of each of these is called.
        size: how many elements all inputs and outputs have together.
    """

    def __init__(self, call: FunctionCall) -> None:
        """Take the inputs apart."""
        self._call = call
        values = [*call.args, *call.kwargs.values()]
        self._positions = [at for at, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
        self._values = values
        self.inputs: tuple[Tensor, ...] = tuple(values[at] for at in self._positions)
        self.names = [_name(call, at) for at in self._positions]
        self.outputs: tuple[int, ...] = ()
        self.sums: tuple[str, ...] = ()
        self.size = 0

    def find_outputs(self) -> None:
        """Find out which outputs have a gradient: all others are left out from then on."""
        made = self._apply(self.inputs)
        self.outputs = tuple(at for at, each in enumerate(made) if isinstance(each, Tensor) and each.requires_grad)
        self.size = sum(each.numel() for each in (*self.inputs, *(made[at] for at in self.outputs)))
        called = ["the output" if len(made) == 1 else f"output {at}" for at in self.outputs]
        parts = ["the real and imaginary parts of " if made[at].is_complex() else "" for at in self.outputs]
        self.sums = tuple(f"{part}{name}" for part, name in zip(parts, called, strict=True))

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Its outputs that have a gradient; the inputs themselves are not changed in place, and no leaf is given."""
        made = self._apply(inputs)
        return tuple(made[at] for at in self.outputs)

    def _apply(self, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        values = [value.clone() if isinstance(value, Tensor) else value for value in self._values]
        for position, tensor in zip(self._positions, inputs, strict=True):
            values[position] = tensor.clone()
        call, count = self._call, len(self._call.args)
        if call.random is not None:
            call.random.restore()
        made: Any = call.function.apply(*values[:count], **dict(zip(call.kwargs, values[count:], strict=True)))
        return tuple(made) if isinstance(made, tuple | list) else (made,)


def _name(call: FunctionCall, position: int) -> str:
    """What ``forward`` calls an input."""
    if position >= len(call.args):
        return list(call.kwargs)[position - len(call.args)]
    has_setup = call.function.setup_context is not torch.autograd.Function.setup_context
    try:
        parameters = list(inspect.signature(call.function.forward).parameters.values())[0 if has_setup else 1 :]
    except (TypeError, ValueError):
        parameters = []
    for at, each in enumerate(parameters):
        if each.kind is inspect.Parameter.VAR_POSITIONAL:
            return f"{each.name}[{position - at}]"
        if at == position:
            return each.name
    return f"input {position}"


# ---- along directions


def along_directions(trial: Trial) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """A function of few elements that has a right gradient if the Function has, and what to give to it.

    Its inputs are steps along random directions, a vector of length `DIRECTIONS` for each input; its outputs are sums
    of the elements of each output with random signs. `torch.autograd.gradcheck`'s fast mode does the
    same, but falls back to all derivatives when it fails, for the sake of its message.
    """
    generator = torch.Generator().manual_seed(_SEED)
    around = [each.detach() for each in trial.inputs]
    directions = [[_in_the_form_of(_signs(reals(x), generator), x) for _ in range(DIRECTIONS)] for x in around]
    weights = [[_signs(reals(y), generator) for _ in range(DIRECTIONS)] for y in trial.run(*trial.inputs)]

    def run(*steps: Tensor) -> tuple[Tensor, ...]:
        moved = [
            x + sum(step * each for step, each in zip(vector, along, strict=True))
            for x, vector, along in zip(around, steps, directions, strict=True)
        ]
        made = map(reals, trial.run(*moved))
        return tuple(torch.stack([(w * y).sum() for w in each]) for y, each in zip(made, weights, strict=True))

    return run, [reals(x).new_zeros(DIRECTIONS, requires_grad=True) for x in around]


def beside(trial: Trial) -> Trial:
    """The same with inputs whose elements are moved up or down by about a thousandth of the largest one, by chance.

    Not by less than half of that: of many elements that stand on a kink, none may come to stand close to it.
    """
    generator = torch.Generator().manual_seed(_SEED)
    moved = []
    for x in trial.inputs:
        size = 1e-3 * (float(x.detach().abs().max()) if x.numel() else 0.0)
        chance = torch.rand(reals(x).shape, generator=generator, dtype=torch.float64).to(x.device)
        offset = (size or 1e-3) * (0.5 + chance / 2) * _signs(chance, generator)
        moved.append((x.detach() + _in_the_form_of(offset, x)).requires_grad_())
    other = copy(trial)
    other.inputs = tuple(moved)
    return other


def has_kinks(trial: Trial, step: float) -> bool:
    """Whether differences to the two sides are not the same along some direction, as they are where all is smooth."""
    run, still = along_directions(trial)
    middle = torch.stack(run(*still)).detach()
    for at, vector in enumerate(still):
        for number in range(DIRECTIONS):
            ends = []
            for times in (1, -1):
                moved = vector.detach().clone()
                moved[number] = times * step
                ends.append(torch.stack(run(*still[:at], moved, *still[at + 1 :])).detach())
            right, left = (ends[0] - middle) / step, (middle - ends[1]) / step
            if not torch.allclose(right, left, rtol=1e-3, atol=1e-3 * float(right.abs().max()) + 1e-5):
                return True
    return False


def is_single(trial: Trial) -> bool:
    """Whether all outputs are numbers of single precision, which those that are computed in double hardly ever are."""
    return all(bool((y == y.to(_SINGLE.get(y.dtype, y.dtype)).to(y.dtype)).all()) for y in trial.run(*trial.inputs))


def reals(tensor: Tensor) -> Tensor:
    """Real and imaginary parts of a complex tensor in a last dimension of their own; a real one as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _in_the_form_of(parts: Tensor, like: Tensor) -> Tensor:
    return torch.view_as_complex(parts) if like.is_complex() else parts


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Of each element 1 or -1, by chance."""
    return torch.randint(0, 2, like.shape, generator=generator).mul_(2).sub_(1).to(like.device, torch.float64)
