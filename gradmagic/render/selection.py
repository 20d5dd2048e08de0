"""Which rows of a report are shown, in which order, and how many are not."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ..records import TensorRow
from ..report import Report, ReportOptions
from .folding import Fold, Item, folded, rows_of

MOST_ROWS = 1_000
"""So many are shown unasked; ten thousand are 17 MB of HTML."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows a report shows.

    Attributes:
        items: the lines to show, in the order to show them: rows, and folds of them.
        folded: constants without a name that are left out.
        filtered: rows the filter left out.
        cut: rows the limit left out.
    """

    items: tuple[Item, ...]
    folded: int = 0
    filtered: int = 0
    cut: int = 0

    @property
    def rows(self) -> list[TensorRow]:
        """The rows, also those in folds."""
        return [row for item in self.items for row in rows_of(item)]

    @property
    def has_folds(self) -> bool:
        """Whether modules are folded."""
        return any(isinstance(item, Fold) for item in self.items)


def select(report: Report) -> Selection:
    """Applies the report's options: filter, fold the constants, sort, fold the modules, limit."""
    options = report.options
    matching = [(i, row) for i, row in enumerate(report.rows) if matches(row, options.filter)]
    in_findings = {index for finding in report.findings for index in finding.rows}
    kept = [row for i, row in matching if options.all or i in in_findings or not _folds(row)]
    if options.sort == "norm":
        kept.sort(key=_norm_key)
    elif options.sort == "name":
        kept.sort(key=_name_key)
    items = folded(kept, options.depth, _flagged(report)) if _may_fold(options) else list(kept)
    shown = Selection(tuple(items[: _limit(options)]))
    return replace(
        shown,
        folded=len(matching) - len(kept),
        filtered=len(report.rows) - len(matching),
        cut=len(kept) - len(shown.rows),
    )


def _may_fold(options: ReportOptions) -> bool:
    """Folds stand where their first row ran; in another order, or where rows are asked for, there are none."""
    asked = options.all or bool(options.filter) or (options.rows is not None and options.depth is None)
    return options.sort == "line" and not asked


def _flagged(report: Report) -> set[int]:
    """``id`` of the rows that a finding is about."""
    named = {index for finding in report.findings if finding.severity != "info" for index in finding.rows}
    return {id(row) for index, row in enumerate(report.rows) if index in named}


def _limit(options: ReportOptions) -> int | None:
    if options.rows is not None:
        return options.rows
    return None if options.all else MOST_ROWS


def matches(row: TensorRow, pattern: str | None) -> bool:
    """True when name, alias, op or module of the row holds `pattern`; a glob has to match one whole."""
    if not pattern:
        return True
    wanted = pattern.lower()
    texts = [text.lower() for text in (row.name, *row.aliases, row.op, row.module) if text]
    if "*" in wanted or "?" in wanted:
        return any(fnmatchcase(text, wanted) for text in texts)
    return any(wanted in text for text in texts)


def _folds(row: TensorRow) -> bool:
    return row.kind == "constant" and row.name is None and not row.aliases


def _norm_key(row: TensorRow) -> float:
    """NaN and inf first, then the largest; rows without a gradient last."""
    if row.grad is None:
        return math.inf
    return -math.inf if math.isnan(row.grad.norm) else -row.grad.norm


def _name_key(row: TensorRow) -> tuple[bool, list[tuple[int, str]]]:
    """Named rows first; numbers inside a name count as numbers, so that h2 stands before h10."""
    parts = re.split(r"([0-9]+)", row.label.lower())
    digits = [part.lstrip("0") if i % 2 else None for i, part in enumerate(parts)]  # of any number: Python reads 4,300
    return row.name is None, [(-1, part) if n is None else (len(n), n) for n, part in zip(digits, parts, strict=True)]
