"""``--live``: a report that is drawn over itself while the cell runs, in a kernel, in a terminal and by a function."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from plain import run_traced
from test_terminal import ESCAPE, Terminal, end

from gradmagic.live import INTERVAL, Clock
from gradmagic.report import Report
from gradmagic.tracing import trace

# pyzmq and jupyter_client warn about event loops and paths of their own making.
pytestmark = pytest.mark.filterwarnings("ignore")

LOOP = """
import torch, time
torch.manual_seed(0)
w = torch.ones(3, requires_grad=True)
for step in range(40):
    w.grad = None
    loss = (w * torch.rand(3)).sum()
    loss.backward()
    time.sleep(0.05)
    {then}
"""


def test_the_clock_looks_at_most_twice_a_second() -> None:
    """The first pass is shown at once, the next look comes half a second later."""
    now = 10.0
    clock = Clock(lambda: now)
    assert clock.is_due()
    clock.looked(10.0)
    now = 10.0 + INTERVAL - 0.01
    assert not clock.is_due()
    now = 10.0 + INTERVAL
    assert clock.is_due()


def test_a_report_that_takes_long_to_draw_is_drawn_less_often() -> None:
    """A tenth of the time at most."""
    now = 1.0
    clock = Clock(lambda: now)
    clock.looked(0.0)
    now = 10.9
    assert not clock.is_due()
    now = 11.0
    assert clock.is_due()


class Looped:
    """A loop of 30 passes; the clock of the trace moves on by an eighth of a second with each of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr("gradmagic.tracing.Clock", lambda: Clock(lambda: self.seconds))

    def __call__(self, live: Any) -> Report:
        """The final report, with a function that looks on."""
        torch.manual_seed(0)
        run = trace(live=live, namespace={})
        with run:
            w = torch.ones(3, requires_grad=True)
            for _ in range(30):
                w.grad = None
                (w * torch.rand(3)).sum().backward()
                self.seconds += 0.125
        assert run.report is not None
        return run.report


@pytest.fixture
def looped(monkeypatch: pytest.MonkeyPatch) -> Looped:
    return Looped(monkeypatch)


def test_a_function_is_called_with_what_was_recorded_so_far(looped: Looped) -> None:
    """Twice a second; the last report is no longer running, and is what it is without anybody looking on."""
    seen: list[Report] = []
    final = looped(seen.append)
    assert [report.pass_count for report in seen] == [1, 5, 9, 13, 17, 21, 25, 29]
    assert all(report.running for report in seen)
    assert all(report.rows[0].grads.total == report.pass_count for report in seen)
    assert not final.running
    alone = looped(None)
    assert [(row.name, row.op, row.count, row.grads) for row in final] == [
        (row.name, row.op, row.count, row.grads) for row in alone
    ]
    assert final.findings == alone.findings


def test_a_function_that_fails_is_asked_no_more_and_the_cell_runs_on(looped: Looped) -> None:
    """It is disclosed in the report."""
    asked = []

    def fail(report: Report) -> None:
        asked.append(report)
        raise ValueError("no screen")

    final = looped(fail)
    assert len(asked) == 1
    assert final.pass_count == 30
    assert [found.kind for found in final.findings] == ["not_traced"]
    assert "no screen" in final.findings[0].detail


def test_an_interrupt_while_somebody_looks_on_is_the_persons() -> None:
    """It ends the cell; the report is there."""

    def interrupt(report: Report) -> None:
        raise KeyboardInterrupt

    run = trace(live=interrupt, namespace={})
    with pytest.raises(KeyboardInterrupt), run:
        torch.ones(2, requires_grad=True).sum().backward()
    assert run.report is not None
    assert run.report.pass_count == 1


def test_without_live_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long cell costs nothing extra."""
    looks = []

    def so_far(finish: object) -> None:
        looks.append(finish)

    monkeypatch.setattr("gradmagic.tracing._Finish.so_far", so_far)
    run_traced("w = torch.ones(2, requires_grad=True)\nfor _ in range(50):\n    (w * 2).sum().backward()\n")
    assert looks == []


class Recorded(NotebookClient):
    """A notebook client that keeps what arrives on the display, in order."""

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.arrived.append((msg["msg_type"], msg["content"]["data"]["text/plain"]))
        return super().process_message(msg, cell, cell_index)


@pytest.mark.real
@pytest.mark.parametrize(
    ("then", "error"), [("pass", ""), ("if step == 36: raise KeyboardInterrupt", "KeyboardInterrupt")]
)
def test_in_a_notebook_the_report_is_refreshed_in_place(then: str, error: str) -> None:
    """One output, shown once and updated; the last update is the final report, also when the cell is interrupted."""
    cells = ["%load_ext gradmagic", "%%gradtrace --live -o report" + LOOP.format(then=then), "print(report.pass_count)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = Recorded(notebook, timeout=60, kernel_name="python3", allow_errors=True)
    client.arrived = []  # type: ignore[attr-defined]
    client.execute()
    kinds = [kind for kind, _ in client.arrived]  # type: ignore[attr-defined]
    assert kinds[0] == "display_data"
    assert set(kinds[1:]) == {"update_display_data"}
    texts = [text for _, text in client.arrived]  # type: ignore[attr-defined]
    assert "still running" in texts[0]
    assert "still running" not in texts[-1]
    passes = 37 if error else 40
    shown = [output for output in notebook.cells[1].outputs if output.output_type == "display_data"]
    assert len(shown) == 1
    assert shown[0].data["text/plain"].startswith(f"gradtrace  {passes} backward passes: loss (line 8) ×{passes}")
    assert [o.ename for o in notebook.cells[1].outputs if o.output_type == "error"] == ([error] if error else [])
    assert notebook.cells[2].outputs[0].text == f"{passes}\n"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    try:
        opened.run("%load_ext gradmagic")
        opened.run("import torch, time, sys")
        yield opened
    finally:
        end(opened.child)


@pytest.mark.real
def test_in_a_terminal_the_table_is_drawn_over_itself_and_what_is_printed_stands_above(terminal: Terminal) -> None:
    """The cursor goes up and lines are erased; at the end one table is left, and stdout is what it was."""
    terminal.run("before = sys.stdout")
    terminal.child.send(
        "%%gradtrace --live" + LOOP.format(then="if step % 10 == 0: print('step', step)").rstrip() + "\n\n\n"
    )
    terminal.child.expect(re.compile(r"In \[\d+\]: $"))
    raw = terminal.child.before
    assert "still running" in raw
    assert "\x1b[1A\x1b[2K" in raw
    text = ESCAPE.sub("", raw)
    final = text[text.rindex("gradtrace  ") :]
    assert "40 backward passes: loss" in final
    assert "still running" not in final
    assert re.findall(r"^step (\d+)", text.replace("\r", "\n"), re.MULTILINE) == ["0", "10", "20", "30"]
    assert "True" in terminal.run("before is sys.stdout")


@pytest.mark.real
def test_an_interrupt_in_a_terminal_keeps_what_was_recorded(terminal: Terminal) -> None:
    """Ctrl-C: the traceback, the report of the passes until then, and a prompt."""
    terminal.child.send("%%gradtrace --live" + LOOP.format(then="pass").replace("40", "4000").rstrip() + "\n\n\n")
    terminal.child.expect("still running")
    time.sleep(0.7)
    terminal.child.sendintr()
    terminal.child.expect(re.compile(r"In \[\d+\]: $"))
    text = ESCAPE.sub("", terminal.child.before)
    assert "KeyboardInterrupt" in text
    assert re.search(r"gradtrace  \d+ backward passes?", text[text.rindex("gradtrace  ") :])
    assert "still running" not in text[text.rindex("gradtrace  ") :]


def test_without_a_place_to_draw_over_only_the_final_report_is_shown() -> None:
    """A shell whose output goes into a file."""
    from shells import session

    with session() as shell, contextlib.suppress(KeyboardInterrupt):
        ran = shell.run("%%gradtrace --live" + LOOP.format(then="pass").replace("40", "15"))
    assert ran.stdout.count("gradtrace  ") == 1
    assert "15 backward passes" in ran.stdout
    assert ran.error == ""


def test_live_displays_so_it_cannot_be_quiet() -> None:
    """Refused before anything runs."""
    from shells import session

    with session() as shell:
        ran = shell.run("%%gradtrace --live -q\nran = 1")
        assert "UsageError" in ran.error
        assert "--live" in ran.error
        assert "ran" not in shell.shell.user_ns
