"""The report in the terminal: what it says, and that it fits."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
from rich.cells import cell_len
from sample_reports import (
    HOSTILE,
    SAMPLES,
    at,
    constant,
    curve,
    gan,
    hostile,
    large,
    odd,
    quickstart,
    rnn,
    row,
    series,
    small,
    stats,
)
from work import calls_in

from gradmagic.records import BackwardPass, Finding, InnerStep, Location, Reason
from gradmagic.render.markup import clean, is_code, marked_up
from gradmagic.render.numbers import duration, percent, short, values
from gradmagic.render.phrases import PHRASES, remark
from gradmagic.render.scale import log_scale, sparkline
from gradmagic.render.selection import select
from gradmagic.render.text import render_text
from gradmagic.report import Report, ReportOptions

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def table_lines(text: str) -> list[str]:
    """The lines below the rule."""
    lines = text.splitlines()
    return lines[next(i for i, line in enumerate(lines) if set(line) in ({"─"}, {"-"})) + 1 :]


@pytest.mark.parametrize("width", [60, 100, 160])
@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "large"])
def test_the_text_is_as_it_was(name: str, width: int, golden: Callable[[str, str], None]) -> None:
    """Golden files; ``pytest --refresh-golden`` writes them anew."""
    golden(f"{name}_{width}.txt", render_text(SAMPLES[name](), width=width))


@pytest.mark.parametrize("name", SAMPLES)
def test_no_line_is_wider_than_the_terminal(name: str) -> None:
    """At every width from 60 to 200, wide characters counted as two."""
    for width in range(60, 201, 4):
        lines = render_text(SAMPLES[name](), width=width).splitlines()
        assert max(map(cell_len, lines)) <= width, width


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "nothing_differentiable"])
def test_no_norm_is_ever_cut(name: str) -> None:
    """At 60 columns every norm still stands there whole."""
    report = SAMPLES[name]().with_options(ReportOptions(rows=1_000))
    text = render_text(report, width=60)
    for shown in select(report).rows:
        assert f" {short(shown.grad.norm) if shown.grad is not None else 'None'}" in text


@pytest.mark.parametrize("name", SAMPLES)
def test_ascii_only_is_ascii_only(name: str) -> None:
    """Also where names and expressions are not."""
    assert render_text(SAMPLES[name](), width=100, ascii_only=True).isascii()


@pytest.mark.parametrize("name", SAMPLES)
def test_colour_changes_no_column(name: str) -> None:
    """Without its codes, and but for the backticks, the coloured text is the plain one."""
    coloured = render_text(SAMPLES[name](), width=160, color=True)
    assert "\x1b[" in coloured
    bare = ANSI.sub("", coloured)
    assert "\x1b" not in bare
    assert max(map(cell_len, bare.splitlines())) <= 160


def test_plain_text_has_no_control_characters() -> None:
    """Whatever names and expressions hold; control and bidi characters are spelled out."""
    text = render_text(hostile(), width=200)
    assert not set(text) & set("\x1b\r\u202e\ud800")
    assert "\\x1b[31mred" in text
    assert "\\u202e" in text


def test_rich_markup_in_a_name_means_nothing() -> None:
    """Brackets are what the person wrote, in colour too."""
    report = Report(rows=[row("d['[bold]x[/bold]']", 2, note="[red]no[/red] :smile:", grad=stats(1.0))])
    for color in (False, True):
        text = ANSI.sub("", render_text(report, width=200, color=color))
        assert "d['[bold]x[/bold]']" in text
        assert "[red]no[/red] :smile:" in text


def test_the_header_names_root_value_line_and_who_ran_it() -> None:
    """One sentence."""
    first, second = render_text(rnn(), width=200).splitlines()[:2]
    assert first == (
        "gradtrace  backward from loss = 0.7042 (line 13, run by gradtrace) · 14 tensors"
        " · 8 gradients · 6 without · 3.1 ms"
    )
    assert second == "other candidates: `aux` · `.grad` is a guest: your next backward replaces it"


def test_the_header_names_every_pass() -> None:
    """Two losses of the cell, with their lines, and their values where each ran once."""
    report = gan()
    once = [replace(entry, count=1, values=curve(0.693)) for entry in report.losses]
    text = render_text(replace(report, passes=report.passes[:2], pass_count=2, ledger=once), width=200)
    assert text.startswith("gradtrace  2 backward passes: lossD = 0.693 (line 12), lossG = 0.693 (line 20) · ")


def test_passes_of_a_loop_are_counted() -> None:
    """A training loop does not fill the screen."""
    text = render_text(gan(), width=200)
    assert "6 backward passes: lossD (line 12) ×3, lossG (line 20) ×3 · " in text


def test_each_loss_has_a_column_and_each_of_its_rows_says_what_it_gave() -> None:
    """A dash where a loss never reached; the label beside the sparkline only where both did."""
    lines = render_text(gan(), width=160).splitlines()
    header = next(line for line in lines if line.startswith("line  tensor"))
    assert re.search(r"lossD +lossG", header)
    weight, fake = (next(line for line in lines if name in line) for name in ("D.weight", "fake ×3"))
    assert re.search(r"0\.3 +0\.06 .* 9\.0e-4 +lossD █▇▅ 0\.5→0\.3$", weight)
    assert re.search(r"– +1\.0 .*always 1\.0$", fake)


def test_the_ledger_stands_above_the_table_in_the_order_of_the_source() -> None:
    """What cleared, ran backward, clipped and stepped, how often, with what values."""
    text = render_text(gan(), width=160)
    above = text[: text.index("line  tensor")]
    assert re.findall(r"^line (\d+) +(\w+)", above, re.MULTILINE) == [
        ("9", "clears"),
        ("12", "backward"),
        ("13", "clips"),
        ("14", "step"),
        ("20", "backward"),
    ]
    assert "1.39 → 0.9" in above
    assert "norm 0.5 → 0.3, 1 of 3 clipped to 0.4" in above
    assert "update/weight 2.00e-3 → 9.00e-4" in above


def test_a_single_pass_needs_no_ledger() -> None:
    """The header has said it."""
    assert "line 13  backward" not in render_text(rnn(), width=160)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (BackwardPass(root="l", location=at(9)), "backward from l (line 9, run by the cell)"),
        (BackwardPass(root="l", location=at(9), function="autograd.grad"), "autograd.grad from l (line 9"),
        (
            BackwardPass(root="l", error="boom", run_by="gradtrace"),
            "backward from l failed (run by gradtrace)",
        ),
        (BackwardPass(root="l", location=Location("/x/train.py", 92)), "(train.py:92, run by the cell)"),
    ],
)
def test_the_header_says_what_kind_of_pass_it_was(run: BackwardPass, words: str) -> None:
    """Who, where, what, and whether it failed."""
    assert words in render_text(Report(passes=[run]), width=200)


def test_no_pass_is_said_in_the_header() -> None:
    """Nothing is left to guess."""
    assert render_text(Report(rows=[row("y", 2, reason="no_backward")])).startswith(
        "gradtrace  no backward ran · 1 tensor"
    )


def test_a_cell_without_tensors_gets_a_sentence() -> None:
    """Not an empty table."""
    assert render_text(Report()) == "gradtrace  no backward ran\nno tensor was made or used here"


def test_a_cell_without_gradients_gets_its_finding_instead_of_a_table() -> None:
    """--all still shows the rows."""
    report = SAMPLES["nothing_differentiable"]()
    text = render_text(report, width=100)
    assert "Nothing in this cell requires grad" in text
    assert "→ a = torch.randn(3, requires_grad=True)" in text
    assert "‖grad‖" not in text
    assert "3 tensors were made or used, none of them requires grad (`--all` shows them)" in text
    assert "‖grad‖" in render_text(report.with_options(ReportOptions(all=True)))


def test_small_gradients_show_their_values() -> None:
    """And their sign, which the norm does not tell."""
    text = render_text(
        Report(rows=[row("a", 2, shape=(2,), grad=small(-0.25, 16.0)), row("b", 3, shape=(), grad=small(-2.0))])
    )
    assert "[-0.25, 16.0]" in text
    assert "-2.0" in text


def test_values_that_do_not_fit_give_way_to_minimum_and_maximum() -> None:
    """A list is never cut in the middle."""
    line = next(line for line in render_text(odd(), width=100).splitlines() if " six " in line)
    assert "1.00e5" in line
    assert "[" not in line


def test_a_loop_shows_its_count_and_a_sparkline() -> None:
    """Over time steps, with the first and the last norm and the factor from step to step."""
    text = render_text(rnn(), width=160)
    assert "h ×50" in text
    assert "▁▁▂▂▃▃▄▄▅▆▆▇▇███ 5.4e-9→0.21 ×0.7/t" in text


def test_the_count_survives_a_long_expression() -> None:
    """The expression gives way, the number does not."""
    report = Report(rows=[row(None, 2, expression="x" * 99, count=12345, grad=stats(1.0), note="y " * 60)])
    assert "… ×12345" in render_text(report, width=60)


def test_the_end_of_a_long_name_is_kept() -> None:
    """The beginning is the same for all parameters of a model."""
    assert "…ojection.weight" in render_text(odd(), width=60)


def test_rows_that_one_call_of_a_module_made_are_told_apart() -> None:
    """`net(x)` says nothing about the layer; an expression of its own does."""
    call = {"expression": "net(x)", "grad": stats(1.0)}
    rows = [
        row(None, 4, "linear", module="net.0", module_type="Linear", **call),
        row(None, 4, "relu", module="net.1", module_type="ReLU", **call),
        row(None, 5, "linear", module="fc", module_type="Linear", expression="self.fc(h)", grad=stats(1.0)),
    ]
    lines = table_lines(render_text(Report(rows=rows), width=160))
    assert [re.split(r" {2,}", line.strip())[1:3] for line in lines] == [
        ["net.0", "Linear"],
        ["net.1", "ReLU"],
        ["self.fc(h)", "fc Linear"],
    ]


def test_a_row_of_another_file_says_so_beside_the_line() -> None:
    """The cell's own line first."""
    assert re.search(r"^ +11  linear\.py:134  head\.0  Linear", render_text(rnn(), width=160), re.MULTILINE)
    assert "In [3]:5" in render_text(large(6), width=160)


def test_a_row_without_a_line_of_the_cell_shows_its_place() -> None:
    """A tensor made in a hook has no line of the cell."""
    report = Report(rows=[row("t", 3, location=Location("/x/hooks.py", 3), cell_line=None, grad=stats(1.0))])
    assert table_lines(render_text(report))[0].startswith("hooks.py:3  t")


def test_the_dtype_is_shown_where_it_is_not_the_default() -> None:
    """float32 is not worth a word."""
    assert "8 int64" in render_text(rnn())
    assert "float32" not in render_text(rnn())


def test_devices_are_shown_where_there_are_several() -> None:
    """One device is not worth a word."""
    assert "cuda:1" in render_text(odd(), width=160)
    assert "cpu" not in render_text(rnn(), width=160)


def test_unnamed_constants_fold_into_one_line() -> None:
    """--all unfolds them."""
    report = Report(rows=[row("y", 2, grad=stats(1.0)), constant(None, 3), constant(None, 4), constant("c", 5)])
    assert "and 2 constants without a name (`--all` shows them)" in render_text(report)
    assert len(select(report.with_options(ReportOptions(all=True))).rows) == 4


def test_a_constant_that_a_finding_points_at_is_shown() -> None:
    """What is to blame is not folded away."""
    finding = Finding(kind="k", severity="error", message="m", rows=(0,))
    assert select(Report(rows=[constant(None, 2)], findings=[finding])).folded == 0


def test_a_limit_says_how_much_it_leaves_out() -> None:
    """And how to see it."""
    text = render_text(large().with_options(ReportOptions(rows=3)))
    assert "197 more left out (`--rows 200` shows all 200)" in text


def test_a_filter_matches_name_op_and_module() -> None:
    """As part of them, or as a glob."""
    rows = [
        row("W1", 2),
        row("b", 3, "matmul"),
        row("c", 4, module="net.Encoder.0"),
        row("d", 5, aliases=("w9",)),
    ]

    def found(pattern: str) -> list[str | None]:
        return [r.name for r in select(Report(rows=rows, options=ReportOptions(filter=pattern))).rows]

    assert found("w") == ["W1", "d"]
    assert found("MATMUL") == ["b"]
    assert found("encoder") == ["c"]
    assert found("w?") == ["W1", "d"]
    assert found("net.*") == ["c"]
    assert found("mat") == ["b"]
    assert found("mat?") == []


def test_a_filter_that_matches_nothing_says_so() -> None:
    """Instead of an empty table."""
    text = render_text(quickstart().with_options(ReportOptions(filter="nosuch")))
    assert text.endswith("5 rows do not match the filter `nosuch`")
    assert "tensor  " not in text.split("\n", 1)[1]


def test_sorting_by_norm_and_by_name() -> None:
    """NaN first and None last; h2 before h10, unnamed rows last."""
    rows = [
        row("h10", 2, grad=stats(1.0)),
        row("h2", 3),
        row(None, 4, grad=stats(math.nan)),
        row("a", 5, grad=stats(9.0)),
    ]

    def order(sort: str) -> list[int]:
        return [r.line for r in select(Report(rows=rows, options=ReportOptions(sort=sort))).rows]  # type: ignore[arg-type]

    assert order("line") == [2, 3, 4, 5]
    assert order("norm") == [4, 5, 2, 3]
    assert order("name") == [5, 3, 2, 4]


def test_inner_steps_are_listed_under_all() -> None:
    """Below their row; a title says how many in HTML."""
    steps = (InnerStep("SoftmaxBackward0", (8, 8), stats(0.5)), InnerStep("BmmBackward0", None, None))
    report = Report(rows=[row("y", 2, grad=stats(1.0), inner=steps)])
    assert "SoftmaxBackward0" not in render_text(report)
    shown = render_text(report.with_options(ReportOptions(all=True)))
    assert re.search(r"└ SoftmaxBackward0 +8×8 +0\.5", shown)


def test_severity_is_told_without_colour() -> None:
    """By a sign, and in ASCII by a word."""
    findings = [Finding(kind="k", severity=s, message="m") for s in ("error", "warning", "info")]  # type: ignore[arg-type]
    assert [line[0] for line in render_text(Report(findings=findings)).splitlines()[1:4]] == ["✖", "▲", "●"]
    assert "warning: m" in render_text(Report(findings=findings), ascii_only=True)


def test_pytorchs_own_words_are_not_lost() -> None:
    """Every word of the original error stands below the finding."""
    report = SAMPLES["failed"]()
    assert " ".join(report.findings[0].detail.split()) in " ".join(render_text(report, width=100).split())


def test_the_work_of_drawing_grows_as_the_rows_do() -> None:
    """Some 1,350 calls a row, so 200 rows appear at once; no row is looked at again for each other row."""
    fewer, more = (calls_in(partial(render_text, report, width=120)) for report in (large(200), large(400)))
    assert fewer < 200 * 3_000
    assert more < 2.5 * fewer


def test_every_reason_has_a_phrase() -> None:
    """The list of reasons is closed."""
    assert set(PHRASES) == set(get_args(Reason))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"reason": "cut_upstream", "culprit": at(7)}, "cut off from the root at line 7"),
        ({"reason": "unused", "culprit": at(7)}, "the root does not depend on it (line 7)"),
        ({"reason": "detached", "culprit": at(3)}, "detached from the graph"),
        ({"reason": "detached", "note": "detached at line 7", "culprit": at(7)}, "detached at line 7"),
        ({"reason": "detached", "note": "see the docs", "culprit": at(7)}, "see the docs (line 7)"),
        ({"note": "", "reason": None}, ""),
    ],
)
def test_a_remark_names_the_culprit_once_and_only_on_another_line(more: dict[str, object], words: str) -> None:
    """The row stands on line 3."""
    assert remark(row("y", 3, **more)) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1.0"),
        (16.0, "16.0"),
        (123.0, "123.0"),
        (1234.0, "1234"),
        (0.5, "0.5"),
        (1.0004, "1.00"),
        (0.412345, "0.412"),
        (0.0271, "0.0271"),
        (9.8e-3, "9.80e-3"),
        (99999.0, "1.00e5"),
        (-1 / 3, "-0.333"),
        (3e38, "3.00e38"),
        (1e-45, "1.00e-45"),
        (0.99999, "1.00"),
        (9999.6, "1.00e4"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_are_short_and_honest(value: float, text: str) -> None:
    """1.0 is one, 1.00 is about one."""
    assert short(value) == text


def test_shares_and_times() -> None:
    """0 % and 100 % are exact."""
    assert [percent(x) for x in (0, 0.001, 0.5, 0.999, 1.0)] == ["0 %", "<1 %", "50 %", ">99 %", "100 %"]
    assert [duration(x) for x in (8.1e-4, 3.1e-3, 0.25, 1.25, 125)] == [
        "810 µs",
        "3.1 ms",
        "250 ms",
        "1.2 s",
        "2 min 5 s",
    ]


def test_values_of_a_scalar_a_list_and_nothing() -> None:
    """The bare number for a scalar."""
    assert values((2.0,), ()) == "2.0"
    assert values((2.0,), (1,)) == "[2.0]"
    assert values((), (0, 3)) == "[]"
    assert values((1 - 2j,), (1,)) == "[1.0-2.0j]"


def test_bars_are_logarithmic_and_never_invisible() -> None:
    """The largest is full, the smallest can still be seen, and equal norms are all full."""
    scale = log_scale([1e-6, 1e-3, 1.0, 0.0, math.nan, math.inf])
    assert scale.share(1.0) == 1.0
    assert scale.share(1e-3) == pytest.approx(0.5)
    assert 0 < scale.share(1e-6) < 0.1
    assert log_scale([2.0, 2.0]).share(2.0) == 1.0
    assert log_scale([]).share(1.0) == 1.0


def spark(norms: list[float]) -> tuple[int | None, ...]:
    """A sparkline of at most 12 places and 8 heights."""
    return sparkline(norms, range(len(norms)), 12, 8)


def test_a_sparkline_marks_what_is_not_finite() -> None:
    """Also where it shares its place with others; a loop without gradients has no levels."""
    assert spark([1.0, math.nan, 0.0]) == (7, None, 0)
    assert None in spark([1.0] * 50 + [math.inf] + [1.0] * 50)
    assert spark([]) == ()


def test_a_sparkline_is_logarithmic_only_where_the_range_asks_for_it() -> None:
    """Below a factor of ten it begins at zero, so that what hardly differs looks alike."""
    assert spark([1.0, 0.9, 0.95]) == (7, 7, 7)
    assert spark([8.0, 4.0, 2.0]) == (7, 4, 2)
    assert spark([1e-6, 1e-3, 1.0]) == (0, 4, 7)


def test_a_thinned_series_is_drawn_at_its_steps() -> None:
    """Half the points lie in the last eighth; they take an eighth of the width."""
    positions = [*range(0, 700, 7), *range(700, 800)]
    norms = [1.0] * 100 + [100.0] * 100
    assert sparkline(norms, positions, 16, 8) == (0,) * 14 + (7,) * 2


def test_a_single_gradient_has_no_sparkline() -> None:
    """Nor has a row that occurred once."""
    once = series([1.0])
    assert once.norm == array("d", [1.0])
    assert "█" not in render_text(Report(rows=[row("h", 2, count=3, grads=once)]))


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("y = y + 1", True),
        ("loss.backward()", True),
        ("Use a soft relaxation.", False),
        ("write `x`", False),
        ("nothing", False),
        ("a = 1\nb = 2", True),
        ("", False),
        ("\x00=(", False),
    ],
)
def test_a_hint_is_code_when_python_reads_it(hint: str, expected: bool) -> None:
    """A sentence is no code."""
    assert is_code(hint) is expected


def test_an_unpaired_backtick_is_just_a_backtick() -> None:
    """Nothing is swallowed."""
    assert [(s.text, s.style) for s in marked_up("a `b` c ` d")] == [
        ("a ", "plain"),
        ("b", "code"),
        (" c ` d", "plain"),
    ]


def test_clean_keeps_letters_of_every_script_and_emoji() -> None:
    """Only what moves the cursor or reorders text is spelled out; lines become one."""
    assert clean("重み🔥 👩‍💻 é") == "重み🔥 👩‍💻 é"
    assert clean("a\nb\tc") == "a b c"
    assert clean(HOSTILE).isprintable()
