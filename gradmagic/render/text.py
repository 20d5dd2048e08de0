"""Report -> text for a terminal, by rich."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..report import Report
from .build import build_view
from .ink import Ink
from .layout import PLACE_MAX
from .markup import Line, Span
from .terminal_source import source_text
from .terminal_table import table
from .view import FindingView, LedgerView, ReportView

NARROWEST, WIDEST = 60, 200
SPARKS_FROM = 80
"""Below this width the ledger has no room for sparklines."""


def render_text(report: Report, width: int | None = None, color: bool = False, ascii_only: bool = False) -> str:
    """The report as text of at most `width` columns (60 to 200; None asks the terminal).

    `color` allows ANSI styles; `ascii_only` is for a terminal that cannot show Unicode.
    """
    return text_of(build_view(report, report.options.source), width, color, ascii_only)


def text_of(view: ReportView, width: int | None = None, color: bool = False, ascii_only: bool = False) -> str:
    """The same of a report that is in words already."""
    wide = fitting(width)
    return drawn(_content(view, wide, Ink(color, ascii_only)), wide, color)


def fitting(width: int | None) -> int:
    """A width that can be drawn in: `width`, or else the terminal's, but 60 to 200."""
    return min(max(width or shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)


def drawn(content: RenderableType, width: int, color: bool) -> str:
    """What rich draws, as text without spaces at the ends of lines."""
    console = _console(width, color)
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))


def _console(width: int, color: bool) -> Console:
    """A console that neither looks at the real terminal nor reads meaning into the text."""
    return Console(
        file=io.StringIO(),
        width=width,
        color_system="standard" if color else None,
        force_terminal=color,
        force_jupyter=False,
        no_color=not color,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
        _environ={},
    )


def _content(view: ReportView, width: int, ink: Ink) -> Group:
    title = (Span("gradtrace", "strong"), Span("  "))
    first, *others = view.header
    parts: list[RenderableType] = [
        *_packed([(*title, *first), *others], width, ink),
        *_packed(view.aside, width, ink),
    ]
    parts += [finding_text(finding, ink) for finding in view.findings]
    if view.ledger:
        parts += [Text(), _ledger(view.ledger, width, ink)]
    if view.source and view.source_asked:
        parts += [Text(), *source_text(view.source, width, ink)]
        parts += [ink.text(f"{view.source_more} more lines", "dim")] if view.source_more else []
    if view.rows:
        parts += [Text(), table(view, width, ink)]
    parts += [ink.line(line) for line in view.closing]
    return Group(*parts)


def _packed(parts: Sequence[Line], width: int, ink: Ink) -> list[Text]:
    """The parts one behind the other, and on a line of its own what would not fit whole."""
    lines: list[Text] = []
    dot = ink.text(" · ", "dim")
    for part in map(ink.line, parts):
        if lines and lines[-1].cell_len + dot.cell_len + part.cell_len <= width:
            lines[-1] = lines[-1] + dot + part
        else:
            lines.append(Text("  ") + part if lines else part)
    return lines


def _ledger(entries: Sequence[LedgerView], width: int, ink: Ink) -> Table:
    """Where, what, how often and with what values; what does not fit is folded in the last column."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(2):
        grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, max_width=width // 3)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for entry in entries:
        numbers = ink.spark(entry.spark).append(" ") if entry.spark and width >= SPARKS_FROM else Text()
        numbers.append_text(ink.text(entry.numbers))
        place, does = ink.shortened(entry.where, "dim", PLACE_MAX), ink.text(entry.does, "dim")
        what = ink.shortened(entry.what.text, entry.what.style, width // 3)
        grid.add_row(place, does, what, ink.text(entry.times, "dim"), numbers)
    return grid


def finding_text(finding: FindingView, ink: Ink) -> Table:
    """The sign, and beside it message, hint and PyTorch's own words."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column()
    grid.add_column(overflow="fold")
    grid.add_row(ink.sign(finding.severity), ink.line(finding.message))
    if finding.advice:
        grid.add_row("", ink.line(finding.advice))
    if finding.code:
        grid.add_row("", ink.text("→ ", "dim") + ink.text(finding.code, "code"))
    if finding.detail:
        grid.add_row("", ink.text(finding.detail, "dim"))
    return grid
