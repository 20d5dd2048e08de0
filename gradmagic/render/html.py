"""Report -> HTML, by Jinja2: a fragment for a notebook, and a page of its own.

The fragment styles itself with ``style=`` only, in the words that JupyterLab's sanitizer lets through in an
untrusted notebook (no ``<style>``, no ``var()``), in colours that hold on white and on black; without styles
it is a bare table. Its classes keep MathJax from reading what stands between two ``$`` as a formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..report import Report
from .build import build_view
from .marks import SIGNS, spark_text
from .markup import clean
from .shortening import fewer_findings, fewer_insides, fewer_rows, fewer_source_lines
from .view import ReportView

MINUS = "\N{MINUS SIGN}"
LONGEST = 64
MOST_BYTES = 300_000
"""A notebook with many reports has to stay one that can be opened, sent and compared."""
_TRIES = 3
BAR_PIXELS = 120
BAR_PIXELS_BESIDE_UPDATES = 40
"""With the column of updates the table is as wide as a notebook; so that the notes fit in, the bars give way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shows:
    """Which of the columns that may be empty have something to show."""

    bar: bool
    range: bool
    values: bool
    note: bool
    update: bool

    @property
    def after_norm(self) -> int:
        """How many columns stand behind the norm."""
        numbers = 3 if self.range else int(self.values)
        return self.bar + numbers + self.update + self.note


def render_html(report: Report) -> str:
    """The report as an HTML fragment for a notebook's output."""
    return html_of(build_view(report))


def html_of(view: ReportView) -> str:
    """The same of a report that is in words already."""
    html = _render("report.html.j2", view)
    for smaller in (fewer_rows, fewer_insides, fewer_source_lines, fewer_findings):
        for _ in range(_TRIES):
            size = len(html.encode())
            less = smaller(view, MOST_BYTES / size) if size > MOST_BYTES else view
            if less is view:
                break
            view, html = less, _render("report.html.j2", less)
    return html


def render_page(report: Report) -> str:
    """The report as a complete HTML page for light and dark, with nothing to load."""
    root = clean(report.passes[-1].root) if report.passes else "no backward ran"
    return _render("page.html.j2", build_view(report), title=f"gradtrace: {root}")


def filled(template: str, **values: object) -> str:
    """A template with its values, each of them escaped."""
    return _environment().get_template(template).render(**values)


def _render(template: str, view: ReportView, **more: str) -> str:
    shows = _columns(view)
    longest = BAR_PIXELS_BESIDE_UPDATES if shows.update else BAR_PIXELS
    return filled(template, view=view, shows=shows, signs=SIGNS, longest=longest, **more)


def _columns(view: ReportView) -> Shows:
    """A row without numbers has its note in their place, so the reason for a ``None`` stands right beside it.

    In a column at the end, a window of 800 pixels would not show it.
    """
    noted = [row for row in view.rows if row.note or row.sparks]
    all_bare = all(row.bare for row in view.rows)
    return Shows(
        bar=any(row.grad.bar is not None for row in view.rows),
        range=any(row.grad.low and not row.grad.values for row in view.rows),
        values=any(row.grad.values for row in view.rows),
        note=any(all_bare or not row.bare for row in noted),
        update=any(row.update for row in view.rows),
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gradmagic.render"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(minus=_minus, spark=spark_text, clipped=_clipped, pixels=_pixels)
    return environment


def _minus(number: str) -> str:
    """A number with true minus signs, as wide as its digits."""
    return number.replace("-", MINUS)


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _pixels(share: float, longest: int) -> int:
    return round(share * longest)
