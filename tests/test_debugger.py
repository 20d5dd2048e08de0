"""Real terminals: the debugger after an error in a traced cell, Ctrl-C in an await, embedded shells, scripts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_terminal import ESCAPE, PROMPT, Terminal, end, environment, spawned

pytestmark = pytest.mark.real

FAILING = (
    "def inner(b):\n    here = 'found'\n    return b @ torch.ones(7)\n",
    "def outer(a):\n    inside = a * 2\n    return inner(inside)\n",
)
DEBUGGER = "ipdb> "


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    opened = Terminal(tmp_path_factory.mktemp("ipython"))
    try:
        opened.run("%load_ext gradmagic")
        opened.run("import asyncio, time, torch")
        opened.run("w = torch.ones(3, requires_grad=True)")
        for function in FAILING:
            opened.run(function)
        opened.run("modes = torch.overrides._get_current_function_mode_stack")
        yield opened
    finally:
        end(opened.child)


def asked(terminal: Terminal, command: str, until: str | re.Pattern[str] = DEBUGGER) -> str:
    terminal.child.send(command + "\n")
    terminal.child.expect(until) if isinstance(until, re.Pattern) else terminal.child.expect_exact(until)
    return ESCAPE.sub("", terminal.shown())


def walk(terminal: Terminal) -> list[str]:
    """What the debugger says: variables, and every frame up to the outermost and down again."""
    said = [asked(terminal, f"p {name}") for name in ("here", "b.shape", "w.grad")]
    said += [asked(terminal, "up") for _ in range(3)]
    said += [asked(terminal, "p inside"), asked(terminal, "p sorted(k for k in globals() if k in 'wab')")]
    said += [asked(terminal, "down") for _ in range(3)]
    said.append(asked(terminal, "bt"))
    return [without_numbers(text) for text in said]


def without_numbers(text: str) -> str:
    """Without what the magic's line adds to a cell: line numbers, and itself among the lines shown around one."""
    text = re.sub(r"ipython-input-\d+-\w+|In ?\[\d+\]|line \d+|-+> \d+|\(\d+\)", "#", text)
    return "\n".join(line for line in text.split("\n") if line.strip() and not re.match(r" +\d+ ", line))


@pytest.mark.parametrize("body", ["outer(w)", "await asyncio.sleep(0) or outer(w)"])
@pytest.mark.parametrize("how", ["%pdb on", "%debug"])
def test_the_debugger_shows_the_persons_frames_alone(terminal: Terminal, how: str, body: str) -> None:
    """up and down walk through the cell and its functions, never through ours; the variables are there."""
    said = []
    for typed in (f"{body}\n", f"%%gradtrace -q\n{body}\n\n\n"):
        if how == "%pdb on":
            terminal.run("%pdb on")
        terminal.child.send(typed)
        if how == "%debug":
            terminal.child.expect(PROMPT)
            terminal.child.send("%debug\n")
        terminal.child.expect_exact(DEBUGGER)
        said.append(walk(terminal))
        asked(terminal, "q", PROMPT)
        if how == "%pdb on":
            terminal.run("%pdb off")
    assert "'found'" in said[0][0]
    assert said[1] == said[0]
    assert "gradmagic" not in "".join(said[1])
    assert "[]" in terminal.run("modes()")


def test_ctrl_c_in_an_await_ends_the_trace_and_shows_the_report(terminal: Terminal) -> None:
    """The shell gives the cell up; what it does later, when its loop runs again, is traced no more."""
    told_while_it_awaits = "asyncio.get_running_loop().call_soon(print, 'awaiting')"
    body = f"h = w * 2\n{told_while_it_awaits}\nawait asyncio.sleep(3)\nk = h * 3"
    terminal.child.send(f"%%gradtrace -o report\n{body}\n\n\n")
    terminal.child.expect("awaiting\r\n")
    terminal.child.sendintr()
    terminal.child.expect(PROMPT)
    text = ESCAPE.sub("", terminal.shown())
    assert text.count("KeyboardInterrupt: ") <= 1
    assert "KeyboardInterrupt" in text
    assert re.search(r"^ +2 +h ", text[text.rindex("gradtrace  ") :], re.MULTILINE)
    assert "[]" in terminal.run("modes()")
    assert "'h'" in terminal.run("[row.name for row in report]")
    assert "8.0" in terminal.run("%gradtrace -q (w * 2 + await asyncio.sleep(0, 2/3)).sum().item()")


EMBEDDED = """
import torch
def function():
    local = torch.ones(3, requires_grad=True)
    from IPython import embed
    embed(colors='nocolor', banner1='', display_banner=False)
    print('after', local.grad)
function()
"""


def test_an_embedded_shell_traces_with_the_variables_around_it(tmp_path: Path) -> None:
    """Local variables of the function that embeds it are seen and named."""
    script = tmp_path / "embeds.py"
    script.write_text(EMBEDDED)
    simple = environment(tmp_path) | {"IPY_TEST_SIMPLE_PROMPT": "1"}
    child = spawned([str(script)], simple)
    try:
        for cell in ("%load_ext gradmagic", "%gradtrace l = (local * 2).sum()"):
            child.expect(PROMPT)
            child.send(cell + "\n")
        child.expect(PROMPT)
        shown = ESCAPE.sub("", child.before)
        assert "backward from l = 6.0" in shown
        assert "local" in shown
        child.send("exit\n")
        child.expect_exact("after tensor([2., 2., 2.])")
    finally:
        end(child)


CELLS = "import torch\nw = torch.ones(3, requires_grad=True)\n%gradtrace l = (w * 2).sum()\nprint('grad', w.grad)\n"


@pytest.mark.parametrize("kind", [pytest.param("-c", marks=pytest.mark.slow), "file.ipy"])
def test_ipython_without_a_prompt(tmp_path: Path, kind: str) -> None:
    """`ipython -c` and `ipython file.ipy` run cells: the report is printed."""
    script = tmp_path / "file.ipy"
    script.write_text(CELLS)
    what = ["-c", CELLS] if kind == "-c" else [str(script)]
    command = [sys.executable, "-m", "IPython", "--ext", "gradmagic", "--HistoryManager.enabled=False", *what]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), check=True)
    assert "backward from l = 6.0 (line 3, run by gradtrace)" in ran.stdout
    assert "grad tensor([2., 2., 2.])" in ran.stdout
    assert "\x1b" not in ran.stdout[ran.stdout.index("gradtrace") :]
