"""What `gradcheck` says of custom Functions -> text and HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rich.console import Group, RenderableType
from rich.table import Table

from ..function_checks import FunctionCheck, FunctionChecks, Verdict
from .build import finding_view
from .html import filled
from .ink import Ink
from .marks import SIGNS
from .markup import Line, Span, Style, clean, marked_up
from .numbers import plural
from .text import drawn, finding_text, fitting
from .view import FindingView

WORDS: Mapping[Verdict, str] = MappingProxyType({"passed": "passed", "failed": "failed", "not_checked": "not checked"})
STYLES: Mapping[Verdict, Style] = MappingProxyType({"passed": "plain", "failed": "error", "not_checked": "dim"})
NOTHING = "the cell has applied no custom `torch.autograd.Function`"


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionView:
    """One line: the class, where it was first applied and how often, and the verdict."""

    name: str
    line: str
    calls: str
    verdict: str
    style: Style


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionsView:
    """What both renderers lower."""

    header: Line
    findings: tuple[FindingView, ...]
    rows: tuple[FunctionView, ...]


def render_text(checks: FunctionChecks, width: int | None = None, color: bool = False, ascii_only: bool = False) -> str:
    """The checks as text; the arguments are those of `text.render_text`."""
    wide = fitting(width)
    return drawn(_content(view_of(checks), wide, Ink(color, ascii_only)), wide, color)


def render_html(checks: FunctionChecks) -> str:
    """The checks as an HTML fragment for a notebook's output."""
    return filled("function_checks.html.j2", view=view_of(checks), signs=SIGNS)


def render_bundle(checks: FunctionChecks) -> dict[str, str]:
    """Both, by their MIME types."""
    return {"text/plain": render_text(checks, width=100), "text/html": render_html(checks)}


def view_of(checks: FunctionChecks) -> FunctionsView:
    """The checks in words."""
    return FunctionsView(
        header=_header(checks),
        findings=tuple(map(finding_view, checks.findings())),
        rows=tuple(map(_row, checks)),
    )


def _header(checks: FunctionChecks) -> Line:
    title = (Span("gradcheck", "strong"), Span("  "))
    counts = Counter(check.verdict for check in checks)
    told = ", ".join(f"{counts[verdict]} {word}" for verdict, word in WORDS.items() if counts[verdict])
    words = (Span(f"{plural(len(checks), 'custom Function')}: {told}"),) if len(checks) else ()
    if checks.disturbed:
        return (*title, *words, *marked_up(f"{'; ' if words else ''}not all were seen: {checks.disturbed}", "dim"))
    return (*title, *(words or marked_up(NOTHING, "dim")))


def _row(check: FunctionCheck) -> FunctionView:
    return FunctionView(
        name=clean(check.name),
        line=f"line {check.line}" if check.line is not None else "",
        calls=plural(check.calls, "call"),
        verdict=WORDS[check.verdict],
        style=STYLES[check.verdict],
    )


def _content(view: FunctionsView, width: int, ink: Ink) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, max_width=width // 2)
    for _ in range(3):
        grid.add_column(no_wrap=True)
    for row in view.rows:
        name = ink.shortened(row.name, "name", width // 2, keep_end=True)
        grid.add_row(name, ink.text(row.line, "dim"), ink.text(row.calls, "dim"), ink.text(row.verdict, row.style))
    findings = [finding_text(finding, ink) for finding in view.findings]
    return Group(ink.line(view.header), *findings, *([grid] if view.rows else []))
