"""What gives way where a report would be too large to be drawn whole."""

from __future__ import annotations

from dataclasses import replace

from .view import FindingView, ReportView

FEWEST_ROWS, FEWEST_INSIDE, FEWEST_LINES, FEWEST_FINDINGS = 40, 5, 30, 10
LONGEST_DETAIL = 1_000
_SAFELY = 0.9
"""Rows are not of one size: it is better to be below the limit at once than to try again."""


def fewer_rows(view: ReportView, share: float) -> ReportView:
    """With this share of the rows, but not less than `FEWEST_ROWS`; the view itself where nothing can go."""
    gone = len(view.rows) - max(int(len(view.rows) * share * _SAFELY), FEWEST_ROWS)
    return replace(view, rows=view.rows[:-gone], rows_more=view.rows_more + gone) if gone > 0 else view


def fewer_insides(view: ReportView, share: float) -> ReportView:
    """With fewer rows inside of folds; likewise."""
    most = max((len(row.folded) for row in view.rows), default=0)
    kept = max(int(most * share * _SAFELY), FEWEST_INSIDE)
    if most <= kept:
        return view
    rows = (replace(row, folded=row.folded[:kept], more=row.more + max(len(row.folded) - kept, 0)) for row in view.rows)
    return replace(view, rows=tuple(rows))


def fewer_source_lines(view: ReportView, share: float) -> ReportView:
    """With fewer lines of source; likewise."""
    gone = len(view.source) - max(int(len(view.source) * share * _SAFELY), FEWEST_LINES)
    return replace(view, source=view.source[:-gone], source_more=view.source_more + gone) if gone > 0 else view


def fewer_findings(view: ReportView, share: float) -> ReportView:
    """With the most severe findings, and less of PyTorch's own words; likewise."""
    kept = max(int(len(view.findings) * share * _SAFELY), FEWEST_FINDINGS)
    findings = tuple(map(_shortened, view.findings[:kept]))
    gone = len(view.findings) - len(findings)
    return (
        replace(view, findings=findings, findings_more=view.findings_more + gone) if findings != view.findings else view
    )


def _shortened(finding: FindingView) -> FindingView:
    detail = finding.detail
    return replace(finding, detail=f"{detail[:LONGEST_DETAIL]}…") if len(detail) > LONGEST_DETAIL + 1 else finding
