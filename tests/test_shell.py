"""The shell around a traced cell: other magics over and under it, %run, autoreload, transformers, events, history."""

from __future__ import annotations

import ast
import builtins
import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shells import HEADING, Ran, Session, twins

from gradmagic.report import Report

START = "%xmode Context\nimport torch\nruns = []\nw = torch.ones(3, requires_grad=True)"


@pytest.fixture
def shell(shell: Session) -> Iterator[Session]:
    """A shell in which w is a leaf; afterwards no mode of ours is on the stack, and no handler in the shell."""
    shell.run(START)
    yield shell
    assert torch.overrides._get_current_function_mode_stack() == []
    assert shell.shell.custom_exceptions == ()


def report(shell: Session, name: str = "report") -> Report:
    found = shell[name]
    assert isinstance(found, Report)
    return found


def masked(ran: Ran) -> tuple[str, str, str]:
    """Output, value and error, without times and addresses."""
    text = re.sub(r"[\d.]+(e\+\d+)? (ns|[µu]s|ms|s)\b|0x[0-9a-f]+", "#", ran.stdout)
    return re.sub(r"in \d+|(?<=seconds)\n.*", "", text), ran.result, ran.error.partition(" (")[0]


# ---- other magics

OVER = {
    "%%time": "%%time",
    "%%timeit": "%%timeit -n 2 -r 1",
    "%%prun": "%%prun -q",
    "%%capture": "%%capture kept",
    "two of them": "%%time\n%%capture kept",
}


@pytest.mark.parametrize("body", ["runs.append(1)\nl = (w * 2).sum()", "runs.append(1)\nl = w + 1\n1 / 0"])
@pytest.mark.parametrize("top", OVER.values(), ids=OVER.keys())
def test_a_traced_cell_under_another_magic_runs_as_often_and_ends_alike(shell: Session, top: str, body: str) -> None:
    """The value, the error and what it binds are those without ours; each run is traced."""
    plain = shell.run(f"{top}\n{body}")
    often = len(shell["runs"])
    shell.fresh().run(START)
    ran = shell.run(f"{top}\n{HEADING} -o report\n{body}")
    assert len(shell["runs"]) == often > 0
    assert (ran.error, ran.result) == (plain.error, plain.result)
    local = "timeit" in top  # there the body of a plain cell is a function's
    assert (ran.names - {"report", "kept", "l"}) == (plain.names - {"kept", "l"})
    assert local or "l" in plain.names
    if "report" in ran.names:
        assert report(shell)["l"].line == 3


UNDER = {
    "%%time": "%%time\nl = (w * 2).sum()",
    "%%capture": "%%capture kept\nl = (w * 2).sum()",
    "%%prun": "%%prun -q\nl = (w * 2).sum()",
    "%time": "%time l = (w * 2).sum()",
    "%prun": "%prun -q l = (w * 2).sum()",
    "an assigned %time": "l = %time (w * 2).sum()",
    "a system command": "!echo hello\nl = (w * 2).sum()",
    "a captured command": "words = !echo hello\nl = (w * len(words)).sum() * 2",
    "run_cell": "done = get_ipython().run_cell('l = (w * 2).sum()')",
    "ex": "get_ipython().ex('l = (w * 2).sum()')",
}


@pytest.mark.parametrize("body", UNDER.values(), ids=UNDER.keys())
def test_what_other_magics_run_in_a_traced_cell_is_traced(shell: Session, body: str) -> None:
    """Its tensors are rows, by their names, and have their gradients."""
    ran = shell.run(f"{HEADING} -o report\n{body}")
    assert ran.error == ""
    assert report(shell)["l"].grad is not None
    assert shell["w"].grad.tolist() == [2.0, 2.0, 2.0]
    shell.fresh().run(START)
    assert masked(ran) == masked(shell.run(f"# {HEADING}\n{body}".replace("# %%gradtrace -q\n%%", "%%")))


def test_timeit_in_a_traced_cell_is_one_row_however_often_it_runs(shell: Session) -> None:
    """Its runs are occurrences."""
    shell.run(f"{HEADING} -o report\n%timeit -n 3 -r 2 -q (w * 2).sum()\nl = w.sum()")
    counts = {row.op: row.count for row in report(shell).rows}
    assert counts["mul"] in (6, 7)  # IPython may time it once more to choose
    assert report(shell)["l"].grad is not None


@pytest.mark.parametrize("top", ["%%bash", "%%script cat", "%%html", "%%writefile {}/f.py"])
def test_a_cell_in_another_language_under_ours_runs_as_always(shell: Session, top: str, tmp_path: Path) -> None:
    """There is nothing to trace, and nothing changes."""
    source = f"{top.format(tmp_path)}\necho hello"
    plain = shell.run(source)
    shell.fresh().run(START)
    traced = shell.run(f"{HEADING}\n{source}")
    assert traced.error == plain.error
    assert traced.stdout.replace("Overwriting", "Writing") == plain.stdout


def test_reloading_the_extension_in_a_traced_cell(shell: Session) -> None:
    """The cell goes on under the magic that began it; the next one has the new magic."""
    ran = shell.run(f"{HEADING} -o report\n%reload_ext gradmagic\nl = (w * 2).sum()\n3")
    assert (ran.result, ran.error) == ("3", "")
    assert report(shell)["l"].grad is not None
    assert shell.run(f"{HEADING}\n4").result == "4"


# ---- %run and autoreload

SCRIPT = """import torch

def double(t):
    h = t * 2
    return h

if __name__ == '__main__':
    v = torch.ones(2, requires_grad=True)
    total = double(v).sum()
"""


def test_a_script_that_is_run_in_a_traced_cell_is_traced_by_its_own_lines(shell: Session, tmp_path: Path) -> None:
    """File, line and names are the script's; backward starts from its scalar, which %run leaves in the namespace."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert shell.run(f"{HEADING} -o report\n%run {script}").error == ""
    found = report(shell)
    assert [(row.name, row.line, Path(row.file or "").name) for row in found.rows] == [
        ("v", 8, "script.py"),
        ("h", 4, "script.py"),
        ("total", 9, "script.py"),
    ]
    assert found["v"].grad is not None
    assert shell["v"].grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("ending", ["1 / 0", "raise SystemExit(3)", "exit()", "raise KeyboardInterrupt"])
def test_a_script_that_fails_in_a_traced_cell_fails_as_always(shell: Session, tmp_path: Path, ending: str) -> None:
    """The same output and error."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + f"    {ending}\n")
    plain, traced = twins(shell, f"%run {script}\nafter = 1", START)
    assert traced == plain


TRACING_SCRIPT = """import asyncio, torch, gradmagic

async def half(t):
    await asyncio.sleep(0)
    return t / 2

async def main():
    halves = await asyncio.gather(half(v), asyncio.create_task(half(v)))
    return sum(halves)

with gradmagic.trace() as run:
    v = torch.ones(2, requires_grad=True)
    total = asyncio.run(main()).sum()
own = run.report
"""


@pytest.mark.parametrize("heading", ["", f"{HEADING} -o report\n"])
def test_a_script_that_traces_itself_has_its_own_report(shell: Session, tmp_path: Path, heading: str) -> None:
    """With the script's lines, whether a traced cell runs it or a plain one; coroutines of asyncio.run are traced."""
    script = tmp_path / "script.py"
    script.write_text(TRACING_SCRIPT)
    assert shell.run(f"{heading}%run {script}").error == ""
    for name in ["own"] + ["report"] * bool(heading):
        found = report(shell, name)
        assert [(row.op, row.line, row.count) for row in found.rows if row.name != "v"] == [
            ("div", 5, 2),
            ("add", 9, 2),
            ("sum", 13, 1),
        ]
        assert found["v"].grad is not None
        assert found["v"].grad.values == (1.0, 1.0)


@pytest.mark.parametrize("how", ["%autoreload 2", "import importlib\nm = importlib.reload(m)"])
def test_after_an_edit_and_a_reload_the_report_reads_the_new_source(shell: Session, tmp_path: Path, how: str) -> None:
    """Names, expressions and lines are those of the module as it runs now; the old report keeps its own."""
    module = tmp_path / "edited_between_cells.py"
    module.write_text("def f(t):\n    old = t * 2\n    return old.sum()\n")
    sys.path.insert(0, str(tmp_path))
    try:
        shell.run("%load_ext autoreload\nimport edited_between_cells as m")
        shell.run(f"{HEADING} -o first\nl = m.f(w)")
        module.write_text("def f(t):\n\n    other = t.exp()\n    return (other * 3).sum()\n")
        shell.run(how)
        shell.run(f"{HEADING} -o second\nl = m.f(w)")
    finally:
        sys.path.remove(str(tmp_path))
        shell.run("%autoreload off")
        sys.modules.pop("edited_between_cells", None)
    assert [(row.label, row.line) for row in report(shell, "first").rows[1:]] == [("old", 2), ("l", 3)]
    assert [(row.label, row.line) for row in report(shell, "second").rows[1:]] == [
        ("other", 3),
        ("other * 3", 4),
        ("l", 4),
    ]


# ---- generators, coroutines and threads of the cell's own

OWN = {
    "a generator": "def g():\n    for k in (1, 2):\n        h = w * k\n        yield h\nl = sum(g()).sum()",
    "a generator that is kept": "def g():\n    h = w * 1\n    h2 = (yield h) * 2\n    yield h2\n"
    "i = g()\nl = (next(i) + i.send(w)).sum()",
    "asyncio.run": "import asyncio\nasync def main():\n    h = w * 2\n    await asyncio.sleep(0)\n    return h + w\n"
    "l = asyncio.run(main()).sum()",
    "a coroutine by hand": "async def main():\n    h = w * 2\n    return h + w\n"
    "try:\n    main().send(None)\nexcept StopIteration as stop:\n    l = stop.value.sum()",
    "a generator expression": "l = sum(w * k for k in (1, 2)).sum()",
}


@pytest.mark.parametrize("body", OWN.values(), ids=OWN.keys())
def test_code_of_the_cell_that_runs_in_pieces_is_traced(shell: Session, body: str) -> None:
    """The same values, and a gradient for every row on the way to the root."""
    plain, traced = twins(shell, body + "\nl.item()", START)
    assert traced == plain
    shell.run(f"{HEADING} -o report\n{body}")
    found = report(shell)
    assert [row.op for row in found.rows if row.grad is None] == []
    assert shell["w"].grad.tolist() == [3.0, 3.0, 3.0]


def test_threads_of_a_traced_cell_compute_what_they_compute(shell: Session) -> None:
    """What comes out of them is used; in them nothing of ours is at work."""
    body = (
        "import threading\nfound = []\n"
        "def work(k):\n    found.append((w * k, len(torch.overrides._get_current_function_mode_stack())))\n"
        "threads = [threading.Thread(target=work, args=(k,)) for k in (1, 2)]\n"
        "for t in threads: t.start(); t.join()\n"
        "l = sum(h.sum() for h, _ in found)\nl.item(), [modes for _, modes in found]"
    )
    plain, traced = twins(shell, body, START)
    assert plain.result == "(9.0, [0, 0])"
    assert traced == plain


# ---- transformers, events, history


class Wrapped(ast.NodeTransformer):
    """Hands every expression through a function, as debuggers of expressions do."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        node = super().generic_visit(node)
        if isinstance(node, ast.expr) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            call = ast.Call(ast.Name("seen", ast.Load()), [node], [])
            return ast.copy_location(call, node)
        return node


class Refusing(ast.NodeTransformer):
    """Cannot cope with one kind of node."""

    def visit_Mult(self, node: ast.Mult) -> ast.Mult:
        raise TypeError("no products")


@contextlib.contextmanager
def transformed(shell: Session, transformer: ast.NodeTransformer) -> Iterator[None]:
    shell.shell.ast_transformers.append(transformer)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            shell.shell.ast_transformers.remove(transformer)


def test_a_transformer_that_wraps_every_expression(shell: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are as without the magic; names and lines are found all the same."""
    monkeypatch.setattr(builtins, "seen", lambda value: value, raising=False)
    with transformed(shell, Wrapped()):
        plain, traced = twins(shell, "h = w * 2\nl = h.sum()\nl.item()", START)
        shell.fresh().run(START)
        shell.run(f"{HEADING} -o report\nh = w * 2\nl = (h + 1).sum()\nl")
    assert plain.result == "6.0"
    assert traced == plain
    assert [(row.name, row.line) for row in report(shell).rows] == [("w", 2), ("h", 2), (None, 3), ("l", 3)]


@pytest.mark.filterwarnings("ignore:AST transformer")
def test_a_transformer_that_raises_is_dropped_by_the_shell_and_the_cell_runs(shell: Session) -> None:
    """As without the magic: the shell unregisters it."""
    runs = []
    for heading in (f"# {HEADING}", HEADING):
        shell.fresh().run(START)
        with transformed(shell, Refusing()):
            runs.append(shell.run(f"{heading}\nl = (w * 2).sum()\nl.item()"))
            assert shell.shell.ast_transformers == []
    assert runs[0] == runs[1]
    assert runs[1].result == "6.0"


def test_input_transformers_of_the_person_apply(shell: Session) -> None:
    """Those before and those after the shell's own."""

    def early(lines: list[str]) -> list[str]:
        return [line.replace("€", "2") for line in lines]

    def late(lines: list[str]) -> list[str]:
        return [line.replace("twice", "w * 2") for line in lines]

    shell.shell.input_transformers_cleanup.append(early)
    shell.shell.input_transformers_post.append(late)
    try:
        plain, traced = twins(shell, "a = twice\n(a * €).sum().item()", START)
    finally:
        shell.shell.input_transformers_cleanup.remove(early)
        shell.shell.input_transformers_post.remove(late)
    assert plain.result == "12.0"
    assert traced == plain


def test_events_come_once_a_cell(shell: Session) -> None:
    """pre_execute, pre_run_cell, post_execute and post_run_cell, with the cell as it was typed and its result."""
    seen: list[Any] = []

    def before(info: Any) -> None:
        seen.append(("pre_run_cell", info.raw_cell))

    def after(result: Any) -> None:
        seen.append(("post_run_cell", result.info.raw_cell, result.result, result.error_in_exec))

    callbacks = {
        "pre_run_cell": before,
        "post_run_cell": after,
        "pre_execute": lambda: seen.append("pre_execute"),
        "post_execute": lambda: seen.append("post_execute"),
    }
    for event, function in callbacks.items():
        shell.shell.events.register(event, function)
    try:
        source = f"{HEADING}\nl = (w * 2).sum()\n5"
        shell.run(source)
        shell.run("import asyncio")
        del seen[4:]
        awaiting = f"{HEADING}\nawait asyncio.sleep(0)\n5"
        shell.run(awaiting)
    finally:
        for event, function in callbacks.items():
            shell.shell.events.unregister(event, function)
    for run, cell in ((seen[:4], source), (seen[4:], awaiting)):
        assert run == [
            "pre_execute",
            ("pre_run_cell", cell),
            "post_execute",
            ("post_run_cell", cell, 5, None),
        ]


def test_history_holds_what_was_typed_and_runs_it_again(shell: Session) -> None:
    """In, %history, %recall and %rerun."""
    source = f"{HEADING} -o report\nl = (w * 2).sum()\nl.item()"
    shell.run(source)
    assert shell["In"][2].startswith("get_ipython().run_cell_magic('gradtrace'")
    assert shell.run("%history 2").stdout.strip() == source
    shell.run("del report")
    again = shell.run("%rerun 2")
    assert again.error == ""
    assert report(shell)["l"].line == 2
    shell.run("%recall 2")
    assert shell.shell.rl_next_input == source
    assert shell.run("Out[2], w.grad").result == "(6.0, tensor([2., 2., 2.]))"


def test_a_traced_cell_that_a_traced_cell_runs(shell: Session) -> None:
    """shell.run_cell from inside: both have their report, and the inner cell its own lines."""
    inner = f"{HEADING} -o inner\\n\\nh = w * 2\\nk = h.sum()"
    shell.run(f"{HEADING} -o outer\na = 1\ndone = get_ipython().run_cell('{inner}')\nl = k * 3")
    assert [(row.name, row.line) for row in report(shell, "inner").rows] == [("w", 3), ("h", 3), ("k", 4)]
    assert [row.name for row in report(shell, "outer").rows] == ["w", "h", "k", "l"]
    assert report(shell, "inner")["h"].grad is not None
    assert report(shell, "outer")["h"].grad is not None
    assert shell["w"].grad.tolist() == [6.0, 6.0, 6.0]


def test_a_traced_cell_that_fails_in_a_traced_cell(shell: Session) -> None:
    """The shell shows the inner error once, and the outer cell goes on, as without the magic."""
    results = []
    for heading in ("# %%gradtrace -q", HEADING):
        shell.fresh().run(START)
        inner = f"{heading}\\na = w * 2\\n1 / 0"
        results.append(shell.run(f"{heading}\ndone = get_ipython().run_cell('{inner}')\ntype(done.error_in_exec)"))
    assert results[0].stdout.count("ZeroDivisionError: division") == 1
    assert results[1] == results[0]


def test_cells_below_each_other_magic_upon_magic(shell: Session) -> None:
    """%%gradtrace on top of %%gradtrace: two reports of one cell, with the lines of the margin."""
    shell.run(f"{HEADING} -o outer\n{HEADING} -o inner\nh = w * 2\nl = h.sum()")
    for name in ("outer", "inner"):
        assert [(row.name, row.grad is not None) for row in report(shell, name).rows] == [
            ("w", True),
            ("h", True),
            ("l", True),
        ]
