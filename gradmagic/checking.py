"""Compares the gradients that somebody derived with those that PyTorch has left in ``.grad``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .checks import GradientCheck, GradientChecks
from .mistakes import Case, Known, Mistake, at, mistake_in, shapes_in_words, uses_in
from .pairing import subjects
from .raised import told_briefly
from .records import TensorRow
from .report import Report, TensorNotFoundError
from .verdicts import Difference, as_tensor, difference

ROUNDING = 16
"""So many units of rounding a summand may have gathered where the sum of all of them is zero in exact arithmetic."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A variable that holds a derived gradient, and the row of the tensor it belongs to."""

    name: str
    value: Any
    index: int


def checked(
    report: Report, namespace: Mapping[str, Any], pairs: Mapping[str, str], patterns: Sequence[str]
) -> GradientChecks:
    """Find the derived gradients, compare each with its tensor's ``.grad``, and look for the cause of what is wrong.

    Args:
        report: of the run that computed the gradients.
        namespace: the person's variables.
        pairs: which variable (or expression) belongs to which tensor, whatever their names.
        patterns: how derived gradients are called, see `pairing.PATTERNS`.
    """
    with torch.no_grad():
        known = dict(_known(report))
        found: list[_Pair | GradientCheck] = list(_by_name(report, namespace, patterns, known, pairs))
        found += [_asked_for(report, namespace, name, label) for name, label in pairs.items()]
        checks = [each if isinstance(each, GradientCheck) else _compared(report, each, known) for each in found]
        wrong = _with_wrong(known, zip(found, checks, strict=True))
        told = tuple(
            _explained(report, check, pair, wrong) if isinstance(pair, _Pair) and check.verdict == "wrong" else check
            for pair, check in zip(found, checks, strict=True)
        )
    order = {name: position for position, name in enumerate(namespace)}
    return GradientChecks(checks=tuple(sorted(told, key=lambda check: order.get(check.name, len(order)))))


def _known(report: Report) -> Iterator[tuple[int, Known]]:
    """Every row whose tensor is alive and has its gradient."""
    for index, row in enumerate(report.rows):
        tensor = row.tensor if row.grad is not None else None
        if tensor is None or not (tensor.is_leaf or tensor.retains_grad) or tensor.grad is None:
            continue
        try:
            yield index, Known(row, tensor, as_tensor(tensor.grad, tensor.grad))
        except Exception:  # noqa: BLE001, S112 - a tensor subclass without numbers that could be compared
            continue


# ---- which belongs to which


def _by_name(
    report: Report,
    namespace: Mapping[str, Any],
    patterns: Sequence[str],
    known: Mapping[int, Known],
    pairs: Mapping[str, str],
) -> Iterator[_Pair]:
    root = report.passes[-1].root if report.passes else None
    flowing = {id(each.tensor) for each in known.values()}
    for name, value in list(namespace.items()):
        if name.startswith("_") or name in pairs or not _is_numeric(value) or id(value) in flowing:
            continue  # what the root itself depends on is nobody's gradient: d_loss of a GAN
        for subject in subjects(name, patterns, root):
            if subject in report:
                row = report[subject]
                if _may_be(value, row):
                    yield _Pair(name, value, _position(report.rows, row))
                break


def _is_numeric(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, Tensor):
        return value.dtype is not torch.bool
    return kind in (int, float, complex) or _is_numpys(value)


def _is_numpys(value: Any) -> bool:
    """Whether it is an array or number of NumPy's, which need not be installed."""
    return type(value).__module__ == "numpy" and getattr(getattr(value, "dtype", None), "kind", "O") in "iufc"


def _may_be(value: Any, row: TensorRow) -> bool:
    """Whether a variable with a fitting name is meant as the gradient; ``dt`` and ``d_model`` are not."""
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        return row.grad is not None or tuple(value.shape) == row.shape
    return row.grad is not None and tuple(getattr(value, "shape", ())) == row.shape


def _position(rows: Sequence[TensorRow], wanted: TensorRow) -> int:
    return next(index for index, row in enumerate(rows) if row is wanted)


def _asked_for(report: Report, namespace: Mapping[str, Any], name: str, label: str) -> _Pair | GradientCheck:
    try:
        row = report[label]
    except TensorNotFoundError as error:
        return GradientCheck(name=name, label=label, verdict="not_checked", message=str(error))
    try:
        value = namespace[name] if name in namespace else eval(name, dict(namespace))  # noqa: S307 - the person's own
    except Exception as error:  # noqa: BLE001 - the person's own expression: told in words
        near = difflib.get_close_matches(name, list(namespace), 2)
        asked = f" Did you mean {' or '.join(f'`{each}`' for each in near)}?" if near else ""
        told = f"`{name}` could not be looked up: {told_briefly(error)}.{asked}"
        return GradientCheck(name=name, label=label, verdict="not_checked", message=told)
    return _Pair(name, value, _position(report.rows, row))


# ---- compared


def _compared(report: Report, pair: _Pair, known: Mapping[int, Known]) -> GradientCheck:
    row = report.rows[pair.index]
    check = GradientCheck(name=pair.name, label=row.label, row=pair.index, verdict="not_checked")
    if pair.index not in known:
        return replace(check, message=_why_unknown(row))
    gradient = known[pair.index].gradient
    try:
        given = as_tensor(pair.value, gradient)
        if given.shape != gradient.shape:
            return replace(check, verdict="wrong")
        found = difference(given, gradient)
        if found.verdict == "different":
            found = difference(given, gradient, _floor(_case(report, pair, known)))
    except Exception as error:  # noqa: BLE001 - whatever the variable holds, it is no gradient: told in words
        return replace(check, message=f"`{pair.name}` cannot be compared with a gradient: {told_briefly(error)}")
    judged = _judged(check, found)
    wrong = judged.verdict == "wrong"
    return replace(judged, message=_difference_in_words(judged, found, gradient.numel())) if wrong else judged


def _why_unknown(row: TensorRow) -> str:
    if row.grad is None:
        return f"`{row.label}` has no gradient to compare with{f': {row.note}' if row.note else '.'}"
    if row.tensor is None:
        return f"{at(row)} is gone, and its gradient with it; a tensor that still has a name keeps it."
    return f"`{row.label}.grad` is not there any more{f': {row.note}' if row.note else '.'}"


def _judged(check: GradientCheck, found: Difference) -> GradientCheck:
    return replace(
        check,
        verdict="wrong" if found.verdict == "different" else found.verdict,
        max_difference=found.largest,
        index=found.index,
        given=found.given,
        gradient=found.gradient,
    )


def _difference_in_words(check: GradientCheck, found: Difference, total: int) -> str:
    if found.given is None or found.gradient is None or not found.index:
        told = f": it is {_value(found.given)}, and should be {_value(found.gradient)}"
        return f"`{check.name}` is not the gradient of `{check.label}`{told}."
    where = ", ".join(map(str, found.index or ()))
    return (
        f"`{check.name}` is not the gradient of `{check.label}` in {found.beyond:,} of {total:,} elements; at "
        f"[{where}], where it differs most, it is {_value(found.given)} and should be {_value(found.gradient)}."
    )


def _value(element: float | complex | None) -> str:
    return f"{element:.3g}" if element is not None else ""


def _case(report: Report, pair: _Pair, known: Mapping[int, Known], floor: float = 0.0) -> Case:
    given = as_tensor(pair.value, known[pair.index].gradient)
    return Case(pair.name, pair.index, given, floor, known, report.rows, report.scale)


def _floor(case: Case) -> float:
    """What rounding may leave where the sum of all parts is zero in exact arithmetic."""
    if not (case.gradient.is_floating_point() or case.gradient.is_complex()):
        return 0.0
    summed = max((use.summed for use in uses_in(case, derived=False)), default=0.0)
    return ROUNDING * torch.finfo(case.gradient.dtype).eps * summed if math.isfinite(summed) else 0.0


# ---- what is wrong


def _with_wrong(known: Mapping[int, Known], pairs: Any) -> dict[int, Known]:
    """What is known, with what was derived, from which further gradients may follow."""
    found = dict(known)
    for pair, check in pairs:
        if not isinstance(pair, _Pair) or check.verdict == "not_checked":
            continue
        own = found[pair.index]
        given = as_tensor(pair.value, own.gradient) if check.verdict == "wrong" else own.gradient
        wrong = check.verdict == "wrong"
        misshapen = given.shape != own.gradient.shape
        wrong_one = given if wrong and not misshapen else None
        found[pair.index] = replace(own, name=pair.name, wrong=wrong_one, misshapen=misshapen)
    return found


def _explained(report: Report, check: GradientCheck, pair: _Pair, known: Mapping[int, Known]) -> GradientCheck:
    case = _case(report, pair, known)
    case = replace(case, floor=_floor(case))
    mistake = mistake_in(case)
    if mistake is None and case.given.shape != case.gradient.shape:
        mistake = Mistake("shape", f"{shapes_in_words(case)}. A gradient has the shape of its tensor.")
    if mistake is None:
        mistake = Mistake(None, " ".join((check.message, *_where_from(case), *_perhaps_from(case))))
    return replace(check, cause=mistake.cause, message=mistake.message, hint=mistake.hint)


def _where_from(case: Case) -> list[str]:
    """The uses of the tensor: one of them is where the derivation went wrong."""
    made = [row for row in case.rows if case.index in row.inputs and row.grad is not None][:4]
    return [f"It comes back through {', '.join(map(at, made))}."] if made else []


def _perhaps_from(case: Case) -> list[str]:
    above = sorted({key for use in uses_in(case, derived=True) for key in use.sources})
    names = [f"`{case.known[key].name}`" for key in above if case.known[key].misshapen]
    return [f"It may follow from {' and '.join(names)}, of another shape than it should be."] if names else []
