"""Gradients by a Function's ``backward`` beside those by differences of its ``forward``, element by element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from .trials import Trial, reals

MOST_COMPARED = 256
"""So many elements of an input are compared at most, by chance: an even spread could miss the columns of a border."""
_LEAST_COMPARED = 16
_WORK = 2**25
"""Fewer are compared where forward would run over more than so many elements in all."""

FINEST, FINE, COARSE, ROUGH = 1e-8, 1e-6, 1e-3, 1e-2
"""Steps: the second is `torch.autograd.gradcheck`'s own, and the first does not meet a kink that is close by; the third
is for what computes in single precision; the last tells what computes in half precision, which takes no notice of the
second, from what is constant."""
TOLERANCES: Mapping[float, tuple[float, float]] = MappingProxyType(
    {FINEST: (1e-5, 1e-3), FINE: (1e-5, 1e-3), COARSE: (1e-3, 1e-2)}
)
"""`atol` and `rtol` by step: those of `gradcheck`, and what single precision leaves at the coarse step."""
_UNSTEADY: Mapping[float, float] = MappingProxyType({FINE: 1e-4, COARSE: 1e-2})
_STEADY_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Compared:
    """Derivatives of sums of the elements of one output by elements of one input: sums x elements.

    The first sum is the plain one, as in ``output.sum().backward()``; the second has random weights, so that what
    cancels in the first (of a softmax, for one) is seen.

    Attributes:
        input: position among the trial's inputs.
        output: position among its outputs.
        elements: which elements of the input, by position; of a complex one, its real and imaginary parts count.
        analytical: by backward.
        numerical: by central differences.
        low, high: the lesser and the greater of the differences to both sides: apart from each other at a kink.
        doubled: by central differences over twice the step.
        step: that step.
        is_none: whether backward has returned None.
    """

    input: int
    output: int
    elements: Tensor
    analytical: Tensor
    numerical: Tensor
    low: Tensor
    high: Tensor
    doubled: Tensor
    step: float
    is_none: bool

    @property
    def allowed(self) -> Tensor:
        """How far apart the two may be, for each element."""
        absolute, relative = TOLERANCES[self.step]
        size = self.numerical.abs()
        if self.step == COARSE:  # rounding depends on the largest
            size = _largest(size).expand_as(size)
        return absolute + relative * size

    @property
    def steady(self) -> Tensor:
        """Where the differences do not depend on the step, as they do where rounding is all there is."""
        return (self.numerical - self.doubled).abs() <= _UNSTEADY[self.step] * (1e-3 + _largest(self.numerical.abs()))

    @property
    def is_steady(self) -> bool:
        """Whether the differences can be trusted: of nearly all elements that have any."""
        finite = self.numerical.isfinite()
        return bool(self.steady[finite].double().mean() >= _STEADY_SHARE) if finite.any() else True

    @property
    def apart(self) -> Tensor:
        """By how much more than is allowed the two differ; zero or less where they agree.

        Where both sides of a kink have a derivative each, all between them will do. A gradient that is not finite where
        the differences are is infinitely wrong.
        """
        beyond = torch.maximum(self.low - self.analytical, self.analytical - self.high) - self.allowed
        beyond = beyond.masked_fill(~self.analytical.isfinite(), torch.inf)
        return beyond.masked_fill(~(self.numerical.isfinite() & self.steady), 0.0)

    @property
    def may_be_ties(self) -> bool:
        """Whether all that is wrong is where there is no derivative, and not in the plain sum.

        Where many elements are the same, those that come out of a sort are in no order of their own.
        """
        return not bool((self.apart[0] > 0).any() or (self.apart[1][self.smooth[1]] > 0).any())

    @property
    def is_flat(self) -> bool:
        """Whether all that is wrong is where the output does not change."""
        return not bool(self.numerical[self.apart > 0].any())

    @property
    def is_wrong(self) -> bool:
        """Whether they differ anywhere."""
        return bool((self.apart > 0).any())

    @property
    def smooth(self) -> Tensor:
        """Where the two sides do not differ."""
        return self.high - self.low <= self.allowed

    @property
    def changing(self) -> float:
        """For what share of the elements differences are not zero."""
        return float((self.numerical != 0).double().mean())


def _largest(size: Tensor) -> Tensor:
    return size.nan_to_num(0.0, 0.0, 0.0).amax()


def compared(trial: Trial, step: float) -> list[Compared]:
    """Every output with every input that has elements; nothing where one of them is not dense."""
    made = trial.run(*trial.inputs)
    if any(each.layout is not torch.strided for each in (*made, *trial.inputs)):
        return []
    generator = torch.Generator().manual_seed(0)
    weights = [_weights(reals(each), generator) for each in made]
    gradients = [_gradients(trial, each, weight) for each, weight in zip(made, weights, strict=True)]
    found = []
    for at, tensor in enumerate(trial.inputs):
        elements = _sample(reals(tensor).numel(), trial.size)
        if not elements.numel():
            continue
        right, left, wide = _differences(trial, at, elements, weights, step)
        for number, of_inputs in enumerate(gradients):
            found.append(
                Compared(
                    input=at,
                    output=number,
                    elements=elements,
                    analytical=_picked(of_inputs, at, tensor, elements),
                    numerical=(right[number] + left[number]) / 2,
                    low=torch.minimum(right[number], left[number]),
                    high=torch.maximum(right[number], left[number]),
                    doubled=wide[number],
                    step=step,
                    is_none=all(row[at] is None for row in of_inputs),
                )
            )
    return found


def varies(trial: Trial) -> str:
    """What is another each time for the same inputs: ``forward``, ``backward``, or nothing: an empty text."""
    one, other = trial.run(*trial.inputs), trial.run(*trial.inputs)
    if not all(map(_alike, one, other)):
        return "forward"
    for first, second in zip(one, other, strict=True):
        gradients, again = (_gradients(trial, each, [torch.ones_like(reals(each))])[0] for each in (first, second))
        if any(a is not None and b is not None and not _alike(a, b) for a, b in zip(gradients, again, strict=True)):
            return "backward"
    return ""


def _alike(one: Tensor, other: Tensor) -> bool:
    """But for the last digits, in which additions on a GPU may differ."""
    first, second = (reals(each.detach().to_dense()) for each in (one, other))
    return torch.allclose(first, second, atol=1e-6, equal_nan=True)


def is_complete(trial: Trial) -> bool:
    """Whether every element of every input is compared."""
    return all(_count(reals(each).numel(), trial.size) == reals(each).numel() for each in trial.inputs)


def _count(total: int, size: int) -> int:
    return min(total, max(_LEAST_COMPARED, min(MOST_COMPARED, _WORK // max(1, size))))


def _sample(total: int, size: int) -> Tensor:
    """Positions, in order."""
    chance = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return chance[: _count(total, size)].sort().values


def _weights(like: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ones = torch.ones(like.shape, dtype=torch.float64, device=like.device)
    chance = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return ones, chance.to(like.device)


def _gradients(trial: Trial, output: Tensor, weights: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
    """Of the inputs, for each sum of an output."""
    return [
        torch.autograd.grad((weight * reals(output)).sum(), trial.inputs, retain_graph=True, allow_unused=True)
        for weight in weights
    ]


def _picked(of_inputs: list[tuple[Tensor | None, ...]], at: int, tensor: Tensor, elements: Tensor) -> Tensor:
    rows = []
    for row in of_inputs:
        gradient = row[at]
        dense = torch.zeros_like(tensor) if gradient is None else gradient.detach().to_dense().to(tensor.dtype)
        rows.append(reals(dense).flatten().cpu()[elements].double())
    return torch.stack(rows)


def _differences(
    trial: Trial, at: int, elements: Tensor, weights: list[tuple[Tensor, Tensor]], step: float
) -> list[list[Tensor]]:
    """To the right, to the left and over four steps, each for every output: sums x elements.

    Outputs are subtracted before they are summed: the sum of many would swallow the difference.
    """
    middle = _moved(trial, at, 0, 0.0)
    found = []
    for element in elements.tolist():
        ends = {times: _moved(trial, at, element, times * step) for times in (-2, -1, 1, 2)}
        pairs = ((ends[1], middle, step), (middle, ends[-1], step), (ends[2], ends[-2], 4 * step))
        found.append([[_summed(each, weights[n], n) for n in range(len(weights))] for each in pairs])
    return [[torch.stack([each[which][n] for each in found], 1) for n in range(len(weights))] for which in range(3)]


def _summed(pair: tuple[list[Tensor], list[Tensor], float], weights: tuple[Tensor, ...], number: int) -> Tensor:
    above, below, width = pair
    apart = above[number] - below[number]
    return torch.stack([(weight * apart).sum() for weight in weights]).cpu() / width


def _moved(trial: Trial, at: int, element: int, step: float) -> list[Tensor]:
    """The outputs, in real numbers, with one element of an input moved."""
    moved = trial.inputs[at].detach().clone(memory_format=torch.contiguous_format)
    reals(moved).view(-1)[element] += step
    given = [*trial.inputs[:at], moved.requires_grad_(), *trial.inputs[at + 1 :]]
    return [reals(each.detach()).double() for each in trial.run(*given)]
