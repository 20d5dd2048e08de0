"""The options of %%gradtrace and %gradtrace, and how the report reaches the person."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest
from IPython.utils.capture import capture_output
from shells import Ran, Session

from gradmagic.report import Report
from gradmagic.tracing import _Finish

CELL = "y = x * w\nz = y * 2\nl = z.pow(2)"
START = "import torch\nx = torch.tensor([1.0])\nw = torch.tensor([2.0], requires_grad=True)"


@pytest.fixture
def shell(shell: Session) -> Session:
    """A shell in which x is a constant 1.0 and w a leaf 2.0."""
    shell.run(START)
    return shell


def displayed(shell: Session, cell: str) -> list[dict[str, Any]]:
    with capture_output() as captured:
        shell.shell.run_cell(cell, store_history=True)
    return [output.data for output in captured.outputs]


REFUSED = {
    "--nosuch": "--nosuch",
    "-x": "-x",
    "--rows 0": "--rows",
    "--rows -3": "--rows",
    "--rows many": "--rows",
    "--sort size": "--sort",
    "-o class": "--output",
    "-o 3x": "--output",
    "-o a.b": "--output",
    "-o": "--output",
    "-b": "--backward",
    '-b "y +"': "--backward",
    '-b ""': "--backward",
    "-b y=3": "--backward",
    "-b y + z": "+ z",
    "-q --all": "--all",
    "-q --rows 3": "--rows",
    "-q --sort norm": "--sort",
    "-q --filter y": "--filter",
    "-q --diff": "--diff",
    "-q --source": "--source",
    "-q --depth 1": "--depth",
    "--depth -1": "--depth",
    "--depth deep": "--depth",
    "-o a -o b": "--output",
    "-b y --backward none": "--backward",
    "y = 3": "y = 3",
}


@pytest.mark.parametrize(("options", "named"), REFUSED.items(), ids=REFUSED.keys())
def test_options_that_cannot_be_are_refused_by_name_and_nothing_runs(shell: Session, options: str, named: str) -> None:
    """A UsageError names the option; the cell is not run."""
    ran = shell.run(f"%%gradtrace {options}\nmade = 1")
    assert ran.error.startswith("UsageError")
    assert named in ran.stderr
    assert "made" not in ran.names


@pytest.mark.parametrize(
    "cell",
    ["%gradtrace", "%gradtrace -q", "%gradtrace -q  # nothing", "%%gradtrace\n", "%%gradtrace\n  \n\n"],
)
def test_without_code_the_person_is_told_where_it_goes(shell: Session, cell: str) -> None:
    """An empty cell or line is a UsageError that says what to write."""
    ran = shell.run(cell)
    assert ran.error.startswith("UsageError")
    assert "gradtrace" in ran.stderr


ACCEPTED = [
    "-q -b z",
    "   -q    -b   z   ",
    "-q -b z  # from z",
    "-q --backward=z",
    "-q --backward z",
    "-qb z",
    "-q -bz",
    '-q -b "z"',
    "-q -b 'z + 0 * y'",
    '-q --backward="z + 0 * y"',
    '-q -b "-z"',
    "-q --backward -z",
    '-q -b {"a b":z}["a b"]',
]


@pytest.mark.parametrize("options", ACCEPTED)
def test_an_expression_is_taken_however_it_is_typed(shell: Session, options: str) -> None:
    """Spaces, quotes, an equals sign, a closing comment and a leading dash are all fine."""
    ran = shell.run(f"%%gradtrace {options}\n{CELL}")
    assert (ran.error, ran.stdout, ran.stderr) == ("", "", "")
    assert shell["y"].grad.abs().item() == 2
    assert shell["l"].grad is None


def test_backward_none_runs_no_backward(shell: Session) -> None:
    """-b none leaves every .grad alone."""
    shell.run(f"%%gradtrace -q -b none\n{CELL}")
    assert shell["w"].grad is None


def test_zero_grad_clears_the_leaves_first(shell: Session) -> None:
    """-z: .grad afterwards is this cell's alone."""
    shell.run("w.grad = torch.tensor([100.0])")
    shell.run(f"%%gradtrace -q -z\n{CELL}")
    assert shell["w"].grad.item() == 16


def test_output_binds_the_report(shell: Session) -> None:
    """-o NAME puts the Report into the namespace."""
    shell.run(f"%%gradtrace -q -o found\n{CELL}")
    assert isinstance(shell["found"], Report)
    assert shell["found"]["y"].grad.values == (16.0,)
    assert shell["found"]["y"].line == 2


def test_output_is_bound_also_when_the_cell_raises(shell: Session) -> None:
    """What was traced so far is in the report."""
    ran = shell.run("%%gradtrace -q -o found\ny = x * w\n1 / 0")
    assert ran.error.startswith("ZeroDivisionError")
    assert shell["found"]["y"].line == 2


def test_quiet_displays_nothing_and_gradients_are_there(shell: Session) -> None:
    """-q: the cell's own output and nothing else."""
    assert displayed(shell, f"%%gradtrace -q\n{CELL}") == []
    assert shell["y"].grad.item() == 16


def test_quiet_still_raises(shell: Session) -> None:
    """-q hides the report, never an error."""
    assert shell.run("%%gradtrace -q\n1 / 0").error.startswith("ZeroDivisionError")


def test_options_of_the_display_reach_the_report(shell: Session) -> None:
    """--all, --sort, --rows and --filter arrive as the report's own options."""
    shell.run(f'%%gradtrace --all --sort norm --rows 3 --filter "y*" -o found\n{CELL}')
    options = shell["found"].options
    assert (options.all, options.sort, options.rows, options.filter) == (True, "norm", 3, "y*")


def test_one_bundle_holds_text_and_html(shell: Session) -> None:
    """A front end picks the form it can show; both tell of the same run."""
    [bundle] = displayed(shell, f"%%gradtrace\n{CELL}")
    assert {"text/plain", "text/html"} <= bundle.keys()
    assert "z" in bundle["text/plain"]
    assert "z" in bundle["text/html"]


def test_the_report_stands_before_the_value(shell: Session) -> None:
    """The last expression's value is displayed last, as Out."""
    ran = shell.run(f"%%gradtrace\n{CELL}\n7")
    assert ran.stdout.index("gradtrace") < ran.stdout.index("Out[2]: 7")


@pytest.mark.parametrize("body", ["1 / 0", "raise KeyboardInterrupt", "raise ExceptionGroup('many', [ValueError()])"])
def test_the_report_stands_before_the_error(shell: Session, body: str) -> None:
    """What was traced so far is shown first, then the error, once."""
    ran = shell.run(f"%%gradtrace\ny = x * w\n{body}")
    told = ran.stdout + ran.stderr
    assert re.search(r"gradtrace(.|\n)* y (.|\n)*(Error|Interrupt|Group)", told)


LINES = {
    "%gradtrace -q l = (x * w).sum()": "",
    "%gradtrace -q (x * w).sum().item()": "2.0",
    "%gradtrace -q (x * w).sum().item();": "",
    "%gradtrace -q a = 'two  spaces  # kept'; a": "'two  spaces  # kept'",
    "%gradtrace -q -- -x.item()": "-1.0",
    "%gradtrace -q -x.item()": "-1.0",
    "%gradtrace -q -(x * w).item()": "-2.0",
    "%gradtrace -q -o r --backward none '--rows 3 -q'": "'--rows 3 -q'",
    "%gradtrace -q [n for n in 'a{x}$x']": "['a', '{', 'x', '}', '$', 'x']",
}


@pytest.mark.parametrize(("line", "value"), LINES.items(), ids=LINES.keys())
def test_the_statement_of_a_line_magic_is_taken_verbatim(shell: Session, line: str, value: str) -> None:
    """Quotes, dashes, braces, spacing: Python gets what was typed, and its value is displayed."""
    ran = shell.run(line)
    assert ran.error == ""
    assert ran.stdout == (f"Out[2]: {value}\n" if value else "")


def test_a_line_magic_traces_its_statement(shell: Session) -> None:
    """Rows carry the line of the cell on which the line magic stands."""
    shell.run("a = 1\n\n%gradtrace -q -o found l = (x * w).pow(2).sum()")
    assert shell["found"]["l"].line == 3
    assert shell["w"].grad.item() == 4


def test_diff_shows_what_changed_since_the_last_run_of_the_cell(shell: Session) -> None:
    """The first run has none before it; an edited cell is still the same cell; one that failed is not remembered."""
    cell = "scores = w * 3\nbest = scores.exp()\nworst = best * 2\ntotal = worst.sum()"
    first = shell.run(f"%%gradtrace --diff\n{cell}")
    assert "no earlier run" in first.stdout
    assert "backward from" in first.stdout
    shell.run(f"%%gradtrace -q\n{CELL}")
    failed = shell.run(f"%%gradtrace --diff\n{cell}\n1 / 0")
    assert "since the last run" not in failed.stdout
    again = shell.run(f"%%gradtrace --diff\n{cell.replace('* 2', '* 20')}")
    assert "since the last run" in again.stdout
    assert "vanished" not in again.stdout
    assert "×10" in again.stdout


def test_diff_compares_with_the_report_of_a_name(shell: Session) -> None:
    """As it was before the cell: `-o` may bind the same name again. A line magic takes the name behind `=`."""
    shell.run("%gradtrace -q -o before loss = (w * 2).sum()")
    ran = shell.run("%%gradtrace --diff before -o before\nloss = (w * 6).sum()")
    assert ran.stdout.startswith("compared with before  loss ")
    assert "×3.00" in ran.stdout or "×3.0" in ran.stdout
    assert shell.run("%gradtrace --diff=before loss = (w * 6).sum()").stdout.startswith("compared with before  loss ")
    assert "no earlier run" in shell.run("%gradtrace --diff loss = (w * 7).sum()").stdout


@pytest.mark.parametrize("name", ["nowhere", "w"])
def test_a_name_without_a_report_is_told_before_the_cell_runs(shell: Session, name: str) -> None:
    """And how to make one."""
    ran = shell.run(f"%%gradtrace --diff {name}\nnever = 1")
    assert ran.error == f"UsageError: --diff: {name!r} is no report; %%gradtrace -o {name} makes one"
    assert "never" not in shell.shell.user_ns


def test_help_lists_every_option(shell: Session) -> None:
    """%%gradtrace? shows the options with what they do."""
    text = shell.run("%%gradtrace?").stdout
    for option in (
        "--backward EXPR",
        "--output NAME",
        "--quiet",
        "--all",
        "--zero-grad",
        "--sort",
        "--rows N",
        "--filter PATTERN",
        "--diff",
        "--check",
        "--gradcheck",
        "--strict",
        "--source",
        "--depth N",
    ):
        assert option in text


def broken(*_: object, **__: object) -> Any:
    raise ZeroDivisionError("the table is upside down")


def test_a_failing_renderer_keeps_the_result(shell: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """One plain line says what happened; the value, the names and the report are there."""
    monkeypatch.setattr(Report, "_repr_mimebundle_", broken)
    ran = shell.run(f"%%gradtrace -o found\n{CELL}\n7")
    assert (ran.result, ran.error) == ("7", "")
    assert ran.stderr.count("\n") == 1
    assert "the table is upside down" in ran.stderr
    assert "print(found)" in ran.stderr
    assert "found" in ran.names


def test_a_failing_renderer_does_not_mask_the_error(shell: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell's own error goes on as always, and the renderer's is not in its chain."""
    monkeypatch.setattr(Report, "_repr_mimebundle_", broken)
    ran = shell.run("%%gradtrace\n[][1]")
    assert ran.error.startswith("IndexError")
    assert "upside down" not in ran.stdout
    assert sys.last_value.__context__ is None


@pytest.mark.parametrize("body", ["7", "[][1]"])
def test_a_fault_of_the_trace_keeps_what_the_cell_gave(
    shell: Session, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    """Whatever goes wrong after the cell: its value or its error stands, and one line tells of the fault."""
    plain = shell.run(body)
    shell.fresh().run(START)
    monkeypatch.setattr(_Finish, "report", broken)
    ran = shell.run(f"%%gradtrace\n{body}")
    assert (ran.result, ran.error) == (plain.result, plain.error)
    assert ran.stderr.count("\n") == 1
    assert "the table is upside down" in ran.stderr


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:
        return self._encoding

    def isatty(self) -> bool:
        return True


def on_terminal(shell: Session, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> str:
    screen = Terminal(encoding)
    shell.run("%colors linux")
    monkeypatch.setattr(sys, "stdout", screen)
    shell.shell.run_cell(f"%%gradtrace\n{CELL}", store_history=True)
    monkeypatch.undo()
    shell.run("%colors nocolor")
    return screen.getvalue()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return monkeypatch


@pytest.mark.parametrize("columns", [60, 100, 160])
def test_a_terminal_gets_a_coloured_table_of_its_width(
    shell: Session, environment: pytest.MonkeyPatch, columns: int
) -> None:
    """No line is wider than the terminal."""
    environment.setenv("COLUMNS", str(columns))
    text = on_terminal(shell, environment)
    assert "\x1b[" in text
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert max(len(line) for line in lines) <= columns


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_refused(shell: Session, environment: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """NO_COLOR and a dumb terminal get the same table without escape sequences."""
    environment.setenv(variable, value)
    text = on_terminal(shell, environment)
    assert "gradtrace" in text
    assert "\x1b" not in text


def test_a_terminal_without_unicode_gets_ascii(shell: Session, environment: pytest.MonkeyPatch) -> None:
    """What the terminal could not show is not sent."""
    text = on_terminal(shell, environment, "ascii")
    assert "gradtrace" in text
    assert text.isascii()


def test_a_pipe_gets_plain_text(shell: Session) -> None:
    """No escape sequences when nobody is there to interpret them."""
    ran: Ran = shell.run(f"%%gradtrace\n{CELL}")
    assert "gradtrace" in ran.stdout
    assert "\x1b" not in ran.stdout


def test_values_are_shown_and_the_first_bad_one_is_named(shell: Session) -> None:
    """`--values` gives every row the statistics of its own values, and the finding the line to write."""
    shell.run(
        "%%gradtrace -q --values -o report\np = w * torch.tensor([0.0, 1.0])\nlogs = p.log()\nloss = (p * logs).sum()"
    )
    report = shell["report"]
    assert report["p"].forward.max == 2.0
    assert report["logs"].forward.inf_count == 1
    found = report.findings[0]
    assert (found.kind, found.line, found.hint) == ("nan_value", 3, "logs = p.clamp(min=1e-12).log()")
    assert "values: 1 inf of 2 elements" in str(report)


def test_without_values_no_row_has_them_and_the_option_is_offered(shell: Session) -> None:
    """The loss is NaN, and the tensor that made it so is gone: the finding offers the option."""
    shell.run("%%gradtrace -q -o report\nloss = ((w - 2).log() * 0).sum()")
    report = shell["report"]
    assert all(row.forward is None for row in report.rows)
    assert report.findings[0].hint == "%%gradtrace --values"


def test_values_of_masks_indices_and_empty_tensors_are_taken_too(shell: Session) -> None:
    """No dtype keeps `--values` from looking, and nothing is left untraced."""
    shell.run(
        "%%gradtrace -q --values -o report\n"
        "mask = torch.tensor([True, False])\n"
        "index = torch.tensor([2, 5])\n"
        "nothing = torch.ones(0) * w\n"
        "wave = torch.tensor([3 + 4j]) * w\n"
        "loss = (w * mask).sum() + wave.abs().sum() + nothing.sum()"
    )
    report = shell["report"]
    assert report.findings == []
    assert (report["mask"].forward.zero_fraction, report["index"].forward.max) == (0.5, 5.0)
    assert report["wave"].forward.norm == 10.0
    assert report["nothing"].forward.numel == 0
