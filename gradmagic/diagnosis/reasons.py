"""Why a row has no gradient: one reason from a closed list, the line to blame, and what to write."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Location, Reason
from .facts import RowFacts, RunFacts

DETACHING = frozenset({"detach", "detach_", "data", "tensor", "as_tensor", "asarray", "from_numpy", "grad"})
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


def explain(run: RunFacts) -> list[Verdict]:
    """A verdict for every row, in the rows' order."""
    verdicts: list[Verdict] = []
    for index, row in enumerate(run.rows):
        # A constant's reason may come from the constants it was made from, which stand before it.
        asks_not = row.kind == "constant" and not row.has_gradient
        verdicts.append(_constant(index, row, verdicts, run.rows) if asks_not else Verdict(None))
    consumers = _consumers(run.rows)
    for index, row in enumerate(run.rows):
        if verdicts[index].reason is None:
            verdicts[index] = _differentiable(index, row, run, verdicts, consumers)
    return verdicts


# ---- rows that do not ask for a gradient


def _constant(index: int, row: RowFacts, before: list[Verdict], rows: tuple[RowFacts, ...]) -> Verdict:
    if row.transformed:
        return Verdict("inside_transform", index, note="inside a torch.func transform, which keeps its own gradients")
    if row.input_requires_grad:
        return _cut_here(index, row)
    inherited = _inherited(row, before, rows)
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
    if row.op.rpartition(".")[2] in _FACTORIES:
        return "does not require grad; `requires_grad=True` asks for it"
    return f"does not require grad; `{row.name}.requires_grad_()` asks for it"


_FACTORIES = frozenset({"tensor", "randn", "rand", "zeros", "ones", "empty", "full", "arange", "linspace", "eye"})


def _cut_here(index: int, row: RowFacts) -> Verdict:
    """The operation had inputs that ask for a gradient, and its result does not."""
    if row.inference:
        return Verdict("inference_mode", index, note="made under `torch.inference_mode()`")
    if row.op in DETACHING and row.is_floating:
        return Verdict("detached", index, note=_detached_note(row.op))
    if not row.is_floating:
        return Verdict("not_differentiable", index, note=f"not differentiable ({row.dtype})")
    if not row.grad_enabled:
        return Verdict("no_grad", index, note="made under `torch.no_grad()`")
    return Verdict("not_differentiable", index, note=f"`{row.op}` is not differentiable")


def _detached_note(op: str) -> str:
    if op == "grad":
        return "detached: `autograd.grad` records no graph without `create_graph=True`"
    if op in ("tensor", "as_tensor", "asarray"):
        return f"detached: `torch.{op}` copies values without history; `.clone()` keeps it"
    return f"detached: `.{op}` drops the history"


def _inherited(row: RowFacts, before: list[Verdict], rows: tuple[RowFacts, ...]) -> Verdict | None:
    """A constant made from values that were cut off shares their reason."""
    for parent in row.parents:
        if parent >= len(before):
            continue
        verdict = before[parent]
        if verdict.reason in _CUTS and not verdict.note.startswith("does not"):
            blamed = rows[verdict.culprit if verdict.culprit is not None else parent].location
            note = f"made from what `{blamed.text}` ({blamed}) cut off"
            return Verdict(verdict.reason, verdict.culprit, verdict.place, note)
    return None


# ---- rows that ask for a gradient


def _consumers(rows: tuple[RowFacts, ...]) -> dict[int, list[int]]:
    consumers: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        for parent in row.parents:
            consumers.setdefault(parent, []).append(index)
    return consumers


def _differentiable(
    index: int, row: RowFacts, run: RunFacts, verdicts: list[Verdict], consumers: dict[int, list[int]]
) -> Verdict:
    if row.has_gradient:
        return Verdict(None, place=row.cleared, note=_stored_note(row))
    if not run.passes:
        return Verdict("no_backward", note="no backward ran")
    if row.excluded:
        return Verdict("backward_inputs", note="`backward(inputs=...)` left it out")
    if row.reached and run.failed is not None:
        return Verdict("backward_failed", note="backward failed before it got here")
    if row.made_after:
        return Verdict("after_backward", index, note="made after backward ran")
    if row.reached:
        return Verdict("custom_backward_none", note="backward gave no gradient for it (None)")
    if run.failed is not None and not run.roots:
        return Verdict("backward_failed", note="backward failed")
    return _unreached(index, row, run, verdicts, consumers)


def _stored_note(row: RowFacts) -> str:
    if row.cleared is not None:
        return f"`.grad` was cleared afterwards ({row.cleared})"
    return "only `autograd.grad` ran through it, which stores nothing in `.grad`" if row.only_returned else ""


def _unreached(
    index: int, row: RowFacts, run: RunFacts, verdicts: list[Verdict], consumers: dict[int, list[int]]
) -> Verdict:
    if row.constant_use is not None:
        note = f"used before it required grad ({row.constant_use}); switch requires_grad on first"
        return Verdict("requires_grad_too_late", place=row.constant_use, note=note)
    if row.successor is not None and run.rows[row.successor].has_gradient:
        note = f"a later change in place took its history over ({row.changed})"
        return Verdict("replaced_in_place", place=row.changed, note=note)
    cut, towards = _first_cut(index, run, verdicts, consumers)
    root = run.rows[towards].label if towards is not None else "the root"
    if cut is None and not run.complete and any(index in _upstream_of(run, root) for root in run.roots):
        return Verdict(None, note="too deep in the graph to be followed")
    if cut is None:
        return Verdict("unused", note=f"no path leads from it to `{root}`")
    blamed = run.rows[cut]
    note = f"its way to `{root}` is cut by `{blamed.location.text}` ({blamed.location})"
    return Verdict("cut_upstream", cut, note=note)


def _first_cut(
    index: int, run: RunFacts, verdicts: list[Verdict], consumers: dict[int, list[int]]
) -> tuple[int | None, int | None]:
    """The first row that cut the data's way from here to a root, and that root; the last root where there is none."""
    for root in reversed(run.roots):
        upstream = _upstream_of(run, root)
        cut = _cut_on_the_way(index, upstream, run, verdicts, consumers)
        if cut is not None:
            return cut, root
    return None, run.roots[-1] if run.roots else None


def _cut_on_the_way(
    index: int, upstream: set[int], run: RunFacts, verdicts: list[Verdict], consumers: dict[int, list[int]]
) -> int | None:
    seen = {index}
    pending = [index]
    while pending:
        current = pending.pop(0)
        for consumer in sorted(consumers.get(current, ())):
            if consumer in seen or consumer not in upstream:
                continue
            if verdicts[consumer].reason in _CUTS and run.rows[consumer].input_requires_grad:
                return consumer
            seen.add(consumer)
            pending.append(consumer)
    return None


def _upstream_of(run: RunFacts, root: int) -> set[int]:
    """Every row whose values went into a root."""
    seen = {root}
    pending = [root]
    while pending:
        for parent in run.rows[pending.pop()].parents:
            if parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return seen
