"""The ledger of a report in words: what ran backward, stepped, cleared and clipped, and how often."""

from __future__ import annotations

import re

from ..records import LedgerEntry
from ..report import Report
from .markup import Span, clean
from .numbers import duration, short
from .series import curve_spark
from .view import ColumnView, LedgerView

MOST_COLUMNS, MOST_LINES = 4, 50
_PREFIX = re.compile(r"^(torch\.)?(nn\.)?utils\.(?=clip_grad_)")
_DIGITS = 3


def ledger_views(report: Report) -> tuple[LedgerView, ...]:
    """One line for each entry; nothing where a single pass is all there is, which the header tells."""
    if len(report.ledger) < 2 and len(report.passes) < 2:
        return ()
    return tuple(map(_view, report.ledger[:MOST_LINES]))


def loss_columns(report: Report) -> tuple[ColumnView, ...]:
    """One column for each loss that gave gradients, where there are several."""
    giving = _giving(report, len(report.losses))
    losses = [(index, loss) for index, loss in enumerate(report.losses) if index in giving]
    if len(losses) < 2:
        return ()
    names = [clean(loss.name) for _, loss in losses]
    return tuple(
        ColumnView(index, name if names.count(name) == 1 else f"{name}:{_line(loss)}", _where(loss))
        for (index, loss), name in zip(losses[:MOST_COLUMNS], names, strict=False)
    )


def _giving(report: Report, count: int) -> set[int]:
    """Which of `count` losses gave gradients; it looks no further once it has met all, since series are long."""
    if count < 2:
        return set()
    giving: set[int] = set()
    for row in report.rows:
        giving.update(row.grads.losses)
        if giving.issuperset(range(count)):
            break
    return giving


def _view(entry: LedgerEntry) -> LedgerView:
    spark = curve_spark(entry.values)
    return LedgerView(
        where=_where(entry),
        what=Span(_PREFIX.sub("", clean(entry.name)), "name" if entry.is_pass else "code"),
        does=_does(entry),
        times=f"×{entry.count}" if entry.count > 1 else "",
        spark=spark.levels if spark is not None else (),
        numbers=_numbers(entry),
        seconds=duration(entry.seconds) if entry.is_pass and entry.seconds > 0 else "",
    )


def _does(entry: LedgerEntry) -> str:
    words = {"step": "step", "zero_grad": "clears", "clip": "clips"}
    failed = " failed" if entry.error is not None else ""
    return words.get(entry.kind, entry.kind) + failed


def _numbers(entry: LedgerEntry) -> str:
    first, last = entry.values.first, entry.values.last
    if first is None or last is None:
        return ""
    span = short(last.value, _DIGITS)
    if len(entry.values) > 1:
        span = f"{short(first.value, _DIGITS)} → {span}"
    if entry.kind == "step":
        return f"update/weight {span}"
    if entry.kind == "clip":
        return f"norm {span}{_clipped(entry)}"
    return span if len(entry.values) > 1 else f"= {span}"


def _clipped(entry: LedgerEntry) -> str:
    if entry.max_norm is None:
        return ""
    limit = short(entry.max_norm, _DIGITS)
    if entry.count == 1:
        return f", clipped to {limit}" if entry.clipped else f", below {limit}"
    return f", {entry.clipped} of {entry.count} clipped to {limit}"


def _where(entry: LedgerEntry) -> str:
    return clean(str(entry.location)) if entry.location is not None else f"run by {entry.run_by}"


def _line(entry: LedgerEntry) -> str:
    return str(entry.location.line) if entry.location is not None else entry.run_by
