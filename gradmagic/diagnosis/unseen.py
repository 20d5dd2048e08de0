"""What the report cannot show, and why: nothing is silently missing."""

from __future__ import annotations

from collections.abc import Iterator

from ..records import Finding
from .facts import RunFacts
from .words import by_module, listed, named

_FAULTS = 10


def disclose(run: RunFacts) -> Iterator[Finding]:
    """Everything that happened out of sight."""
    yield from _inside_backward(run)
    yield from _made_unseen(run)
    if not run.complete:
        yield _TOO_DEEP
    if run.faults:
        yield _not_traced(run)


def _inside_backward(run: RunFacts) -> Iterator[Finding]:
    """The backward of a custom Function that makes a graph anew and runs backward through that."""
    for owner, leaves in run.hidden.items():
        row = run.rows[owner]
        checkpoint = row.grad_fn == "CheckpointFunctionBackward"
        what = "A reentrant checkpoint" if checkpoint else "Its backward function"
        yield Finding(
            kind="hidden_in_backward",
            severity="info",
            message=f"The gradient of {by_module([run.rows[leaf] for leaf in leaves])} comes out of the backward of "
            f"{named(row)}. {what} runs a graph of its own there, and what is inside has no rows.",
            hint="checkpoint(..., use_reentrant=False)" if checkpoint else "",
            location=row.location,
            rows=(owner, *leaves),
        )


def _made_unseen(run: RunFacts) -> Iterator[Finding]:
    rows = [index for index, row in enumerate(run.rows) if row.made_unseen and row.has_gradient]
    if not rows:
        return
    labels = [run.rows[row].label for row in rows]
    several = len(set(labels)) > 1
    yield Finding(
        kind="made_unseen",
        severity="info",
        message=f"{listed(labels)} {'were' if several else 'was'} made where gradtrace cannot look: in TorchScript, in a "
        "C++ extension, or in another thread. What lies inside has no rows of its own; `--all` lists it as inner steps.",
        location=run.rows[rows[0]].location,
        rows=tuple(rows),
    )


def _not_traced(run: RunFacts) -> Finding:
    count = sum(run.faults.values())
    return Finding(
        kind="not_traced",
        severity="info",
        message=f"{count} operation{'s' if count > 1 else ''} could not be traced; the cell itself ran as always.",
        detail="\n".join(list(run.faults)[:_FAULTS]),
    )


_TOO_DEEP = Finding(
    kind="too_deep",
    severity="info",
    message="The graph is more than 15,000 operations deep. Gradients far from the root and far from the leaves are "
    "left out: PyTorch could not free a graph of this depth once Python has looked at all of it.",
    hint="Cut the history from time to time with `.detach()`, or trace fewer steps.",
)
