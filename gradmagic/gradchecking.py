"""Runs `torch.autograd.gradcheck` on custom Functions with what a cell gave them, and explains what fails."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from .differences import COARSE, FINE, FINEST, ROUGH, TOLERANCES, Compared, compared, is_complete, varies
from .function_calls import FunctionCall, FunctionWatch
from .function_checks import FunctionCheck, FunctionChecks
from .raised import told_briefly
from .random_streams import random_streams
from .trials import Trial, along_directions, beside, has_kinks, is_single
from .verdicts import constant_factor, unraveled

SLOW_UP_TO = 1_024
"""Inputs and outputs of up to so many elements together: every derivative is compared; beyond that random directions.

Up to a quarter of a million derivatives, which takes a quarter of a second where forward is fast."""


def gradchecked(watch: FunctionWatch) -> FunctionChecks:
    """Check every Function that was seen.

    Forward and backward of each run many times, with copies of what the first call was given, in double precision, and
    with the random numbers of that call. The random generators go on as if they had not.
    """
    return FunctionChecks(checks=tuple(map(_checked, watch.calls)), disturbed=watch.disturbed)


def _checked(call: FunctionCall) -> FunctionCheck:
    name = str(getattr(call.function, "__name__", "Function"))
    check = FunctionCheck(name=name, line=call.line, calls=call.calls, verdict="not_checked")
    trial = Trial(call)
    if call.untaken or not trial.inputs:
        return _unchecked(check, call.untaken or "none of its inputs requires grad")
    before = random_streams(call.devices)
    try:
        with torch.enable_grad():
            return _tried(check, trial)
    finally:
        before.restore()


def _tried(check: FunctionCheck, trial: Trial) -> FunctionCheck:
    try:
        trial.find_outputs()
    except Exception as error:  # noqa: BLE001 - the person's forward, which may be written for float32 alone
        told = _sentence(told_briefly(error))
        return replace(check, message=f"`{check.name}` could not be run in double precision: {told}")
    if not trial.outputs:
        return _unchecked(check, "none of its outputs has a gradient")
    try:
        return _gradchecked(check, trial)
    except Exception as error:  # noqa: BLE001 - the person's backward, or their forward with what is close to its inputs
        what = told_briefly(error)
        is_wrong = "returned an in" in what  # PyTorch's words on an invalid gradient, or an incorrect number of them
        told = f"{_backward(check)} {'failed' if is_wrong else 'could not be run'}: {_sentence(what)}"
        return replace(check, verdict="failed" if is_wrong else "not_checked", message=told)


def _gradchecked(check: FunctionCheck, trial: Trial) -> FunctionCheck:
    try:
        _ask(trial)
    except GradcheckError as error:
        return _explained(check, trial, str(error))
    return replace(check, verdict="passed")


def _ask(trial: Trial, step: float = FINE) -> None:
    """Asks `torch.autograd.gradcheck`.

    Atomic additions on a GPU let backward differ in the last digits from run to run, hence `nondet_tol`. An undefined
    gradient comes to no Function with one output; one of several outputs that is unused is tried in any case.

    Raises:
        GradcheckError: the gradients are not those by differences.
    """
    run, given = (trial.run, trial.inputs) if trial.size <= SLOW_UP_TO else along_directions(trial)
    atol, rtol = TOLERANCES[step]
    gradcheck(run, tuple(given), eps=step, atol=atol, rtol=rtol, nondet_tol=atol, check_undefined_grad=False)


def _backward(check: FunctionCheck) -> str:
    return f"`backward` of `{check.name}`" + (f" (line {check.line})" if check.line is not None else "")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "…")) else f"{text}."


# ---- what has failed


def _explained(check: FunctionCheck, trial: Trial, error: str) -> FunctionCheck:
    varying = varies(trial)
    if varying == "forward":
        return _unchecked(check, f"`forward` of `{check.name}` gives other outputs each time, for the same inputs")
    if varying:
        told = f"{_backward(check)} gives other gradients each time, for the same inputs."
        return replace(check, verdict="failed", message=told)
    pairs = compared(trial, FINE)
    is_rounded = not all(each.is_steady for each in pairs) or is_single(beside(trial))
    if is_rounded:
        pairs = compared(trial, COARSE)
    if not all(each.is_steady for each in pairs) or _is_rough(trial, pairs):
        why = f"differences of `forward` of `{check.name}` depend on the step: it is rounded too much, or jumps there"
        return _unchecked(check, why)
    if pairs and not any(each.numerical.isfinite().any() for each in pairs):
        return _unchecked(check, f"`forward` of `{check.name}` is not finite there, or right beside")
    if is_rounded:
        return _of_single_precision(check, trial, pairs)
    if not all(each.smooth.all() for each in pairs) or has_kinks(trial, FINE):
        return _at_a_kink(check, trial, pairs)
    if any(each.is_wrong for each in pairs):
        return _failed(check, trial, pairs)
    return replace(check, verdict="failed", message=f"{_backward(check)} failed: {_first_line(error)}")


def _of_single_precision(check: FunctionCheck, trial: Trial, pairs: list[Compared]) -> FunctionCheck:
    why = f"is rounded too much for small steps, as in single precision, so steps of {COARSE:g} and 1 % were taken"
    wrong = [each for each in pairs if each.is_wrong]
    if wrong and not (all(each.is_flat or each.may_be_ties for each in wrong) and has_kinks(trial, COARSE)):
        return _failed(check, trial, pairs)
    return _excused(check, why, has_passed=not wrong and (is_complete(trial) or _passes(trial, COARSE)))


def _at_a_kink(check: FunctionCheck, trial: Trial, pairs: list[Compared]) -> FunctionCheck:
    """What is wrong at the kink may be as right as any other; beside it, it cannot be."""
    if any(bool((each.apart == torch.inf).any()) for each in pairs):
        return _failed(check, trial, pairs)
    why = "has no derivative at some elements, where the gradient of either side counts as right"
    other = beside(trial)
    if _passes(other, FINEST):
        return _excused(check, why, has_passed=True)
    is_wrong = any(each.is_wrong and not each.may_be_ties for each in pairs)
    if is_wrong:
        return _failed(check, trial, pairs)
    there = _compared_beside(other)
    if any(each.is_wrong for each in there):
        return _failed(check, other, there, " and inputs moved by a thousandth")
    is_right = is_complete(trial) and not any(each.is_wrong for each in pairs)
    return _excused(check, why, has_passed=is_right)


def _compared_beside(trial: Trial) -> list[Compared]:
    """Nothing where forward cannot be run, or is not smooth."""
    try:
        pairs = compared(trial, FINE)
    except Exception:  # noqa: BLE001 - the person's forward may not take such inputs
        return []
    return pairs if all(each.is_steady and each.numerical.isfinite().all() for each in pairs) else []


def _unchecked(check: FunctionCheck, why: str) -> FunctionCheck:
    return replace(check, message=f"`{check.name}` was not checked: {why}.")


def _is_rough(trial: Trial, pairs: list[Compared]) -> bool:
    """Whether what seems to be constant is not: half precision takes no notice of small steps."""
    constant = [at for at, each in enumerate(pairs) if each.is_wrong and not each.changing]
    if not constant:
        return False
    again = compared(trial, ROUGH)
    return any(again[at].changing > 0.5 for at in constant)


def _excused(check: FunctionCheck, why: str, *, has_passed: bool) -> FunctionCheck:
    """There is a reason for which `gradcheck` had to fail."""
    if has_passed:
        return replace(check, verdict="passed", message=f"`forward` of `{check.name}` {why}; no gradient is wrong.")
    return replace(
        check,
        message=f"`{check.name}` was not checked to the end: `forward` {why}; of the elements that were compared none "
        "is surely wrong, but those are not all.",
    )


def _passes(trial: Trial, step: float) -> bool:
    try:
        _ask(trial, step)
    except Exception:  # noqa: BLE001 - GradcheckError, or the person's forward, which may not take such inputs
        return False
    return True


def _first_line(error: str) -> str:
    return _sentence(error.strip().split("\n", 1)[0].rstrip(","))


def _failed(check: FunctionCheck, trial: Trial, pairs: list[Compared], where: str = "") -> FunctionCheck:
    # The plain sum goes first: people can try it out.
    wrong = max(pairs, key=lambda each: (float(each.apart[0].max()) > 0, float(each.apart.max())))
    row = 0 if float(wrong.apart[0].max()) > 0 else 1
    at = int(wrong.apart[row].argmax())
    analytical, numerical = (float(each[row, at]) + 0.0 for each in (wrong.analytical, wrong.numerical))  # no -0
    tensor, output, name = trial.inputs[wrong.input], trial.outputs[wrong.output], trial.names[wrong.input]
    is_of_one = len(trial.outputs) > 1 and not wrong.is_none
    told, hint = _cause(wrong, f"`{name}` from output {output}" if is_of_one else f"`{name}`")
    summed = trial.sums[wrong.output] + (" with random weights" if row else "") + where
    others = sorted({each.input for each in pairs if each.is_wrong} - {wrong.input})
    too = f" Wrong too: {', '.join(f'`{trial.names[each]}`' for each in others)}." if others else ""
    return replace(
        check,
        verdict="failed",
        input=name,
        output=output,
        analytical=analytical,
        numerical=numerical,
        message=f"{_backward(check)} {told}; for the sum of {summed}, "
        f"`{name}{_index(int(wrong.elements[at]), tensor)}` gets {analytical:.3g} and should get {numerical:.3g}, "
        f"by differences.{too}",
        hint=hint,
    )


def _index(position: int, tensor: Tensor) -> str:
    """Of an element, as it is written behind the tensor; of a complex one, with its part."""
    part = ""
    if tensor.is_complex():
        position, is_imaginary = divmod(position, 2)
        part = ".imag" if is_imaginary else ".real"
    index = ", ".join(map(str, unraveled(position, tensor.shape)))
    return (f"[{index}]" if index else "") + part


def _cause(wrong: Compared, name: str) -> tuple[str, str]:
    """What it gives for the input in words, and what to write instead."""
    known = wrong.numerical.isfinite()
    if not wrong.analytical[known].isfinite().all():
        return f"gives NaN or infinity as gradient of {name}", ""
    if (known & wrong.smooth).any():
        known = known & wrong.smooth  # at a kink, no factor can be told
    analytical, numerical = wrong.analytical[known], wrong.numerical[known]
    if not analytical.any():
        gives = "returns None" if wrong.is_none else "gives only zeros"
        return f"{gives} for {name}", f"`backward` has to return its gradient for {name}"
    if not numerical.any():
        return (
            f"gives a gradient for {name}, with which the output does not change",
            "as a straight-through estimator it may be meant so; otherwise its gradient is zero",
        )
    factor = constant_factor(analytical, numerical)
    if (
        factor is not None
        and abs(factor - 1) > 1e-2
        and _is_within(analytical / factor, numerical, wrong.allowed[known])
    ):
        return _by_a_factor(factor, name)
    return f"gives a wrong gradient for {name}", ""


def _by_a_factor(factor: float, name: str) -> tuple[str, str]:
    if abs(factor + 1) < 1e-3:
        hint = f"return the negative of it for {name}, unless the gradient is reversed on purpose"
        return f"gives the gradient of {name} with the wrong sign", hint
    size = f"{abs(factor):.4g}" if abs(factor) > 1 else f"1/{1 / abs(factor):.4g}"
    sign = ", with the wrong sign" if factor < 0 else ""
    return (
        f"gives {size} times the gradient of {name}{sign}",
        f"multiply what it returns for {name} by {1 / factor:.4g}",
    )


def _is_within(one: Tensor, other: Tensor, allowed: Tensor) -> bool:
    return bool(((one - other).abs() <= allowed).all())
