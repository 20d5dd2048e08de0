"""Findings about training loops: whose gradient goes where, what is cleared and what is stepped, and in what order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..records import Finding, Location
from . import hints
from .facts import LossFacts, OptimizerFacts, RowFacts, RunFacts, StepFacts
from .flow import Flow
from .words import by_module, source_at


def find_training_faults(run: RunFacts, flow: Flow) -> list[Finding]:
    """What is wrong between passes, clearings and steps."""
    strays = _strays(run, flow)
    explained = {(index, loss) for loss, rows in strays.items() for index in rows}
    return [
        *(_stray(run, flow, loss, rows) for loss, rows in strays.items()),
        *_mixed(run, explained),
        *_grown(run),
        *_emptied(run),
        *_without_backward(run),
        *_without_step(run),
    ]


def clearing(run: RunFacts, indices: Sequence[int], rows: Sequence[RowFacts]) -> str:
    """The code that clears these gradients."""
    for optimizer in run.optimizers:
        if set(indices) <= set(optimizer.rows):
            return f"{optimizer.name}.zero_grad()"
    for module in run.modules:
        if set(indices) <= set(module.parameters):
            return f"{module.name}.zero_grad()"
    names = [row.name for row in rows if row.name]
    if len(names) == 1:
        return f"{names[0]}.grad = None"
    plain = all(name.isidentifier() for name in names)
    return (
        " = ".join(f"{name}.grad" for name in names) + " = None"
        if plain and len(names) <= 4
        else ("for p in parameters: p.grad = None")
    )


# ---- gradients that go to other players


def _strays(run: RunFacts, flow: Flow) -> dict[int, list[int]]:
    """For each loss the leaves that get a gradient from it in vain: after it only others are updated.

    A generator's loss has to flow through the discriminator to get to the generator. The discriminator's loss comes to
    the generator last: nothing of what is updated lies behind it, and it could be cut off. Where two losses are to each
    other like that (architecture search, expectation maximisation), they take turns on one graph, and both are right.
    """
    found = {}
    for loss in range(len(run.losses)):
        behind = _downstream(run, flow, loss, _learners(run, loss))
        lost = [index for index, row in enumerate(run.rows) if loss in row.strays - row.own and row.own]
        found[loss] = [index for index in lost if not _is_needed(run, flow, loss, index, behind)]
    return {loss: rows for loss, rows in found.items() if rows and not _take_turns(run, loss, rows, found)}


def _learners(run: RunFacts, loss: int) -> set[int]:
    """The leaves that are updated after passes of a loss."""
    return {index for index, row in enumerate(run.rows) if loss in row.own}


def _downstream(run: RunFacts, flow: Flow, loss: int, leaves: Iterable[int]) -> set[int]:
    """Rows of a loss' graph that leaves went into."""
    reached = run.losses[loss].reached
    found: set[int] = set()
    pending = list(leaves)
    while pending:
        new = [use for use in flow.consumers.get(pending.pop(), ()) if use in reached and use not in found]
        found.update(new)
        pending += new
    return found


def _is_needed(run: RunFacts, flow: Flow, loss: int, leaf: int, behind: set[int]) -> bool:
    uses = [use for use in flow.consumers.get(leaf, ()) if use in run.losses[loss].reached]
    return not uses or any(use in behind for use in uses)


def _take_turns(run: RunFacts, loss: int, rows: Sequence[int], found: dict[int, list[int]]) -> bool:
    theirs = {other for index in rows for other in run.rows[index].own}
    ours = _learners(run, loss)
    return any(ours & set(found.get(other, ())) for other in theirs)


def _stray(run: RunFacts, flow: Flow, loss: int, rows: Sequence[int]) -> Finding:
    ran = run.losses[loss]
    behind = _downstream(run, flow, loss, _learners(run, loss))
    way = _downstream(run, flow, loss, rows) - behind
    edges = [(row, use) for row in sorted(way) for use in flow.consumers.get(row, ()) if use in way | behind]
    strays = [run.rows[index] for index in rows]
    message = f"{by_module(strays)} {'gets' if len(strays) == 1 else 'get'} a gradient from `{ran.root}` ({ran.where}), after which only others are updated"
    where, hint = (None, "")
    if edges:
        carrier, where = _meeting([(run.rows[row], run.rows[use]) for row, use in edges])
        hint = _detached(carrier, where)
        message += f": {_as_words(carrier, where)} carries it there."
    else:
        message += "."
    return Finding(
        kind="stray_gradient",
        severity="warning",
        message=f"{message} {_consequence(loss, strays)}",
        hint=hint or "Detach it before it enters the other graph.",
        location=where or ran.location,
        rows=tuple(rows),
    )


def _consequence(loss: int, rows: Sequence[RowFacts]) -> str:
    used = next((row.mixed for row in rows if row.mixed is not None and row.mixed_losses[0] == loss), None)
    if used is not None:
        return f"`{source_at(used)}` ({used}) then uses it along with its own."
    return "It is computed in vain, and cleared later."


def _meeting(edges: Sequence[tuple[RowFacts, RowFacts]]) -> tuple[RowFacts, Location]:
    """The tensor that carries the gradient over, and the line that hands it on.

    That is the last one which some line calls by its name, in the function that called both sides rather than inside
    one of them.
    """
    found = [(row, *_common(row, use)) for row, use in edges]
    last = max(range(len(found)), key=lambda i: (_name_in(found[i][0], found[i][1]) != "", -found[i][2], i))
    return found[last][:2]


def _common(made: RowFacts, used: RowFacts) -> tuple[Location, int]:
    """Where the function that made one row came to the other, and how deep in the calls that is."""
    where, depth = used.location, len(used.frames)
    for level, (one, other) in enumerate(zip(reversed(made.frames), reversed(used.frames), strict=False)):
        if (one.file, one.function) != (other.file, other.function):
            break
        where, depth = other, level
    return where, depth


def _name_in(row: RowFacts, where: Location) -> str:
    """What a line calls a row: a name of its, or its expression."""
    statement = where.statement or where.text
    for name in (row.name, *(frame.text for frame in row.frames)):
        if name and hints.occurrences(name, statement):
            return name
    return ""


def _as_words(row: RowFacts, where: Location) -> str:
    name = _name_in(row, where) or row.label
    made = f" ({row.location})" if row.name == name and str(row.location) != str(where) else ""
    return f"`{name}`{made}, used by `{source_at(where)}` ({where}),"


def _detached(row: RowFacts, where: Location) -> str:
    """The line with the tensor detached; empty where the line does not name it."""
    statement, name = where.statement or where.text, _name_in(row, where)
    found = hints.occurrences(name, statement) if name else []
    return hints.exchanged(statement, found[-1], f"{hints.in_brackets(name)}.detach()") if found else ""


# ---- gradients that are still there


def _mixed(run: RunFacts, explained: set[tuple[int, int]]) -> list[Finding]:
    groups: dict[tuple[Location, tuple[int, int]], list[int]] = {}
    for index, row in enumerate(run.rows):
        if row.mixed is not None and row.stepped_on_old is None and (index, row.mixed_losses[0]) not in explained:
            groups.setdefault((row.mixed, row.mixed_losses), []).append(index)
    found = []
    for (where, (foreign, own)), indices in groups.items():
        rows = [run.rows[index] for index in indices]
        left, ran = run.losses[foreign], run.losses[own]
        found.append(
            Finding(
                kind="mixed_gradients",
                severity="warning",
                message=f"{by_module(rows)} still {'holds' if len(rows) == 1 else 'hold'} the gradient of `{left.root}` ({left.where}) when "
                f"`{source_at(where)}` ({where}) runs: nothing clears it before the backward of `{ran.root}` ({ran.where}), which adds to it.",
                hint=clearing(run, indices, rows),
                location=ran.location or where,
                rows=tuple(indices),
            )
        )
    return found


def _grown(run: RunFacts) -> list[Finding]:
    """Updates that use gradients again: nothing clears them between the passes."""
    by_line: dict[tuple[Location, int | None], list[int]] = {}
    for index, row in enumerate(run.rows):
        if row.stepped_on_old is not None:
            by_line.setdefault((row.stepped_on_old, row.added_by), []).append(index)
    found = []
    for (where, added_by), indices in by_line.items():
        rows = [run.rows[index] for index in indices]
        ran = run.losses[added_by].location if added_by is not None else None
        passes = max(row.passes_added for row in rows)
        found.append(
            Finding(
                kind="accumulated",
                severity="warning",
                message=f"`.grad` of {by_module(rows)} grew over {passes} passes: nothing clears it before backward "
                f"({ran or where}), so that `{source_at(where)}` ({where}) uses gradients that an update had used already.",
                hint=clearing(run, indices, rows),
                location=ran or where,
                rows=tuple(indices),
            )
        )
    return found


# ---- clearings and steps at the wrong time


def _emptied(run: RunFacts) -> list[Finding]:
    found = []
    for step in run.steps:
        if step.cleared is None or 2 * step.emptied < step.count:
            continue
        ran = run.losses[step.loss]
        how_often = f"{step.emptied} of {step.count} steps find nothing" if step.count > 1 else "the step finds nothing"
        found.append(
            Finding(
                kind="cleared_before_step",
                severity="error",
                message=f"`{source_at(step.cleared)}` ({step.cleared}) clears the gradient of `{ran.root}` ({ran.where}) before "
                f"`{source_at(step.location)}` ({step.location}) has used it: {how_often}, and `{step.optimizer}` changes nothing.",
                hint=f"Move `{source_at(step.cleared)}` above the backward of `{ran.root}`, or below the step.",
                location=step.cleared,
            )
        )
    return found


def _without_backward(run: RunFacts) -> list[Finding]:
    ran = [loss for loss in run.losses if loss.function == "backward" and loss.location is not None]
    found = []
    for step in run.steps:
        if _is_orphaned(run, step.optimizer):
            continue
        if step.again and step.again + step.without >= step.count - 1:
            found.append(_step_finding(step, _again(step)))
        elif step.without == step.count and not ran:
            found.append(_step_finding(step, "finds no gradient, because no backward has run: it changes nothing"))
    return found


def _is_orphaned(run: RunFacts, optimizer: str) -> bool:
    """Whether an optimizer holds parameters of an older model: that is a finding of its own."""
    return any(
        held.name == optimizer and 0 < held.orphans == len(held.rows) + held.strangers for held in run.optimizers
    )


def _again(step: StepFacts) -> str:
    times = f"{step.again} times" if step.again > 1 else "once"
    return f"uses a gradient that a step has used already, {times}: no backward runs in between"


def _step_finding(step: StepFacts, what: str) -> Finding:
    return Finding(
        kind="step_without_backward",
        severity="warning" if step.again else "error",
        message=f"`{source_at(step.location)}` ({step.location}) {what}.",
        hint=f"Run backward before each step of `{step.optimizer}`, as in `loss.backward()`.",
        location=step.location,
    )


def _without_step(run: RunFacts) -> list[Finding]:
    """Gradients that the optimizer's own zero_grad throws away, round after round, without anybody having used them."""
    stepping = {step.optimizer for step in run.steps}
    found = []
    for optimizer in run.optimizers:
        rows = [index for index in optimizer.rows if _in_vain(run.rows[index], optimizer)]
        if optimizer.name in stepping or not rows or len(rows) < len(optimizer.rows):
            continue
        first = run.rows[rows[0]]
        loss = _loss_of(run, first)
        if loss is None or first.thrown_at is None:
            continue
        found.append(
            Finding(
                kind="backward_without_step",
                severity="warning",
                message=f"`{loss.root}` ({loss.where}) ran backward {loss.count} times, and `{source_at(first.thrown_at)}` "
                f"({first.thrown_at}) threw the gradients away unused: `{optimizer.name}` never steps.",
                hint=f"{first.thrown_at.text.partition('.zero_grad(')[0]}.step()",
                location=loss.location,
                rows=tuple(rows),
            )
        )
    return found


def _in_vain(row: RowFacts, optimizer: OptimizerFacts) -> bool:
    """Whether its gradient was thrown away again and again, by this optimizer, and not even looked at."""
    if row.updates or row.thrown < 2 or row.read or row.thrown_at is None:
        return False
    cleared_by = row.thrown_at.text.partition(".zero_grad(")[0]
    return cleared_by.rpartition(".")[2] == optimizer.name.rpartition(".")[2]


def _loss_of(run: RunFacts, row: RowFacts) -> LossFacts | None:
    return run.losses[row.grads.losses[-1]] if len(row.grads) else None
