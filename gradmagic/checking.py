"""Compares the gradients that somebody derived with those that PyTorch has left in ``.grad``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .checks import GradientCheck, GradientChecks
from .diagnosis.words import joined, listed
from .known import Known, Run, run_of
from .mistakes import Case, Mistake, at, mistake_in, shapes_in_words
from .pairing import subjects
from .raised import told_briefly
from .records import TensorRow
from .report import Report, TensorNotFoundError
from .verdicts import Difference, as_tensor, difference

NAMED = 3
"""So many uses are named."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A variable that holds a derived gradient, and the row of the tensor it belongs to."""

    name: str
    value: Any
    index: int
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class _Compared:
    """What comparing has told, and the case, where there was something to compare."""

    check: GradientCheck
    case: Case | None = None


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
        run = run_of(report, namespace)
        compared = [_compared(run, pair) for pair in _by_name(run, namespace, patterns, pairs)]
        compared += [_asked_for(run, namespace, name, label) for name, label in pairs.items()]
        derived = replace(run, known=_with_derived(run.known, compared))
        told = [_explained(derived, each) for each in compared]
    order = {name: position for position, name in enumerate(namespace)}
    return GradientChecks(checks=tuple(sorted(told, key=lambda check: order.get(check.name, len(order)))))


# ---- which belongs to which


def _by_name(
    run: Run, namespace: Mapping[str, Any], patterns: Sequence[str], pairs: Mapping[str, str]
) -> Iterator[_Pair]:
    root = run.report.passes[-1].root if run.report.passes else None
    flowing = {id(each.tensor) for each in run.known.values()}
    for name, value in list(namespace.items()):
        if name.startswith("_") or name in pairs or not _is_numeric(value) or id(value) in flowing:
            continue  # what the root itself depends on is nobody's gradient: d_loss of a GAN
        index = next((run.names[each] for each in subjects(name, patterns, root) if each in run.names), None)
        if index is not None and _may_be(value, run.rows[index], index in run.known):
            yield _Pair(name, value, index, by_name=True)


def _is_numeric(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, Tensor):
        return value.dtype is not torch.bool
    return kind in (int, float, complex) or _is_numpys(value)


def _is_numpys(value: Any) -> bool:
    """Whether it is an array or number of NumPy's, which need not be installed."""
    return type(value).__module__ == "numpy" and getattr(getattr(value, "dtype", None), "kind", "O") in "iufc"


def _may_be(value: Any, row: TensorRow, is_known: bool) -> bool:
    """Whether a variable with a fitting name is meant as the gradient; ``dt`` and ``d_model`` are not."""
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        return is_known or row.grad is not None or tuple(value.shape) == row.shape
    return (is_known or row.grad is not None) and tuple(getattr(value, "shape", ())) == row.shape


def _asked_for(run: Run, namespace: Mapping[str, Any], name: str, label: str) -> _Compared:
    try:
        index = run.find(label)
    except TensorNotFoundError as error:
        return _Compared(GradientCheck(name=name, label=label, verdict="not_checked", message=str(error)))
    try:
        value = namespace[name] if name in namespace else eval(name, dict(namespace))  # noqa: S307 - the person's own
    except Exception as error:  # noqa: BLE001 - the person's own expression: told in words
        near = difflib.get_close_matches(name, list(namespace), 2)
        asked = f" Did you mean {' or '.join(f'`{each}`' for each in near)}?" if near else ""
        told = f"`{name}` could not be looked up: {told_briefly(error)}.{asked}"
        return _Compared(GradientCheck(name=name, label=label, verdict="not_checked", message=told))
    return _compared(run, _Pair(name, value, index))


# ---- compared


def _compared(run: Run, pair: _Pair) -> _Compared:
    row = run.rows[pair.index]
    index = pair.index if pair.index < len(run.report.rows) else None
    check = GradientCheck(name=pair.name, label=row.label, row=index, verdict="not_checked")
    if pair.index not in run.known:
        return _Compared(replace(check, message=_why_unknown(row)))
    gradient = run.known[pair.index].gradient
    try:
        case = Case(pair.name, pair.index, as_tensor(pair.value, gradient), run)
        if case.given.shape != gradient.shape:
            return _Compared(replace(check, verdict="wrong"), replace(case, floor=run.rounding(pair.index)))
        found = difference(case.given, gradient)
        if found.verdict == "different":
            case = replace(case, floor=run.rounding(pair.index))
            found = difference(case.given, gradient, case.floor)
    except Exception as error:  # noqa: BLE001 - whatever the variable holds, it is no gradient: told in words
        told = f"`{pair.name}` cannot be compared with a gradient: {told_briefly(error)}"
        return _Compared(replace(check, message=told))
    if found.verdict == "different" and pair.by_name and row.count > 1 and row.kind == "non-leaf":
        return _Compared(replace(check, message=_several(check, row)))  # dh in a loop: nobody knows which one is meant
    return _Compared(_judged(check, found, gradient.numel()), case)


def _several(check: GradientCheck, row: TensorRow) -> str:
    return (
        f"{at(row)} was made {row.count:,} times, and `{check.name}` is not the gradient of the last one; "
        f"`--check {check.name}={row.name}` compares them all the same."
    )


def _why_unknown(row: TensorRow) -> str:
    if row.grad is None:
        return f"`{row.label}` has no gradient to compare with{f': {row.note}' if row.note else '.'}"
    if row.tensor is None:
        return f"{at(row)} is gone, and its gradient with it; a tensor that still has a name keeps it."
    if row.kind == "non-leaf" and not row.note:
        return (
            f"`{row.label}.grad` is not there: a gradient is kept where something holds the tensor, or with "
            f"`%%gradtrace --check` where only the graph does. `{row.label}` is made at {row.location}."
        )
    return f"`{row.label}.grad` is not there any more{f': {row.note}' if row.note else '.'}"


def _judged(check: GradientCheck, found: Difference, total: int) -> GradientCheck:
    right = found.verdict if found.verdict != "different" else None
    return replace(
        check,
        verdict=right or "wrong",
        max_difference=found.largest,
        index=found.index,
        given=found.given,
        gradient=found.gradient,
        message="" if right else _difference_in_words(check, found, total),
    )


def _difference_in_words(check: GradientCheck, found: Difference, total: int) -> str:
    if found.given is None or found.gradient is None or not found.index:
        told = f": it is {_value(found.given)}, and should be {_value(found.gradient)}"
        return f"`{check.name}` is not the gradient of `{check.label}`{told}."
    where = ", ".join(map(str, found.index))
    return (
        f"`{check.name}` is not the gradient of `{check.label}` in {found.beyond:,} of {total:,} elements; at "
        f"[{where}], where it differs most, it is {_value(found.given)} and should be {_value(found.gradient)}."
    )


def _value(element: float | complex | None) -> str:
    return f"{element:.3g}" if element is not None else ""


# ---- what is wrong


def _with_derived(known: Mapping[int, Known], compared: Iterable[_Compared]) -> dict[int, Known]:
    """What is known, with what was derived, from which further gradients may follow."""
    found = dict(known)
    for check, case in ((each.check, each.case) for each in compared):
        if case is not None:
            own = found[case.index]
            misshapen = case.given.shape != own.gradient.shape
            wrong = case.given if check.verdict == "wrong" and not misshapen else None
            found[case.index] = replace(own, name=case.name, wrong=wrong, misshapen=misshapen)
    return found


def _explained(run: Run, compared: _Compared) -> GradientCheck:
    check = compared.check
    if compared.case is None or check.verdict != "wrong":
        return check
    case = replace(compared.case, run=run)
    mistake = mistake_in(case)
    if mistake is None and case.given.shape != case.gradient.shape:
        mistake = Mistake("shape", f"{shapes_in_words(case)}. A gradient has the shape of its tensor.")
    if mistake is None and (names := case.wrong_above()):
        told = f"`{check.name}` is wrong, perhaps only because {listed(names)} {'is' if len(names) == 1 else 'are'}."
        mistake = Mistake("unconfirmed", told)
    if mistake is None:
        mistake = Mistake(None, " ".join((check.message, *_where_from(case))))
    return replace(check, cause=mistake.cause, message=mistake.message, hint=mistake.hint)


def _where_from(case: Case) -> list[str]:
    """The uses of the tensor: one of them is where the derivation went wrong."""
    made = [row for row in case.made() if row.grad is not None][:NAMED]
    return [f"It comes back through {joined([*map(at, made)])}."] if made else []
