"""A report from its JSON: everything comes back, and what is no report is refused in words that say where."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plain import run_traced
from sample_reports import HOSTILE, SAMPLES, curve, gan, hostile, odd, quickstart, rnn, row, small
from test_examples import readme_example
from test_hostile import PAYLOADS, poisoned, whole_report

import gradmagic
from gradmagic.curves import GradSeries
from gradmagic.reading import ReportFormatError
from gradmagic.records import Source
from gradmagic.report import Report, ReportOptions

TRACED = {
    "a loop with two losses and an optimizer": """
w = torch.randn(3, 3, requires_grad=True)
v = torch.zeros(3, requires_grad=True)
optimizer = torch.optim.SGD([w, v], lr=0.1)
for step in range(4):
    h = torch.zeros(3)
    for t in range(5):
        h = torch.tanh(h @ w + v)
    optimizer.zero_grad()
    h.sum().backward(retain_graph=True)
    penalty = w.pow(2).sum()
    penalty.backward()
    torch.nn.utils.clip_grad_norm_([w, v], 0.1)
    optimizer.step()
""",
    "modules with inner steps": """
model = torch.nn.Sequential(torch.nn.LSTM(3, 4))
out, (h, c) = model(torch.randn(5, 2, 3))
attention = torch.nn.MultiheadAttention(4, 2)
loss = attention(out, out, out)[0].pow(2).mean()
""",
    "complex and not finite": """
z = torch.tensor([1 + 2j, -0.5j], requires_grad=True)
x = torch.tensor([0.0, 1.0], requires_grad=True)
loss = (z.abs().sum() + torch.log(x).sum() + torch.sqrt(x - x).sum())
""",
    "cut off and failing": """
w = torch.randn(3, requires_grad=True)
y = w.sigmoid()
word = (y > 0.5).float()
y2 = y * 2
loss = (y * y2).sum() + word.sum()
y.add_(1)
""",
    "nothing": "pass\n",
}


def read(report: Report) -> Report:
    return Report.from_json(report.to_json())


def assert_same(ours: Report, given: Report) -> None:
    """Every field equal, NaN being NaN, with types; the root is the row itself."""
    names = [name for name in vars(given) if name != "options"]
    assert {name: repr(getattr(ours, name)) for name in names} == {name: repr(getattr(given, name)) for name in names}
    for mine, its in zip(ours.rows, given.rows, strict=True):
        for array_name in (name for name in GradSeries.__slots__ if name != "total"):
            kept, told = getattr(its.grads, array_name), getattr(mine.grads, array_name)
            assert repr(told) == repr(kept), array_name
        assert (mine.grads.total, mine.updates.total) == (its.grads.total, its.updates.total)
        assert repr(mine.updates.values) == repr(its.updates.values)
        assert [repr(step.grads.norm) for step in mine.inner] == [repr(step.grads.norm) for step in its.inner]
    assert [repr(entry.values) for entry in ours.ledger] == [repr(entry.values) for entry in given.ledger]
    if given.root is not None:
        assert ours.root is ours.rows[[found is given.root for found in given.rows].index(True)]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_report_comes_back_from_its_json(name: str) -> None:
    """Rows, curves, passes, ledger, findings, the root: and the JSON is the same again, to the last letter."""
    report = SAMPLES[name]()
    assert_same(read(report), report)
    assert read(report).to_json() == report.to_json()
    assert str(read(report)) == str(report)
    assert read(report).to_html() == report.to_html()


@pytest.mark.parametrize("source", TRACED.values(), ids=TRACED)
def test_what_was_really_traced_comes_back(source: str) -> None:
    """With the source, spans, coverage, inner steps and updates; it is found to be the same by compare()."""
    report, _ = run_traced(source)
    report = replace(report, source=Source(source, line=3))
    back = read(report)
    assert_same(back, report)
    assert back.to_json() == report.to_json()
    assert back.to_csv(long=True) == report.to_csv(long=True)
    assert [change for change in back.compare(report).changes if change.kind != "same"] == []
    assert all(found.tensor is None for found in back.rows)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_hostile_strings_come_back_as_they_are(payload: str) -> None:
    """Unpaired surrogates and line separators included."""
    report = poisoned(whole_report(), payload)
    assert read(report).to_json() == report.to_json()
    assert read(report).rows[0].name == payload


def test_complex_numbers_nan_and_infinities_come_back() -> None:
    """A pair is a complex number, a word is a number, and a sign stays."""
    back = read(odd())
    assert repr(back["z"].grad.values) == "((1+2j), (-0-0.5j))"  # type: ignore[union-attr]  # it has a gradient
    assert repr(back["inf"].grad) == repr(odd()["inf"].grad)
    assert repr(back.root_value) == "nan"


def test_a_thinned_curve_says_how_many_there_were() -> None:
    """The total is more than what is kept."""
    report = Report(rows=[row("w", 2, updates=curve(0.1, 0.2, total=5_000))])
    assert read(report)["w"].updates.total == 5_000


def test_the_options_of_the_display_are_no_data() -> None:
    """They are the usual ones again."""
    report = rnn().with_options(ReportOptions(rows=1, sort="norm"))
    assert read(report).options == ReportOptions()


@pytest.mark.parametrize("encode", [str.encode, lambda t: bytearray(t, "ascii"), lambda t: f"\ufeff{t}".encode()])
def test_bytes_are_read_as_utf_8(encode: Callable[[str], bytes]) -> None:
    """As a file opened in binary mode gives them, with the mark some editors put in front."""
    assert Report.from_json(encode(rnn().to_json(indent=2))).to_json() == rnn().to_json()


def test_a_class_of_ones_own_reads_itself() -> None:
    """from_json of a subclass gives that subclass."""

    class Mine(Report):
        pass

    assert type(Mine.from_json(rnn().to_json())) is Mine


def test_keys_that_a_later_gradmagic_adds_are_left_out() -> None:
    """In any object, as long as the version is the same."""
    data = gan().to_dict()
    for place in (data, data["rows"][0], data["rows"][0]["location"], data["rows"][2]["grads"], data["ledger"][0]):
        place["new"] = {"anything": [1, None]}
    assert Report.from_json(json.dumps(data)).to_json() == gan().to_json()


def test_keys_that_an_older_gradmagic_did_not_write_have_their_defaults() -> None:
    """Only what no record can do without has to be there."""
    data = quickstart().to_dict()
    del data["coverage"], data["source"], data["rows"][1]["updates"], data["rows"][1]["aliases"]
    assert Report.from_json(json.dumps(data)).to_json() == quickstart().to_json()


def test_reading_needs_no_torch() -> None:
    """A report can be looked at where PyTorch is not installed."""
    code = (
        "import sys; sys.modules['torch'] = None; from gradmagic.report import Report; "
        "r = Report.from_json(sys.stdin.read()); print(r); r.to_html(); r.to_markdown()"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], input=rnn().to_json(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (out.stderr, out.stdout) == ("", f"{rnn()}\n")


def test_readmes_example_takes_a_report_to_another_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written, read and compared, as README has it."""
    monkeypatch.chdir(tmp_path)
    namespace = {"report": rnn()}
    exec(readme_example("json"), namespace)
    assert namespace["before"].to_json() == rnn().to_json()
    assert "8 gradients, none changed" in capsys.readouterr().out


# ---- what is refused


def refusal(text: Any) -> str:
    with pytest.raises(ReportFormatError) as caught:
        Report.from_json(text)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(*way: Any, to: Any) -> str:
    """The JSON of a report with one value of it replaced."""
    data = gan().to_dict()
    place = data
    for step in way[:-1]:
        place = place[step]
    place[way[-1]] = to
    return json.dumps(data)


def test_a_newer_version_is_refused_and_both_versions_are_named() -> None:
    """And what to do."""
    assert refusal(changed("schema_version", to=2)) == (
        f"this report has schema_version 2, and gradmagic {gradmagic.__version__} reads 1: "
        "a newer gradmagic wrote it; read it with that one"
    )


@pytest.mark.parametrize("version", ["1", 0, -1, 1.0, True, [1]])
def test_a_version_that_nobody_wrote_is_refused(version: Any) -> None:
    """Also a number as a string."""
    assert "schema_version is " in refusal(changed("schema_version", to=version))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.9999])
def test_a_text_that_breaks_off_is_said_to(share: float) -> None:
    """A full disk, a copy that was cut."""
    text = gan().to_json(indent=1)
    assert "breaks off at line" in refusal(text[: int(len(text) * share)])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "this is no report: the text is empty"),
        (" \n", "this is no report: the text is empty"),
        ("rows", "this is no JSON: Expecting value at line 1, column 1"),
        ('{"a": 1,\n b}', "this is no JSON: Expecting property name enclosed in double quotes at line 2, column 2"),
        ("[1, 2]", "this JSON is [1, 2], not a report: to_json() writes an object"),
        ("null", "this JSON is null, not a report"),
        ("{}", "this JSON is no report: it has no schema_version"),
        ('{"schema_version": 1, "seconds": NaN}', 'a bare NaN, which strict JSON does not have; it is written "NaN"'),
        ("9" * 5_000, "this is no JSON as to_json() writes it: "),
        ("[" * 200_000, "this is no report: its brackets are nested too deeply"),
        (b"\xff\xfe{", "this is no JSON as to_json() writes it: 'utf-8' codec can't decode"),
        ('{"schema_version": 1}', "rows is missing"),
    ],
)
def test_what_is_no_report_is_told_what_it_is(text: Any, told: str) -> None:
    """One sentence each."""
    assert told in refusal(text)


@pytest.mark.parametrize(
    ("way", "value", "told"),
    [
        (("rows", 3, "grad", "norm"), "abc", "rows[3].grad.norm holds 'abc' where a number"),
        (("rows", 3, "grad", "norm"), None, "rows[3].grad.norm holds null where a number"),
        (("rows", 3, "grad", "numel"), 1.5, "rows[3].grad.numel holds 1.5 where a whole number belongs"),
        (("rows", 3, "grad", "values", 0), [1.0], "rows[3].grad.values[0] holds [1.0] where a list of 2 belongs"),
        (("rows", 0, "count"), True, "rows[0].count holds true where a whole number belongs"),
        (("rows", 0, "count"), 1 << 70, "rows[0].count holds 1180591620717411303424 where a whole number belongs"),
        (("rows", 0, "shape"), "8x64", "rows[0].shape holds '8x64' where a list belongs"),
        (("rows", 0, "shape", 1), "64", "rows[0].shape[1] holds '64' where a whole number belongs"),
        (("rows", 0, "op"), 3, "rows[0].op holds 3 where a string belongs"),
        (("rows", 0), "fake", "rows[0] holds 'fake' where an object belongs"),
        (("rows",), {}, "rows holds {} where a list belongs"),
        (("rows", 1, "reason"), "bored", "rows[1].reason holds 'bored' where one of requires_grad_false, frozen"),
        (("rows", 2, "grads", "norm", 4), {}, "rows[2].grads.norm[4] holds {} where a number"),
        (("rows", 2, "grads", "norm"), [1.0], "rows[2].grads.passes holds [0, 1, 2, 3, 4, 5] where a list of 1"),
        (("rows", 2, "grads", "steps"), [0], "rows[2].grads.steps holds [0] where a list of 6, as beside it, belongs"),
        (("rows", 2, "grads", "total"), 2, "rows[2].grads.total holds 2 where at least the 6 that are there belongs"),
        (("rows", 0, "inputs"), [5], "rows[0].inputs[0] holds 5 where the number of one of the 5 rows"),
        (("root",), -1, "root holds -1 where the number of one of the 5 rows"),
        (("root",), 2.0, "root holds 2.0 where"),
        (("guest",), 1, "guest holds 1 where true or false belongs"),
        (("candidates",), [None], "candidates[0] holds null where a string belongs"),
        (("ledger", 1, "location", "span"), [1, 2, 3], "ledger[1].location.span holds [1, 2, 3] where a list of 4"),
        (("passes", 0, "run_by"), "me", "passes[0].run_by holds 'me' where one of cell, gradtrace belongs"),
        (("coverage", "complete"), "yes", "coverage.complete holds 'yes' where true or false belongs"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(way: tuple[Any, ...], value: Any, told: str) -> None:
    """As one would write it in Python, so that it is found at once."""
    assert told in refusal(changed(*way, to=value))


def test_a_missing_value_is_told_with_its_place() -> None:
    """One that no row can do without."""
    data = gan().to_dict()
    del data["rows"][2]["location"]["file"]
    assert "rows[2].location.file is missing" in refusal(json.dumps(data))


def test_a_very_long_wrong_value_is_cut_short() -> None:
    """The message stays a sentence, and harmless in a terminal."""
    assert len(refusal(changed("rows", 0, "count", to="k" * 100_000))) < 300
    assert refusal(changed("rows", 0, "count", to=HOSTILE)).isprintable()


@pytest.mark.parametrize("given", [{}, None, 3, rnn()], ids=["dict", "none", "int", "report"])
def test_only_text_is_read(given: Any) -> None:
    """What json.load gives is not it, and the message shows how a file is read."""
    with pytest.raises(TypeError, match=r"takes the text that to_json\(\) gave, not \w+: Report\.from_json\("):
        Report.from_json(given)


def places(data: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value, but for keys of the objects that are derived from others."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if key not in ("place", "schema_version"):
            yield (*way, key)
            yield from places(value, (*way, key))


@pytest.mark.parametrize("seed", range(300))
def test_whatever_a_value_is_changed_to_there_is_a_report_or_a_sentence(seed: int) -> None:
    """No other error; and what is accepted is written again as it was read."""
    chance = random.Random(seed)  # noqa: S311 - nothing is kept secret
    data = chance.choice([whole_report, hostile, odd])().to_dict()
    *way, last = chance.choice(list(places(data)))
    place: Any = data
    for step in way:
        place = place[step]
    place[last] = chance.choice([None, True, 0, -1, 7.5, 10**30, "x", "NaN", [], [0], [1.0, 2.0], {}, {"a": 1}])
    try:
        report = Report.from_json(json.dumps(data))
    except ReportFormatError:
        return
    assert Report.from_json(report.to_json()).to_json() == report.to_json()


def test_a_row_made_by_hand_with_whole_numbers_is_written_as_it_was_read() -> None:
    """A whole number stays one, where any number may stand."""
    report = Report(rows=[row("w", 2, grad=small(1.0))], seconds=1)
    assert read(report).to_json() == report.to_json()
