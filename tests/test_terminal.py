"""Law 1 in a real IPython terminal, and the table at the terminal's own width."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

PROMPT = re.compile(r"In \[\d+\]: $")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COMMAND = [
    "-m",
    "IPython",
    "--no-banner",
    "--simple-prompt",
    "--no-confirm-exit",
    "--HistoryManager.enabled=False",
]


def environment(folder: Path) -> dict[str, str]:
    """The tester's own, but for what would change colours, widths and the IPython profile."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    return kept | {"TERM": "xterm-256color", "IPYTHONDIR": str(folder), "PYTHONIOENCODING": "utf-8"}


def heeding_signals() -> None:
    """A shell that runs the tests in the background has them ignore Ctrl-C, and their children with them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def spawned(arguments: list[str], env: dict[str, str]) -> pexpect.spawn[str]:
    """Python in a pseudo-terminal."""
    return pexpect.spawn(
        sys.executable,
        arguments,
        env=env,
        encoding="utf-8",
        timeout=60,
        dimensions=(50, 100),
        echo=False,
        preexec_fn=heeding_signals,
    )


def end(child: pexpect.spawn[str]) -> None:
    """`child.close(force=True)` gives a child three tenths of a second to die."""
    child.kill(signal.SIGKILL)
    child.wait()
    child.close()


class Terminal:
    """IPython at a prompt."""

    def __init__(self, folder: Path) -> None:
        self.child = spawned(COMMAND, environment(folder))
        self.child.expect(PROMPT)

    def run(self, cell: str) -> str:
        """Type a cell, with the blank lines that end a cell magic; what is shown until the next prompt."""
        self.child.send(cell + ("\n\n\n" if cell.startswith("%%") else "\n"))
        self.child.expect(PROMPT)
        return self.shown()

    def shown(self) -> str:
        return re.sub(r"^( *\.\.\.: )+", "", self.child.before.replace("\r\n", "\n"))


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    opened = Terminal(tmp_path_factory.mktemp("ipython"))
    try:
        opened.run("%load_ext gradmagic")
        opened.run("import torch, time")
        opened.run("w = torch.ones(3, requires_grad=True)")
        yield opened
    finally:
        end(opened.child)


def without_numbers(text: str) -> str:
    return re.sub(r"(In ?|Out|input-|Cell )\[?\d+(-\w+)?\]?", r"\1", ESCAPE.sub("", text))


BODIES = {
    "value": "x = 3\nx + 1",
    "both streams": "import sys\nprint('out')\nprint('err', file=sys.stderr)",
    "system command": "!echo hello\nx = 1",
    "nested magic": "a = %pwd\na",
    "help": "x = 1\nlen?",
    "error in a function": "f = lambda a: a / 0\nf(1)",
    "syntax error": "x = 1\nx = = 2",
    "exception group": "x = 1\nraise ExceptionGroup('many', [ValueError(1)])",
    "usage error": "x = 1\n%nosuchmagic",
    "error in torch": "w @ w\nw @ torch.ones(7)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_cell_shows_what_it_shows_without_the_magic(terminal: Terminal, body: str) -> None:
    """Typed at the prompt, once below a comment line and once below the magic."""
    traced = terminal.run(f"%%gradtrace -q\n{body}")
    source = f"# %%gradtrace -q\n{body}\n"
    plain = terminal.run(f"ran = get_ipython().run_cell({source!r})")  # a comment alone is a cell at this prompt
    assert without_numbers(traced).strip() == without_numbers(plain).strip()


def test_a_semicolon_silences_the_value(terminal: Terminal) -> None:
    """Nothing is shown, and _ keeps what it had."""
    terminal.run("'kept'")
    assert terminal.run("%%gradtrace -q\nx = 40\nx + 2;").strip() == ""
    assert "kept" in terminal.run("_")


@pytest.mark.parametrize("columns", [60, 100, 160])
def test_the_table_fits_the_terminal(terminal: Terminal, columns: int) -> None:
    """Coloured, and no line wider than the window."""
    terminal.child.setwinsize(50, columns)
    shown = terminal.run("%%gradtrace\nhidden = torch.tanh(w * 2)\nloss = (hidden ** 2).sum()")
    assert ESCAPE.search(shown)
    lines = ESCAPE.sub("", shown).splitlines()
    assert "gradtrace" in "".join(lines)
    assert max(map(len, lines)) <= columns


def test_an_interrupt_shows_the_report_and_goes_on(terminal: Terminal) -> None:
    """Ctrl-C in a traced cell: what was made so far, then KeyboardInterrupt, then the prompt."""
    terminal.child.send("%%gradtrace\ny = w * 2\nprint('waiting')\ntime.sleep(60)\n\n\n")
    terminal.child.expect("waiting\r\n")
    terminal.child.sendintr()
    terminal.child.expect(PROMPT)
    shown = ESCAPE.sub("", terminal.shown())
    assert re.search(r"^ *2 +y .*mul", shown, re.MULTILINE)
    assert shown.index("gradtrace") < shown.index("KeyboardInterrupt")
    assert "line 4" in shown
    assert "gradmagic/" not in shown


def test_debug_starts_in_the_persons_code(terminal: Terminal) -> None:
    """%debug after a traced error: the frame that failed, and no frame of gradmagic around it."""
    terminal.run("%%gradtrace -q\ndef f(a):\n    b = a + 1\n    return b / 0\n\nf(41)")
    terminal.child.send("%debug\n")
    terminal.child.expect("ipdb> ")
    terminal.child.send("p b\n")
    terminal.child.expect("ipdb> ")
    assert "42" in terminal.child.before
    terminal.child.send("where\n")
    terminal.child.expect("ipdb> ")
    stack = ESCAPE.sub("", terminal.child.before)
    terminal.child.send("q\n")
    terminal.child.expect(PROMPT)
    assert "f(41)" in stack
    assert "gradmagic/" not in stack
    assert "run_cell_magic" not in stack


def piped(folder: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    file = folder / "script.ipy"
    file.write_text(script, encoding="utf-8")
    command = [sys.executable, "-m", "IPython", "--no-banner", "--HistoryManager.enabled=False", str(file)]
    return subprocess.run(command, env=environment(folder) | variables, capture_output=True, text=True, check=False)


def test_a_script_in_a_pipe_gets_plain_ascii_and_fails_on_an_error(tmp_path: Path) -> None:
    """No escape sequence, nothing the encoding cannot hold, and an exit status that says it failed."""
    script = """
%load_ext gradmagic
import torch
w = torch.ones(3, requires_grad=True)
%gradtrace l = w.exp().sum()
%gradtrace 1 / 0
print('not reached')
"""
    ran = piped(tmp_path, script, PYTHONIOENCODING="ascii")
    assert "gradtrace" in ran.stdout
    assert "exp" in ran.stdout
    assert ran.stdout.isascii()
    assert "\x1b" not in ran.stdout[: ran.stdout.rindex("gradtrace")]
    assert "not reached" not in ran.stdout
    assert ran.returncode != 0
