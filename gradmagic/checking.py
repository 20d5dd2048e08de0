"""Compares the gradients that somebody derived with those that PyTorch has left in ``.grad``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import GradientCheck, GradientChecks
from .mistakes import Case, Known, Mistake, at, mistake_in, shapes_in_words, uses_in
from .pairing import subjects
from .raised import told_briefly
from .records import Location, TensorRow
from .report import Report, TensorNotFoundError
from .uses import reached
from .verdicts import Difference, as_tensor, difference

NAMED = 3
ROUNDING = 16
"""So many units of rounding a summand may have gathered where the sum of all of them is zero in exact arithmetic."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A variable that holds a derived gradient, and the row of the tensor it belongs to."""

    name: str
    value: Any
    index: int
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class _Run:
    """What is compared with: the rows, and those of them whose tensors are alive and have their gradients."""

    report: Report
    rows: list[TensorRow]
    known: Mapping[int, Known]
    users: Mapping[int, list[int]]

    def find(self, label: str) -> int:
        """Index of a row.

        Raises:
            TensorNotFoundError: no row has that name.
        """
        if label not in self.report:
            more = range(len(self.report.rows), len(self.rows))
            found = next((index for index in more if self.rows[index].name == label), None)
            if found is not None:
                return found
        row = self.report[label]
        return next(index for index, each in enumerate(self.rows) if each is row)

    def knows(self, label: str) -> bool:
        """Whether a row has that name."""
        return label in self.report or any(row.name == label for row in self.rows[len(self.report.rows) :])


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
        run = _run(report, namespace)
        found: list[_Pair | GradientCheck] = list(_by_name(run, namespace, patterns, pairs))
        found += [_asked_for(run, namespace, name, label) for name, label in pairs.items()]
        checks = [each if isinstance(each, GradientCheck) else _compared(run, each) for each in found]
        derived = replace(run, known=_with_derived(run.known, zip(found, checks, strict=True)))
        told = [
            _explained(derived, check, pair) if isinstance(pair, _Pair) and check.verdict == "wrong" else check
            for pair, check in zip(found, checks, strict=True)
        ]
    order = {name: position for position, name in enumerate(namespace)}
    return GradientChecks(checks=tuple(sorted(told, key=lambda check: order.get(check.name, len(order)))))


def _run(report: Report, namespace: Mapping[str, Any]) -> _Run:
    known = {index: found for index, row in enumerate(report.rows) if (found := _known(row)) is not None}
    rows = list(report.rows)
    for name, tensor in _without_a_row(report, namespace, known):
        found = _known(_row(name, tensor))
        if found is not None:
            known[len(rows)] = found
            rows.append(found.row)
    users: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        for used in row.inputs:
            users.setdefault(used, []).append(index)
    return _Run(report, rows, known, users)


def _without_a_row(
    report: Report, namespace: Mapping[str, Any], known: Mapping[int, Known]
) -> list[tuple[str, Tensor]]:
    """Variables that this run depends on: several tensors can be one row, as in ``q, k = (f(x) for f in fs)``."""
    tensors = {id(each.tensor) for each in known.values()}
    named = [(name, value) for name, value in namespace.items() if issubclass(type(value), Tensor)]
    open_ones = [(name, each) for name, each in named if name not in report and id(each) not in tensors]
    asking = [(name, each) for name, each in open_ones if each.requires_grad]
    found = reached([each.tensor for each in known.values()], [each for _, each in asking]) if asking else []
    ours = set(map(id, found))
    return [(name, each) for name, each in asking if id(each) in ours]


def _row(name: str, tensor: Tensor) -> TensorRow:
    """A row for a tensor that has none of its own."""
    nowhere = Location("", 0)
    kind: Literal["leaf", "non-leaf"] = "leaf" if tensor.is_leaf else "non-leaf"
    shape, dtype, device = tuple(tensor.shape), str(tensor.dtype), str(tensor.device)
    return TensorRow(
        name=name,
        expression=name,
        op="",
        grad_fn=None,
        location=nowhere,
        kind=kind,
        shape=shape,
        dtype=dtype,
        device=device,
        find_tensor=lambda: tensor,
    )


def _known(row: TensorRow) -> Known | None:
    """The tensor of a row with its gradient, or None where one of them is not there."""
    tensor = row.tensor
    if tensor is None or not (tensor.is_leaf or tensor.retains_grad) or tensor.grad is None:
        return None
    try:
        return Known(row, tensor, as_tensor(tensor.grad, tensor.grad))
    except Exception:  # noqa: BLE001 - a tensor subclass without numbers that could be compared
        return None


# ---- which belongs to which


def _by_name(
    run: _Run, namespace: Mapping[str, Any], patterns: Sequence[str], pairs: Mapping[str, str]
) -> Iterator[_Pair]:
    root = run.report.passes[-1].root if run.report.passes else None
    flowing = {id(each.tensor) for each in run.known.values()}
    for name, value in list(namespace.items()):
        if name.startswith("_") or name in pairs or not _is_numeric(value) or id(value) in flowing:
            continue  # what the root itself depends on is nobody's gradient: d_loss of a GAN
        index = next((run.find(each) for each in subjects(name, patterns, root) if run.knows(each)), None)
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


def _asked_for(run: _Run, namespace: Mapping[str, Any], name: str, label: str) -> _Pair | GradientCheck:
    try:
        index = run.find(label)
    except TensorNotFoundError as error:
        return GradientCheck(name=name, label=label, verdict="not_checked", message=str(error))
    try:
        value = namespace[name] if name in namespace else eval(name, dict(namespace))  # noqa: S307 - the person's own
    except Exception as error:  # noqa: BLE001 - the person's own expression: told in words
        near = difflib.get_close_matches(name, list(namespace), 2)
        asked = f" Did you mean {' or '.join(f'`{each}`' for each in near)}?" if near else ""
        told = f"`{name}` could not be looked up: {told_briefly(error)}.{asked}"
        return GradientCheck(name=name, label=label, verdict="not_checked", message=told)
    return _Pair(name, value, index)


# ---- compared


def _compared(run: _Run, pair: _Pair) -> GradientCheck:
    row = run.rows[pair.index]
    index = pair.index if pair.index < len(run.report.rows) else None
    check = GradientCheck(name=pair.name, label=row.label, row=index, verdict="not_checked")
    if pair.index not in run.known:
        return replace(check, message=_why_unknown(row))
    gradient = run.known[pair.index].gradient
    try:
        given = as_tensor(pair.value, gradient)
        if given.shape != gradient.shape:
            return replace(check, verdict="wrong")
        found = difference(given, gradient)
        if found.verdict == "different":
            found = difference(given, gradient, _floor(_case(run, pair)))
    except Exception as error:  # noqa: BLE001 - whatever the variable holds, it is no gradient: told in words
        return replace(check, message=f"`{pair.name}` cannot be compared with a gradient: {told_briefly(error)}")
    if found.verdict == "different" and pair.by_name and row.count > 1 and row.kind == "non-leaf":
        return replace(check, message=_several(check, row))  # dh in a loop: nobody knows which one is meant
    judged = _judged(check, found)
    wrong = judged.verdict == "wrong"
    return replace(judged, message=_difference_in_words(judged, found, gradient.numel())) if wrong else judged


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


def _case(run: _Run, pair: _Pair) -> Case:
    given = as_tensor(pair.value, run.known[pair.index].gradient)
    return Case(pair.name, pair.index, given, 0.0, run.known, run.rows, run.users, run.report.scale)


def _floor(case: Case) -> float:
    """What rounding may leave where the sum of all parts is zero in exact arithmetic."""
    if not (case.gradient.is_floating_point() or case.gradient.is_complex()):
        return 0.0
    summed = max((use.summed for use in uses_in(case, derived=False)), default=0.0)
    return ROUNDING * torch.finfo(case.gradient.dtype).eps * summed if math.isfinite(summed) else 0.0


# ---- what is wrong


def _with_derived(known: Mapping[int, Known], pairs: Any) -> dict[int, Known]:
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


def _explained(run: _Run, check: GradientCheck, pair: _Pair) -> GradientCheck:
    case = _case(run, pair)
    case = replace(case, floor=_floor(case))
    mistake = mistake_in(case)
    if mistake is None and case.given.shape != case.gradient.shape:
        mistake = Mistake("shape", f"{shapes_in_words(case)}. A gradient has the shape of its tensor.")
    if mistake is None and (names := case.wrong_above()):
        which = " and ".join(f"`{name}`" for name in names[:NAMED])
        told = f"`{check.name}` is wrong, perhaps only because {which} {'is' if len(names) == 1 else 'are'}."
        mistake = Mistake("unconfirmed", told)
    if mistake is None:
        mistake = Mistake(None, " ".join((check.message, *_where_from(case))))
    return replace(check, cause=mistake.cause, message=mistake.message, hint=mistake.hint)


def _where_from(case: Case) -> list[str]:
    """The uses of the tensor: one of them is where the derivation went wrong."""
    made = [case.rows[user] for user in case.users.get(case.index, ()) if case.rows[user].grad is not None][:NAMED]
    return [f"It comes back through {', '.join(map(at, made))}."] if made else []
