"""Law 4: nothing is left behind, whatever happens in the cell; and the faults of a cell stay the cell's own."""

from __future__ import annotations

import gc
import subprocess
import sys
import traceback
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import run_traced
from torch.nn.modules import module as module_state
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from gradmagic.tracing import trace

SOURCE = """
import torch.nn as nn
model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
x = torch.randn(2, 3)
h = model[0](x)
loss = model(x).sum() + h.sum()
"""


def assert_nothing_entered() -> None:
    """No mode on any stack, no global hook."""
    assert not _get_current_function_mode_stack()
    assert not _get_current_dispatch_mode_stack()
    assert not module_state._global_forward_hooks
    assert not module_state._global_forward_pre_hooks
    assert not module_state._global_backward_hooks


@pytest.fixture(autouse=True)
def _clean() -> Any:
    assert_nothing_entered()
    before = torch.Tensor.backward, torch.autograd.grad, torch.nn.Module.__call__, sys.displayhook
    yield
    assert_nothing_entered()
    assert before == (torch.Tensor.backward, torch.autograd.grad, torch.nn.Module.__call__, sys.displayhook)


def test_the_report_keeps_no_tensor_module_or_frame_alive() -> None:
    """Once the person's variables are gone, so is all the trace saw, though the report lives."""
    report, namespace = run_traced(SOURCE)
    watched = [weakref.ref(namespace[name]) for name in ("model", "x", "h", "loss")]
    watched += [weakref.ref(p) for p in namespace["model"].parameters()]
    namespace.clear()
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)
    assert report["loss"].grad is not None
    assert report["loss"].tensor is None


def test_the_hooks_of_the_person_have_the_numbers_that_they_have_without_the_trace() -> None:
    """A module shows them; ours are used up by watching steps, modules and backward, and by the guests."""
    watched = torch.ones(2, requires_grad=True)
    numbers = [watched.register_hook(print).id]
    with trace(namespace={}):
        numbers.append(watched.register_hook(print).id)
        attention = torch.nn.MultiheadAttention(4, 2)
        optimizer = torch.optim.SGD(attention.parameters())
        x = torch.ones(3, 1, 4)
        numbers.append(watched.register_hook(print).id)
        loss = attention(x, x, x)[0].sqrt().sum()
        loss.backward()
        optimizer.step()
        numbers.append(attention.register_forward_hook(lambda *_: None).id)
    with trace(namespace={}):
        loss = attention(x, x, x)[0].sum()
    numbers.append(watched.register_hook(print).id)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_intermediates_are_freed_while_the_cell_still_runs() -> None:
    """A tensor that the cell deletes is gone at once, as without the magic."""
    gc.disable()
    try:
        with trace(namespace={}):
            w = torch.ones(3, requires_grad=True)
            y = w + 1
            watched = weakref.ref(y)
            del y
            freed = watched() is None
    finally:
        gc.enable()
    assert freed


def test_hooks_on_the_graph_are_gone_after_the_trace() -> None:
    """A later backward through the kept graph calls nothing of ours."""
    report, namespace = run_traced(SOURCE)
    before = len(report["h"].grads)
    namespace["loss"].backward()
    assert len(report["h"].grads) == before
    modules = namespace["model"].modules()
    assert all(not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks for m in modules)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_an_exception_of_the_cell_goes_on_as_the_same_object(error: BaseException) -> None:
    """Any kind; the report is there, and nothing is left entered."""
    run = trace()
    with pytest.raises(type(error)) as caught, run:
        torch.ones(2, requires_grad=True).sum()
        raise error
    assert caught.value is error
    assert run.report is not None


def test_the_traceback_of_an_error_in_a_torch_call_has_no_frame_of_ours() -> None:
    """A shape error points at the person's line; what catches it inside the cell sees no recorder either."""
    with trace():
        try:
            torch.ones(2, 3) @ torch.ones(2, 3)
        except RuntimeError as caught:
            frames = traceback.extract_tb(caught.__traceback__)
    assert [frame.filename for frame in frames] == [__file__]


@pytest.mark.parametrize(
    "call",
    ["F.batch_norm(x, None, None, training=True, eps=-1.0)", "F.max_pool2d(x, 2)", "F.cross_entropy(x, x.long())"],
)
def test_the_traceback_of_an_error_in_a_python_function_of_torch_is_that_of_the_untraced_run(call: str) -> None:
    """Frame by frame: the function does not show twice because it went by way of the recorder."""
    source = f"import torch.nn.functional as F\nx = torch.ones(2, 3, requires_grad=True)\n{call}\n"
    frames = []
    for run in (lambda: exec(source, {"torch": torch}), lambda: run_traced(source)):
        with pytest.raises((RuntimeError, ValueError, IndexError)) as caught:
            run()
        found = [
            (frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(caught.value.__traceback__)
        ]
        frames.append([frame for frame in found if "torch" in frame[0]])
    assert frames[0] == frames[1] != []


def test_an_interrupt_during_gradtraces_own_backward_reaches_the_person_with_the_report_made() -> None:
    """Ctrl-C in a hook: the report is there, `.grad` is as before, the interrupt goes on."""
    w = torch.ones(2, requires_grad=True)
    run = trace(namespace={"w": w})

    def interrupt(_: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run:
        y = w * 2
        y.register_hook(interrupt)
        run.offer(y.sum())
    assert run.report is not None
    assert run.report.passes[0].error is not None
    assert w.grad is None


def test_an_error_in_a_persons_hook_during_gradtraces_backward_is_a_finding() -> None:
    """The plain cell would not have run it: it is told, not raised, and `.grad` stays as it was."""
    w = torch.ones(2, requires_grad=True)
    run = trace(namespace={"w": w})

    def fail(_: torch.Tensor) -> None:
        raise ValueError("my hook")

    with run:
        y = w * 2
        y.register_hook(fail)
        run.offer(y.sum())
    assert run.report is not None
    assert [found.kind for found in run.report.findings] == ["backward_failed"]
    assert "my hook" in run.report.findings[0].detail
    assert w.grad is None


class Counting(TorchFunctionMode):
    """Counts the calls it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


def calls_of(program: Any) -> list[str]:
    """The calls a mode around `program` sees."""
    with Counting() as mode:
        program()
    return mode.calls


def test_a_mode_of_the_persons_own_sees_every_call_once_inside_and_outside() -> None:
    """Neither hidden nor doubled by the recorder."""

    def program() -> None:
        w = torch.ones(3, requires_grad=True)
        y = torch.nn.functional.relu(w * 2)
        y.sum().backward()

    plain = calls_of(program)

    def traced() -> None:
        with trace(backward="none"):
            program()

    def inside() -> list[str]:
        with trace(backward="none"):
            return calls_of(program)

    assert calls_of(traced) == plain
    assert inside() == plain


def test_a_mode_that_the_cell_leaves_entered_stays_entered() -> None:
    """Only the recorder is taken off the stack."""
    mode = Counting()
    with trace():
        mode.__enter__()
    assert _get_current_function_mode_stack() == [mode]
    mode.__exit__(None, None, None)


def test_a_recording_fault_of_ours_is_disclosed_and_the_cell_runs_on() -> None:
    """A tensor subclass that refuses everything we ask must not break the person's cell."""

    class Stubborn(torch.Tensor):
        @property
        def requires_grad(self) -> bool:  # type: ignore[override]
            raise RuntimeError("do not ask")

    report, namespace = run_traced(
        "y = s * 2\nw = torch.ones(1, requires_grad=True)\nloss = w.sum()\n", s=Stubborn([1.0])
    )
    assert namespace["y"].tolist() == [2.0]
    assert report["w"].grad is not None
    assert [found.kind for found in report.findings] == ["not_traced"]


def test_the_random_stream_is_untouched_by_a_backward_that_draws_from_it() -> None:
    """Recomputing a checkpoint or a custom backward with noise leaves the person's stream where it was."""

    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return g + torch.rand_like(g)

    torch.manual_seed(5)
    w = torch.ones(2, requires_grad=True)
    with trace() as run:
        run.offer(Noisy.apply(w).sum())
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert w.grad is not None


def test_modules_with_a_failing_named_modules_are_named_by_their_class() -> None:
    """The person's override is not ours to trip over."""
    report, _ = run_traced(
        "import torch.nn as nn\nclass Odd(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(2, 1)\n    def named_modules(self, *a, **k):\n        raise RuntimeError('no')\n"
        "    def forward(self, x):\n        return self.fc(x)\nodd = Odd()\nloss = odd(torch.ones(1, 2)).sum()\n"
    )
    assert report["loss"].grad is not None
    assert "odd.fc" in {row.module for row in report.rows}


WARNINGS = """
import torch.nn.functional as F
w = torch.ones(2, 3, 4, requires_grad=True)
for _ in range(2):
    a = torch.tensor(w)
b = torch.tensor(w)
d = F.softmax(w)
def f(t):
    return F.mse_loss(t, torch.zeros(1))
e = f(w)
"""


def warnings_of(program: Any) -> list[tuple[str, str, int]]:
    """Text, file and line of every warning that is shown by default, once a place."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        program()
    return [(str(each.message), each.filename, each.lineno) for each in caught]


def test_warnings_name_the_persons_file_and_line_and_are_shown_once_a_place() -> None:
    """From C++ and from Python; as without the magic."""
    namespace: dict[str, Any] = {"torch": torch, "__name__": "cell"}

    def plain() -> None:
        exec(compile(WARNINGS, "<cell>", "exec"), dict(namespace))

    def traced() -> None:
        with trace(namespace={}, backward="none"):
            exec(compile(WARNINGS, "<cell>", "exec"), dict(namespace))

    expected = warnings_of(plain)
    assert len(expected) >= 3
    assert {file for _, file, _ in expected} >= {"<cell>"}
    assert warnings_of(traced) == expected


DEEP = """
import torch
from gradmagic.tracing import trace

with trace() as run:
    w, v = torch.ones(SHAPE, requires_grad=True), torch.ones(SHAPE, requires_grad=True)
    h = w
    for _ in range(60_000):
        h = h OPERATION
    loss = (h * v).sum()
    BACKWARD
    del h
assert run.report["w"].grad.values == (1.0, 1.0)
assert run.report["h"].grad.values == (1.0, 1.0)
print([found.kind for found in run.report.findings])
del loss
print("alive")
"""


@pytest.mark.parametrize("backward", ["pass", "loss.backward()"])
@pytest.mark.parametrize("operation", ["+ 1", "* v"])  # a product saves its factors, which keeps all of them alive
@pytest.mark.parametrize("shape", ["2", "()"])
def test_a_graph_of_60_000_operations_in_a_chain_is_traced_and_freed_without_a_crash(
    shape: str, operation: str, backward: str, tmp_path: Path
) -> None:
    """PyTorch overflows the stack when it frees so many nodes that Python has looked at; so we do not look at all."""
    script = tmp_path / "deep.py"
    source = DEEP.replace("SHAPE", shape).replace("OPERATION", operation).replace("BACKWARD", backward)
    script.write_text(source if shape == "2" else source.replace("(1.0, 1.0)", "(1.0,)"))
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ran.stdout.split("\n")[:2] == ["['too_deep']", "alive"], ran.stderr
    assert ran.returncode == 0
