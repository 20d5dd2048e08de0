"""The ledger of the report: every line that ran backward, stepped, cleared or clipped, in the order of the source."""

from __future__ import annotations

from collections.abc import Sequence

from .backward import Ledger
from .diagnosis.facts import LossFacts
from .journal import JournalLine
from .naming import Naming
from .optimizers import OptimizerWatch, StepLine
from .passes import Loss
from .places import Path
from .records import LedgerEntry


def ledger_of(
    ledger: Ledger, optimizers: OptimizerWatch, naming: Naming, losses: Sequence[LossFacts]
) -> list[LedgerEntry]:
    """All entries; `losses` tells what the passes started from, and is in the order of their first pass."""
    passes = [(loss.path, _pass_entry(loss, facts)) for loss, facts in zip(ledger.log.losses, losses, strict=True)]
    others = [(line.path, _step_entry(line, naming)) for line in optimizers.lines]
    others += [(line.path, _journal_entry(line, naming)) for line in ledger.journal.lines]
    others.sort(key=lambda pair: naming.order(pair[0]))
    return _merged([(naming.order(path), entry) for path, entry in passes], others, naming)


def _merged(
    passes: Sequence[tuple[tuple[int, ...], LedgerEntry]], others: Sequence[tuple[Path, LedgerEntry]], naming: Naming
) -> list[LedgerEntry]:
    """Each of the others before the first pass that stands below it; the passes keep their order."""
    merged: list[LedgerEntry] = []
    waiting = [(naming.order(path), entry) for path, entry in others]
    for order, entry in passes:
        merged += [other for place, other in waiting if place < order]
        waiting = [(place, other) for place, other in waiting if place >= order]
        merged.append(entry)
    return merged + [entry for _, entry in waiting]


def _pass_entry(loss: Loss, facts: LossFacts) -> LedgerEntry:
    return LedgerEntry(
        kind=loss.function,
        name=facts.root,
        location=facts.location,
        run_by="cell" if loss.path is not None else "gradtrace",
        count=loss.count,
        values=loss.values.frozen(),
        seconds=loss.seconds,
        error=loss.error,
    )


def _step_entry(line: StepLine, naming: Naming) -> LedgerEntry:
    location = naming.place_location(line.path)
    name = location.text if location is not None else ""
    return LedgerEntry(
        kind="step",
        name=name or f"{line.type_name}.step()",
        location=location,
        count=line.count,
        values=line.values.frozen(),
    )


def _journal_entry(line: JournalLine, naming: Naming) -> LedgerEntry:
    location = naming.place_location(line.path)
    name = location.text if location is not None else ""
    return LedgerEntry(
        kind=line.kind,
        name=name or line.kind,
        location=location,
        count=line.count,
        values=line.values.frozen(),
        max_norm=line.max_norm,
        clipped=line.clipped,
    )
