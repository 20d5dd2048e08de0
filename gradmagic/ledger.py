"""The ledger of the report: every line that ran backward, stepped, cleared or clipped, in the order of the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

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
    """All entries; `losses` tells what the passes started from, and is in the order of their first pass."""
    passes = [(loss.path, _pass_entry(loss, facts)) for loss, facts in zip(ledger.log.losses, losses, strict=True)]
    others = [(naming.order(line.path), _step_entry(line, naming)) for line in optimizers.lines]
    others += [(naming.order(line.path), _journal_entry(line, naming)) for line in ledger.journal.lines]
    others.sort(key=lambda pair: pair[0])
    merged: list[LedgerEntry] = []
    for path, entry in passes:  # which keep their order; each of the others stands before the first pass below it
        order = naming.order(path)
        merged += [other for place, other in others if place < order]
        others = [(place, other) for place, other in others if place >= order]
        merged.append(entry)
    return merged + [other for _, other in others]


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
    return _entry("step", line, f"{line.type_name}.step()", naming)


def _journal_entry(line: JournalLine, naming: Naming) -> LedgerEntry:
    entry = _entry(line.kind, line, line.kind, naming)
    return replace(entry, max_norm=line.max_norm, clipped=line.clipped)


def _entry(
    kind: Literal["step", "zero_grad", "clip"], line: StepLine | JournalLine, otherwise: str, naming: Naming
) -> LedgerEntry:
    location = naming.place_location(line.path)
    name = location.text if location is not None else ""
    return LedgerEntry(
        kind=kind, name=name or otherwise, location=location, count=line.count, values=line.values.frozen()
    )
