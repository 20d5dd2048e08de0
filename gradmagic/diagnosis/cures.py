"""What to write where an operation gives NaN or infinity: the person's own line, made safe."""

from __future__ import annotations

import re

from . import hints
from .facts import RowFacts, RunFacts

_TINY = {"float16": "1e-4", "bfloat16": "1e-6"}
"""Small beside the values, and still a normal number in the dtype; 1e-12 elsewhere."""


def plain(grad_fn: str) -> str:
    """``Sqrt`` for ``SqrtBackward0``."""
    return re.sub(r"Backward\d*$", "", grad_fn)


def for_gradient(run: RunFacts, row: RowFacts, selected_by: RowFacts | None) -> str:
    """The line, so that its backward stays finite; double ``where`` where its result was not even selected."""
    if selected_by is not None:
        doubled = _double_where(row, selected_by)
        if doubled:
            return doubled
    return for_value(run, row)


def for_value(run: RunFacts, row: RowFacts) -> str:
    """The line, so that its result is finite and its backward too."""
    log_form = _log_form(run, row)
    if log_form:
        return log_form
    safe = _safe(row)
    if safe:
        return hints.in_statement(row.location, safe)
    if row.op in ("exp", "softmax", "sum", "logsumexp"):
        return (
            "Subtract the largest value before `exp`, or use `torch.logsumexp`, `torch.softmax` or `torch.log_softmax`."
        )
    if row.dtype in ("float16", "bfloat16"):
        return "Compute this line in float32 (`.float()`), or use `torch.amp.GradScaler`."
    return (
        "Keep its inputs away from the values where it has no finite result: add a small constant, or use `.clamp()`."
    )


def _safe(row: RowFacts) -> str:
    """The expression with its operand kept away from where it has no finite value or slope."""
    text = row.location.text
    given = hints.operands(text)
    tiny = _TINY.get(row.dtype, "1e-12")
    if not given:
        return ""
    x = hints.in_brackets(given[0].text)
    if row.op in ("sqrt", "log", "log2", "log10", "rsqrt", "pow"):
        return hints.exchanged(text, given[0], f"{x}.clamp(min={tiny})")
    if row.op in ("acos", "asin", "atanh", "arccos", "arcsin", "arctanh", "erfinv"):
        return hints.exchanged(text, given[0], f"{x}.clamp(-1 + 1e-6, 1 - 1e-6)")
    if row.op == "logit":
        return hints.exchanged(text, given[0], f"{x}.clamp(1e-6, 1 - 1e-6)")
    if row.op == "exp":
        return hints.exchanged(text, given[0], f"{x}.clamp(max=80)")
    if row.op == "reciprocal":
        return hints.exchanged(text, given[0], f"({given[0].text} + {tiny})")
    return _safe_pair(row, text, given, tiny) if len(given) > 1 else ""


def _safe_pair(row: RowFacts, text: str, given: list[hints.Piece], tiny: str) -> str:
    """The same for operations whose second operand is the one to keep away from zero."""
    if row.op in ("div", "true_divide"):
        return hints.exchanged(text, given[1], f"({given[1].text} + {tiny})")
    if row.op in ("atan2", "arctan2"):
        return hints.exchanged(text, given[1], f"{hints.in_brackets(given[1].text)} + 1e-6")
    return ""


def _double_where(row: RowFacts, where: RowFacts) -> str:
    """``torch.where(x > 0, x, 1).sqrt()`` for an ``x.sqrt()`` that ``torch.where(x > 0, ...)`` does not select everywhere."""
    condition = next(iter(hints.operands(where.location.text)), None)
    given = hints.operands(row.location.text)
    if condition is None or not given or where.op != "where":
        return ""
    position = 1 if row.op in ("div", "true_divide") and len(given) > 1 else 0
    kept = given[position].text
    text = condition.text
    if where.location.text.startswith("torch.where(") or where.location.text.startswith("where("):
        if _selects_other(where, row):
            text = f"~({text})"
        new = hints.exchanged(row.location.text, given[position], f"torch.where({text}, {kept}, 1.0)")
        return hints.in_statement(row.location, new)
    return ""


def _selects_other(where: RowFacts, row: RowFacts) -> bool:
    """Whether the operation stands in the third argument: it counts where the condition does not hold."""
    given = hints.operands(where.location.text)
    if len(given) < 3:
        return False
    wanted = row.name if row.name is not None and row.location.text not in where.location.text else row.location.text
    mentions = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)")
    return bool(mentions.search(given[2].text)) and not mentions.search(given[1].text)


def _log_form(run: RunFacts, row: RowFacts) -> str:
    """``log_softmax``, ``logsumexp`` or ``logsigmoid`` for the logarithm of such a thing."""
    if row.op != "log" or not row.parents:
        return ""
    inner = run.rows[max(row.parents)]
    if inner.op == "softmax" and inner.location.text:
        return hints.in_statement(row.location, _renamed(inner.location.text, "softmax", "log_softmax"))
    if inner.op == "sigmoid" and (given := hints.operands(inner.location.text)):
        return hints.in_statement(row.location, f"torch.nn.functional.logsigmoid({given[0].text})")
    if inner.op == "sum" and inner.parents and run.rows[max(inner.parents)].op == "exp":
        return _log_sum_exp(row, inner, run.rows[max(inner.parents)])
    return ""


def _renamed(call: str, old: str, new: str) -> str:
    return re.sub(rf"(?<!\w){old}\(", f"{new}(", call, count=1)


def _log_sum_exp(row: RowFacts, total: RowFacts, exponential: RowFacts) -> str:
    given = hints.operands(exponential.location.text)
    if not given:
        return ""
    dims = [piece.text for piece in hints.operands(total.location.text)[1:]]
    dim = hints.keyword(total.location.text, "dim") or next(iter(dims), None)
    keeps = hints.keyword(total.location.text, "keepdim") or next(iter(dims[1:]), None)
    x = given[0].text
    if dim is None:
        return hints.in_statement(row.location, f"torch.logsumexp({hints.in_brackets(x)}.flatten(), 0)")
    more = f", keepdim={keeps}" if keeps else ""
    return hints.in_statement(row.location, f"torch.logsumexp({x}, {dim}{more})")
