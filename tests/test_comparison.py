"""`report.compare`: which row is which of an earlier run, and what changed. Reports come from real traces."""

from __future__ import annotations

import math

import pytest
from plain import run_traced
from sample_reports import row, stats
from work import calls_in

from gradmagic.comparison import Comparison, GradChange
from gradmagic.matching import matched
from gradmagic.previous import MOST, PreviousReports
from gradmagic.render.changes import render_html, render_text
from gradmagic.report import Report

CELL = """torch.manual_seed(0)
x = torch.randn(8, 4)
W = torch.randn(4, 4, requires_grad=True)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
h = torch.tanh(x @ W)
y = model(h)
loss = y.pow(2).mean()
"""


def report(source: str) -> Report:
    """The report of a cell."""
    return run_traced(source)[0]


def edited(*changes: tuple[str, str]) -> Comparison:
    """What a cell's second run shows, after these changes of its text."""
    source = CELL
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    return report(source).compare(report(CELL))


def pairs(comparison: Comparison) -> dict[str, str]:
    """What the rows were called, by what they are called."""
    return {change.label: change.label_before for change in comparison.changes}


def change_of(comparison: Comparison, label: str) -> GradChange:
    """What happened to one row."""
    return next(change for change in comparison.changes if change.label == label)


def test_a_cell_that_runs_again_unchanged_has_changed_nothing() -> None:
    """Every gradient is matched with itself."""
    again = edited()
    assert all(change.kind == "same" and change.factor == 1.0 for change in again.changes)
    assert {change.row for change in again.changes} == {change.row_before for change in again.changes}
    assert not again.added
    assert not again.removed
    assert "none changed" in str(again)


def test_gradients_that_grew_are_told_by_the_factor_and_the_most_changed_comes_first() -> None:
    """Ten times the loss has ten times the gradients, and a weight that is used less has less."""
    grown = edited((".mean()", ".mean() * 10"))
    assert grown.root_before.value is not None
    assert grown.root.value == pytest.approx(10 * grown.root_before.value)
    assert change_of(grown, "W").factor == pytest.approx(10, rel=1e-5)
    assert change_of(grown, "W").kind == "grew"
    factors = [abs(math.log(change.factor)) for change in grown.changes if change.factor is not None]
    assert factors == sorted(factors, reverse=True)


def test_a_gradient_that_is_cut_off_has_vanished_and_comes_first() -> None:
    """Everything before the cut had a gradient, and has none now."""
    cut = edited(("y = model(h)", "y = model(h.detach())"))
    assert [change.kind for change in cut.changes][:3] == ["vanished"] * 3
    assert {change.label for change in cut.changes if change.kind == "vanished"} == {"W", "x @ W", "h"}
    back = report(CELL).compare(report(CELL.replace("model(h)", "model(h.detach())")))
    assert change_of(back, "W").kind == "appeared"
    assert change_of(back, "W").before is None


def test_a_gradient_that_became_nan_comes_before_all_others() -> None:
    """And one that is finite again is no alarm."""
    sick = edited((".mean()", ".mean() * float('inf')"))
    assert sick.changes[0].kind == "not_finite"
    well = report(CELL).compare(report(CELL.replace(".mean()", ".mean() * float('inf')")))
    assert {change.kind for change in well.changes} <= {"finite", "same"}


def test_lines_that_were_inserted_shift_nothing() -> None:
    """The rows below them are what they were, and the new ones are named as new."""
    more = edited(("y = model(h)", "# a comment\nextra = h * 2\nh = extra / 2\ny = model(h)"))
    assert pairs(more)["W"] == "W"
    assert pairs(more)["y"] == "y"
    assert "extra" in more.labels_added
    assert not more.labels_removed


def test_renamed_variables_are_followed_where_the_code_shows_it() -> None:
    """Also into what is made from them, and into the parameters of a model."""
    renamed = edited(("model", "net"), ("W", "weight"), ("h = ", "hidden = "), ("(h)", "(hidden)"))
    known = pairs(renamed)
    assert known["weight"] == "W"
    assert known["hidden"] == "h"
    assert known["x @ weight"] == "x @ W"
    assert known["net.0.weight"] == "model.0.weight"
    assert all(change.kind == "same" for change in renamed.changes)
    assert not renamed.added
    assert not renamed.removed


def test_a_line_that_was_edited_and_renamed_is_matched_between_its_neighbours() -> None:
    """The same operation stands at the same place."""
    renamed = edited(("h = torch.tanh(x @ W)", "act = torch.tanh(0.5 * (x @ W))"), ("model(h)", "model(act)"))
    assert pairs(renamed)["act"] == "h"


def test_two_tensors_that_swapped_their_names_are_not_taken_for_each_other() -> None:
    """The name and the code decide together."""
    before = report(
        "a = torch.ones(3, requires_grad=True)\nb = torch.ones(3, requires_grad=True)\nl = (a * 2 + b * 3).sum()"
    )
    after = report(
        "b = torch.ones(3, requires_grad=True)\na = torch.ones(3, requires_grad=True)\nl = (a * 2 + b * 3).sum()"
    )
    assert {change.kind for change in after.compare(before).changes} == {"same"}


def test_a_name_that_is_bound_again_and_again_is_matched_in_order() -> None:
    """The first with the first."""
    source = "h = torch.ones(3, requires_grad=True)\nh = h * 2\nh = h * 3\nl = h.sum()"
    again = report(source.replace("* 3", "* 4")).compare(report(source))
    assert [(change.row, change.row_before) for change in sorted(again.changes, key=lambda change: change.row)] == [
        (index, index) for index in range(4)
    ]


def test_a_loss_scale_is_left_out() -> None:
    """Mixed precision scales the gradients; what is compared is what the table shows."""
    plain = Report(rows=[row("h", 1, grad=stats(2.0))])
    scaled = Report(rows=[row("h", 1, grad=stats(2048.0))], scale=1024.0)
    assert scaled.compare(plain).changes[0].kind == "same"


def test_rows_without_a_gradient_in_either_run_are_no_news() -> None:
    """Constants are matched, and not told."""
    assert "x" not in pairs(edited())


def test_a_gradient_of_exactly_zero_is_none() -> None:
    """Between zero and something there is no factor."""
    zero, some = (Report(rows=[row("h", 1, grad=stats(norm))]) for norm in (0.0, 1.0))
    assert some.compare(zero).changes[0].kind == "appeared"
    assert zero.compare(some).changes[0].kind == "vanished"
    assert zero.compare(zero).changes[0].kind == "same"


def test_nothing_is_compared_with_nothing() -> None:
    """Two empty reports, and one of them."""
    assert not Report().compare(Report()).changes
    assert report(CELL).compare(Report()).labels_added
    assert "no backward" in str(Report().compare(report(CELL)))


def test_only_a_report_can_be_compared_with() -> None:
    """The error says what was given."""
    with pytest.raises(TypeError, match="not with str"):
        Report().compare("report")  # type: ignore[arg-type]


def test_a_thousand_equal_lines_are_matched_in_no_time() -> None:
    """What is alike is counted off, not tried against each other."""
    rows = [row("h", 1) for _ in range(5_000)]
    assert matched(rows, rows[1:]) == {index: index for index in range(4_999)}


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "\x1b[31mred", "a`b`c", "\u202eevil"])
def test_hostile_names_are_text(hostile: str) -> None:
    """In HTML and in a terminal."""
    before = Report(rows=[row(hostile, 1, grad=stats(1.0)), row(f"{hostile}2", 2, grad=stats(1.0))])
    after = Report(rows=[row(hostile, 1, grad=stats(2.0))])
    comparison = after.compare(before)
    assert "<script>" not in render_html(comparison)
    for text in (render_html(comparison), render_text(comparison, 60, color=False)):
        assert "\x1b" not in text
        assert "\u202e" not in text


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_text_fits_the_width(width: int) -> None:
    """Long names give way, numbers stay."""
    before = Report(rows=[row("x" * 150, 1, grad=stats(1.0))])
    text = render_text(Report(rows=[row("x" * 150, 1, grad=stats(3.0))]).compare(before), width)
    assert max(map(len, text.split("\n"))) <= width
    assert "×3.0" in text


def test_ascii_is_ascii() -> None:
    """For a terminal that shows nothing else."""
    assert render_text(edited((".mean()", ".mean() * 10")), 80, ascii_only=True).isascii()


def test_only_twenty_are_listed_and_the_rest_is_counted() -> None:
    """And what changed by less than 1 % is no news."""
    before = Report(rows=[row(f"h{i}", i, grad=stats(1.0)) for i in range(40)])
    after = Report(rows=[row(f"h{i}", i, grad=stats(1.001 if i < 10 else 1.0 + i)) for i in range(40)])
    text = str(after.compare(before))
    assert "10 more changed less" in text
    assert "10 gradients changed by less than 1 %" in text
    assert text.count("→") == 20


# ---- what is remembered


def test_a_cell_with_an_id_is_itself_whatever_it_holds() -> None:
    """The front end knows."""
    reports = PreviousReports()
    first, second = Report(), Report()
    reports.remember("a", "x = 1", first)
    reports.remember("b", "x = 1", second)
    assert reports.of("a", "quite different") is first
    assert reports.of("c", "x = 1") is None


def test_without_an_id_an_edited_cell_is_known_by_its_lines() -> None:
    """And another one is not."""
    reports = PreviousReports()
    reports.remember(None, CELL, first := Report())
    assert reports.of(None, CELL.replace("tanh", "relu")) is first
    assert reports.of(None, "y = 2\nz = y ** 3") is None
    reports.remember(None, CELL.replace("tanh", "relu"), second := Report())
    assert reports.of(None, CELL) is second


def test_to_know_a_cell_without_an_id_costs_next_to_nothing() -> None:
    """Every traced cell of a terminal asks, also one of many equal lines: the work grows as the lines do."""

    def asking(lines: int) -> int:
        reports = PreviousReports()
        reports.remember(None, "h = h * 2\n" * lines, Report())
        return calls_in(lambda: reports.of(None, "h = h * 2\n" * lines + "y = h"))

    assert asking(4_000) < 2 * asking(2_000) + 50


def test_only_the_last_cells_are_remembered() -> None:
    """Memory is bounded."""
    reports = PreviousReports()
    for number in range(MOST + 1):
        reports.remember(str(number), "", Report())
    assert reports.of("0", "") is None
    assert reports.of("1", "") is not None
