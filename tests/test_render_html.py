"""The report in a notebook: valid, escaped, and readable where styles are taken away."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest
from sample_reports import SAMPLES, constant, hostile, large, odd, quickstart, rnn, row, series, small, stats
from work import calls_in

from gradmagic.records import Finding, InnerStep, TensorRow
from gradmagic.render import build
from gradmagic.render.html import render_html, render_page
from gradmagic.render.rows import row_view
from gradmagic.render.view import RowView
from gradmagic.report import Report, ReportOptions

TAGS = frozenset(
    (
        "a",
        "b",
        "caption",
        "code",
        "details",
        "div",
        "i",
        "pre",
        "span",
        "summary",
        "table",
        "tbody",
        "td",
        "th",
        "thead",
        "tr",
        "u",
        "wbr",
    )
)
"""All that the fragment uses; every one of them survives JupyterLab's sanitizer."""

ATTRIBUTES = frozenset({"class", "style", "title", "align", "scope", "colspan", "open", "aria-label", "href", "id"})

STYLES = {
    "background": r"transparent|#[0-9a-f]{6}|rgba\(\d+, \d+, \d+, 0\.\d+\)",
    "border-bottom": r"2px solid #[0-9a-f]{6}",
    "border-collapse": "collapse",
    "border-left": r"4px solid #[0-9a-f]{6}",
    "border-radius": r"\dpx",
    "border-top": r"1px solid rgba\(\d+, \d+, \d+, 0\.\d+\)",
    "color": "#[0-9a-f]{6}",
    "cursor": "pointer",
    "display": "block",
    "font-family": "monospace",
    "font-size": r"\d+%",
    "height": r"\dpx",
    "line-height": r"\d(\.\d+)?",
    "margin": r"(\d+(px)? ?){1,4}",
    "margin-top": r"\dpx",
    "max-width": r"\d+em",
    "min-width": r"\d+(px|em)",
    "opacity": r"0\.\d+",
    "overflow-wrap": "break-word",
    "overflow-x": "auto",
    "padding": r"(\d+(px)? ?){1,4}",
    "table-layout": "auto",
    "text-align": "left|right",
    "vertical-align": "top",
    "white-space": "nowrap|normal|pre-wrap",
    "width": r"\d+px",
}
"""Properties and values that JupyterLab's sanitizer lets through (packages/apputils/src/sanitizer.ts): no
``var()``, no ``currentColor``, no ``font-variant-numeric``, and no opacity without its zero."""


def parsed(html: str) -> Element:
    """The tree of a fragment; anything that is not valid HTML5 raises."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parseFragment(html)


def words(element: Element) -> str:
    """All text of an element, with single spaces."""
    return " ".join("".join(element.itertext()).split())


def rows_of(html: str) -> list[list[str]]:
    """The text of every cell of the table's body."""
    body = parsed(html).find(".//tbody")
    assert body is not None
    return [[words(cell) for cell in line.findall("td")] for line in body.findall("tr")]


def headers_of(html: str) -> list[str]:
    """The text of every header cell."""
    return [words(cell) for cell in parsed(html).findall(".//th")]


def elements(html: str) -> Iterator[Element]:
    """Every element below the fragment's root."""
    tree = parsed(html)
    return (element for element in tree.iter() if element is not tree)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_fragment_is_valid_html(name: str) -> None:
    """By html5lib's strict parser; as a page too."""
    report = SAMPLES[name]()
    parsed(render_html(report))
    html5lib.HTMLParser(strict=True).parse(render_page(report))


@pytest.mark.parametrize("name", ["rnn", "quickstart", "failed"])
def test_the_fragment_is_as_it_was(name: str, golden: Callable[[str, str], None]) -> None:
    """Golden files; ``pytest --refresh-golden`` writes them anew."""
    golden(f"{name}.html", render_html(SAMPLES[name]()))


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("everything", [False, True])
def test_an_untrusted_notebook_shows_the_same(name: str, everything: bool) -> None:
    """Only tags, attributes and styles that JupyterLab's sanitizer keeps."""
    html = render_html(SAMPLES[name]().with_options(ReportOptions(all=everything)))
    for element in elements(html):
        assert element.tag in TAGS
        assert set(element.attrib) <= ATTRIBUTES
        for declaration in filter(None, element.get("style", "").split(";")):
            prop, _, value = declaration.strip().partition(": ")
            assert re.fullmatch(STYLES[prop], value), declaration


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_loaded_and_nothing_runs(name: str) -> None:
    """No script, no link, no image from elsewhere, in the page neither."""
    page = render_page(SAMPLES[name]())
    assert not re.search(r"<(script|link|img|iframe|object|form)\b|\bon\w+=\"|url\(|@import", page)
    assert all(link.startswith("#gt") for link in re.findall(r'href="([^"]*)"', page)), (
        "links lead to rows of the table"
    )


def test_hostile_strings_stay_strings() -> None:
    """They appear as text, in cells and in tooltips, and add no element."""
    html = render_html(hostile())
    assert "<script>" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&#34;&amp;" in html
    assert not set(html) & set("\x1b\r\u202e\ud800")
    assert "{{ 7*7 }}" in html
    titles = [element.get("title", "") for element in elements(html)]
    assert any("<script>alert('x')</script>\"&" in title for title in titles)


def test_without_styles_it_is_still_a_table_to_read() -> None:
    """GitHub strips style= too: header, findings and cells are there as words."""
    bare = re.sub(r' style="[^"]*"', "", render_html(rnn()))
    text = words(parsed(bare))
    assert "gradtrace backward from loss = 0.7042 (line 13, run by gradtrace) · 14 tensors" in text
    assert "✖ No gradient reaches encoder.weight, encoder.bias" in text
    assert rows_of(bare)[1] == ["3", "W", "Parameter", "32×64", "0.41", "", "−0.019", "0.022", "0 %", ""]
    assert rows_of(bare)[9][-1] == "▁▁▂▂▃▃▄▄▅▆▆▇▇███ 5.4e−9→0.21 ×0.7/t vanishing"


def test_the_table_names_its_columns() -> None:
    """For a screen reader: every header cell has a scope, the table a label."""
    table = parsed(render_html(rnn())).find(".//table")
    assert table is not None
    assert table.get("aria-label") == "gradients"
    headers = table.findall("./thead/tr/th")
    assert [words(h) for h in headers] == [
        "line",
        "tensor",
        "made by",
        "shape",
        "‖grad‖",
        "min",
        "max",
        "zeros",
        "note",
    ]
    assert {h.get("scope") for h in headers} == {"col"}


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in ("empty", "nothing_differentiable")])
def test_every_line_has_as_many_columns_as_the_header(name: str) -> None:
    """Values that span columns counted as many."""
    table = parsed(render_html(SAMPLES[name]())).find(".//table")
    assert table is not None
    widths = [sum(int(cell.get("colspan", 1)) for cell in line) for line in table.findall("./*/tr")]
    assert len(set(widths)) == 1


def test_small_gradients_show_their_values() -> None:
    """Under one heading where all of them are small, instead of min, max and zeros in a larger table."""
    assert rows_of(render_html(quickstart()))[1:] == [
        ["3", "w", "tensor", "1", "16.0", "", "[16.0]"],
        ["4", "y", "mul", "1", "16.0", "", "[16.0]"],
        ["5", "z", "mul", "1", "8.0", "", "[8.0]"],
        ["6", "l", "pow", "1", "1.0", "", "[1.0]"],
    ]
    six = next(cells for cells in rows_of(render_html(odd())) if cells[1] == "six")
    assert "[−0.0123, 123, 1.00e−9, 1.00e5, 0, −0.333]" in six


def test_the_reason_for_a_none_stands_right_beside_it() -> None:
    """In place of the numbers that it has not: the column of notes is out of sight in a narrow window."""
    lines = rows_of(render_html(rnn()))
    weight = next(cells for cells in lines if cells[1].endswith("encoder.weight"))
    assert weight[4:] == ["None", "cut off from the root at line 7"]
    dead = next(cells for cells in lines if cells[1].startswith("head.1"))
    assert dead[-1] == "dead: 9 of 32 units"


def test_notes_of_gradients_alone_have_a_column() -> None:
    """Where nothing but a missing gradient has a note, the table ends with the numbers."""
    assert "note" in headers_of(render_html(rnn()))
    assert "note" not in headers_of(render_html(quickstart()))
    assert "note" in headers_of(render_html(Report(rows=[row("e", 9, reason="unused")])))


def test_the_longest_bar_is_the_largest_norm() -> None:
    """On a log scale; no bar for zero, None, NaN and inf."""
    rows = [
        row(n, i + 2, grad=stats(n_)) for i, (n, n_) in enumerate([("a", 1.0), ("b", 1e-3), ("c", 1e-6), ("d", 0.0)])
    ]
    rows += [row("e", 9, reason="unused"), row("f", 10, grad=stats(float("nan")))]
    bars = re.findall(r"width: (\d+)px; height", render_html(Report(rows=rows)))
    assert bars == ["120", "60", "6"]


def test_a_surprising_none_is_marked_and_an_ordinary_one_is_dim() -> None:
    """The mark carries its own background, so that it reads on light and dark."""
    html = render_html(Report(rows=[row("y", 2, reason="unused"), constant("x", 3)]))
    assert re.search(r'<b style="color: #ffffff; background: #b3261e[^"]*">None</b>', html)
    assert re.search(r'<span style="opacity: 0.75">None</span>', html)


def test_backticks_become_code() -> None:
    """In messages, notes and advice; what stands inside is escaped."""
    finding = Finding(kind="k", severity="warning", message="`a < b` is <b>not</b> code", hint="see `x`")
    html = render_html(Report(findings=[finding], rows=[row("y", 2, note="write `y & z`", reason="unused")]))
    codes = [words(element) for element in elements(html) if element.tag == "code"]
    assert {"a < b", "x", "y & z"} <= set(codes)
    assert "&lt;b&gt;not&lt;/b&gt;" in html


def test_pytorchs_own_words_fold_below_the_finding() -> None:
    """They are there, whole, behind a summary."""
    report = SAMPLES["failed"]()
    details = parsed(render_html(report)).find(".//details")
    assert details is not None
    assert [words(part) for part in details] == [
        "PyTorch's own words",
        " ".join(report.findings[0].detail.split()),
    ]


def test_severity_is_told_without_colour() -> None:
    """By a sign with a title."""
    findings = [Finding(kind="k", severity=s, message="m") for s in ("error", "warning", "info")]  # type: ignore[arg-type]
    signs = [(words(e), e.get("title")) for e in elements(render_html(Report(findings=findings))) if e.get("title")]
    assert signs == [("✖", "error"), ("▲", "warning"), ("●", "note")]


def test_inner_steps_fold_below_their_row() -> None:
    """Open under --all."""
    steps = (InnerStep("SoftmaxBackward0", (8, 8), stats(0.5)), InnerStep("BmmBackward0", None, None))
    report = Report(rows=[row("y", 2, grad=stats(1.0), inner=steps)])
    html = render_html(report)
    assert "with 2 inner steps" in html
    assert "SoftmaxBackward0 8×8 · ‖grad‖ 0.5" in html
    assert "<details open>" not in html
    assert "<details open>" in render_html(report.with_options(ReportOptions(all=True)))


def test_where_a_name_comes_from_is_in_its_tooltip() -> None:
    """Expression and autograd node."""
    title = "h = torch.tanh(x[t] @ W + h @ U)\nTanhBackward0 · 8×64 float32 on cpu\nrms"
    assert f'title="{title}' in render_html(rnn())


def test_a_cell_without_gradients_gets_sentences_instead_of_a_table() -> None:
    """Finding and closing line."""
    html = render_html(SAMPLES["nothing_differentiable"]())
    assert "<table" not in html
    assert "Nothing in this cell requires grad" in html
    assert "--all" in html


def test_the_page_stands_alone() -> None:
    """Title, language, charset, light and dark."""
    page = render_page(rnn())
    assert page.startswith("<!DOCTYPE html>")
    assert '<html lang="en">' in page
    assert '<meta charset="utf-8">' in page
    assert "<title>gradtrace: loss</title>" in page
    assert "prefers-color-scheme: dark" in page
    assert render_html(rnn()) in page
    assert rnn().to_html() == page


def _luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _mixed(ink: str, paper: str, opacity: float) -> str:
    parts = [opacity * int(ink[i : i + 2], 16) + (1 - opacity) * int(paper[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part):02x}" for part in parts)


@pytest.mark.parametrize(("ink", "paper"), [("#1f2328", "#ffffff"), ("#e6e6e6", "#111111")])
def test_text_and_marks_have_contrast_on_light_and_dark(ink: str, paper: str) -> None:
    """WCAG AA: 4.5 to 1 for text, dim text included, and 3 to 1 for signs and bars."""
    html = render_html(SAMPLES["rnn"]()) + render_html(SAMPLES["nothing_differentiable"]())
    for opacity in set(re.findall(r"opacity: ([\d.]+)", html)):
        assert _contrast(_mixed(ink, paper, float(opacity)), paper) >= 4.5
    for text, background in set(re.findall(r"color: (#\w{6}); background: (#\w{6})", html)):
        assert _contrast(text, background) >= 4.5
    marks = set(
        re.findall(r"(?:[^-]color|border-left: 4px solid|height: 8px; margin-top: 5px; background):? (#\w{6})", html)
    )
    for mark in marks - {"#ffffff"}:
        assert _contrast(mark, paper) >= 3


def test_the_work_of_drawing_grows_as_the_rows_do() -> None:
    """Some 650 calls a row, so 100 rows appear at once; no row is looked at again for each other row."""
    reports = [large(number).with_options(ReportOptions(rows=number)) for number in (50, 100)]
    assert [render_html(report).count("<tr") for report in reports] == [51, 101]
    fewer, more = (calls_in(partial(render_html, report)) for report in reports)
    assert fewer < 50 * 1_500
    assert more < 2.5 * fewer


@pytest.mark.parametrize("passes", [None, range(2_000)], ids=["time steps of a pass", "passes"])
def test_the_work_of_drawing_does_not_grow_with_the_points_of_a_series(passes: Sequence[int] | None) -> None:
    """Of 2,000 gradients each call looks at all, in C; a row of them costs what one of 100 costs."""
    norms = [1.0 + n % 7 for n in range(2_000)]
    short, long = (
        Report(rows=[row("h", 2, grad=stats(1.0), grads=series(norms[:n], passes and list(passes[:n])))])
        for n in (100, 2_000)
    )
    render_html(short)
    fewer, more = (calls_in(partial(render_html, report)) for report in (short, long))
    assert more < 1.1 * fewer


def test_what_is_not_shown_is_not_put_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten thousand rows those that fit are looked at, once for all the forms a front end may pick."""
    seen: list[str] = []

    def seen_view(row: TensorRow, *arguments: Any) -> RowView:
        seen.append(row.label)
        return row_view(row, *arguments)

    monkeypatch.setattr(build, "row_view", seen_view)
    rows = [row(f"h{n}", n + 1, grad=stats(1.0)) for n in range(10_000)]
    Report(rows=rows, options=ReportOptions(rows=20))._repr_mimebundle_()
    assert seen == [f"h{n}" for n in range(20)]


def test_numbers_have_true_minus_signs() -> None:
    """In the numeric columns; in the text of a note nothing is touched."""
    html = render_html(Report(rows=[row("y", 2, shape=(), grad=small(-2.0), note="x-y")]))
    assert "−2.0" in html
    assert "x-y" in html
