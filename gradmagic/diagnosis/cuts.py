"""Findings about leaves and parameters that no gradient reaches, and about names that are no leaves."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import Finding, Location
from . import hints
from .facts import RowFacts, RunFacts
from .flow import Flow
from .reasons import COPIES, FACTORIES, Verdict, cut_here, recorded_uses
from .words import by_module, named, quoted, source_of

_ON_PURPOSE = frozenset({"detach", "detach_"})
"""``detach``, and a ``no_grad`` block, are how people say that they want no gradient."""


def find_cuts(run: RunFacts, flow: Flow, verdicts: Sequence[Verdict]) -> list[Finding]:
    """One finding for each line that keeps gradients from leaves, one for all leaves that are not used, and so on."""
    if not run.passes or run.failed is not None:
        return []
    leaves = [i for i, row in enumerate(run.rows) if row.kind in ("leaf", "parameter") and row.alive and not row.given]
    dry = [i for i in leaves if verdicts[i].reason is not None]
    by_cut: dict[int, list[int]] = {}
    for index in dry:
        verdict = verdicts[index]
        if verdict.reason == "cut_upstream" and verdict.culprit is not None:
            by_cut.setdefault(verdict.culprit, []).append(index)
    found = [_cut(run, flow, cut, rows) for cut, rows in by_cut.items() if not _on_purpose(run, flow, cut, rows)]
    return [
        *found,
        *_unused(run, flow, [i for i in dry if verdicts[i].reason == "unused" and _is_missed(run, flow, i)]),
        *(_late(run.rows[i], i) for i in dry if verdicts[i].reason == "requires_grad_too_late"),
        *_after(run, [i for i in dry if verdicts[i].reason == "after_backward"], verdicts),
    ]


# ---- cuts


def _on_purpose(run: RunFacts, flow: Flow, cut: int, rows: Sequence[int]) -> bool:
    """Whether whole modules are kept out of this pass by ``detach`` or ``no_grad``, as for a target network.

    An optimizer that holds some of their parameters together with some that did get a gradient speaks against it.
    """
    row = run.rows[cut]
    # New leaves take the place of the parameters, as `torch.func.stack_module_state` means it: no module has used those.
    instead = row.by_library or not any(
        run.rows[user].module for index in rows for user in flow.consumers.get(index, ())
    )
    anew = row.kind == "leaf" and row.has_gradient and instead
    whole = (row.kind == "constant" or anew) and all(run.rows[index].kind == "parameter" for index in rows)
    if not _is_explicit(row) or not whole:
        return False
    dry = set(rows)
    for module in run.modules:
        if dry & set(module.parameters) and any(run.rows[index].has_gradient for index in module.parameters):
            return False
    return not any(
        dry & set(optimizer.rows) and any(run.rows[index].has_gradient for index in optimizer.rows)
        for optimizer in run.optimizers
    )


def _cut(run: RunFacts, flow: Flow, cut: int, rows: Sequence[int]) -> Finding:
    row = run.rows[cut]
    return Finding(
        kind="cut_upstream",
        severity="warning" if _is_explicit(row) else "error",
        message=f"No gradient reaches {by_module([run.rows[index] for index in rows])}: "
        f"{quoted(row)} {what_cuts(row)}.",
        hint=hint_for_cut(run, flow, cut),
        location=row.location,
        rows=(*rows, *(() if row.leaves_torch else (cut,))),
    )


def _is_explicit(row: RowFacts) -> bool:
    """Whether somebody wrote ``detach`` or ``no_grad`` to cut here."""
    return row.op in _ON_PURPOSE or (row.is_floating and not row.grad_enabled)


def what_cuts(row: RowFacts) -> str:
    """What a cut does, as the end of a sentence that begins with its source."""
    reason = cut_here(row, 0)[0]
    if reason == "inference_mode":
        return "runs under `torch.inference_mode()`, which records no graph"
    if reason == "no_grad":
        return "runs under `torch.no_grad()`, which records no graph"
    if row.leaves_torch:
        return f"turns a tensor into {_BECOMES.get(row.op, 'a plain number')}, which no gradient can follow"
    if reason == "detached":
        return _detaches(row)
    if row.is_floating:
        return "is not differentiable"
    return f"is not differentiable (it gives {row.dtype})"


_BECOMES = {"tolist": "a plain list", "numpy": "a NumPy array", "array": "a NumPy array"}


def _detaches(row: RowFacts) -> str:
    if row.op == "data":
        return "reads `.data`, which drops the history"
    if row.op in COPIES:
        return "copies the values into a new tensor, without their history"
    if row.op == "grad":
        return "gives gradients without a graph of their own (`create_graph=True` records one)"
    if row.op in _ON_PURPOSE:
        return "detaches its result from the graph"
    return "makes a new leaf from the values, without their history"


def hint_for_cut(run: RunFacts, flow: Flow, cut: int) -> str:
    """The line without the cut, as code where that is one line, else in words."""
    row = run.rows[cut]
    reason = cut_here(row, cut)[0]
    if reason in ("no_grad", "inference_mode"):
        updates = ".grad" in row.location.statement and row.name is not None
        return (hints.update_in_place(row.location.statement) if updates else "") or _out_of_block(run, row)
    if row.leaves_torch:
        return _stay_in_torch(run, flow, cut)
    statement = row.location.statement
    if row.op in _ON_PURPOSE:
        return _without_detach(statement)
    if row.op == "data" and ".data" in statement:
        return statement.replace(".data", "", 1)
    if row.op in COPIES:
        return _keep_history(row)
    if row.op == "grad":
        code = hints.with_keyword(statement, "grad", "create_graph=True")
        return code or "Call `torch.autograd.grad(..., create_graph=True)`, so that its result has a graph of its own."
    if row.kind in ("leaf", "parameter"):
        return _without_new_leaf(row)
    return _smooth(row)


def _without_detach(statement: str) -> str:
    if ".detach()" not in statement:
        return "Use the tensor itself, with its history."
    return hints.without_call(hints.without_call(statement, "detach"), "requires_grad_")


def _out_of_block(run: RunFacts, row: RowFacts) -> str:
    if not run.grad_mode:
        return "torch.set_grad_enabled(True)"
    block = "torch.inference_mode()" if row.inference else "torch.no_grad()"
    return f"Move `{source_of(row)}` out of the `{block}` block."


def _stay_in_torch(run: RunFacts, flow: Flow, cut: int) -> str:
    """``s = x.sum()`` for ``s = x.sum().item()``, where the number goes straight into tensor arithmetic."""
    row = run.rows[cut]
    users = [run.rows[user] for user in flow.consumers.get(cut, ())]
    if row.op == "item" and row.location.text.endswith(".item()") and not any(user.op in COPIES for user in users):
        return hints.in_statement(row.location, row.location.text.removesuffix(".item()"))
    if row.op in ("float", "int") and row.location.text.startswith(f"{row.op}(") and users:
        inner = hints.operands(row.location.text)
        return hints.in_statement(row.location, inner[0].text) if inner and row.op == "float" else _IN_WORDS
    if any(user.op in COPIES for user in users):
        return f"Keep the tensors: collect them as they are, and join them with `torch.stack([...])` ({users[0].location})."
    return _IN_WORDS


_IN_WORDS = "Stay in torch: use the tensor itself, and torch's functions in place of Python's and NumPy's."


def _keep_history(row: RowFacts) -> str:
    given = hints.operands(row.location.text)
    if not given:
        return "Use the tensor itself, or `.clone()`; `torch.stack([...])` joins several."
    text = given[-1].text
    stacked = hints.stacked(text)
    if stacked:
        return hints.in_statement(row.location, stacked)
    return hints.in_statement(row.location, f"{hints.in_brackets(text)}.clone()")


def _without_new_leaf(row: RowFacts) -> str:
    given = hints.operands(row.location.text)
    if row.location.text.endswith(")") and given and "Parameter(" in row.location.text:
        return hints.in_statement(row.location, given[0].text)
    return "Use the tensor itself, with its history."


def _smooth(row: RowFacts) -> str:
    text = row.location.text
    smooth = hints.comparison_made_smooth(text)
    if smooth is not None and row.location.statement and row.location.statement != text:
        return hints.in_statement(row.location, smooth)
    if row.op in ("argmax", "argmin"):
        soft = "softmax" if row.op == "argmax" else "softmin"
        return f"Use `{soft}` in place of `{row.op}`, or a straight-through estimator."
    if row.op in _CASTS and (kept := hints.without_last_call(text, _CASTS)):
        return hints.in_statement(row.location, kept)
    if row.op in _CASTS:
        return (
            "Keep the values floating, or round them with a straight-through estimator: `x + (x.round() - x).detach()`."
        )
    if row.op in ("multinomial", "bernoulli", "normal", "randint_like", "sample"):
        return (
            "Sample with the reparameterization trick (`rsample`, `gumbel_softmax`), or weigh by the log-probability."
        )
    return f"Use something smooth in place of `{row.op}`, or a straight-through estimator: `x + (y - x).detach()`."


_CASTS = frozenset({"long", "int", "short", "byte", "to", "type", "bool", "char"})


# ---- leaves that are not used


def _is_missed(run: RunFacts, flow: Flow, index: int) -> bool:
    """Whether somebody waits for a gradient of an unused leaf: not so for a module that no optimizer was given."""
    module = next((module for module in run.modules if index in module.parameters), None)
    uses = [run.rows[use] for use in flow.consumers.get(index, ())]
    if uses and all(use.op in _ON_PURPOSE or not use.grad_enabled or use.inference for use in uses):
        return any(index in optimizer.rows for optimizer in run.optimizers)
    if module is None or any(run.rows[other].has_gradient for other in module.parameters):
        return run.rows[index].bound_now
    return not run.optimizers or any(index in optimizer.rows for optimizer in run.optimizers)


def _unused(run: RunFacts, flow: Flow, rows: Sequence[int]) -> list[Finding]:
    groups: dict[tuple[str, bool], list[int]] = {}
    for index in rows:
        row = run.rows[index]
        used = bool(recorded_uses(index, run, flow))
        owner = row.label.partition(".")[0] if row.kind == "parameter" and "." in row.label else ""
        groups.setdefault((owner, used), []).append(index)
    return [_unused_together(run, flow, group, used) for (_, used), group in groups.items()]


def _unused_together(run: RunFacts, flow: Flow, group: Sequence[int], used: bool) -> Finding:
    rows = [run.rows[index] for index in group]
    root = run.rows[run.roots[-1]].label if run.roots else "the root"
    if used:
        goes_to = run.rows[max(recorded_uses(group[0], run, flow))]
        message = (
            f"No gradient reaches {by_module(rows)}: used for {named(goes_to)}, and `{root}` does not depend on that."
        )
        hint = f"Make it part of the loss, or run backward from it: `--backward {goes_to.label}`."
    else:
        took_no_part = (
            "took no part" if rows[0].kind == "parameter" else "is never used" if len(rows) == 1 else "are never used"
        )
        message = (
            f"{by_module(rows)} {took_no_part}, so `{root}` does not depend on {'it' if len(rows) == 1 else 'them'}."
        )
        hint = f"Use {'it' if len(rows) == 1 else 'them'} on the way to `{root}`, or take {'it' if len(rows) == 1 else 'them'} out."
    location = rows[0].location if rows[0].kind == "leaf" and not rows[0].adopted else None
    return Finding(kind="unused", severity="warning", message=message, hint=hint, location=location, rows=tuple(group))


def _late(row: RowFacts, index: int) -> Finding:
    where = row.constant_use or row.location
    return Finding(
        kind="requires_grad_too_late",
        severity="warning",
        message=f"{named(row)} was used by `{where.text}` ({where}) before `requires_grad` was switched on, so no gradient "
        "comes back from there.",
        hint=f"{row.label}.requires_grad_()",
        location=where,
        rows=(index,),
    )


def _after(run: RunFacts, rows: Sequence[int], verdicts: Sequence[Verdict]) -> list[Finding]:
    by_line: dict[Location, list[int]] = {}
    for index in rows:
        by_line.setdefault(verdicts[index].place or run.rows[index].location, []).append(index)
    ran = run.passes[-1]
    return [
        Finding(
            kind="after_backward",
            severity="warning",
            message=f"No gradient reaches {by_module([run.rows[i] for i in group])}: used only by `{where.statement or where.text}` ({where}), "
            f"after the backward of `{ran.root}` ({ran.where}) had run.",
            hint=f"Make `{where.text}` part of the loss, and run backward after it.",
            location=where,
            rows=tuple(group),
        )
        for where, group in by_line.items()
    ]


# ---- names that are no leaves


_MOVES = frozenset(
    [
        "mul",
        "div",
        "add",
        "sub",
        "neg",
        "to",
        "cuda",
        "cpu",
        "float",
        "double",
        "half",
        "bfloat16",
        "type",
        "view",
        "reshape",
        "t",
        "transpose",
        "clone",
        "abs",
        "sqrt",
        "pow",
        "permute",
        "unsqueeze",
        "squeeze",
        "contiguous",
        "T",
        "exp",
    ]
)
"""What people do to a new leaf on the line that makes it."""


def find_leaves(run: RunFacts, flow: Flow) -> list[Finding]:
    """Names that look like leaves and are not: made from a nameless leaf, or bound anew by an update."""
    found = []
    for index, row in enumerate(run.rows):
        if row.name is None or row.leaves_torch or row.transformed:
            continue
        leaf = _nameless_leaf(run, flow, index)
        if leaf is not None:
            found.append(_shadowed(run, index, leaf))
        elif _rebinds(run, flow, index) and not _is_differentiated_through(run, flow, index):
            found.append(_rebound(run, index))
    return found


def _nameless_leaf(run: RunFacts, flow: Flow, index: int) -> int | None:
    """The leaf that was made, without a name, on the line that made this non-leaf."""
    row = run.rows[index]
    asked = any(index in done.asked for done in run.passes if done.function == "autograd.grad")
    if row.kind != "non-leaf" or row.op not in _MOVES or row.shape == () or asked or row.by_library:
        return None
    if index in run.roots or not flow.consumers.get(index):
        return None
    current, line = index, (row.location.file, row.location.line)
    while True:
        above = [p for p in run.rows[current].parents if run.rows[p].kind != "constant"]
        if len(above) != 1 or (run.rows[above[0]].location.file, run.rows[above[0]].location.line) != line:
            return None
        current = above[0]
        leaf = run.rows[current]
        if leaf.kind in ("leaf", "parameter"):
            fresh = leaf.name is None or (leaf.adopted and leaf.name == leaf.location.text)
            made_here = not leaf.adopted and leaf.op.rpartition(".")[2] in _MAKES
            return current if fresh and (made_here or "Parameter(" in leaf.label) else None
        if leaf.name is not None or leaf.op not in _MOVES:
            return None


_MAKES = FACTORIES | {"rand_like", "randn_like", "zeros_like", "ones_like", "requires_grad_", "normal", "full_like"}


def _shadowed(run: RunFacts, index: int, leaf: int) -> Finding:
    row = run.rows[index]
    return Finding(
        kind="shadowed_leaf",
        severity="warning",
        message=f"{named(row)} is not a leaf: it was computed from `{run.rows[leaf].label}`, which is the leaf and has no name. "
        "An optimizer does not take it, and PyTorch keeps no `.grad` for it.",
        hint=hints.leaf_at_last(row.location.statement),
        location=row.location,
        rows=(index, leaf),
    )


def _rebinds(run: RunFacts, flow: Flow, index: int) -> bool:
    """Whether a statement ``w = f(w)`` bound the name of a leaf to something that is no leaf that learns."""
    row = run.rows[index]
    if row.kind in ("leaf", "parameter") or row.by_library or not row.is_floating or row.location.function is not None:
        return False
    leaf = _leaf_on_the_line(run, index)
    if leaf is None or leaf.name != row.name:
        return False
    if row.kind == "constant" and row.location.statement.endswith(".detach()"):
        return False  # said in so many words, as for an adversarial example
    updates = ".grad" in row.location.statement and leaf.has_gradient
    lost = row.kind == "non-leaf" and not leaf.bound_now and not leaf.adopted
    return updates or (lost and not _is_hidden_state(run, flow, index))


def _is_hidden_state(run: RunFacts, flow: Flow, index: int) -> bool:
    """Whether a loop carries it from one step to the next within one graph: ``h = torch.tanh(h @ W)``."""
    row = run.rows[index]
    carried = any(index in flow.upstream(parent) for parent in row.parents)
    updates = any(run.rows[above].op == "grad" for above in flow.upstream(index))
    return carried and not updates and row.count > sum(loss.count for loss in run.losses)


def _is_differentiated_through(run: RunFacts, flow: Flow, index: int) -> bool:
    """Whether an update is a step of an inner loop: made of gradients that have a graph, and a gradient came back."""
    above = (run.rows[row] for row in flow.upstream(index))
    return run.rows[index].has_gradient and any(row.op == "grad" and row.kind == "non-leaf" for row in above)


def _leaf_on_the_line(run: RunFacts, index: int) -> RowFacts | None:
    """The leaf of the same name that a statement starts from."""
    line = run.rows[index].location.line
    pending, seen = [index], {index}
    while pending:
        for parent in run.rows[pending.pop()].parents:
            row = run.rows[parent]
            if row.kind in ("leaf", "parameter") and row.name == run.rows[index].name:
                return row
            if parent not in seen and row.location.line == line:
                seen.add(parent)
                pending.append(parent)
    return None


def _rebound(run: RunFacts, index: int) -> Finding:
    row = run.rows[index]
    statement = row.location.statement
    update = hints.update_in_place(statement) if ".grad" in statement else ""
    becomes = (
        "a non-leaf, for which PyTorch keeps no `.grad`"
        if row.kind == "non-leaf"
        else ("a new tensor that does not require grad")
    )
    inside = row.kind != "non-leaf"
    return Finding(
        kind="rebound_leaf",
        severity="warning",
        message=f"{quoted(row)} does not update the leaf `{row.name}`: it binds the name to {becomes}.",
        hint=update if inside else f"with torch.no_grad():\n    {update}" if update else hints.leaf_anew(statement),
        location=row.location,
        rows=(index,),
    )
