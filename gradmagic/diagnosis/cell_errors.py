"""PyTorch's best known errors before backward, retold with the person's own names and lines."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..records import Finding, Location
from . import hints
from .facts import CellError, Operand, RunFacts
from .words import named, source_at


@dataclass(frozen=True, slots=True)
class _Known:
    """A well-known error: a pattern of its text, our kind for it, what to say, and the code to write."""

    text: str
    kind: str
    message: str
    hint: str


_KNOWN = (
    # Before the next one, whose text is a part of this one's.
    _Known(
        r"view of a leaf Variable that requires grad is being used in an in-place operation",
        "leaf_changed_in_place",
        "`{source}` ({where}) changes a part of a leaf in place while its gradient is recorded, through the view {first}; "
        "PyTorch does not allow that.",
        "with torch.no_grad():\n    {statement}",
    ),
    _Known(
        r"leaf Variable that requires grad is being used in an in-place operation",
        "leaf_changed_in_place",
        "`{source}` ({where}) changes the leaf {first} in place while its gradient is recorded, which PyTorch does not allow.",
        "with torch.no_grad():\n    {statement}",
    ),
    _Known(
        r"[Oo]nly Tensors of floating point (and complex )?dtype can require gradients",
        "integer_requires_grad",
        "`{source}` ({where}) asks for the gradient of whole numbers{dtype}, which have none.",
        "{floating}",
    ),
    _Known(
        r"Can't call numpy\(\) on Tensor that requires grad",
        "numpy_needs_detach",
        "`{source}` ({where}) hands {first} to NumPy, where no gradient can follow; PyTorch wants you to say so.",
        "{detached}",
    ),
    _Known(
        r"can't optimize a non-leaf Tensor",
        "non_leaf_in_optimizer",
        "`{source}` ({where}) gives the optimizer a tensor that was computed from others; only leaves can be optimized.",
        "Give it the leaf itself: make it with `.requires_grad_()` (or `nn.Parameter`) as the last step.",
    ),
    _Known(
        r"you can only change requires_grad flags of leaf variables",
        "requires_grad_of_non_leaf",
        "`{source}` ({where}) switches `requires_grad` off for {first}, which was computed from others: only leaves have that switch.",
        "{switched}",
    ),
    _Known(
        r"because it has weakref associated with it|Couldn't swap \w",
        "swap_refused",
        "`{source}` ({where}) swaps the contents of tensors (`torch.utils.swap_tensors`), which PyTorch refuses while anything "
        "refers to them weakly, as gradtrace does while it looks at them.",
        "Run this cell without the magic: there it works.",
    ),
)
"""Texts of PyTorch's own errors (torch/csrc, torch/optim/optimizer.py)."""


def retell_cell_error(run: RunFacts) -> list[Finding]:
    """What is worth saying about the exception that ended the cell, beside what backward itself raised."""
    error = run.error
    if error is None or any(done.error == error.text for done in run.passes):
        return []
    for known in _KNOWN:
        if re.search(known.text, error.text):
            return [_retold_known(run, error, known)]
    mismatch = _mismatch(run, error)
    return [mismatch] if mismatch is not None else []


def _retold_known(run: RunFacts, error: CellError, known: _Known) -> Finding:
    where = error.location or Location("", 0)
    statement = where.statement or where.text
    first = _operand_named(run, error.operands[0]) if error.operands else "a tensor"
    values = {
        "source": source_at(where),
        "where": str(where),
        "first": first,
        "statement": statement,
        "floating": _made_floating(statement),
        "detached": _made_detached(where),
        "switched": _switched_off(statement),
        "dtype": _whole_dtype(error, statement),
    }
    rows = tuple(operand.row for operand in error.operands[:1] if operand.row is not None)
    if known.kind == "non_leaf_in_optimizer":
        culprit = _non_leaf(run)
        if culprit is not None:
            row = run.rows[culprit]
            return Finding(
                kind=known.kind,
                severity="error",
                message=f"{known.message.format(**values)} {named(row)} is such a tensor.",
                hint=hints.leaf_at_last(row.location.statement),
                location=row.location,
                rows=(culprit,),
                detail=error.text,
            )
    return Finding(
        kind=known.kind,
        severity="error",
        message=known.message.format(**values),
        hint=known.hint.format(**values),
        location=error.location,
        rows=rows,
        detail=error.text,
    )


def _non_leaf(run: RunFacts) -> int | None:
    """The tensor that an optimizer refused: the last one with a name that is no leaf and was made from one."""
    found = [i for i, row in enumerate(run.rows) if row.kind == "non-leaf" and row.name and row.is_floating]
    return found[-1] if found else None


def _operand_named(run: RunFacts, operand: Operand) -> str:
    return named(run.rows[operand.row]) if operand.row is not None else f"`{operand.label or 'the tensor'}`"


def _made_floating(statement: str) -> str:
    if re.search(r"dtype\s*=\s*torch\.\w+", statement):
        return re.sub(r"dtype\s*=\s*torch\.\w+", "dtype=torch.float32", statement, count=1)
    if ".requires_grad_(" in statement:
        return statement.replace(".requires_grad_(", ".float().requires_grad_(", 1)
    if "requires_grad=True" in statement:
        return statement.replace("requires_grad=True", "dtype=torch.float32, requires_grad=True", 1)
    return "Make it floating first: `.float()`."


def _whole_dtype(error: CellError, statement: str) -> str:
    dtypes = [operand.dtype for operand in error.operands[:1]] or re.findall(r"dtype\s*=\s*torch\.(\w+)", statement)
    return f" ({dtypes[0]})" if dtypes else " (int64)" if "torch.tensor(" in statement else ""


def _switched_off(statement: str) -> str:
    found = re.match(r"(\w+)\.requires_grad(_\(False\)|\s*=\s*False)$", statement.strip())
    return (
        f"{found.group(1)} = {found.group(1)}.detach()"
        if found
        else "Use `.detach()` to get the values without the history."
    )


def _made_detached(where: Location) -> str:
    if ".numpy()" in where.statement:
        return where.statement.replace(".numpy()", ".detach().numpy()", 1)
    return "Call `.detach()` first."


_DTYPES = re.compile(
    r"same dtype|scalar type|dtype \w+ but|must match the|Found dtype|should be the same|same data type"
)
_DEVICES = re.compile(
    r"same device|device meta|expected device|device type|Expected all tensors to be on", re.IGNORECASE
)
_LONG = re.compile(r"(expected|have) scalar type Long|scalar types: Long|dtype to be Long")


def _mismatch(run: RunFacts, error: CellError) -> Finding | None:
    """Operands of two devices or dtypes. Which of them is to follow: the one that does not learn."""
    operands = sorted(error.operands, key=lambda operand: not operand.requires_grad)
    if len(operands) < 2 or error.location is None:
        return None
    lead = operands[0]
    if _LONG.search(error.text):
        labels = [operand for operand in operands if not operand.requires_grad and not operand.dtype.startswith("int")]
        return _mismatched(run, error, labels[-1], ("dtype", "int64"), lead) if labels else None
    for what, pattern in (("device", _DEVICES), ("dtype", _DTYPES)):
        other = next((each for each in operands if getattr(each, what) != getattr(lead, what)), None)
        if other is not None and pattern.search(error.text):
            return _mismatched(run, error, other, (what, getattr(lead, what)), lead)
    return None


def _mismatched(run: RunFacts, error: CellError, other: Operand, wanted: tuple[str, str], lead: Operand) -> Finding:
    where = error.location or Location("", 0)
    what, target = wanted
    has = getattr(other, what)
    if what == "dtype" and target == "int64":
        message = (
            f"`{source_at(where)}` ({where}) needs whole numbers (int64), but {_operand_named(run, other)} is {has}."
        )
    else:
        message = (
            f"`{source_at(where)}` ({where}) needs tensors of one {what}, but {_operand_named(run, lead)} is {target} and "
            f"{_operand_named(run, other)} is {has}."
        )
    return Finding(
        kind=f"{what}_mismatch",
        severity="error",
        message=message,
        hint=_converted(where, other.label, f"torch.{target}" if what == "dtype" else f'"{target}"'),
        location=error.location,
        rows=tuple(operand.row for operand in (lead, other) if operand.row is not None),
        detail=error.text,
    )


def _converted(where: Location, label: str, target: str) -> str:
    """The statement with one operand converted."""
    for piece in hints.operands(where.text):
        if piece.text == label:
            new = hints.exchanged(where.text, piece, f"{hints.in_brackets(label)}.to({target})")
            return hints.in_statement(where, new)
    return f"{label} = {label}.to({target})" if label.isidentifier() else f"Convert `{label}` with `.to({target})`."
