"""Runs `torch.autograd.gradcheck` on custom Functions with what a cell gave them, and explains what fails."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from .function_calls import FunctionCall, FunctionWatch
from .function_checks import FunctionCheck, FunctionChecks
from .raised import told_briefly
from .verdicts import constant_factor

SLOW_UP_TO = 4_096
"""Up to so many elements every derivative is compared; beyond that `gradcheck`'s fast mode, along random directions."""
EPS, ATOL, RTOL = 1e-6, 1e-5, 1e-3
"""Step and tolerances of `torch.autograd.gradcheck`."""
MOST_DERIVATIVES = 2**20
"""Up to so many derivatives are computed to explain what has failed."""


def gradchecked(watch: FunctionWatch) -> FunctionChecks:
    """Check every Function that was seen.

    Forward and backward of each run many times, with copies of what the first call was given, in double precision, and
    with the random numbers of that call. The random stream goes on as if they had not.
    """
    return FunctionChecks(checks=tuple(map(_checked, watch.calls)), disturbed=watch.disturbed)


def _checked(call: FunctionCall) -> FunctionCheck:
    name = str(getattr(call.function, "__name__", "Function"))
    check = FunctionCheck(name=name, line=call.line, calls=call.calls, verdict="not_checked")
    trial = _Trial(call)
    if call.untaken or not trial.inputs:
        why = call.untaken or "none of its inputs requires grad"
        return replace(check, message=f"`{name}` was not checked: {why}.")
    with torch.random.fork_rng(call.devices), torch.enable_grad():
        try:
            trial.find_outputs()
        except Exception as error:  # noqa: BLE001 - the person's forward, which may be written for float32 alone
            return replace(check, message=f"`{name}` could not be run in double precision: {told_briefly(error)}.")
        if not trial.outputs:
            return replace(check, message=f"`{name}` was not checked: none of its outputs has a gradient.")
        return _gradchecked(check, trial)


def _gradchecked(check: FunctionCheck, trial: _Trial) -> FunctionCheck:
    size = sum(each.numel() for each in trial.inputs)
    try:
        gradcheck(trial.run, trial.inputs, eps=EPS, atol=ATOL, rtol=RTOL, fast_mode=size > SLOW_UP_TO)
    except GradcheckError as error:
        return _explained(replace(check, verdict="failed"), trial, str(error))
    except Exception as error:  # noqa: BLE001 - the person's backward
        what = told_briefly(error)
        is_wrong = "returned an in" in what  # PyTorch's words on an invalid gradient, or an incorrect number of them
        told = (
            f"`backward` of `{check.name}`{_where(check)} " + ("failed: " if is_wrong else "could not be run: ") + what
        )
        return replace(check, verdict="failed" if is_wrong else "not_checked", message=told)
    return replace(check, verdict="passed")


def _where(check: FunctionCheck) -> str:
    return f" (line {check.line})" if check.line is not None else ""


class _Trial:
    """A Function with what it was given, to be run again and again."""

    def __init__(self, call: FunctionCall) -> None:
        self._call = call
        values = [*call.args, *call.kwargs.values()]
        self._positions = [at for at, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
        self._values = values
        self.inputs: tuple[Tensor, ...] = tuple(values[at] for at in self._positions)
        self.names = [_name(call, at) for at in self._positions]
        self.outputs: tuple[int, ...] = ()

    def find_outputs(self) -> None:
        """Find out which outputs have a gradient: all others are left out from then on."""
        made = self._apply(self.inputs)
        self.outputs = tuple(at for at, each in enumerate(made) if isinstance(each, Tensor) and each.requires_grad)

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
            torch.random.set_rng_state(call.random)
        made: Any = call.function.apply(*values[:count], **dict(zip(call.kwargs, values[count:], strict=True)))
        return tuple(made) if isinstance(made, tuple | list) else (made,)


def _name(call: FunctionCall, position: int) -> str:
    """What ``forward`` calls an input."""
    if position >= len(call.args):
        return list(call.kwargs)[position - len(call.args)]
    has_setup = call.function.setup_context is not torch.autograd.Function.setup_context
    try:
        names = list(inspect.signature(call.function.forward).parameters.values())[0 if has_setup else 1 :]
    except (TypeError, ValueError):
        names = []
    plain = [each.name for each in names if each.kind is not inspect.Parameter.VAR_POSITIONAL]
    return plain[position] if position < len(plain) else f"input {position}"


# ---- what has failed


@dataclass(frozen=True, slots=True)
class _Jacobian:
    """The derivatives of one output by one input: what backward gives, and what central differences give."""

    input: str
    analytical: Tensor
    numerical: Tensor

    @property
    def apart(self) -> Tensor:
        """By how much more than `gradcheck` tolerates the two differ."""
        return (self.analytical - self.numerical).abs() - (ATOL + RTOL * self.numerical.abs())


def _explained(check: FunctionCheck, trial: _Trial, error: str) -> FunctionCheck:
    jacobians = _jacobians(trial)
    wrong = max(jacobians, key=lambda each: float(each.apart.max()), default=None)
    if wrong is None or not float(wrong.apart.max()) > 0:
        return replace(check, message=f"`backward` of `{check.name}`{_where(check)} failed: {_first_line(error)}")
    position = int(wrong.apart.argmax())
    analytical, numerical = (float(each.flatten()[position]) for each in (wrong.analytical, wrong.numerical))
    told, hint = _cause(wrong)
    message = f"`backward` of `{check.name}`{_where(check)} {told}; one derivative is {analytical:.3g} and should be "
    return replace(
        check,
        input=wrong.input,
        analytical=analytical,
        numerical=numerical,
        message=f"{message}{numerical:.3g}, by differences.",
        hint=hint,
    )


def _first_line(error: str) -> str:
    line = error.strip().split("\n", 1)[0].rstrip(",")
    return line if line.endswith(".") else f"{line}."


def _cause(wrong: _Jacobian) -> tuple[str, str]:
    """What it gives for the input in words, and what to write instead."""
    name = f"`{wrong.input}`"
    if not wrong.analytical.any():
        return f"gives no gradient for {name}", f"`backward` has to return one for {name}"
    factor = constant_factor(wrong.analytical, wrong.numerical)
    if factor is not None and _is_within(wrong.analytical / factor, wrong.numerical):
        if abs(factor + 1) < RTOL:
            return f"gives the gradient of {name} with the wrong sign", "return its negative"
        size = f"{abs(factor):.4g}" if abs(factor) > 1 else f"1/{1 / abs(factor):.4g}"
        sign = ", with the wrong sign" if factor < 0 else ""
        return f"gives {size} times the gradient of {name}{sign}", ""
    return f"gives a wrong gradient for {name}", ""


def _is_within(analytical: Tensor, numerical: Tensor) -> bool:
    return bool(((analytical - numerical).abs() <= ATOL + RTOL * numerical.abs()).all())


def _jacobians(trial: _Trial) -> list[_Jacobian]:
    """Of every differentiable output by every input; none where they are complex, or too many."""
    outputs = trial.run(*trial.inputs)
    count = sum(each.numel() for each in outputs) * sum(each.numel() for each in trial.inputs)
    if count > MOST_DERIVATIVES or any(each.is_complex() for each in (*outputs, *trial.inputs)):
        return []
    numerical = [_numerical(trial, at, [each.numel() for each in outputs]) for at in range(len(trial.inputs))]
    found = []
    for number, output in enumerate(outputs):
        rows = [torch.autograd.grad(e, trial.inputs, retain_graph=True, allow_unused=True) for e in output.flatten()]
        for at, tensor in enumerate(trial.inputs):
            lines = [_flat(row[at], tensor) for row in rows]
            analytical = torch.stack(lines) if lines else tensor.new_zeros(0, tensor.numel())
            found.append(_Jacobian(trial.names[at], analytical, numerical[at][number]))
    return [each for each in found if each.numerical.numel()]


def _flat(gradient: Tensor | None, like: Tensor) -> Tensor:
    return like.new_zeros(like.numel()) if gradient is None else gradient.detach().flatten()


def _numerical(trial: _Trial, at: int, sizes: Sequence[int]) -> list[Tensor]:
    """By central differences: for each output the derivatives by one input, output elements x input elements."""
    own = trial.inputs[at].detach()
    columns: list[list[Tensor]] = [[] for _ in sizes]
    for element in range(own.numel()):
        ends = []
        for step in (EPS, -EPS):
            moved = own.clone(memory_format=torch.contiguous_format)
            moved.view(-1)[element] += step
            given = [*trial.inputs[:at], moved.requires_grad_(), *trial.inputs[at + 1 :]]
            ends.append([each.detach().flatten() for each in trial.run(*given)])
        for number, (above, below) in enumerate(zip(*ends, strict=True)):
            columns[number].append((above - below) / (2 * EPS))
    return [torch.stack(each, 1) if each else own.new_zeros(size, 0) for each, size in zip(columns, sizes, strict=True)]
