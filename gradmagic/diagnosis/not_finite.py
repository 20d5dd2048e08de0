"""Where NaN and infinity come from: born in a backward, or there before it ran."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..records import Finding
from . import cures, hints
from .facts import Birth, PassFacts, RowFacts, RunFacts
from .flow import Flow
from .words import named, number, quoted


def find_not_finite(run: RunFacts, flow: Flow, passes: Sequence[PassFacts]) -> list[Finding]:
    """The first pass in which something was not finite: later ones only inherit it."""
    for number_of, done in enumerate(passes):
        if done.value is not None and not math.isfinite(done.value):
            return [_bad_value(run, flow, passes, number_of)]
        births = [birth for birth in done.births if birth.kind == "not_finite"]
        if births:
            first = {birth.consumer if birth.consumer is not None else ~birth.row: birth for birth in reversed(births)}
            return [_bad_gradient(run, flow, birth) for birth in list(first.values())[::-1][:2]]
    return []


def _bad_gradient(run: RunFacts, flow: Flow, birth: Birth) -> Finding:
    row = run.rows[birth.row]
    consumer = run.rows[birth.consumer] if birth.consumer is not None else None
    counts = [f"{n} {what}" for n, what in ((birth.nan_count, "NaN"), (birth.inf_count, "inf")) if n]
    of = f" of {birth.numel} elements" if birth.numel > 1 else ""
    message = f"The gradient of {named(row)} is not finite ({' and '.join(counts)}{of})"
    if consumer is not None:
        message += f": it was born in the backward of {quoted(consumer)}{_at_value(consumer, birth)}."
    else:
        message += "."
    selected = where_behind(run, flow, birth.consumer) if birth.consumer is not None else None
    if selected is not None and birth.upstream:
        message += " `where` does not select that element, but 0 times infinity is NaN all the same."
    by_scaler = bool(run.scaler) and not birth.nan_count
    if by_scaler:
        message += f" `{run.scaler}` skips such a step and lowers its scale."
    return Finding(
        kind="nan_gradient",
        severity="info" if by_scaler else "error",
        message=message,
        hint=cures.for_gradient(run, consumer, selected) if consumer is not None else "",
        location=consumer.location if consumer is not None else row.location,
        rows=(birth.row, *(() if birth.consumer is None else (birth.consumer,))),
    )


def _at_value(consumer: RowFacts, birth: Birth) -> str:
    if birth.saved is None:
        return ""
    given = hints.operands(consumer.location.text)
    what = f"`{given[0].text}`" if len(given) == 1 else "a value in it"
    return f", where {what} is {_value(birth.saved)}"


def _value(value: float) -> str:
    return "NaN" if math.isnan(value) else str(int(value)) if value in (0.0, 1.0, -1.0) else number(value)


def where_behind(run: RunFacts, flow: Flow, index: int) -> RowFacts | None:
    """The ``torch.where`` that takes what a row made, right away or after elementwise steps."""
    for depth, user in enumerate(flow.downstream(index)):
        if run.rows[user].op in ("where", "masked_fill"):
            return run.rows[user]
        if depth > 4:
            break
    return None


def _bad_value(run: RunFacts, flow: Flow, passes: Sequence[PassFacts], which: int) -> Finding:
    done = passes[which]
    root = done.roots[0] if done.roots else None
    value = "NaN" if done.value is not None and math.isnan(done.value) else "infinite"
    since = f" since pass {which + 1} of {len(passes)}" if len(passes) > 1 else ""
    first = _first_bad(run, flow, root)
    message = f"`{done.root}` ({_made(run, root, done)}) is {value}{since}"
    grown = [other.value for other in passes[:which] if other.value is not None]
    if which >= 2 and grown and abs(grown[-1]) > 10 * abs(grown[0]):
        message += f": it grew from {number(grown[0])} to {number(grown[-1])} in the passes before"
        hint = "Lower the learning rate, or clip the gradients: `torch.nn.utils.clip_grad_norm_(parameters, 1.0)`."
        return Finding(
            kind="nan_value",
            severity="error",
            message=f"{message}.",
            hint=hint,
            location=done.location,
            rows=done.roots,
        )
    row = run.rows[first] if first is not None else None
    if row is not None:
        message += f". {_first_sentence(run, row)}"
    else:
        message += "."
    certain = run.with_values or (row is not None and _inputs_fine(run, row))
    hint = cures.for_value(run, row) if row is not None and certain else ""
    if not run.with_values and not certain:
        hint = "%%gradtrace --values"
        message += " `--values` looks at every tensor, and names the first one that went wrong."
    return Finding(
        kind="nan_value",
        severity="error",
        message=message,
        hint=hint,
        location=row.location if row is not None else (run.rows[root].location if root is not None else None),
        rows=() if first is None else (first,),
    )


def _made(run: RunFacts, root: int | None, done: PassFacts) -> str:
    return str(run.rows[root].location) if root is not None else done.where


def _first_sentence(run: RunFacts, row: RowFacts) -> str:
    values = row.forward
    if values is None:
        return ""
    counts = [f"{n} {what}" for n, what in ((values.nan_count, "NaN"), (values.inf_count, "infinite")) if n]
    of = f" of {values.numel}" if values.numel > 1 else ""
    inputs = [run.rows[parent] for parent in row.parents]
    known = [i for i in inputs if i.forward is not None and not _is_bad(i)]
    span = "".join(
        f"; `{i.label}` goes from {number(i.forward.min)} to {number(i.forward.max)}" for i in known[:1] if i.forward
    )
    which = (
        "The first tensor that is not finite" if run.with_values else "The first one still at hand that is not finite"
    )
    return f"{which} is {quoted(row)} ({' and '.join(counts)}{of}{span})."


def _first_bad(run: RunFacts, flow: Flow, root: int | None) -> int | None:
    upstream = flow.upstream(root) if root is not None else range(len(run.rows))
    bad = [index for index in sorted(upstream) if _is_bad(run.rows[index])]
    # Infinities that somebody put there to mask something are no accident.
    accidents = [index for index in bad if not _is_mask(run.rows[index])]
    return next(iter(accidents or bad), None)


def _is_bad(row: RowFacts) -> bool:
    return row.forward is not None and bool(row.forward.nan_count or row.forward.inf_count)


def _is_mask(row: RowFacts) -> bool:
    values = row.forward
    infinite = values is not None and not values.nan_count
    return infinite and (row.kind == "constant" or row.op in ("masked_fill", "masked_fill_", "where"))


def _inputs_fine(run: RunFacts, row: RowFacts) -> bool:
    parents = [run.rows[parent] for parent in row.parents if run.rows[parent].is_floating]
    return all(parent.forward is not None and not _is_bad(parent) for parent in parents)
