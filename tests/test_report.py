"""The report as data: look-up, options, counts, export."""

from __future__ import annotations

import ast
import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from sample_reports import HOSTILE, SAMPLES, constant, gan, hostile, odd, quickstart, rnn, row, small

from gradmagic.report import Report, ReportOptions, TensorNotFoundError, is_surprise


def loads_strictly(text: str) -> Any:
    """Parses JSON and refuses the NaN and Infinity that Python's parser would take."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_a_name_bound_twice_gives_the_last_row() -> None:
    """A name means what it means at the end of the cell."""
    first, last = row("h", 2), row("h", 3)
    assert Report(rows=[first, last])["h"] is last


def test_a_name_goes_before_an_alias() -> None:
    """An alias is looked at only where no row has the name itself."""
    named, alias = row("h", 2), row("out", 3, aliases=("h", "self.h"))
    report = Report(rows=[named, alias])
    assert report["h"] is named
    assert report["self.h"] is alias


def test_a_mistyped_name_is_told_its_near_misses() -> None:
    """The error is a KeyError whose text is a sentence, without the quotes a KeyError puts around it."""
    with pytest.raises(KeyError) as caught:
        rnn()["encoder.wieght"]
    assert isinstance(caught.value, TensorNotFoundError)
    assert str(caught.value) == "no tensor named 'encoder.wieght'; did you mean 'encoder.weight' or 'encoder.bias'?"


def test_a_name_like_no_other_is_told_the_names_there_are() -> None:
    """Without a near miss the message lists the names."""
    with pytest.raises(TensorNotFoundError, match=r"no tensor named '#'; there are 'x', 'w', 'y', 'z', 'l'$"):
        quickstart()["#"]


def test_looking_up_in_a_report_without_names_says_so() -> None:
    """The message does not end in an empty list."""
    with pytest.raises(TensorNotFoundError, match="the report has no named tensor"):
        Report()["x"]


def test_a_position_is_no_name() -> None:
    """An index is a mistake worth a hint."""
    with pytest.raises(TypeError, match=r"report\.rows\[0\]"):
        quickstart()[0]  # type: ignore[index]


def test_a_report_is_a_collection_of_its_rows() -> None:
    """len, iteration and membership by name; an empty report is still true."""
    report = quickstart()
    assert len(report) == 5
    assert [r.name for r in report] == ["x", "w", "y", "z", "l"]
    assert "w" in report
    assert "v" not in report
    assert 3 not in report
    assert Report()


def test_other_options_show_the_same_data() -> None:
    """with_options changes nothing but the options."""
    report = rnn()
    shown = report.with_options(ReportOptions(rows=1, filter="nothing", sort="norm"))
    assert shown.to_dict() == report.to_dict()
    assert shown.root is report.root
    assert report.options == ReportOptions()


@pytest.mark.parametrize(("bad", "message"), [({"rows": 0}, "rows must be"), ({"sort": "size"}, "sort must be")])
def test_options_that_make_no_sense_are_refused(bad: dict[str, Any], message: str) -> None:
    """The message names the option."""
    with pytest.raises(ValueError, match=message):
        ReportOptions(**bad)


def test_the_summary_counts_rows() -> None:
    """Tensors are gradients plus those without."""
    counts = rnn().summary()
    assert (counts.tensors, counts.gradients, counts.without, counts.surprises) == (14, 8, 6, 4)


@pytest.mark.parametrize(
    ("kind", "reason", "expected"),
    [
        ("constant", "requires_grad_false", False),
        ("constant", "integer_dtype", False),
        ("constant", "not_differentiable", True),
        ("constant", "detached", True),
        ("parameter", "frozen", False),
        ("parameter", "cut_upstream", True),
        ("leaf", "unused", True),
        ("non-leaf", "no_backward", False),
        ("non-leaf", "backward_failed", True),
        ("non-leaf", "after_backward", False),
    ],
)
def test_only_what_a_person_would_not_expect_is_a_surprise(kind: str, reason: Any, expected: bool) -> None:
    """Inputs and what was switched off on purpose are ordinary."""
    assert is_surprise(row("t", 2, kind=kind, reason=reason)) is expected


def test_a_gradient_is_no_surprise() -> None:
    """Whatever the kind."""
    assert not is_surprise(row("t", 2, grad=small(1.0)))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_report_is_strictly_valid_json(name: str) -> None:
    """NaN, infinities, complex numbers and unpaired surrogates included."""
    report = SAMPLES[name]()
    data = loads_strictly(report.to_json(indent=1))
    assert data == json.loads(json.dumps(report.to_dict()))
    assert data["schema_version"] == 1
    assert len(data["rows"]) == len(report)


def test_json_has_words_for_what_json_has_no_number_for() -> None:
    """NaN and infinities are strings, complex numbers are pairs, and no callable is left."""
    rows = {r["name"]: r for r in odd().to_dict()["rows"]}
    assert rows["nan"]["grad"]["norm"] == "NaN"
    assert rows["inf"]["grad"]["min"] == "-Infinity"
    assert rows["inf"]["grad"]["max"] == "Infinity"
    assert rows["z"]["grad"]["values"] == [[1.0, 2.0], [-0.0, -0.5]]
    assert rows["loop"]["grads"]["norm"] == [1.0, "NaN", 0.0, 1e-8, 1.0]
    assert "find_tensor" not in rows["z"]
    assert rows["nan"]["location"]["place"] == "line 1"


def test_json_names_the_root_by_its_position() -> None:
    """An index into rows, or None."""
    assert quickstart().to_dict()["root"] == 4
    assert Report().to_dict()["root"] is None


def test_csv_reads_back() -> None:
    """One line a row; numbers stay numbers, what is missing is empty."""
    lines = list(csv.DictReader(io.StringIO(rnn().to_csv())))
    assert len(lines) == 14
    by_name = {line["name"]: line for line in lines}
    assert float(by_name["U"]["min"]) == -3.0e-3
    assert ast.literal_eval(by_name["x"]["shape"]) == (50, 8, 32)
    assert by_name["x"]["norm"] == ""
    assert by_name["z"]["culprit"] == "line 7"
    assert lines[10]["line"] == "11"
    assert lines[10]["place"] == "linear.py:134"


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-x", "@sum", "\tx", "\rx"])
def test_csv_text_is_never_a_formula(formula: str) -> None:
    """A spreadsheet must not run what stands in a cell; a negative number is left alone."""
    report = Report(rows=[row("t", 2, expression=formula, note=formula, grad=small(-1.0))])
    (line,) = csv.DictReader(io.StringIO(report.to_csv(), newline=""))
    assert line["expression"] == line["note"] == f"'{formula}"
    assert line["min"] == "-1.0"


def test_pandas_gets_the_columns_of_the_csv() -> None:
    """Numbers come as numbers."""
    pytest.importorskip("pandas")
    frame = quickstart().to_pandas()
    assert list(frame["norm"][1:]) == [16.0, 16.0, 8.0, 1.0]
    assert ",".join(frame.columns) == quickstart().to_csv().splitlines()[0]


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the command."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "gradmagic\[pandas\]"'):
        quickstart().to_pandas()


def test_the_mimebundle_holds_text_html_and_markdown() -> None:
    """All from the same report."""
    report = rnn()
    bundle = report._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "text/markdown"}
    assert bundle["text/plain"] == str(report)
    assert "0.7042" in bundle["text/html"]


def test_the_text_of_a_report_is_plain_and_at_most_100_columns() -> None:
    """No ANSI codes: it goes into files and logs."""
    text = str(rnn())
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_repr_is_short() -> None:
    """A list of reports in a debugger stays readable."""
    assert repr(rnn()) == "<Report: 14 tensors, 8 gradients, 2 findings>"


def test_a_report_needs_neither_torch_nor_ipython_nor_a_renderer() -> None:
    """Importing the report loads none of them; drawing it loads neither torch nor IPython."""
    code = (
        "import sys; from gradmagic.report import Report; r = Report(); "
        "print(sorted({'rich', 'jinja2', 'torch', 'IPython', 'pandas'} & set(sys.modules))); "
        "str(r); r.to_html(); print(sorted({'torch', 'IPython', 'pandas'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.split("\n")[:2] == ["[]", "[]"]


def test_hostile_names_can_be_looked_up() -> None:
    """The data keeps what the person wrote; only drawing cleans it."""
    assert hostile()[HOSTILE].name == HOSTILE


def test_constants_are_found_by_name_too() -> None:
    """Folding is a matter of display."""
    assert Report(rows=[constant("c", 2)])["c"].kind == "constant"


def test_gradients_of_a_scaled_loss_are_shown_without_the_scale_and_exported_with_it() -> None:
    """The table divides by the scale, all but the root's; the data are what flowed."""
    report = Report(rows=[row("w", 2, grad=small(2048.0)), row("loss", 3, grad=small(1.0))], scale=1024.0)
    report = replace(report, root=report.rows[1])
    text = str(report)
    assert "2.0" in text
    assert "2048" not in text
    assert report["w"].grad is not None
    assert report["w"].grad.norm == 2048.0
    assert report.to_dict()["scale"] == 1024.0


def test_the_long_form_has_a_line_for_each_gradient() -> None:
    """Which row, which loss at which line, which pass, step and time, and its numbers; CSV and pandas alike."""
    report = gan()
    frame = report.to_pandas(long=True)
    assert len(frame) == sum(len(row.grads) for row in report.rows)
    weight = frame[frame["name"] == "D.weight"]
    assert weight["loss"].tolist() == ["lossD", "lossG"] * 3
    assert weight["loss_place"].tolist() == ["line 12", "line 20"] * 3
    assert weight["pass"].tolist() == [0, 1, 2, 3, 4, 5]
    assert weight["step"].tolist() == [0, 0, 1, 1, 2, 2]
    assert weight["norm"].tolist() == [0.5, 0.04, 0.4, 0.05, 0.3, 0.06]
    lines = list(csv.DictReader(io.StringIO(report.to_csv(long=True))))
    assert [(line["name"], line["pass"], float(line["norm"])) for line in lines] == [
        (name, str(number), norm)
        for name, number, norm in zip(frame["name"], frame["pass"], frame["norm"], strict=True)
    ]
    times = rnn().to_pandas(long=True)
    assert times[times["name"] == "h"]["time"].tolist() == list(range(50))


def test_the_long_form_of_a_report_without_gradients_has_its_columns() -> None:
    """An empty table is still that table."""
    assert list(Report().to_pandas(long=True).columns) == list(gan().to_pandas(long=True).columns)
    assert len(Report().to_csv(long=True).splitlines()) == 1
