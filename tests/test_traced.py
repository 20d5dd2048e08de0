"""`@gradmagic.traced`: the function stays what it was, and each call has its report."""

from __future__ import annotations

import asyncio
import functools
import inspect
import pickle
import re
import runpy
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_examples import readme_example

import gradmagic
from gradmagic.report import Report


@gradmagic.traced
def loss_of(w: torch.Tensor, scale: float = 3.0) -> torch.Tensor:
    """The loss, by its own words."""
    h = w * scale
    return h.pow(2).sum()


@gradmagic.traced(backward="returned['loss']", values=True)
def parts_of(w: torch.Tensor) -> dict[str, torch.Tensor]:
    h = w * 2
    return {"h": h, "loss": h.sum()}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)

    @gradmagic.traced
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).sum()


def report_of(function: Any) -> Report:
    assert isinstance(function.report, Report)
    return function.report


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


def test_the_returned_scalar_is_the_root_and_gradients_are_plain_pytorchs() -> None:
    """The value is what it was; rows have the names and lines of the function."""
    w, plain = leaf(1.0, 2.0), leaf(1.0, 2.0)
    value = loss_of(w)
    expected = (plain * 3.0).pow(2).sum()
    expected.backward()
    assert torch.equal(value, expected)
    report = report_of(loss_of)
    assert report["w"].grad is not None
    assert report["w"].grad.values == tuple(plain.grad.tolist())
    assert report["h"].line == inspect.unwrap(loss_of).__code__.co_firstlineno + 3
    assert str(report["h"].location) == f"line {report['h'].line}"
    assert report.root is report.rows[-1]
    assert "cell" not in str(report)


def test_the_backward_that_follows_gives_what_it_gives_without() -> None:
    """The gradient that tracing left is a guest."""
    w = leaf(1.0, 2.0)
    loss_of(w).backward()
    assert w.grad.tolist() == [18.0, 36.0]


def test_the_last_call_has_the_report() -> None:
    """None before the first."""

    @gradmagic.traced
    def f(w):
        return (w * w).sum()

    assert f.report is None
    f(leaf(1.0))
    first = report_of(f)
    f(leaf(5.0))
    assert (first["w"].grad.values, f.report["w"].grad.values) == ((2.0,), (10.0,))


def test_backward_starts_from_what_is_returned_by_name() -> None:
    """An expression sees `returned`, the arguments and the globals; values are there when they are asked for."""
    parts_of(leaf(1.0))
    report = report_of(parts_of)
    assert report["w"].grad.values == (2.0,)
    assert report["h"].forward.norm == 2.0


def test_a_hint_names_the_decorator() -> None:
    """The code to write instead is that of the decorator, and there is no cell."""

    @gradmagic.traced
    def f(w):
        return w * w

    f(leaf(1.0, 2.0))
    finding = report_of(f).findings[0]
    assert finding.hint == '@gradmagic.traced(backward="returned.sum()")'
    again = gradmagic.traced(backward="returned.sum()")(inspect.unwrap(f))
    again(leaf(1.0, 2.0))
    assert report_of(again)["w"].grad.values == (2.0, 4.0)
    assert "the function made no single number" in finding.message


def test_a_function_keeps_its_face() -> None:
    """Name, docstring, signature, pickling, defaults, and the error of a wrong call."""
    assert (loss_of.__name__, loss_of.__doc__) == ("loss_of", "The loss, by its own words.")
    assert list(inspect.signature(loss_of).parameters) == ["w", "scale"]
    assert pickle.loads(pickle.dumps(loss_of)) is loss_of
    with pytest.raises(TypeError, match=r"loss_of\(\) missing 1 required positional argument: 'w'"):
        loss_of()


def test_a_method_is_bound_and_parameters_have_their_names() -> None:
    """Also as the `forward` of a module."""
    torch.manual_seed(0)
    net = Net()
    net(torch.ones(1, 2))
    assert net.forward.report is Net.forward.report
    assert net.forward.report["self.fc.bias"].grad.values == (1.0, 1.0)


def test_a_static_and_a_class_method_are_traced_inside_of_them() -> None:
    """The other way round is refused."""

    class A:
        @staticmethod
        @gradmagic.traced
        def f(w):
            return w.sum()

        @classmethod
        @gradmagic.traced
        def g(cls, w):
            return (w * 2).sum()

    A.f(leaf(1.0))
    A().g(leaf(1.0))
    assert A.f.report["w"].grad.values == (1.0,)
    assert A.g.report["w"].grad.values == (2.0,)
    with pytest.raises(TypeError, match="write @staticmethod above"):
        gradmagic.traced(staticmethod(leaf))


def test_an_error_is_the_functions_own_and_leaves_a_report() -> None:
    """What was made until then."""

    @gradmagic.traced
    def f(w):
        h = w * 2
        raise KeyError(h.shape)

    with pytest.raises(KeyError):
        f(leaf(1.0))
    assert "The function stopped with an error" in str(f.report)
    assert "h" in f.report
    with pytest.raises(KeyError):  # and it is traced again
        f(leaf(1.0, 2.0))
    assert f.report["h"].shape == (2,)


def test_recursion_is_one_report() -> None:
    """The outermost call has it."""
    seen: list[object] = []

    @gradmagic.traced
    def f(w, depth):
        seen.append(f.report)
        return f(w * 2, depth - 1) if depth else w.sum()

    w = leaf(1.0)
    f(w, 3)
    assert seen == [None] * 4
    assert w.grad.tolist() == [8.0]
    assert sum(row.count for row in f.report.rows if row.op == "mul") == 3


def test_one_traced_function_in_another_has_its_own_report() -> None:
    """The outer one sees both."""

    @gradmagic.traced
    def inner(w):
        return w * 2

    @gradmagic.traced
    def outer(w):
        return inner(w).sum()

    outer(leaf(1.0))
    assert "mul" in {row.op for row in outer.report.rows}
    assert "sum" not in {row.op for row in inner.report.rows}


def test_threads_are_traced_each_by_itself() -> None:
    """A call in another thread, while one runs here, is no inner call."""
    reports: list[Report] = []

    @gradmagic.traced
    def f(w, go=None):
        if go is not None:
            thread = threading.Thread(target=go)
            thread.start()
            thread.join()
        return (w * 2).sum()

    def other() -> None:
        f(leaf(1.0, 2.0))
        reports.append(f.report)

    f(leaf(1.0), other)
    assert reports[0]["w"].shape == (2,)
    assert f.report["w"].shape == (1,)


def test_a_coroutine_is_traced_until_it_returns() -> None:
    """Other tasks of the loop are left out."""

    @gradmagic.traced
    async def f(w):
        h = w * 2
        await asyncio.sleep(0)
        return h.sum()

    async def noise() -> torch.Tensor:
        await asyncio.sleep(0)
        return torch.ones(7).exp()

    async def both():
        return await asyncio.gather(f(leaf(3.0)), noise())

    assert inspect.iscoroutinefunction(f)
    value, _ = asyncio.run(both())
    assert value.item() == 6.0
    assert f.report["h"].grad.values == (1.0,)
    assert "exp" not in {row.op for row in f.report.rows}


def generator():
    yield 1


async def async_generator():
    yield 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (generator, "`generator` is a generator: between its steps other code runs"),
        (async_generator, "`async_generator` is a generator"),
        (Net, "`Net` is a class; put @gradmagic.traced on the method that computes"),
        (torch.nn.Linear(1, 1), "`Linear` is no function written in Python"),
        (torch.relu, "relu` is no function written in Python"),
        (functools.partial(leaf, 1.0), "`partial` is no function written in Python"),
    ],
)
def test_what_cannot_be_traced_is_refused_at_once(function: Any, said: str) -> None:
    """With the reason, and what to write instead."""
    with pytest.raises(TypeError, match=said.replace("(", r"\(")):
        gradmagic.traced(function)


def test_it_prints_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """`show=True` prints the table after each call."""
    loss_of(leaf(1.0))
    assert capsys.readouterr().out == ""
    gradmagic.traced(show=True)(inspect.unwrap(loss_of))(leaf(1.0))
    assert "backward from " in capsys.readouterr().out


def test_the_code_of_a_report_is_the_function(tmp_path: Path) -> None:
    """Not the whole file around it."""
    loss_of(leaf(1.0))
    source = report_of(loss_of).source
    assert source is not None
    assert source.lines[0] == "@gradmagic.traced"
    assert source.lines[-1] == "    return h.pow(2).sum()"
    assert report_of(loss_of)["h"].line == source.line + 3


def test_a_function_without_a_file_is_traced(recwarn: pytest.WarningsRecorder) -> None:
    """One that `exec` made has no lines to show, and its report all the same."""
    space: dict[str, Any] = {}
    exec("def f(w):\n    return (w * 2).sum()\n", space)
    f = gradmagic.traced(space["f"])
    f(leaf(1.0))
    assert [row.op for row in f.report.rows] == ["leaf", "mul", "sum"]
    assert not recwarn.list


def test_a_fault_of_gradmagic_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value is handed on, and the report is None."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr("gradmagic.tracing._Finish.report", fail)
    with pytest.warns(RuntimeWarning, match="could not make its report .*inside.* the function itself ran") as caught:
        value = loss_of(leaf(1.0))
    assert value.item() == 9.0
    assert loss_of.report is None
    assert caught[0].filename == __file__


def test_nothing_of_a_call_is_kept() -> None:
    """Tensors die with the call, warnings stay away, no mode is left."""
    import gc
    import weakref

    w = leaf(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(w)
    gone = weakref.ref(w)
    del w
    gc.collect()
    assert gone() is None
    assert not torch.overrides._get_current_function_mode_stack()


def test_readmes_example_prints_what_its_comment_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a person runs it, from a file."""
    source = readme_example("traced")
    file = tmp_path / "script.py"
    file.write_text(source, encoding="utf-8")
    runpy.run_path(str(file))
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)\s+# (.*)", source) != []


@pytest.mark.real
def test_type_checkers_see_the_functions_own_types(tmp_path: Path) -> None:
    """Arguments and result stay, of functions and methods, and `report` is there."""
    pytest.importorskip("mypy")
    file = tmp_path / "typed.py"
    file.write_text(
        textwrap.dedent("""
            import gradmagic

            @gradmagic.traced
            def f(x: int) -> str:
                return str(x)

            class A:
                @gradmagic.traced(backward="none")
                def g(self, x: int) -> float:
                    return x

            reveal_type(f(1))
            reveal_type(A().g(1))
            reveal_type(f.report)
            reveal_type(A().g.report)
            f("no")
        """),
        encoding="utf-8",
    )
    root = Path(gradmagic.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(file)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )
    told = [line.split(": ", 2)[2] for line in done.stdout.splitlines() if "typed.py" in line]
    assert told[:2] == ['Revealed type is "str"', 'Revealed type is "float"']
    assert all("Report | None" in line for line in told[2:4])
    assert 'Argument 1 to "__call__" of "TracedFunction" has incompatible type "str"; expected "int"' in told[4]
    assert len(told) == 5
