"""Report -> `view.ReportView`."""

from __future__ import annotations

from collections import Counter

from ..loss_scale import unscaled
from ..records import Finding, TensorRow
from ..report import Report
from .folding import Fold
from .folds import fold_view
from .header import aside, header
from .ledger import MOST_LINES, ledger_views, loss_columns
from .markup import Line, clean_block, is_code, marked_up
from .numbers import plural
from .pointing import Pointing
from .rows import Usual, row_view
from .scale import log_scale
from .selection import Selection, select
from .series import legend
from .source import source_lines
from .view import FindingView, ReportView


def build_view(report: Report, with_source: bool = True) -> ReportView:
    """The report in words and short numbers, under its own options; without the annotated source for who draws none."""
    report = unscaled(report)
    hidden = _nothing_to_draw(report)
    selection = Selection((), folded=len(report.rows)) if hidden else select(report)
    scale = log_scale(row.grad.norm for row in selection.rows if row.grad is not None)
    sources = Counter(map(_source, report.rows))
    devices = {row.device for row in selection.rows}
    usual = Usual(report.default_dtype, devices.pop() if len(devices) == 1 else None)
    columns = loss_columns(report)
    pointing = Pointing(report)
    views = (
        fold_view(item, scale, columns)
        if isinstance(item, Fold)
        else row_view(item, scale, usual, sources[_source(item)] > 1, columns)
        for item in selection.items
    )
    rows = pointing.point(selection.items, views)
    whole_scale = log_scale(row.grad.norm for row in report.rows if row.grad is not None)
    source = source_lines(report, whole_scale) if with_source else ()
    closing = _nothing_closing(report) if hidden else _closing(report, selection, legend(rows))
    return ReportView(
        header=header(report),
        aside=aside(report),
        findings=tuple(finding_view(finding, pointing.anchor(finding)) for finding in report.findings),
        ledger=ledger_views(report),
        columns=columns,
        rows=rows,
        closing=closing,
        source=source,
        source_more=len(report.source.lines) - len(source) if report.source is not None and source else 0,
        source_asked=report.options.source,
        inner_steps=report.options.all,
    )


def _source(row: TensorRow) -> tuple[str, int, str]:
    """The code that made the row; a call of a module makes many rows with one expression."""
    return row.file, row.line, row.expression


def _nothing_to_draw(report: Report) -> bool:
    """A table of constants explains nothing; the finding says it in a sentence."""
    if not report.rows:
        return True
    return not report.options.all and any(f.kind == "nothing_differentiable" for f in report.findings)


def finding_view(finding: Finding, anchor: str = "") -> FindingView:
    """A finding in words; `anchor` is that of its row, where a table with it stands below."""
    code = is_code(finding.hint)
    return FindingView(
        severity=finding.severity,
        message=marked_up(finding.message),
        advice=() if code else marked_up(finding.hint, "dim"),
        code=clean_block(finding.hint) if code else "",
        detail=clean_block(finding.detail),
        anchor=anchor,
    )


def _nothing_closing(report: Report) -> tuple[Line, ...]:
    if not report.rows:
        return () if report.findings else (marked_up("no tensor was made or used here", "dim"),)
    made = "1 tensor was made or used" if len(report.rows) == 1 else f"{len(report.rows)} tensors were made or used"
    return (marked_up(f"{made}, none of them requires grad (`--all` shows them)", "dim"),)


def _closing(report: Report, selection: Selection, legend: str) -> tuple[Line, ...]:
    lines = [legend] if legend else []
    if len(report.ledger) > MOST_LINES:
        lines.append(f"{len(report.ledger) - MOST_LINES} more lines of the ledger are in `report.ledger`")
    if selection.cut:
        total = len(selection.rows) + selection.cut
        lines.append(f"{selection.cut} more left out (`--rows {total}` shows all {total})")
    if selection.has_folds:
        lines.append("modules are folded: `--depth N` opens them further, `--all` shows every row")
    if selection.filtered:
        does = "row does" if selection.filtered == 1 else "rows do"
        lines.append(f"{selection.filtered} {does} not match the filter `{report.options.filter}`")
    if selection.folded:
        them = "it" if selection.folded == 1 else "them"
        lines.append(f"and {plural(selection.folded, 'constant')} without a name (`--all` shows {them})")
    return tuple(marked_up(line, "dim") for line in lines)
