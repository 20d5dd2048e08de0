"""The report as Markdown, read by a parser of GitHub's dialect."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from sample_reports import SAMPLES, gan, large, rnn, row, small, stats
from test_hostile import FORBIDDEN, PAYLOADS, poisoned, whole_report

from gradmagic.records import Finding
from gradmagic.render.markdown import render_markdown
from gradmagic.render.markup import clean
from gradmagic.report import Report

ENTITIES = {"&#124;": "|"}


def tokens(markdown: str) -> list[Token]:
    """Every token, those inside of lines too."""
    parsed = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    return [token for block in parsed for token in (block, *(block.children or []))]


def shown(markdown: str) -> str:
    """The text that is read."""
    return "".join(t.content for t in tokens(markdown) if t.type in ("text", "code_inline", "fence", "text_special"))


def table_of(markdown: str) -> list[list[str]]:
    """The cells of the table, as text."""
    rows: list[list[str]] = []
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 2:
            rows[-1].append("".join(child.content for child in token.children or [] if child.type != "html_inline"))
    return rows


@pytest.mark.parametrize("name", SAMPLES)
def test_every_row_has_as_many_cells_as_the_head(name: str) -> None:
    """A table for GitHub's dialect, with a line for each row."""
    report = SAMPLES[name]()
    lines = [line for line in render_markdown(report).split("\n") if line.startswith("| ")]
    assert len({len(cells) for cells in table_of(render_markdown(report))}) <= 1
    assert len(table_of(render_markdown(report))) == max(len(lines) - 1, 0)


def test_what_it_looks_like(golden: Callable[[str, str], None]) -> None:
    """One loss with findings, and two losses with a ledger."""
    golden("rnn.md", rnn().to_markdown())
    golden("gan.md", gan().to_markdown())


def test_findings_stand_first_with_the_code_to_write() -> None:
    """As a list, PyTorch's own words in a block."""
    findings = [
        Finding(kind="k", severity="error", message="`w` is cut", hint="w = w.clone()", detail="a\nb ``` c"),
        Finding(kind="k", severity="warning", message="careful", hint="Use less of it."),
    ]
    text = Report(findings=findings).to_markdown()
    assert "- ✖ `w` is cut → `w = w.clone()`" in text
    assert "- ▲ careful Use less of it." in text
    assert [token.content for token in tokens(text) if token.type == "fence"] == ["a\nb ``` c\n"]


def test_a_long_table_is_cut_and_says_so() -> None:
    """100 rows; a post is for reading."""
    text = replace(large(300)).to_markdown()
    assert len(table_of(text)) <= 101


@pytest.mark.parametrize("name", ["a|b", "a\\|b", "`a`", "a``b`", "*a*", "<b>", "_a_", "@everyone", "#12", "x @ W"])
def test_a_name_is_shown_as_it_is(name: str) -> None:
    """In the cell of a table, whatever Markdown makes of its characters elsewhere."""
    cells = table_of(Report(rows=[row(name, 2, grad=small(1.0))]).to_markdown())[1]
    assert cells[1].strip() == name
    assert cells[4] == "1.0"


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_hostile_strings_are_text(payload: str) -> None:
    """No link, no image, no HTML but our own, no heading, no control character; the text itself is there."""
    text = poisoned(whole_report(), payload).to_markdown()
    assert not FORBIDDEN.search(text)
    kinds = {token.type for token in tokens(text)}
    assert not kinds & {"link_open", "image", "heading_open", "html_block", "hr", "blockquote_open", "code_block"}
    html = {token.content for token in tokens(text) if token.type == "html_inline"}
    assert html <= {"<!-- -->", "<code>", "</code>"}
    assert clean(payload).strip() in shown(text).replace("&#124;", "|")


@pytest.mark.parametrize("written", ["@user said", "see #12", "https://example.org", "www.example.org", "hi @org/team"])
def test_nobody_is_called_and_nothing_is_linked(written: str) -> None:
    """GitHub links people, issues and addresses after it has read the Markdown: they are held apart."""
    text = Report(findings=[Finding(kind="k", severity="info", message=written)]).to_markdown()
    assert not re.search(r"(^|\W)@\w|(^|\W)#\d|://|www\.", text)


def test_norms_that_alarm_are_bold() -> None:
    """Colour is never the only sign."""
    rows = [row("w", 2, reason="unused"), row("h", 3, grad=stats(float("nan"), nan_count=1))]
    text = Report(rows=rows).to_markdown()
    assert "| **None** |" in text
    assert "| **NaN** |" in text
