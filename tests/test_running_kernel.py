"""A real kernel: interrupts while it records, runs backward and draws; cells that await; subshells."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from test_notebook_kernel import Notebook, is_report, outputs

# pyzmq and jupyter_client warn about event loops and paths of their own making.
pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]

START = """
%load_ext gradmagic
import asyncio, os, signal, threading, time, torch
import gradmagic.report
seeded = torch.manual_seed(0)
def interrupt_soon(seconds=0.3):
    main = threading.main_thread().ident  # where the system delivers a signal from outside
    threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT)).start()
def long():
    interrupt_soon()
    for _ in range(200):
        time.sleep(0.05)
class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        return t * 2
    @staticmethod
    def backward(ctx, grad):
        long()
        return grad * 2
async def f(k, seconds=0):
    await asyncio.sleep(seconds)
    h = w * k
    return h.sum()
"""
FRESH = "w = torch.ones(3, requires_grad=True)\nmodes = torch.overrides._get_current_function_mode_stack"


@pytest.fixture(scope="module")
def kernel() -> Iterator[Notebook]:
    opened = Notebook()
    with opened.client.setup_kernel():
        opened.run(START, allow_errors=False)
        yield opened


def errors(cell: Any) -> list[str]:
    return [output.ename for output in cell.outputs if output.output_type == "error"]


def reports(cell: Any) -> list[str]:
    return [output.data["text/plain"] for output in cell.outputs if is_report(output)]


def check_goes_on(kernel: Notebook) -> None:
    """The next cells run, plain and traced, and nothing of ours is left."""
    cell = kernel.run("print(modes(), get_ipython().custom_exceptions)")
    assert [output.text for output in cell.outputs] == ["[] ()\n"]
    cell = kernel.run("%%gradtrace\nl = (w * 2).sum()")
    assert errors(cell) == []
    assert "backward from l" in reports(cell)[0]


INTERRUPTED = {
    "recording": "h = w * 2\ninterrupt_soon()\nwhile True:\n    k = h * 3",
    "in Python": "h = w * 2\nlong()",
    "in the cell's own backward": "h = w * 2\nSlow.apply(h).sum().backward()",
    "in a hook": "h = w * 2\nh.register_hook(lambda g: long())\nh.sum().backward()",
    "in a thread it waits for": "h = w * 2\nt = threading.Thread(target=time.sleep, args=(1,))\nt.start()\n"
    "interrupt_soon(0.2)\nt.join()",
}


@pytest.mark.parametrize("body", INTERRUPTED.values(), ids=INTERRUPTED.keys())
def test_an_interrupt_ends_the_cell_once_and_what_was_traced_is_shown(kernel: Notebook, body: str) -> None:
    """The outputs are those without the magic, and the report of what ran; the next cell works."""
    kernel.run(FRESH)
    plain = kernel.run(f"# %%gradtrace\n{body}")
    kernel.run(FRESH)
    cell = kernel.run(f"%%gradtrace\n{body}")
    assert errors(cell) == errors(plain) == ["KeyboardInterrupt"]
    assert comparable(cell) == comparable(plain)
    [text] = reports(cell)
    assert re.search(r"^ +2 +h ", text, re.MULTILINE)
    check_goes_on(kernel)


def comparable(cell: Any) -> list[str]:
    """The traceback's lines of the cell's own; an interrupt may hit any line of a loop, and any frame below."""
    return [re.sub(r"line \d+|-+> *\d+|^ +\d+|\\n.*", "", text)[:200] for text in outputs(cell)]


def test_an_interrupt_of_the_backward_that_gradtrace_runs(kernel: Notebook) -> None:
    """It is the person's: raised once, after the report; the values of the cell are there."""
    kernel.run(FRESH)
    cell = kernel.run("%%gradtrace\nh = w * 2\nl = Slow.apply(h).sum()")
    assert errors(cell) == ["KeyboardInterrupt"]
    [text] = reports(cell)
    assert re.search(r"^ +2 +h ", text, re.MULTILINE)
    assert kernel.run("print(l.item(), w.grad)").outputs[0].text == "12.0 None\n"
    check_goes_on(kernel)


DRAW = """
drawn = gradmagic.report.Report._repr_mimebundle_
def slowly(report, *args, **kwargs):
    gradmagic.report.Report._repr_mimebundle_ = drawn
    long()
gradmagic.report.Report._repr_mimebundle_ = slowly
"""


@pytest.mark.parametrize(("ending", "error"), [("l", ""), ("1 / 0", "ZeroDivisionError")])
def test_an_interrupt_while_the_report_is_drawn(kernel: Notebook, ending: str, error: str) -> None:
    """It ends the drawing, is told once, and hides no error of the cell; the values are there."""
    kernel.run(FRESH + DRAW)
    cell = kernel.run(f"%%gradtrace -o report\nl = (w * 2).sum()\n{ending}")
    assert errors(cell) == ["KeyboardInterrupt"]
    shown = "".join(outputs(cell))
    assert shown.count("KeyboardInterrupt: ") == 1
    assert error in shown
    assert kernel.run("print(l.item(), report['l'].line)").outputs[0].text == "6.0 2\n"
    check_goes_on(kernel)


AWAITING = {
    "value": "a = await f(2)\na",
    "both streams": "import sys\nawait f(1)\nprint('out')\nprint('err', file=sys.stderr)",
    "error": "x = await f(2)\n1 / 0",
    "error in a coroutine": "await f('a')",
    "tasks": "a, b = await asyncio.gather(f(1), f(2))\n(a + b).item()",
    "a loop that runs already": "c = f(2)\ntry:\n    asyncio.run(c)\nfinally:\n    c.close()",
    "interrupt": "a = await f(2)\ninterrupt_soon()\nawait asyncio.sleep(1)",
    "interrupt of a task": "a = await f(2)\ninterrupt_soon()\nawait asyncio.gather(asyncio.sleep(1), f(2, 1))",
    "interrupt between awaits": "a = await f(2)\ninterrupt_soon()\ntime.sleep(0.6)\nawait asyncio.sleep(0.5)",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("body", AWAITING.values(), ids=AWAITING.keys())
def test_a_cell_that_awaits_arrives_as_without_the_magic(kernel: Notebook, body: str) -> None:
    """Outputs are equal, the report is one more; the next cell works."""
    kernel.run(FRESH)
    plain = kernel.run(f"# %%gradtrace\n{body}")
    kernel.run(FRESH)
    traced = kernel.run(f"%%gradtrace\n{body}")
    assert outputs(traced) == outputs(plain)
    assert errors(plain) == ["CancelledError"] or "interrupt" not in body  # what ipykernel makes of an interrupt
    assert len(reports(traced)) == 1
    if "await f(2)\n" in body:
        assert re.search(r"^ +2 .*[ax] +sum ", reports(traced)[0], re.MULTILINE)
    check_goes_on(kernel)


BESIDE = """
theirs = torch.ones(2, requires_grad=True)
for _ in range(60):
    theirs.grad = None
    (theirs * 2).sum().backward()
    time.sleep(0.01)
print('beside')
"""


def exchange(kernel: Notebook, kind: str, content: dict[str, Any], *, control: bool = False) -> Any:
    """Send a message that nbclient does not know of; what the kernel replies."""
    client = kernel.client.kc
    channel = client.control_channel if control else client.shell_channel
    message = client.session.msg(kind, content)
    channel.send(message)
    return message


def reply(kernel: Notebook, message: Any, *, control: bool = False) -> Any:
    from jupyter_core.utils import run_sync

    client = kernel.client.kc
    channel = client.control_channel if control else client.shell_channel
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        found = run_sync(channel.get_msg)(timeout=30)
        if found["parent_header"].get("msg_id") == message["header"]["msg_id"]:
            return found["content"]
    raise TimeoutError


def test_cells_in_a_subshell_are_no_part_of_a_traced_cell(kernel: Notebook) -> None:
    """Training in a subshell meanwhile: its tensors and passes are not in the report."""
    kernel.run(FRESH)
    about = reply(kernel, exchange(kernel, "kernel_info_request", {}, control=True), control=True)
    if "kernel subshells" not in about.get("supported_features", ()):
        pytest.skip("this ipykernel has no subshells")
    answer = reply(kernel, exchange(kernel, "create_subshell_request", {}, control=True), control=True)
    client = kernel.client.kc
    beside = client.session.msg("execute_request", {"code": BESIDE, "silent": False, "store_history": False})
    beside["header"]["subshell_id"] = answer["subshell_id"]
    client.shell_channel.send(beside)
    cell = kernel.run(
        "%%gradtrace -o report\na = w * 2\nwhile not globals().get('theirs') is not None: time.sleep(0.01)\n"
        "time.sleep(0.3)\nl = a.sum()"
    )
    assert errors(cell) == []
    names = kernel.run("print([row.name for row in report], [e.kind for e in report.ledger], report.findings)")
    assert names.outputs[0].text == "['w', 'a', 'l'] ['backward'] []\n"
    check_goes_on(kernel)
