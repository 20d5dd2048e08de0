"""Errors of backward, retold with the person's own names and lines."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..records import Finding, Location
from . import cures, hints
from .cuts import hint_for_cut, what_cuts
from .facts import Failure, LossFacts, PassFacts, RowFacts, RunFacts
from .flow import Flow
from .not_finite import where_behind
from .words import listed, named, quoted, shape_text, source_at

# ---- backward


def retell_passes(run: RunFacts, flow: Flow) -> list[Finding]:
    """One finding for each pass that failed, and for each whose gradient is silently wrong."""
    found = [_retold(run, flow, done) for done in run.passes if done.error]
    return [*found, *_silently_changed(run)]


def _retold(run: RunFacts, flow: Flow, done: PassFacts) -> Finding:
    for text, retell in _PASS_ERRORS:
        if text in (done.error or ""):
            return retell(run, flow, done)
    return _failed(run, flow, done)


def _failed(run: RunFacts, flow: Flow, done: PassFacts) -> Finding:  # noqa: ARG001  # one form for all
    failure = done.failure or Failure()
    at = f" in the backward of {quoted(run.rows[failure.row])}" if failure.row is not None else ""
    return Finding(
        kind="backward_failed",
        severity="error",
        message=f"Backward from `{done.root}` ({done.where}) failed{at}.",
        location=done.location,
        detail=done.error or "",
    )


def _changed_in_place(run: RunFacts, flow: Flow, done: PassFacts) -> Finding:  # noqa: ARG001
    failure = done.failure or Failure()
    consumer = run.rows[failure.row] if failure.row is not None else None
    victim = run.rows[failure.victim] if failure.victim is not None else None
    where = failure.culprit
    return Finding(
        kind="changed_in_place",
        severity="error",
        message=_in_place_message(done, consumer, victim, failure),
        hint=_out_of_place_hint(victim, failure, done),
        location=where or done.location,
        rows=tuple(row for row in (failure.victim, failure.row) if row is not None),
        detail=done.error or "",
    )


def _in_place_message(done: PassFacts, consumer: RowFacts | None, victim: RowFacts | None, failure: Failure) -> str:
    saved_by = f" by {quoted(consumer)}" if consumer is not None else ""
    if victim is None or failure.culprit is None:
        return f"Backward from `{done.root}` ({done.where}) needs a tensor that was saved{saved_by} and then changed in place."
    subject = named(victim)
    if victim is consumer:
        subject, saved_by = f"The result of {quoted(victim)}", ""
    again = f" (and {failure.times - 1} more)" if failure.times > 1 else ""
    change = f"`{source_at(failure.culprit)}` ({failure.culprit})"
    if failure.culprit_module:
        change = f"`{failure.culprit_module}`, which has `inplace=True` ({failure.culprit})"
    return f"{subject} was saved{saved_by} for backward, then changed in place by {change}{again}."


def _out_of_place_hint(victim: RowFacts | None, failure: Failure, done: PassFacts) -> str:
    if failure.culprit is not None:
        if victim is not None and victim.kind in ("leaf", "parameter"):
            return f"Run backward before the update, or compute `{done.root}` anew after it."
        if failure.culprit_module:
            return f"{_subscripted(failure.culprit_module)}.inplace = False"
        code = hints.out_of_place(failure.culprit)
        if code:
            return code
        if victim is not None and victim.name is not None:
            if failure.culprit_op == "__setitem__" or failure.culprit_op == "setitem":
                return f"{victim.name} = {victim.name}.clone()" if victim.name.isidentifier() else _CLONE
            return _CLONE
    return "Write the in-place change (`+=`, `x[...] =`, `relu_`, `inplace=True`) out of place: `x = x + ...`."


def _subscripted(module: str) -> str:
    """``net[2].act`` for the path ``net.2.act``."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", module)


_CLONE = "Change a copy: take a `.clone()` first, or write the change out of place."


def _second_time(run: RunFacts, flow: Flow, done: PassFacts) -> Finding:
    failure = done.failure or Failure()
    before = run.losses[failure.freed_by] if failure.freed_by is not None else None
    shared = _shared(run, flow, done, before, failure)
    message = f"Backward from `{done.root}` ({done.where}) came to a part of the graph that has been used up"
    message += f" by the backward of `{before.root}` ({before.where})." if before is not None else "."
    made = run.made_in.get(shared) if shared is not None else None
    if shared is not None and shared in done.roots:
        if run.rows[shared].location.own:
            message += f" `{run.rows[shared].label}` was computed only once ({run.rows[shared].location})."
        hint = "" if before is None else _keep_graph(before.location)
        hint = hint or f"Compute `{done.root}` anew before each backward."
    elif shared is not None:
        row = run.rows[shared]
        if failure.earlier_round:
            message += f" {named(row)} carries the graph of an earlier round into this one."
            hint = f"{row.name} = {row.name}.detach()" if row.name and row.name.isidentifier() else _DETACH_CARRIED
        elif before is None:
            origin = f" (`{source_at(made)}`, {made})" if made is not None else " (an earlier cell)"
            message += f" That part belongs to `{row.label}`{origin}."
            hint = source_at(made) if made is not None else f"Compute `{row.label}` anew in this cell."
        else:
            message += f" Both go through {quoted(row) if row.name is None else named(row)}, which was made only once."
            hint = _keep_graph(before.location) or "Call the earlier backward with `retain_graph=True`."
    else:
        hint = "Compute what both share anew, call the earlier backward with `retain_graph=True`, or `.detach()` it."
    return Finding(
        kind="second_backward",
        severity="error",
        message=message,
        hint=hint,
        location=done.location,
        rows=() if shared is None else (shared,),
        detail=done.error or "",
    )


_DETACH_CARRIED = "Detach what an earlier round hands on: `h = h.detach()`."


def _keep_graph(location: Location | None) -> str:
    """The earlier backward with ``retain_graph=True``."""
    statement = location.statement if location is not None else ""
    if not statement.endswith("backward()"):
        return ""
    return statement[:-1] + "retain_graph=True)"


def _shared(run: RunFacts, flow: Flow, done: PassFacts, before: LossFacts | None, failure: Failure) -> int | None:
    """The last tensor that both graphs hold, by name where one of them has one."""
    if failure.row is None:
        return None
    if failure.earlier_round:
        return _first_named(run, flow, failure.row, done)
    if before is None:
        return _outermost_old(run, flow, failure.row, done)
    if done.roots == before.roots and all(run.rows[root].clock < before.clock for root in done.roots):
        return done.roots[0] if done.roots else None
    common = {row for row in done.reached & before.reached if run.rows[row].clock < before.clock}
    border = [row for row in common if any(user not in common for user in flow.consumers.get(row, ()))]
    border = [row for row in border if row in flow.upstream(failure.row) or failure.row in flow.upstream(row)] or border
    border = [row for row in border if run.rows[row].kind == "non-leaf"] or [failure.row]
    return max(border, key=lambda row: (run.rows[row].name is not None, row))


def _first_named(run: RunFacts, flow: Flow, start: int, done: PassFacts) -> int:
    if run.rows[start].name:
        return start
    return next((row for row in flow.downstream(start) if run.rows[row].name and row in done.reached), start)


def _outermost_old(run: RunFacts, flow: Flow, start: int, done: PassFacts) -> int:
    """The tensor of an earlier cell that the pass went through on its way to the node that failed."""
    old = [row for row in done.reached if run.rows[row].adopted and run.rows[row].kind == "non-leaf"]
    fitting = [row for row in old if row == start or row in flow.upstream(start) or start in flow.upstream(row)]
    return max(fitting or old or [start])


def _without_graph(run: RunFacts, flow: Flow, done: PassFacts) -> Finding:
    root = done.roots[0] if done.roots else None
    message, hint, location = explain_no_graph(
        run, flow, root, f"Backward cannot start from `{done.root}` ({done.where})"
    )
    return Finding(
        kind="root_without_graph",
        severity="error",
        message=message,
        hint=hint,
        location=location or done.location,
        rows=() if root is None else (root,),
        detail=done.error or "",
    )


def explain_no_graph(run: RunFacts, flow: Flow, root: int | None, opening: str) -> tuple[str, str, Location | None]:
    """Why no graph leads to a root: message, hint and the line to blame."""
    cut = flow.cut_above(root) if root is not None else None
    if cut is not None:
        row, last = run.rows[cut], flow.last_with_graph(cut)
        message = f"{opening}: {quoted(row)} {what_cuts(row)}."
        if last is not None:
            message += f" The last tensor with a graph is {named(run.rows[last])}."
        if not run.grad_mode and not row.grad_enabled:
            message = (
                f"{opening}: gradients have been switched off since before this cell (`torch.set_grad_enabled(False)`), "
                f"so {quoted(row)} recorded no graph."
            )
        return message, hint_for_cut(run, flow, cut), row.location
    frozen = [row for i, row in enumerate(run.rows) if row.is_parameter and _in(flow, root, i)]
    if frozen:
        owner = frozen[0].label.partition(".")[0]
        message = f"{opening}: every parameter it was computed from is frozen ({listed(row.label for row in frozen)})."
        whole = "." in frozen[0].label and owner.isidentifier()
        return message, f"{owner}.requires_grad_(True)" if whole else f"{frozen[0].label}.requires_grad_(True)", None
    wanted = next((row for i, row in enumerate(run.rows) if _could_learn(row) and _in(flow, root, i)), None)
    message = f"{opening}: nothing that it was computed from requires grad."
    example = f"{wanted.name}.requires_grad_()" if wanted is not None else "Make an input with `requires_grad=True`."
    return message, example, wanted.location if wanted is not None else None


def _in(flow: Flow, root: int | None, row: int) -> bool:
    return root is not None and row in flow.upstream(root)


def _could_learn(row: RowFacts) -> bool:
    likely = row.name is not None and re.match(r"(w|W|b|theta|weight|bias|param|coef|beta|alpha)", row.name) is not None
    return likely and row.is_floating and row.is_leaf and not row.parents and str(row.name).isidentifier()


def _not_scalar(run: RunFacts, flow: Flow, done: PassFacts) -> Finding:  # noqa: ARG001
    shape = f" has shape {shape_text(done.shape)}" if done.shape else " has more than one element"
    return Finding(
        kind="root_not_scalar",
        severity="error",
        message=f"Backward needs a single number to start from, and `{done.root}` ({done.where}){shape}.",
        hint=_reduced(done, "sum()" if "mean" in done.root else "mean()"),
        location=done.location,
        rows=done.roots[:1],
        detail=done.error or "",
    )


def _reduced(done: PassFacts, how: str) -> str:
    return f"{hints.in_brackets(done.root)}.{how}.backward()"


def _nan_in_anomaly_mode(run: RunFacts, flow: Flow, done: PassFacts) -> Finding:
    failure = done.failure or Failure()
    if failure.row is None:
        return _failed(run, flow, done)
    row = run.rows[failure.row]
    return Finding(
        kind="nan_gradient",
        severity="error",
        message=f"The backward of {quoted(row)} gave NaN, and `detect_anomaly` stopped backward from `{done.root}` ({done.where}) there.",
        hint=cures.for_gradient(run, row, where_behind(run, flow, failure.row)),
        location=row.location,
        rows=(failure.row,),
        detail=done.error or "",
    )


def _not_real(run: RunFacts, flow: Flow, done: PassFacts) -> Finding:  # noqa: ARG001
    return Finding(
        kind="root_not_real",
        severity="error",
        message=f"Backward needs a real number to start from, and `{done.root}` ({done.where}) is complex.",
        hint=_reduced(done, "abs()"),
        location=done.location,
        detail=done.error or "",
    )


def _not_in_graph(run: RunFacts, flow: Flow, done: PassFacts) -> Finding:
    absent = [row for row in done.asked if row not in done.reached]
    cut = next((c for row in absent for root in done.roots if (c := flow.cut_between(row, root)) is not None), None)
    who = listed(run.rows[row].label for row in absent) or "one of the inputs"
    message = f"`{done.root}` does not depend on {who}, so `autograd.grad` ({done.where}) has no gradient for it"
    message += f": {quoted(run.rows[cut])} {what_cuts(run.rows[cut])}." if cut is not None else "."
    return Finding(
        kind="not_in_graph",
        severity="error",
        message=message,
        hint="Take it out of the inputs, or pass `allow_unused=True` and expect `None`."
        if cut is None
        else hint_for_cut(run, flow, cut),
        location=run.rows[cut].location if cut is not None else done.location,
        rows=tuple(absent),
        detail=done.error or "",
    )


_Retell = Callable[[RunFacts, Flow, PassFacts], Finding]
_PASS_ERRORS: tuple[tuple[str, _Retell], ...] = (
    ("a second time", _second_time),
    ("modified by an inplace operation", _changed_in_place),
    ("returned nan values", _nan_in_anomaly_mode),
    ("only for scalar outputs", _not_scalar),
    ("only for real scalar outputs", _not_real),
    ("does not require grad and does not have a grad_fn", _without_graph),
    ("appears to not have been used in the graph", _not_in_graph),
)
"""Texts of PyTorch's own errors (torch/csrc/autograd, torch/autograd/__init__.py)."""


def _silently_changed(run: RunFacts) -> list[Finding]:
    found = {}
    for done in run.passes:
        for change in done.silent:
            victim, consumer = run.rows[change.victim], run.rows[change.consumer]
            found[change.victim, change.culprit.line] = Finding(
                kind="changed_through_data",
                severity="warning",
                message=f"{named(victim)} was saved by {quoted(consumer)} for backward, then changed by "
                f"`{source_at(change.culprit)}` ({change.culprit}) through `.data`, where autograd does not look: "
                f"the gradient of `{done.root}` is computed from the new values, and is wrong.",
                hint=_without_data(change.culprit, victim),
                location=change.culprit,
                rows=(change.victim, change.consumer),
            )
    return list(found.values())


def _without_data(where: Location, victim: RowFacts) -> str:
    statement = where.statement.replace(".data", "", 1)
    changed = Location(where.file, where.line, text=statement, statement=statement)
    if victim.kind == "non-leaf" and (code := hints.out_of_place(changed)):
        return code
    return "Run backward before the change, or change a copy and compute on from that."
