"""What gives way where a report would be too large to be drawn whole."""

from __future__ import annotations

from dataclasses import replace

from .markup import Line, marked_up
from .numbers import plural
from .view import FindingView, ReportView

FEWEST_ROWS, FEWEST_INSIDE, FEWEST_LINES, FEWEST_FINDINGS = 40, 5, 30, 10
LONGEST_DETAIL = 1_000
_SAFELY = 0.9
"""Rows are not of one size: it is better to be below the limit at once than to try again."""


def fewer_rows(view: ReportView, share: float) -> ReportView:
    """With this share of the rows, but not less than `FEWEST_ROWS`."""
    kept = max(int(len(view.rows) * share * _SAFELY), FEWEST_ROWS)
    gone = len(view.rows) - kept
    if gone <= 0:
        return view
    words = f"{plural(gone, 'more row')} left out, to keep the notebook small: `print(report)`, `report.to_html()` and "
    return replace(view, rows=view.rows[:kept], closing=_with(view.closing, f"{words}`report.rows` have them"))


def fewer_insides(view: ReportView, share: float) -> ReportView:
    """With fewer rows inside of folds."""
    most = max((len(row.folded) for row in view.rows), default=0)
    kept = max(int(most * share * _SAFELY), FEWEST_INSIDE)
    rows = (replace(row, folded=row.folded[:kept], more=row.more + max(len(row.folded) - kept, 0)) for row in view.rows)
    return replace(view, rows=tuple(rows))


def fewer_source_lines(view: ReportView, share: float) -> ReportView:
    """With fewer lines of source."""
    kept = max(int(len(view.source) * share * _SAFELY), FEWEST_LINES)
    gone = max(len(view.source) - kept, 0)
    return replace(view, source=view.source[:kept], source_more=view.source_more + gone)


def fewer_findings(view: ReportView, share: float) -> ReportView:
    """With the most severe findings, and less of PyTorch's own words."""
    kept = max(int(len(view.findings) * share * _SAFELY), FEWEST_FINDINGS)
    gone = len(view.findings) - kept
    findings = tuple(map(_shortened, view.findings[:kept]))
    words = f"{plural(gone, 'more finding')} in `report.findings`"
    return replace(view, findings=findings, closing=_with(view.closing, words) if gone > 0 else view.closing)


def _shortened(finding: FindingView) -> FindingView:
    detail = finding.detail
    return replace(finding, detail=f"{detail[:LONGEST_DETAIL]}…") if len(detail) > LONGEST_DETAIL else finding


def _with(closing: tuple[Line, ...], words: str) -> tuple[Line, ...]:
    """The lines below the table with one more on top, in place of one like it."""
    line = marked_up(words, "dim")
    alike = line[0].text.split(" ", 1)[1]
    return (line, *(each for each in closing if not each or each[0].text.split(" ", 1)[-1] != alike))
