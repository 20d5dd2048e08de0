"""Cells that await: they do what they do without the magic, and the tasks of others stay out of the report."""

from __future__ import annotations

import asyncio
import re

import pytest
import torch
from shells import HEADING, Session, twins

from gradmagic.report import Report
from gradmagic.tracing import trace

START = """%xmode Context
import asyncio, contextlib, torch
w = torch.ones(3, requires_grad=True)
async def f(k, seconds=0):
    await asyncio.sleep(seconds)
    h = w * k
    await asyncio.sleep(seconds)
    return h.sum()
async def numbers(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i
@contextlib.asynccontextmanager
async def opened(value):
    await asyncio.sleep(0)
    yield value
    print('closed')
"""

ORDINARY = {
    "the value of an awaited call": "await f(2)",
    "a value after an await": "x = await f(2)\nx * 2",
    "a semicolon": "await f(2);",
    "an awaited None": "await asyncio.sleep(0)",
    "await within an expression": "x = [await f(1), {'a': await f(2)}]\nx",
    "async with": "async with opened(4) as x:\n    print(x)",
    "async for": "async for i in numbers(3):\n    print(i)",
    "an async comprehension": "[i async for i in numbers(3)]",
    "gather": "a, b = await asyncio.gather(f(1), f(2))\na + b",
    "a task": "task = asyncio.create_task(f(3))\nprint('between')\nawait task",
    "a task group": "async with asyncio.TaskGroup() as group:\n    t = group.create_task(f(3))\nt.result()",
    "a timeout": "async with asyncio.timeout(5):\n    x = await f(1)\nx",
    "a thread": "await asyncio.to_thread(lambda: 4)",
    "await under if and for": "for k in range(2):\n    if k:\n        x = await f(k)\nx",
    "backward after an await": "l = await f(2)\nl.backward()\nw.grad",
    "random numbers": "torch.manual_seed(0)\nawait f(2)\ntorch.randn(3)",
    "blank lines and text in several lines": "\n\nx = '''\nawait x\n  %time\n'''\nawait f(1)\nx",
    "unicode": "é = 'ü'; é = await f(2); é",
    "a system command between": "await f(1)\n!echo hello",
    "a nested magic": "await f(1)\na = %pwd\nbool(a)",
    "a coroutine that nobody awaits": "c = f(1)\nc.close()\nawait f(2)",
    "async code that is run by hand": "import threading\nt = threading.Thread(target=lambda: asyncio.run(f(1)))\n"
    "t.start(); t.join()\nawait f(2)",
}

FAILING = {
    "an error after an await": "x = await f(2)\n1 / 0",
    "an error in the awaited code": "x = 1\nawait f('a')",
    "an error before any await": "1 / 0\nawait f(2)",
    "a wrong call": "await f()",
    "what cannot be awaited": "await 3",
    "an error in a task": "await asyncio.gather(f(1), f('a'))",
    "an error group": "async with asyncio.TaskGroup() as group:\n    group.create_task(f('a'))",
    "a timeout that runs out": "async with asyncio.timeout(0.01):\n    await asyncio.sleep(5)",
    "a cancelled task": "task = asyncio.create_task(f(1))\ntask.cancel()\nawait task",
    "an interrupt": "await f(1)\nraise KeyboardInterrupt",
    "an exit": "await f(1)\nraise SystemExit(3)",
    "a syntax error": "await f(1)\nx = = 2",
    "a handled error in the chain": "try:\n    await f('a')\nexcept TypeError as e:\n    raise ValueError from e",
}


@pytest.mark.parametrize("body", ORDINARY.values(), ids=ORDINARY.keys())
def test_a_cell_that_awaits_does_what_it_does_without_the_magic(shell: Session, body: str) -> None:
    """Values, output, Out, the underscores and the names in the namespace are equal."""
    plain, traced = twins(shell, body, START)
    assert plain.error == ""
    assert traced == plain


@pytest.mark.filterwarnings("ignore:To exit")
@pytest.mark.parametrize("body", FAILING.values(), ids=FAILING.keys())
def test_a_cell_that_awaits_fails_as_without_the_magic(shell: Session, body: str) -> None:
    """The same error, raised once, with the same traceback."""
    plain, traced = twins(shell, body, START)
    assert plain.error
    assert traced == plain
    assert shell.shell.custom_exceptions == ()


@pytest.mark.parametrize("mode", ["Plain", "Verbose", "Minimal", "Docs"])
def test_every_traceback_mode_is_honoured_when_a_cell_awaits(shell: Session, mode: str) -> None:
    """The traceback is drawn by the shell, in the mode the person has set."""
    plain, traced = twins(shell, "x = await f(2)\nawait f('a')", START.replace("Context", mode))
    shell.run("%xmode Context")
    assert mask(traced.stdout) == mask(plain.stdout)


def mask(text: str) -> str:
    """Without the addresses of objects."""
    return re.sub(r"0x[0-9a-f]+", "0x", text)


@pytest.mark.parametrize("setting", ["all", "last", "last_expr", "none", "last_expr_or_assign"])
@pytest.mark.parametrize("body", ["await f(1)\nawait f(2)", "x = await f(1)", "1\nx = await f(1)\nx"])
def test_every_display_setting_is_honoured_when_a_cell_awaits(shell: Session, setting: str, body: str) -> None:
    """What ast_node_interactivity displays without the magic, it displays with it."""
    before = f"%config InteractiveShell.ast_node_interactivity = {setting!r}\n{START}"
    plain, traced = twins(shell, body, before)
    shell.run("%config InteractiveShell.ast_node_interactivity = 'last_expr'")
    assert traced == plain


def test_without_autoawait_await_is_a_syntax_error_as_without_the_magic(shell: Session) -> None:
    """%autoawait off: the shell's own refusal, in the line of the await."""
    plain, traced = twins(shell, "x = 1\nawait f(2)", START + "%autoawait off\n")
    shell.run("%autoawait on")
    assert "SyntaxError" in plain.error
    assert traced == plain


def traced(shell: Session, body: str, before: str = "") -> Report:
    """The report of a cell that awaits, after another cell."""
    shell.fresh().run(START + before)
    ran = shell.run(f"{HEADING} -o report\n{body}")
    assert ran.error == ""
    found = shell["report"]
    assert isinstance(found, Report)
    return found


def test_what_is_awaited_is_traced_with_its_lines(shell: Session) -> None:
    """Rows before and after an await, in the cell and in the coroutines and tasks it starts; the root is as always."""
    report = traced(shell, "a = await f(2)\nb, c = await asyncio.gather(f(3), f(4))\nloss = a + b + c\nloss")
    assert [(row.function, row.line, row.count) for row in report.rows] == [
        ("f", 6, 1),
        ("f", 6, 1),
        ("f", 8, 1),
        ("f", 6, 2),
        ("f", 8, 2),
        (None, 4, 1),
        (None, 4, 1),
    ]
    assert report.root is not None
    assert report.root.name == "loss"
    assert report["w"].grad.values == (9.0, 9.0, 9.0)
    assert shell["w"].grad.tolist() == [9.0, 9.0, 9.0]
    assert report.findings == []


def test_a_backward_of_a_cell_that_awaits_is_reported(shell: Session) -> None:
    """In the cell, and in a task that it starts."""
    report = traced(
        shell, "(await f(2)).backward()\nasync def g():\n    (await f(3)).backward()\nawait asyncio.create_task(g())"
    )
    assert [(each.line, each.run_by) for each in report.passes] == [(2, "cell"), (4, "cell")]


BACKGROUND = """
theirs = torch.ones(2, requires_grad=True)
optimizer = torch.optim.SGD([theirs], 0.1)
steps = 0
async def train():
    global steps
    while True:
        optimizer.zero_grad()
        (theirs * 2).sum().backward()
        optimizer.step()
        steps += 1
        await asyncio.sleep(0)
background = asyncio.create_task(train())
await asyncio.sleep(0)
"""


def test_tasks_of_earlier_cells_are_neither_recorded_nor_disturbed(shell: Session) -> None:
    """A loop in the background trains on while the cell awaits: what it does is none of the cell's."""
    shell.fresh().run(START + BACKGROUND)
    report = traced_here(shell, "before = steps\na = await f(2, 0.01)\nafter = steps\na")
    assert shell["after"] > shell["before"]
    assert {row.name for row in report.rows} == {"w", "h", "a"}
    assert [each.run_by for each in report.passes] == ["gradtrace"]
    assert [each.kind for each in report.ledger] == ["backward"]
    assert report.findings == []
    shell.run("background.cancel()\nawait asyncio.sleep(0)")
    expected = torch.ones(2)
    for _ in range(shell["steps"]):
        expected -= 0.1 * 2
    assert torch.equal(shell["theirs"].detach(), expected)


def traced_here(shell: Session, body: str) -> Report:
    assert shell.run(f"{HEADING} -o report\n{body}").error == ""
    found = shell["report"]
    assert isinstance(found, Report)
    return found


def test_a_task_that_outlives_the_cell_is_traced_no_more(shell: Session) -> None:
    """It goes on in a later cell, as without the magic; nothing is left on the stack of modes."""
    report = traced(shell, "task = asyncio.create_task(f(5, 0.02))\na = await f(2)\na")
    assert {row.name for row in report.rows} == {"w", "h", "a"}
    assert shell.run("await task").result == "tensor(15., grad_fn=<SumBackward0>)"
    assert torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.parametrize(
    "cell",
    [
        "%gradtrace -q -o report a = await f(2)",
        "a = await f(1)\n%gradtrace -q -o report a = await f(2)",
        "if True:\n    %gradtrace -q -o report a = await f(2)",
        "b = %gradtrace -q -o report a = await f(2)\nb",
        "async def g():\n    %gradtrace -q -o report a = await f(2)\nawait g()",
        "é = '''\n\f\u2028\n'''\nä = %gradtrace -q -o report a = await f(2)",
    ],
)
def test_a_line_magic_awaits_too(shell: Session, cell: str) -> None:
    """Wherever an await may stand."""
    shell.fresh().run(START)
    assert shell.run(cell).error == ""
    assert shell["report"]["h"].line == 6
    assert shell["a"].item() == 6


@pytest.mark.parametrize("top", ["%%capture kept", "%%gradtrace -q -o outer"])
def test_a_traced_cell_that_awaits_under_another_magic(shell: Session, top: str) -> None:
    """What runs the cell below it as a cell can await as well."""
    shell.fresh().run(START)
    ran = shell.run(f"{top}\n{HEADING} -o report\nprint('out')\na = await f(2)\na")
    assert ran.error == ""
    assert shell["report"]["a"].grad.values == (1.0,)
    if "outer" in top:
        assert shell["outer"]["h"].grad.values == (1.0, 1.0, 1.0)


def test_a_magic_that_cannot_await_says_what_it_says_without_ours(shell: Session) -> None:
    """%%time awaits nothing."""
    plain = shell.fresh().run(START) and shell.run("%%time\nawait f(2)")
    ran = shell.fresh().run(START) and shell.run(f"%%time\n{HEADING}\nawait f(2)")
    assert ran.error.partition(" (")[0] == plain.error.partition(" (")[0] != ""


def test_cells_that_await_nothing_are_transformed_as_without_us(shell: Session) -> None:
    """Not a letter is different, whatever the cell looks like."""
    cells = [
        "await x",
        "%%gradtrace\nx = 'await'",
        "%%gradtrace\nasync def f():\n    await x",
        "%%gradtrace\nawait x = =",
        "def f():\n    %gradtrace await x",
        "s = '''\nget_ipython().run_cell_magic('gradtrace', '', 'await x')\n'''",
        "%%time\nawait gradtrace",
    ]
    with_us = [shell.shell.transform_cell(cell) for cell in cells]
    shell.run("%unload_ext gradmagic")
    try:
        assert shell.shell.input_transformers_post == []
        assert [shell.shell.transform_cell(cell) for cell in cells] == with_us
    finally:
        shell.run("%load_ext gradmagic")
    assert len(shell.shell.input_transformers_post) == 1


@pytest.mark.parametrize("body", ["y = 1\nawait f(1)\nreturn 3", "y = 1\nawait f(1)\ndef g():\n    await f(2)"])
def test_a_cell_that_awaits_and_is_not_python_is_refused(shell: Session, body: str) -> None:
    """The compiler's own error, before anything runs (a terminal's shell without us: a RuntimeError about its loop)."""
    shell.fresh().run(START)
    ran = shell.run(f"{HEADING}\n{body}")
    assert ran.error.startswith("SyntaxError")
    assert "y" not in ran.names


def test_a_transformed_cell_may_run_again(shell: Session) -> None:
    """`%history -t` gives source that awaits the magic; it is not awaited twice."""
    source = shell.shell.transform_cell(f"{HEADING}\nawait f(2)")
    assert shell.shell.transform_cell(source) == source
    shell.fresh().run(START)
    assert shell.run(source).result == "tensor(6., grad_fn=<SumBackward0>)"


def test_a_magic_of_the_person_by_our_name_is_not_awaited(shell: Session) -> None:
    """What they have put in its place is called as before."""
    shell.shell.register_magic_function(lambda line, cell: cell, "cell", "gradtrace")
    try:
        assert shell.fresh().run("%%gradtrace\nawait x").result == repr("await x\n")
    finally:
        shell.run("%reload_ext gradmagic")


def test_source_of_an_async_traced_cell_is_where_it_was_typed(shell: Session) -> None:
    """A later error points into the cell and the line of the margin."""
    shell.fresh().run(START)
    shell.run(f"{HEADING}\nawait f(1)\ndef g(a):\n    return 1 / a")
    assert "Cell In[2], line 4, in g(a)" in shell.run("g(0)").stdout


# ---- trace() in coroutines


def test_traces_in_tasks_that_take_turns_are_two_reports() -> None:
    """Each has its own tensors, whatever the order in which they begin and end."""

    async def work(factor: int, seconds: float) -> Report | None:
        with trace() as run:
            w = torch.ones(2, requires_grad=True)
            for _ in range(3):
                h = w * factor
                await asyncio.sleep(seconds)
            loss = h.sum() + 0 * w.sum()
        assert w.grad is not None
        assert w.grad.tolist() == [factor, factor]
        assert loss.requires_grad
        return run.report

    async def both() -> list[Report | None]:
        return await asyncio.gather(work(2, 0.002), work(3, 0.001), work(5, 0.003))

    for report in asyncio.run(both()):
        assert report is not None
        assert report["h"].count == 3
        assert report["w"].count == 1
        assert len(report.passes) == 1
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_trace_within_a_trace_around_tasks() -> None:
    """The outer one sees what the tasks do under theirs; each of those only its own."""

    async def work(factor: int) -> Report | None:
        with trace(backward="none") as run:
            w = torch.ones(2, requires_grad=True)
            await asyncio.sleep(0)
            h = w * factor  # noqa: F841 - its name is what is looked for
        return run.report

    async def main() -> tuple[Report | None, list[Report | None]]:
        with trace() as outer:
            inner = await asyncio.gather(work(2), work(3))
            loss = torch.ones(1, requires_grad=True).sum()  # noqa: F841 - as above
        return outer.report, inner

    outer, inner = asyncio.run(main())
    assert [row.count for report in inner if report for row in report.rows if row.op == "mul"] == [1, 1]
    assert outer is not None
    assert [row.count for row in outer.rows if row.op == "mul"] == [2]
