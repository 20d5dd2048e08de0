"""Gradients that somebody derived, beside PyTorch's -> text and HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rich.console import Group, RenderableType
from rich.table import Table

from ..checks import Cause, GradientCheck, GradientChecks, Verdict
from ..records import Finding
from .build import finding_view
from .html import filled
from .ink import Ink
from .marks import SIGNS
from .markup import Line, Span, Style, clean, marked_up
from .numbers import plural, short, short_complex
from .text import drawn, finding_text, fitting
from .view import FindingView

MOST = 200
"""So many checks are listed, and so many findings told, those that are wrong first."""
WORDS: Mapping[Verdict, str] = MappingProxyType(
    {"exact": "exact", "close": "close", "wrong": "wrong", "not_checked": "not checked"}
)
STYLES: Mapping[Verdict, Style] = MappingProxyType(
    {"exact": "plain", "close": "plain", "wrong": "error", "not_checked": "dim"}
)
FOLLOWS, UNCLEAR = "follows", "unclear"
"""It is right, but for what it starts from; it may be."""
ASIDE: Mapping[Cause, str] = MappingProxyType(
    {
        "inherited": "wrong only because of what they start from",
        "unconfirmed": "wrong, perhaps only because of what they start from (mend the others first)",
    }
)
"""What is not told one by one."""
NOTHING = (
    "no variable is called like the gradient of a tensor of this run, as `dh` is of `h`; `--check mine=h` pairs two"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckView:
    """One line: the variable, whose gradient it is, the verdict, and where the two differ most."""

    name: str
    label: str
    verdict: str
    style: Style
    difference: str
    where: str
    given: str
    gradient: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksView:
    """What both renderers lower."""

    header: Line
    findings: tuple[FindingView, ...]
    follow: tuple[Line, ...]
    rows: tuple[CheckView, ...]
    more: int


def render_text(checks: GradientChecks, width: int | None = None, color: bool = False, ascii_only: bool = False) -> str:
    """The checks as text; the arguments are those of `text.render_text`."""
    wide = fitting(width)
    return drawn(_content(view_of(checks), wide, Ink(color, ascii_only)), wide, color)


def render_html(checks: GradientChecks) -> str:
    """The checks as an HTML fragment for a notebook's output."""
    return filled("checks.html.j2", view=view_of(checks), signs=SIGNS)


def render_bundle(checks: GradientChecks) -> dict[str, str]:
    """Both, by their MIME types."""
    return {"text/plain": render_text(checks, width=100), "text/html": render_html(checks)}


def view_of(checks: GradientChecks) -> ChecksView:
    """The checks in words and short numbers. What only follows from something wrong is told in one line."""
    sentences = {check.message for check in checks if check.cause in ASIDE}
    told: Sequence[Finding] = [each for each in checks.findings() if each.message not in sentences]
    return ChecksView(
        header=_header(checks),
        findings=tuple(finding_view(finding) for finding in told[:MOST]),
        follow=tuple(filter(None, (_aside(checks, cause) for cause in ASIDE))),
        rows=tuple(map(_row, checks.checks[:MOST])),
        more=max(len(checks) - MOST, 0),
    )


def _header(checks: GradientChecks) -> Line:
    title = (Span("check", "strong"), Span("  "))
    if not checks.checks:
        return (*title, *marked_up(NOTHING, "dim"))
    counts = Counter(map(_word, checks))
    order = ("exact", "close", "wrong", FOLLOWS, UNCLEAR, "not checked")
    words = {FOLLOWS: "follow" if counts[FOLLOWS] > 1 else "follows"}
    told = ", ".join(f"{counts[word]} {words.get(word, word)}" for word in order if counts[word])
    return (*title, Span(f"{plural(len(checks), 'gradient')}: {told}"))


def _word(check: GradientCheck) -> str:
    return {"inherited": FOLLOWS, "unconfirmed": UNCLEAR}.get(check.cause or "", WORDS[check.verdict])


def _aside(checks: GradientChecks, cause: Cause) -> Line:
    """The names of those that are wrong for this cause; nothing where none is."""
    names = [f"`{clean(check.name)}`" for check in checks if check.cause == cause][:MOST]
    return marked_up(f"{ASIDE[cause]}: {', '.join(names)}", "dim") if names else ()


def _row(check: GradientCheck) -> CheckView:
    known = check.given is not None and check.gradient is not None and check.verdict != "exact"
    return CheckView(
        name=clean(check.name),
        label=clean(check.label),
        verdict=_word(check),
        style="warning" if check.cause in ASIDE else STYLES[check.verdict],
        difference=short(check.max_difference) if check.max_difference is not None else "",
        where=f"[{', '.join(map(str, check.index))}]" if check.index and check.verdict != "exact" else "",
        given=short_complex(check.given) if known and check.given is not None else "",
        gradient=short_complex(check.gradient) if known and check.gradient is not None else "",
    )


def _content(view: ChecksView, width: int, ink: Ink) -> RenderableType:
    findings = [finding_text(finding, ink) for finding in view.findings]
    follow = list(map(ink.line, view.follow))
    more = [ink.text(f"{view.more} more", "dim")] if view.more else []
    return Group(ink.line(view.header), *findings, *follow, *([_table(view, width, ink)] if view.rows else []), *more)


def _table(view: ChecksView, width: int, ink: Ink) -> Table:
    """Verdict first: it is what one looks for. Narrow terminals do without the two values."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        grid.add_column(no_wrap=True)
    for justify in ("right", "left", "right", "right"):
        grid.add_column(justify=justify, no_wrap=True)
    name = max(8, width // 5)
    head = ("yours", "gradient of", "", "differs by", "at", "yours there", "PyTorch's")
    shown = 7 if width >= 80 else 5
    grid.add_row(*(ink.text(word, "dim") for word in head[:shown]))
    for row in view.rows:
        cells = (
            ink.shortened(row.name, "name", name, keep_end=True),
            ink.shortened(row.label, "plain", name, keep_end=True),
            ink.text(row.verdict, row.style),
            *(ink.text(text) for text in (row.difference, row.where, row.given, row.gradient)),
        )
        grid.add_row(*cells[:shown])
    return grid
