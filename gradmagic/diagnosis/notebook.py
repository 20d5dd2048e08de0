"""Findings about the state of a notebook: gradients, graphs, optimizers and modes that earlier cells left behind."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import Finding
from .facts import OptimizerFacts, RowFacts, RunFacts, Stale
from .flow import Flow
from .training import clearing
from .words import by_module, listed, named, number, source_at


def find_traps(run: RunFacts, flow: Flow) -> list[Finding]:  # noqa: ARG001  # one form for all
    """What only a tool that sees the whole notebook can tell."""
    return [
        *_held_before(run),
        *(_stale(run, stale) for stale in run.stale),
        *_optimizers(run),
        *_not_held(run),
        *_eval_mode(run),
    ]


# ---- gradients that add up


def _held_before(run: RunFacts) -> list[Finding]:
    held = [(i, row) for i, row in enumerate(run.rows) if row.held is not None and row.grad is not None]
    held = [(i, row) for i, row in held if row.cleared is None and not row.only_returned]
    first = next((done for done in run.passes if done.function == "backward" and done.error is None), None)
    if not held or first is None:
        return []
    row = held[0][1]
    ran = first.location
    now = f" = {number(row.holds)}" if row.holds is not None else ""
    this = row.grads.norm[0] if len(row.grads) else 0.0
    rows = [each for _, each in held]
    return [
        Finding(
            kind="accumulated",
            severity="warning" if ran is not None else "info",
            message=f"`.grad` of {by_module(rows)} already held a gradient from an earlier run, and this pass "
            f"({first.where}) was added to it; norms for `{row.label}`: {number(row.held or 0)} before, {number(this)} from "
            f"this pass{now and ', ' + number(row.holds or 0) + ' after'}.",
            hint="--zero-grad" if ran is None else clearing(run, [i for i, _ in held], rows),
            location=ran,
            rows=tuple(i for i, _ in held),
        )
    ]


# ---- graphs of earlier cells


def _stale(run: RunFacts, stale: Stale) -> Finding:
    row, leaf = run.rows[stale.row], run.rows[stale.leaf]
    return Finding(
        kind="stale_graph",
        severity="warning",
        message=f"`{row.label}` was made by `{source_at(stale.made)}` ({stale.made}) from an older `{stale.name}`, which has been "
        f"bound anew since (`{source_at(stale.rebound)}`, {stale.rebound}). The gradient goes to the old one, "
        f"{'which no name holds' if leaf.name is None else named(leaf)}.",
        hint=source_at(stale.made),
        location=row.location,
        rows=(stale.row, stale.leaf),
    )


# ---- optimizers


def _optimizers(run: RunFacts) -> list[Finding]:
    found = []
    for optimizer in run.optimizers:
        count = len(optimizer.rows) + optimizer.strangers
        if optimizer.rows or not count:
            continue
        learning = [row for row in run.rows if row.kind in ("leaf", "parameter") and row.has_gradient]
        unheld = [row for row in learning if not _held_by_any(run, row)]
        orphaned = optimizer.orphans == count and set(optimizer.shapes) & {row.shape for row in unheld}
        if unheld and (orphaned or (optimizer.stepped is not None and optimizer.orphans == count)):
            found.append(_mismatch(run, optimizer, unheld))
    return found


def _held_by_any(run: RunFacts, row: RowFacts) -> bool:
    return any(run.rows[index] is row for optimizer in run.optimizers for index in optimizer.rows)


def _mismatch(run: RunFacts, optimizer: OptimizerFacts, unheld: Sequence[RowFacts]) -> Finding:
    owner = unheld[0].label.partition(".")[0]
    made = f" (`{source_at(optimizer.made)}`, {optimizer.made})" if optimizer.made is not None else ""
    stepped = (
        f" `{source_at(optimizer.stepped)}` ({optimizer.stepped}) changes nothing here." if optimizer.stepped else ""
    )
    rows = tuple(index for index, row in enumerate(run.rows) if any(row is other for other in unheld))
    return Finding(
        kind="optimizer_mismatch",
        severity="warning",
        message=f"`{optimizer.name}`{made} holds none of the parameters that learn here ({by_module(unheld)}), but {optimizer.strangers} "
        f"of an older `{owner}` that no variable holds any more.{stepped}",
        hint=source_at(optimizer.made)
        if optimizer.made is not None
        else f"Make `{optimizer.name}` anew, after `{owner}`.",
        location=optimizer.stepped,
        rows=rows,
    )


def _not_held(run: RunFacts) -> list[Finding]:
    """Parameters of a module that learn, and that no optimizer holds, though one holds others of the same module."""
    held = {index for optimizer in run.optimizers for index in optimizer.rows}
    found = []
    for module in run.modules:
        learning = [index for index in module.parameters if run.rows[index].has_gradient]
        forgotten = [index for index in learning if index not in held]
        if not forgotten or len(forgotten) == len(learning):
            continue
        optimizer = next(o for o in run.optimizers if set(o.rows) & set(module.parameters))
        rows = [run.rows[index] for index in forgotten]
        made = f" (`{source_at(optimizer.made)}`, {optimizer.made})" if optimizer.made is not None else ""
        found.append(
            Finding(
                kind="not_in_optimizer",
                severity="warning",
                message=f"{by_module(rows)} {'gets a gradient' if len(rows) == 1 else 'get gradients'}, but `{optimizer.name}`{made} does "
                f"not hold {'it' if len(rows) == 1 else 'them'}: its steps leave {'it' if len(rows) == 1 else 'them'} unchanged.",
                hint=source_at(optimizer.made)
                if optimizer.made is not None and "parameters()" in optimizer.made.statement
                else f"{optimizer.name}.add_param_group({{'params': [{', '.join(row.label for row in rows[:3])}]}})",
                location=optimizer.stepped,
                rows=tuple(forgotten),
            )
        )
    return found


# ---- modes


def _eval_mode(run: RunFacts) -> list[Finding]:
    """Training steps on a module in eval mode. Without a step it is what saliency maps and attacks want."""
    found = []
    for module in run.modules:
        trains = [o for o in run.optimizers if o.stepped is not None and set(o.rows) & set(module.parameters)]
        learns = any(run.rows[index].has_gradient for index in module.parameters)
        if module.training or not module.affected or not trains or not learns:
            continue
        layers = listed(f"{path}" for path, _ in module.affected)
        dropout = any("Dropout" in kind for _, kind in module.affected)
        norm = any("Norm" in kind for _, kind in module.affected)
        effects = [
            *(["dropout does nothing"] if dropout else []),
            *(["batch norm uses its running statistics"] if norm else []),
        ]
        found.append(
            Finding(
                kind="eval_mode",
                severity="warning",
                message=f"`{module.name}` is trained (`{source_at(trains[0].stepped) if trains[0].stepped else ''}`, "
                f"{trains[0].stepped}) in eval mode: {' and '.join(effects)} ({layers}).",
                hint=f"{module.name}.train()",
                location=module.call,
                rows=tuple(index for index in module.parameters if run.rows[index].has_gradient)[:4],
            )
        )
    return found
