"""Why a row has no gradient: one reason from a closed list, the line to blame, and what to write."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Location, Reason
from .facts import RowFacts, RunFacts
from .flow import Flow

PLAIN_VALUES = frozenset({"item", "tolist", "numpy", "array", "float", "int", "complex", "index"})
"""What hands a tensor's values to plain Python or NumPy."""

COPIES = frozenset({"tensor", "as_tensor", "asarray", "from_numpy", "new_tensor"})
"""What makes a tensor from values, without their history."""

DETACHING = COPIES | PLAIN_VALUES | {"detach", "detach_", "data", "grad"}
"""Operations that hand on values without their history (``grad`` is ``torch.autograd.grad`` without create_graph)."""

_CUTS = frozenset({"detached", "not_differentiable", "no_grad", "inference_mode"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a row has no gradient.

    Attributes:
        reason: one of DESIGN's reasons; None when the row has a gradient.
        culprit: index of the row to blame, or None.
        place: the line to blame when it is no row's own, or None.
        note: one remark, with what to write.
    """

    reason: Reason | None
    culprit: int | None = None
    place: Location | None = None
    note: str = ""


def explain(run: RunFacts, flow: Flow) -> list[Verdict]:
    """A verdict for every row, in the rows' order."""
    constants: dict[int, Verdict] = {}
    # What left torch stands behind the rows and yet is what some of them were made from.
    in_order = sorted(range(len(run.rows)), key=lambda index: (not run.rows[index].leaves_torch, index))
    for index in in_order:
        row = run.rows[index]
        if row.kind == "constant" and not row.has_gradient:
            constants[index] = _constant(index, row, constants, run)
    return [
        constants[index] if index in constants else _differentiable(index, row, run, flow)
        for index, row in enumerate(run.rows)
    ]


# ---- rows that do not ask for a gradient


def _constant(index: int, row: RowFacts, before: dict[int, Verdict], run: RunFacts) -> Verdict:
    if row.transformed:
        return Verdict("inside_transform", index, note="inside a torch.func transform, which keeps its own gradients")
    if row.input_requires_grad:
        return Verdict(*cut_here(row, index))
    inherited = _inherited(row, before, run.rows)
    if row.is_parameter:
        return Verdict("frozen", index, note=f"frozen: `{row.label}.requires_grad_(True)` thaws it")
    if inherited is not None:
        return inherited
    if not row.is_floating:
        return Verdict("integer_dtype", index, note=f"{row.dtype} tensors have no gradient")
    if row.inference:
        return Verdict("inference_mode", index, note="made under `torch.inference_mode()`")
    return Verdict("requires_grad_false", index, note=_ask_for_it(row))


def _ask_for_it(row: RowFacts) -> str:
    if row.parents:
        return "does not require grad: nothing it was made from does"
    if row.name is None or not row.name.isidentifier():
        return "does not require grad"
    if row.switched_off:
        return f"`requires_grad` was switched off; `{row.name}.requires_grad_()` switches it on again"
    if row.op.rpartition(".")[2] in FACTORIES:
        return "does not require grad; `requires_grad=True` asks for it"
    return f"does not require grad; `{row.name}.requires_grad_()` asks for it"


FACTORIES = frozenset({"tensor", "randn", "rand", "zeros", "ones", "empty", "full", "arange", "linspace", "eye"})


def cut_here(row: RowFacts, index: int) -> tuple[Reason, int, None, str]:
    """Reason and note of a row whose inputs asked for a gradient that does not reach them through it."""
    reason, note = _cut(row)
    return reason, index, None, note


def _cut(row: RowFacts) -> tuple[Reason, str]:
    if row.inference:
        return "inference_mode", "made under `torch.inference_mode()`"
    if row.leaves_torch:
        return "detached", f"detached: {_LEFT.get(row.op, 'plain values')} carry no gradient"
    if row.op in DETACHING and row.is_floating:
        return "detached", _detached_note(row.op)
    if not row.is_floating:
        return "not_differentiable", f"not differentiable ({row.dtype})"
    if not row.grad_enabled:
        return "no_grad", "made under `torch.no_grad()`"
    if row.kind in ("leaf", "parameter"):
        return "detached", "detached: a leaf of its own, without the history of its values"
    return "not_differentiable", f"`{row.op}` is not differentiable"


_LEFT = {"tolist": "plain lists", "numpy": "NumPy arrays", "array": "NumPy arrays"}


def _detached_note(op: str) -> str:
    if op == "grad":
        return "detached: `autograd.grad` records no graph without `create_graph=True`"
    if op in COPIES:
        return f"detached: `torch.{op}` copies values without history; `.clone()` keeps it"
    return f"detached: `.{op}` drops the history"


def _inherited(row: RowFacts, before: dict[int, Verdict], rows: tuple[RowFacts, ...]) -> Verdict | None:
    """A constant made from values that were cut off shares their reason."""
    for parent in row.parents:
        verdict = before.get(parent)
        if verdict is not None and verdict.reason in _CUTS and verdict.culprit is not None:
            if not rows[verdict.culprit].severed:
                continue
            blamed = rows[verdict.culprit].location
            note = f"made from what `{blamed.text}` ({blamed}) cut off"
            return Verdict(verdict.reason, verdict.culprit, verdict.place, note)
    return None


# ---- rows that ask for a gradient


def _differentiable(index: int, row: RowFacts, run: RunFacts, flow: Flow) -> Verdict:
    if row.has_gradient:
        return Verdict(None, place=row.cleared, note=_stored_note(row))
    if not run.passes:
        return Verdict("no_backward", note="no backward ran")
    if row.excluded:
        ran_backward = any(loss.function == "backward" for loss in run.losses)
        note = "`backward(inputs=...)` left it out" if ran_backward else "`autograd.grad` was not asked for it"
        return Verdict("backward_inputs", note=note)
    if row.reached and run.failed is not None:
        return Verdict("backward_failed", note="backward failed before it got here")
    if row.made_after:
        return Verdict("after_backward", index, note="made after backward ran")
    if row.reached:
        return Verdict("custom_backward_none", note="backward gave no gradient for it (None)")
    if run.failed is not None and not run.roots:
        return Verdict("backward_failed", note="backward failed")
    return _unreached(index, row, run, flow)


def _stored_note(row: RowFacts) -> str:
    if row.cleared is not None:
        return f"`.grad` was cleared afterwards ({row.cleared})"
    if row.only_returned:
        return "only `autograd.grad` ran through it, which stores nothing in `.grad`"
    if row.taken:
        return "a hook after accumulation took `.grad` (`register_post_accumulate_grad_hook`)"
    if row.grad is not None and not row.grad.is_known:
        return "a gradient without numbers to show: meta, fake, or of a class with its own `__torch_dispatch__`"
    return _activity_note(row)


_WORTH_A_NOTE = 0.1
"""Share of dead units, or saturated elements, from which the row says so."""


def _activity_note(row: RowFacts) -> str:
    activity = row.activity
    if activity is None:
        return ""
    if row.op in ("tanh", "sigmoid", "softmax"):
        return f"{activity.share:.0%} saturated" if activity.share >= _WORTH_A_NOTE else ""
    many = activity.samples >= 8 and activity.idle >= _WORTH_A_NOTE * activity.units
    return f"dead: {activity.idle} of {activity.units} units" if many else ""


def _unreached(index: int, row: RowFacts, run: RunFacts, flow: Flow) -> Verdict:
    if row.constant_use is not None:
        note = f"used before it required grad ({row.constant_use}); switch requires_grad on first"
        return Verdict("requires_grad_too_late", place=row.constant_use, note=note)
    if _taken_over(index, run.rows):
        note = f"a later change in place took its history over ({row.changed})"
        return Verdict("replaced_in_place", place=row.changed, note=note)
    cut, towards = first_cut(index, run, flow)
    root = run.rows[towards].label if towards is not None else "the root"
    if cut is None and not run.complete and any(index in flow.upstream(root) for root in run.roots):
        return Verdict(None, note="too deep in the graph to be followed")
    if cut is None:
        return _unused(index, run, flow, root)
    blamed = run.rows[cut]
    note = f"its way to `{root}` is cut by `{blamed.location.text}` ({blamed.location})"
    return Verdict("cut_upstream", cut, note=note)


def _unused(index: int, run: RunFacts, flow: Flow, root: str) -> Verdict:
    uses = recorded_uses(index, run, flow)
    if not uses and flow.consumers.get(index):
        return Verdict("unused", note=f"used only where no graph is recorded, so `{root}` does not depend on it")
    if not uses:
        return Verdict("unused", note=f"never used, so `{root}` does not depend on it")
    later = [use for use in uses if run.passes and run.rows[use].clock > run.passes[-1].clock]
    could = [use for use in later if run.rows[use].kind != "constant"]  # a copy of its values could not
    if could and len(later) == len(uses) and run.rows[index].kind in ("leaf", "parameter"):
        first = run.rows[could[0]]
        note = f"used only after backward ran: {first.location}"
        return Verdict("after_backward", place=first.location, note=note)
    last = run.rows[max(uses)]
    used = f"used for `{last.label}` ({last.location}), but " if last.label != root else ""
    return Verdict("unused", note=f"{used}no path leads from it to `{root}`")


def recorded_uses(index: int, run: RunFacts, flow: Flow) -> list[int]:
    """Rows that a row's values went into and that could have a gradient: not those under ``no_grad``."""
    return [
        use
        for use in flow.downstream(index)
        if not (row := run.rows[use]).leaves_torch and row.grad_enabled and not row.inference
    ]


def _taken_over(index: int, rows: tuple[RowFacts, ...]) -> bool:
    """Whether a newer version of the tensor, or of what it is a view of, has the gradient."""
    pending, seen = [index], {index}
    while pending:
        row = rows[pending.pop()]
        for heir in (row.successor, row.heir):
            if heir is not None and heir not in seen:
                if rows[heir].has_gradient:
                    return True
                seen.add(heir)
                pending.append(heir)
    return False


def first_cut(index: int, run: RunFacts, flow: Flow) -> tuple[int | None, int | None]:
    """The first row that cut the values' way from here to a root, and that root; the last root where there is none."""
    for root in reversed(run.roots):
        cut = flow.cut_between(index, root)
        if cut is not None:
            return cut, root
    return None, run.roots[-1] if run.roots else None
