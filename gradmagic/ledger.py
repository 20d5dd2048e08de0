"""The ledger of the report: every line that ran backward, stepped, cleared or clipped, in the order of the source."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from .backward import Ledger
from .curves import Curve
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
    others = list(_step_entries(optimizers.lines, naming))
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


def _step_entries(lines: Sequence[StepLine], naming: Naming) -> Iterator[tuple[tuple[int, ...], LedgerEntry]]:
    """An entry for each place where optimizers step: one for all of those that the source does not tell apart."""
    groups: dict[tuple[Path, str], list[StepLine]] = {}
    for line in lines:
        groups.setdefault((line.path, line.type_name), []).append(line)
    for (path, type_name), group in groups.items():
        entry = _entry("step", group[0], f"{type_name}.step()", naming)
        values = _medians([line.values.frozen() for line in group])
        yield naming.order(path), replace(entry, count=sum(line.count for line in group), values=values)


def _medians(curves: Sequence[Curve]) -> Curve:
    """The median over several curves, at each of their steps."""
    found: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in zip(curve.steps, curve.values, strict=True):
            found.setdefault(step, []).append(value)
    medians = (statistics.median(found[step]) for step in sorted(found))
    return Curve(array("q", sorted(found)), array("d", medians), max(curve.total for curve in curves))


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
