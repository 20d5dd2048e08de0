"""The annotated source: which lines have which gradients, and what is underlined. Drawn from reports of real cells."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from plain import run_traced
from rich.cells import cell_len
from sample_reports import CELL, at, row, stats

from gradmagic.records import Finding, Source
from gradmagic.render.build import build_view
from gradmagic.render.html import render_html
from gradmagic.render.text import render_text
from gradmagic.render.view import SourceLine
from gradmagic.report import Report, ReportOptions

CUT = """torch.manual_seed(0)
x = torch.randn(16, 8)
encoder = torch.nn.Linear(8, 4)
W = torch.randn(4, 4, requires_grad=True)

codes = encoder(x)
word = torch.nn.functional.one_hot(codes.argmax(1), 4)  # the words
h = torch.zeros(16, 4)
for t in range(6):
    h = torch.tanh(h @ W + word)
loss = h.pow(2).mean()
"""
ASKED = ReportOptions(source=True)


def asked(source: str) -> Report:
    """The report of a cell, with its source."""
    return run_traced(source)[0].with_options(ASKED)


def lines(report: Report) -> dict[str, SourceLine]:
    """The annotated lines, by what stands there."""
    return {"".join(piece.span.text for piece in line.pieces).strip(): line for line in build_view(report).source}


def underlined(line: SourceLine) -> str:
    """What of a line is underlined."""
    return "".join(piece.span.text for piece in line.pieces if piece.severity is not None)


def drawn(report: Report, width: int = 100, ascii_only: bool = False) -> str:
    """The annotated source as text, without what stands around it."""
    return render_text(report, width, ascii_only=ascii_only).split("\n\n")[1]


def test_each_line_has_the_gradient_of_the_tensor_that_it_is_there_for() -> None:
    """The last one that the line makes; lines that make none have none."""
    found = lines(asked(CUT))
    assert found["loss = h.pow(2).mean()"].grad.norm == "1.0"
    assert found["W = torch.randn(4, 4, requires_grad=True)"].grad.bar is not None
    assert found["h = torch.tanh(h @ W + word)"].grad.norm == render_norm(asked(CUT), "h")
    assert found["for t in range(6):"].grad.norm == ""
    assert found[""].grad.norm == ""
    assert found["codes = encoder(x)"].grad.norm == "None"
    assert found["x = torch.randn(16, 8)"].grad.norm == "", "nobody expects one"


def render_norm(report: Report, name: str) -> str:
    """How the table writes the norm of a row."""
    return next(each.grad.norm for each in build_view(report).rows if each.label.text == name and each.grad.bar)


def test_exactly_the_expression_that_cuts_is_underlined_and_says_why() -> None:
    """In its line, and in no other."""
    found = lines(asked(CUT))
    guilty = found["word = torch.nn.functional.one_hot(codes.argmax(1), 4)  # the words"]
    assert underlined(guilty) == "codes.argmax(1)"
    assert guilty.severity == "error"
    assert "not differentiable" in guilty.label
    assert [line for line in found.values() if line.severity] == [guilty]


def test_the_terminal_points_at_it_with_carets() -> None:
    """They stand below the very characters, also behind wide ones."""
    text = drawn(asked('é = "語語"; W = torch.ones(2, requires_grad=True); y = (W * 2).detach() + W\nloss = y.sum()'))
    line, carets = text.split("\n")[:2]
    start = line.index("(W * 2).detach()")
    before = cell_len(line[:start])
    assert re.sub(r"[^^]", " ", carets).rstrip() == " " * before + "^" * len("(W * 2).detach()")


@pytest.mark.parametrize("width", [60, 80, 100, 160, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Long lines are cut, and what they are blamed for stands below."""
    text = drawn(asked(CUT.replace("# the words", "# " + "the words " * 40)), width)
    assert max(map(cell_len, text.split("\n"))) <= width
    assert "…" in text
    assert "not differentiable" in text


def test_ascii_stays_ascii() -> None:
    """For a terminal that shows nothing else."""
    assert drawn(asked(CUT.replace("# the words", "# wörds" * 40)), 80, ascii_only=True).isascii()


def test_what_a_line_calls_elsewhere_counts_as_its_own() -> None:
    """A module's rows stand in PyTorch's files; the line that calls it has their gradient."""
    found = lines(
        asked(
            "m = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())\nx = torch.ones(1, 2)\n"
            "m(x).sum().backward()"
        )
    )
    line = found["m(x).sum().backward()"]
    assert line.grad.norm == "1.0"
    assert "m.0.weight" in line.title


def test_the_code_is_drawn_as_it_was_written() -> None:
    """Strings over several lines, tabs, comments, magics and empty lines."""
    source = 's = """a\n\n  b"""\nif True:\n\tw = torch.ones(1, requires_grad=True)  # tab\n\n'
    source += "@torch.no_grad()\ndef f():\n    ...\nl = w.sum()"
    shown = ["".join(piece.span.text for piece in line.pieces) for line in build_view(asked(source)).source]
    assert shown == source.replace("\t", " ").split("\n")


def test_it_is_a_closed_fold_in_html_and_an_open_one_when_asked_for() -> None:
    """In text it is only there when asked for."""
    report = asked(CUT)
    unasked = report.with_options(ReportOptions())
    assert '<details style="margin: 6px 0"><summary' in render_html(unasked)
    assert '<details open style="margin: 6px 0"><summary' in render_html(report)
    assert "encoder = torch.nn.Linear" in render_text(report, 100)
    assert "encoder = torch.nn.Linear" not in render_text(unasked, 100)


def test_without_a_source_there_is_no_fold() -> None:
    """A report from elsewhere may have none."""
    assert "line by line" not in render_html(replace(asked(CUT), source=None))


def test_of_a_very_long_cell_the_beginning_is_drawn() -> None:
    """Three hundred lines; the HTML stays small."""
    report = asked("\n".join(f"w{i} = torch.ones(1, requires_grad=True)" for i in range(1_000)))
    view = build_view(report)
    assert len(view.source) == 300
    assert "700 more lines" in render_text(report, 100)


HOSTILE = [
    "<script>alert(1)</script>",
    "</pre><img src=x onerror=alert(1)>",
    "\x1b[31m",
    "\u202e",
    '"\' onmouseover="x',
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_code_is_text(hostile: str) -> None:
    """In the code itself, in what is underlined, in tooltips and labels."""
    where = at(1, span=(1, 0, 1, len(hostile)), text=hostile)
    report = Report(
        rows=[row(hostile, 1, location=where, grad=stats(0.0), note=hostile)],
        findings=[Finding(kind="cut_upstream", severity="error", message=hostile, location=where)],
        source=Source(f"{hostile}\n{hostile}"),
        options=ASKED,
    )
    html, text = render_html(report), render_text(report, 100)
    assert "<script>" not in html
    assert "<img" not in html
    assert 'onmouseover="x' not in html.replace("&#34;", "")
    assert "\x1b" not in html + text
    assert "\u202e" not in html + text


def test_a_blamed_line_of_another_file_is_not_taken_for_one_of_the_cell() -> None:
    """Only what stands in the traced code itself is underlined."""
    elsewhere = replace(at(1), file="/x/model.py", own=False)
    finding = Finding(kind="cut_upstream", severity="error", message="m", location=elsewhere)
    report = Report(rows=[row("y", 1)], findings=[finding], source=Source("y = f(x)"), options=ASKED)
    assert elsewhere.file != CELL
    assert lines(report)["y = f(x)"].severity is None
