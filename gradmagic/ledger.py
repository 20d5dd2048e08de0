"""The ledger of the report: every line that ran backward, stepped, cleared or clipped, in the order it first ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .backward import Ledger
from .diagnosis.facts import LossFacts
from .journal import JournalLine
from .naming import Naming
from .optimizers import OptimizerWatch, StepLine
from .passes import Loss
from .records import LedgerEntry


def ledger_of(
    ledger: Ledger, optimizers: OptimizerWatch, naming: Naming, losses: Sequence[LossFacts]
) -> list[LedgerEntry]:
    """All entries; `losses` tells what the passes started from."""
    found = [
        *((loss.clock, _pass_entry(loss, facts)) for loss, facts in zip(ledger.log.losses, losses, strict=True)),
        *((line.clock, _step_entry(line, naming)) for line in optimizers.lines),
        *_journal_entries(ledger.journal.lines, naming),
    ]
    found.sort(key=lambda pair: pair[0])
    return [entry for _, entry in found]


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


def _journal_entries(lines: Sequence[JournalLine], naming: Naming) -> Iterator[tuple[int, LedgerEntry]]:
    for line in lines:
        location = naming.place_location(line.path)
        name = location.text if location is not None else ""
        yield (
            line.clock,
            LedgerEntry(
                kind=line.kind,
                name=name or line.kind,
                location=location,
                count=line.count,
                values=line.values.frozen(),
                max_norm=line.max_norm,
                clipped=line.clipped,
            ),
        )
