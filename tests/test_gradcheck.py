"""`--gradcheck`: custom Functions, checked with what a cell gave them."""

from __future__ import annotations

import cProfile
import random
import re
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from shells import Session
from test_hostile import PAYLOADS

from gradmagic.differences import MOST_COMPARED
from gradmagic.function_calls import MOST_ELEMENTS, MOST_IN_ALL, FunctionWatch
from gradmagic.function_checks import FunctionCheck, FunctionChecks
from gradmagic.gradchecking import SLOW_UP_TO, gradchecked
from gradmagic.render.function_checks import render_html, render_text

HEAD = (
    "import torch\nx = torch.tensor([[1.0, -2.0, 3.0]], requires_grad=True)\nw = torch.ones(3, 2, requires_grad=True)\n"
)


def function(forward: str, backward: str, args: str = "x", saves: str = "x", name: str = "F") -> str:
    """Source of a Function in two lines."""
    return (
        f"class {name}(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, {args}):\n"
        f"        ctx.save_for_backward({saves})\n        return {forward}\n    @staticmethod\n"
        f"    def backward(ctx, g):\n        {saves}{',' if saves else 'saved'} = ctx.saved_tensors\n"
        f"        return {backward}\n"
    )


def checks_of(source: str) -> FunctionChecks:
    """What a piece of code has applied, checked."""
    watch = FunctionWatch("<cell>")
    with watch:
        exec(compile(HEAD + source, "<cell>", "exec"), {"__name__": "__main__"})
    assert sys.getprofile() is None
    return gradchecked(watch)


def only(source: str) -> FunctionCheck:
    """The one Function of a piece of code."""
    (found,) = checks_of(source)
    return found


RIGHT = {
    "one input": function("x.pow(2)", "2 * g * x") + "F.apply(x)",
    "two inputs": function("x @ w", "(g @ w.T, x.T @ g)", "x, w", "x, w") + "F.apply(x, w)",
    "a number and a mask": function("x * k * m", "(g * 3 * m, None, None)", "x, k, m", "x, m")
    + "F.apply(x, 3, torch.tensor([[1, 0, 1]]))",
    "an input that needs none": function("x @ w", "(g @ w.T, None)", "x, w", "x, w") + "F.apply(x, w.detach())",
    "not contiguous": function("x.exp()", "g * x.exp()") + "F.apply(torch.ones(3, 4, requires_grad=True).T)",
    "complex": function("x * x", "2 * g * x.conj()")
    + "F.apply(torch.ones(2, dtype=torch.complex64, requires_grad=True))",
    "half precision": function("x * 3", "g * 3") + "F.apply(x.half())",
    "an undefined gradient is not for one output": function("x * 2", "g * 2").replace(
        "ctx.save_for", "ctx.set_materialize_grads(False); ctx.save_for"
    )
    + "F.apply(x)",
    "random numbers of NumPy": "import numpy as np\n"
    + function("x * ctx.m", "g * ctx.m").replace("ctx.save_for", "ctx.m = np.random.rand(); ctx.save_for")
    + "F.apply(x)",
    "a metaclass that will not hash": "class M(type(torch.autograd.Function)):\n    __hash__ = None\n"
    + function("x * 2", "g * 2").replace("Function)", "Function, metaclass=M)")
    + "F.apply(x)",
    "random": function("x * (m := torch.rand_like(x))", "g * ctx.m")
    .replace("return x * (m", "ctx.m = m\n        return m * x  # (")
    .replace("ctx.m = m\n", "m = ctx.m = torch.rand_like(x)\n")
    + "F.apply(x)",
    "several outputs": """class F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_non_differentiable(i := x.argmax(1))
        return x * 2, i, x.sum()
    @staticmethod
    def backward(ctx, a, _, b):
        return a * 2 + b
F.apply(x)""",
    "in place": """class F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)
    @staticmethod
    def backward(ctx, g):
        return g * 2
F.apply(x * 1)""",
    "setup_context": """class F(torch.autograd.Function):
    @staticmethod
    def forward(x, k=2):
        return x * k
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.k = inputs[1]
    @staticmethod
    def backward(ctx, g):
        return g * ctx.k, None
F.apply(x, k=5)""",
}


@pytest.mark.parametrize("source", RIGHT.values(), ids=RIGHT.keys())
def test_a_right_backward_passes(source: str) -> None:
    """Of every kind of input and output."""
    found = only(source)
    assert (found.verdict, found.message) == ("passed", "")


WRONG = {
    "factor": (function("x.pow(2)", "g * x") + "F.apply(x)", "x", "gives 1/2 times the gradient of `x`"),
    "sign": (function("x.pow(2)", "-2 * g * x") + "F.apply(x)", "x", "of `x` with the wrong sign"),
    "factor and sign": (
        function("x.pow(2)", "-6 * g * x") + "F.apply(x)",
        "x",
        "gives 3 times the gradient of `x`, with",
    ),
    "none": (function("x @ w", "(g @ w.T, None)", "x, w", "x, w") + "F.apply(x, w)", "w", "returns None for `w`"),
    "zeros": (
        function("x.softmax(-1)", "g * 0") + "F.apply(x)",
        "x",
        "gives only zeros for `x`; for the sum of the output",
    ),
    "two": (
        function("x @ w", "(2 * g @ w.T, 3 * x.T @ g)", "x, w", "x, w") + "F.apply(x, w)",
        "w",
        "gives 3 times the gradient of `w`; for the sum of the output, `w[2, 0]` gets 9 and should get 3, "
        "by differences. Wrong too: `x`.",
    ),
    "not finite": (function("x * 2", "g * float('nan')") + "F.apply(x)", "x", "gives NaN or infinity"),
    "straight through": (function("x.round()", "g") + "F.apply(x * 0.7)", "x", "with which the output does not change"),
    "beside a kink": (function("x.clamp(min=0)", "2 * g * (x > 0)") + "F.apply((x > 0) * x)", "x", "gives 2 times"),
    "single precision": (function("x.float().exp()", "2 * g * x.exp()") + "F.apply(x)", "x", "gives 2 times"),
    "a kink where any slope between would do": (
        function("torch.nn.functional.leaky_relu(x, 0.1)", "1.5 * g * torch.where(x > 0, 1.0, 0.1)")
        + "F.apply(torch.zeros(3, 8, requires_grad=True))",
        "x",
        "gives 1.5 times the gradient of `x`; for the sum of the output and inputs moved by a thousandth, ",
    ),
    "NaN at a kink": (
        function("x.abs()", "g * x / x.abs()") + "F.apply(x.detach().relu().requires_grad_())",
        "x",
        "NaN",
    ),
    "a border of many": (
        function("x * 2", "g * torch.where(torch.arange(48) < 47, 2, 3)")
        + "F.apply(torch.rand(64, 48, requires_grad=True))",
        "x",
        "gives a wrong gradient for `x`",
    ),
    "another each time": (
        "n = []\n" + function("x * 2", "g * (n.append(1) or len(n))") + "F.apply(x)",
        None,
        "gives other gradients each time",
    ),
    "one of any number": (
        "class F(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, first, *xs):\n"
        "        return first + sum(xs)\n    @staticmethod\n    def backward(ctx, g):\n        return g, g, 3 * g\n"
        "F.apply(x, x, x * 1)",
        "xs[1]",
        "gives 3 times the gradient of `xs[1]`",
    ),
    "by name": (
        RIGHT["setup_context"].replace("g * ctx.k", "g"),
        "x",
        "gives 1/5 times the gradient of `x`",
    ),
    "formula": (function("x.exp()", "g * x") + "F.apply(x)", "x", "gives a wrong gradient for `x`"),
    "shape": (
        function("x @ w", "(g, x.T @ g)", "x, w", "x, w") + "F.apply(x, w)",
        None,
        "returned an invalid gradient",
    ),
    "count": (function("x * 2", "(g, g)") + "F.apply(x)", None, "returned an incorrect number of gradients"),
    "complex": (
        function("x * x", "2 * g * x") + "F.apply(torch.tensor([1 + 2j, 3 - 1j], requires_grad=True))",
        "x",
        "for the sum of the real and imaginary parts of the output, `x[0].imag` gets 6 and should get -2",
    ),
}


@pytest.mark.parametrize(("source", "name", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_backward_fails_with_its_input_and_cause(source: str, name: str | None, words: str) -> None:
    """A cause is named where the derivatives confirm it."""
    found = only(source)
    assert (found.verdict, found.input) == ("failed", name)
    assert words in found.message
    assert found.message.startswith("`backward` of `F` (line ")


def test_the_numbers_are_those_of_backward_and_of_differences() -> None:
    """At the element that differs most: x = 3, whose square has the derivative 6."""
    found = only(function("x.pow(2)", "g * x") + "F.apply(x)")
    assert found.analytical == 3.0
    assert found.numerical == pytest.approx(6.0, rel=1e-6)
    assert found.max_difference == pytest.approx(3.0, rel=1e-6)
    assert "for the sum of the output, `x[0, 2]` gets 3 and should get 6, by differences." in found.message


def test_the_wrong_one_of_several_outputs_is_named() -> None:
    """What it returns for the other one is right: it must not be multiplied too."""
    found = only(RIGHT["several outputs"].replace("return a * 2 + b", "return a * 2 + b / 4"))
    assert (found.verdict, found.input, found.output) == ("failed", "x", 2)
    assert "gives 1/4 times the gradient of `x` from output 2; for the sum of output 2, " in found.message
    assert found.hint == "multiply what it returns for `x` from output 2 by 4"


REMARKED = {
    "a kink": (function("x.clamp(min=0)", "g * (x > 0)") + "F.apply(x.detach().relu().requires_grad_())", "has no"),
    "many kinks": (
        function("x.clamp(min=0)", "g * (x > 0)") + "F.apply(torch.randn(20_000).relu().requires_grad_())",
        "has no derivative at some elements",
    ),
    "kinks close by": (
        function("x.abs()", "g * x.sign()") + "F.apply(torch.linspace(-1e-2, 1e-2, 20_000).requires_grad_())",
        "has no derivative at some elements",
    ),
    "ties": (
        function("x.sort().values", "g[x.argsort().argsort()]") + "F.apply(torch.zeros(8, requires_grad=True))",
        "has no derivative at some elements",
    ),
    "flat ties": (
        function("x.median()", "g * torch.eye(8)[x.median(0).indices].double()")
        + "F.apply(torch.zeros(8, requires_grad=True))",
        "has no derivative at some elements",
    ),
    "numbers of single precision": (
        function("x.float().relu()", "g * (x > 0)") + "F.apply(x)",
        "as in single precision",
    ),
    "an edge": (
        function("x.sqrt()", "g / x.sqrt() / 2") + "F.apply(torch.tensor([0.0, 4.0], requires_grad=True))",
        "no",
    ),
    "single precision": (function("x.float().exp()", "g * x.exp()") + "F.apply(x)", "as in single precision"),
    "much of it": (
        function("x.float().exp()", "g * x.exp()") + "F.apply(torch.rand(2_000, requires_grad=True))",
        "as in single precision",
    ),
    "NumPy in single precision": (
        function("torch.as_tensor(x.detach().numpy().astype('float32')).sin().to(x)", "g * x.cos()") + "F.apply(x)",
        "as in single precision",
    ),
}


@pytest.mark.parametrize(("source", "words"), REMARKED.values(), ids=REMARKED.keys())
def test_what_gradcheck_must_fail_though_it_is_right_passes_with_a_remark(source: str, words: str) -> None:
    """Zeros are what a ReLU is given most of the time, and many kernels compute in single precision."""
    checks = checks_of(source)
    (found,) = checks
    assert found.verdict == "passed"
    assert words in found.message
    assert [finding.severity for finding in checks.findings()] == ["info"]
    checks.raise_for_wrong()


UNCHECKED = {
    "float32 alone": (function("x @ torch.ones(3, 1)", "g") + "F.apply(x)", "could not be run in double precision"),
    "no gradient": (function("x * 2", "g") + "F.apply(x.detach())", "none of its inputs requires grad"),
    "no output": (function("(x > 0)", "g") + "F.apply(x)", "none of its outputs has a gradient"),
    "too large": (
        function("x * 2", "g * 2") + f"F.apply(torch.ones({MOST_ELEMENTS + 1}, requires_grad=True))",
        f"more than {MOST_ELEMENTS:,} elements",
    ),
    "half precision": (function("x.bfloat16().exp()", "g * x.exp()") + "F.apply(x)", "rounded too much"),
    "not finite": (function("x.log()", "g / x") + "F.apply(-x.detach().abs().requires_grad_())", "is not finite there"),
    "another each time": ("import os\n" + function("x * os.urandom(1)[0]", "g") + "F.apply(x)", "gives other outputs"),
    "its own error": (function("x * 2", "1 / 0") + "F.apply(x)", "ZeroDivisionError"),
    "a transform": (
        RIGHT["setup_context"].replace("F.apply(x, k=5)", "torch.func.grad(lambda v: F.apply(v).sum())(x)"),
        "func",
    ),
    "a fake tensor": (
        function("x * 2", "g * 2") + "from torch._subclasses import FakeTensorMode\n"
        "with FakeTensorMode() as mode:\n    F.apply(torch.ones(2, requires_grad=True))",
        "could not be run",
    ),
}


@pytest.mark.parametrize(("source", "words"), UNCHECKED.values(), ids=UNCHECKED.keys())
def test_what_cannot_be_checked_is_said_and_fails_nothing(source: str, words: str) -> None:
    """In the words of the person's own exception, where there is one."""
    checks = checks_of(source)
    (found,) = checks
    assert found.verdict == "not_checked"
    assert words in found.message
    checks.raise_for_wrong()


@pytest.mark.parametrize("forward", ["x.pow(2)", "x.pow(2).sum()"])
@pytest.mark.parametrize("make", ["torch.rand({})", "torch.rand({}, dtype=torch.complex64).real"])
def test_of_many_elements_some_are_compared(forward: str, make: str) -> None:
    """Also where the derivatives of all are few, as those of a loss are."""
    make = f"F.apply({make.format(2 * SLOW_UP_TO)}.requires_grad_())"
    assert MOST_COMPARED < SLOW_UP_TO
    assert only(function(forward, "2 * g * x") + make).verdict == "passed"
    found = only(function(forward, "g * x") + make)
    assert (found.verdict, found.input) == ("failed", "x")
    assert "gives 1/2 times the gradient of `x`" in found.message


def test_complex_ones_of_many_elements_are_judged_too() -> None:
    """Along random directions."""
    make = f"F.apply(torch.randn({SLOW_UP_TO}, dtype=torch.complex64, requires_grad=True))"
    assert only(function("x * x", "2 * g * x.conj()") + make).verdict == "passed"
    assert only(function("x * x", "2 * g * x") + make).verdict == "failed"


def test_all_derivatives_of_a_large_output_are_never_in_memory() -> None:
    """They would take 64 GB."""
    source = function("x[:, None].expand(-1, 1000).clone()", "g.sum(1)")
    assert only(source + "F.apply(torch.rand(2_000, requires_grad=True))").verdict == "passed"


def test_copies_are_bounded_over_all_functions() -> None:
    """Each of these is small enough by itself."""
    many = MOST_IN_ALL // MOST_ELEMENTS + 1
    names = [f"F{number}" for number in range(many)]
    source = "".join(function("x", "g", saves="", name=name).replace("saved = ctx.saved_tensors", "") for name in names)
    source += f"x = torch.ones(1, requires_grad=True).expand({MOST_ELEMENTS})\n"
    watch = FunctionWatch("<cell>")
    with watch:
        exec(source + "".join(f"{name}.apply(x)\n" for name in names), {"torch": torch, "__name__": "__main__"})
    assert [bool(call.untaken) for call in watch.calls] == [False] * (many - 1) + [True]
    assert "together" in watch.calls[-1].untaken


def test_calls_are_counted_and_the_first_one_is_checked() -> None:
    """In a loop, inside a module's forward and a helper; each class once, in the order of first calls."""
    source = function("x * 2", "g * 2", name="A") + function("x * 3", "g * 3", name="B")
    source += "class M(torch.nn.Module):\n    def forward(self, x):\n        return B.apply(A.apply(x))\n"
    source += "m = M()\nfor _ in range(4):\n    m(x)\n"
    assert [(each.name, each.calls, each.verdict) for each in checks_of(source)] == [
        ("A", 4, "passed"),
        ("B", 4, "passed"),
    ]


def test_pytorchs_own_functions_are_left_out() -> None:
    """A checkpoint is one."""
    source = "from torch.utils.checkpoint import checkpoint\ncheckpoint(torch.sin, x, use_reentrant=True)"
    assert not len(checks_of(source))


# ---- nothing is left behind


@pytest.mark.parametrize("ending", ["", "1 / 0"])
def test_a_profiler_in_python_sees_what_it_sees_without_and_is_put_back(ending: str) -> None:
    """Also where the code raises; and the Functions are seen as well."""
    source = f"{HEAD}{RIGHT['one input']}\n{ending}"
    seen: list[tuple[str, str]] = []

    def own(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_filename == "<cell>":
            seen.append((frame.f_code.co_name, event))

    def run(watch: AbstractContextManager[Any]) -> list[tuple[str, str]]:
        seen.clear()
        sys.setprofile(own)
        try:
            with suppress(ZeroDivisionError), watch:
                exec(compile(source, "<cell>", "exec"), {"__name__": "__main__"})
            assert sys.getprofile() is own
        finally:
            sys.setprofile(None)
        return list(seen)

    watch = FunctionWatch("<cell>")
    assert ("forward", "call") in run(watch)
    assert seen == run(nullcontext())
    assert [(each.name, each.verdict) for each in gradchecked(watch)] == [("F", "passed")]


def test_a_profiler_in_c_goes_on_and_is_said_where_python_has_only_one() -> None:
    """From 3.12 on, cProfile takes another way into Python, and both run."""
    profile, watch = cProfile.Profile(), FunctionWatch("<cell>")
    profile.enable()
    try:
        with watch:
            exec(compile(HEAD + RIGHT["one input"], "<cell>", "exec"), {"__name__": "__main__"})
    finally:
        profile.disable()
    assert any(getattr(each.code, "co_name", "") == "forward" for each in profile.getstats())
    if sys.version_info < (3, 12):
        assert "not all were seen: a profiler was running" in str(gradchecked(watch))
    else:
        assert [each.verdict for each in gradchecked(watch)] == ["passed"]


def test_a_profiler_that_the_code_starts_stays_and_is_said() -> None:
    """It is as without."""

    def own(*_: Any) -> None:
        return None

    watch = FunctionWatch("<cell>")
    try:
        with watch:
            sys.setprofile(own)
        assert sys.getprofile() is own
    finally:
        sys.setprofile(None)
    assert "the cell started a profiler" in str(gradchecked(watch))


def test_the_random_streams_gradients_and_inputs_are_as_without() -> None:
    """Forward and backward ran dozens of times with random numbers of their own, of three generators."""
    source = "import random\nimport numpy as np\n" + HEAD + RIGHT["random"] + ".sum().backward()"
    source = source.replace("m = ctx.m = ", "m = ctx.m = random.random() * np.random.rand() * ")

    def stand() -> tuple[Any, ...]:
        return torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]  # of the legacy kind

    def run() -> dict[str, Any]:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source, "<cell>", "exec"), namespace)
        return namespace

    watch = FunctionWatch("<cell>")
    with watch:
        traced = run()
    after, grad = stand(), traced["x"].grad.clone()
    (found,) = gradchecked(watch)
    assert found.verdict == "passed"
    assert stand() == after
    assert torch.equal(traced["x"].grad, grad)
    assert torch.equal(run()["x"].grad, grad)
    assert stand() == after


def test_an_interrupt_during_the_check_goes_on_to_the_person() -> None:
    """And the random stream stands where the code left it."""
    watch = FunctionWatch("<cell>")
    source = "runs = []\n" + function("x * 2", "g * (runs.append(1) or 2)") + "F.apply(x)\n"
    source = source.replace(
        "return x * 2",
        "runs.append(1)\n        if len(runs) == 9:\n            raise KeyboardInterrupt\n"
        "        return torch.rand_like(x) * 0 + x * 2",
    )
    with watch:
        exec(HEAD + source, {"__name__": "__main__"})
    before = torch.random.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        gradchecked(watch)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- in the shell


WRONG_CELL = HEAD + function("x.pow(2)", "g * x", name="Square") + "loss = Square.apply(x).sum()"


def test_the_magic_shows_the_check_below_the_report(shell: Session) -> None:
    """With the line of the cell, as its margin counts; the table is as without."""
    out = shell.run(f"%%gradtrace --gradcheck\n{WRONG_CELL}").stdout
    assert out.index("backward from loss") < out.index("gradcheck  1 custom Function: 1 failed")
    assert "`backward` of `Square` (line 14) gives 1/2 times" in " ".join(out.split())
    assert sys.getprofile() is None
    rows = shell.run(f"%%gradtrace\n{WRONG_CELL}").stdout.split("line  tensor")[1]
    assert out.split("line  tensor")[1].startswith(rows.rstrip())
    assert "no custom `torch.autograd.Function`" in shell.run("%gradtrace --gradcheck loss = x.sum()").stdout


def test_a_cell_that_awaits_is_watched_too(shell: Session) -> None:
    """And leaves nothing."""
    out = shell.run(f"%%gradtrace --gradcheck\n{WRONG_CELL}\nimport asyncio\nawait asyncio.sleep(0)").stdout
    assert "1 custom Function: 1 failed" in out
    assert sys.getprofile() is None


def test_strict_fails_a_cell_with_a_wrong_backward(shell: Session) -> None:
    """Below what is shown; a right one passes."""
    ran = shell.run(f"%%gradtrace --gradcheck --strict\n{WRONG_CELL}")
    assert ran.error.startswith("FindingsError: ✖ backward of Square (line 14) gives 1/2 times")
    assert "1 failed" in ran.stdout
    assert not shell.run(f"%%gradtrace --gradcheck --strict\n{WRONG_CELL.replace('g * x', '2 * g * x')}").error


def test_a_cell_that_fails_leaves_no_profiler_and_is_not_checked(shell: Session) -> None:
    """Its own error, once."""
    ran = shell.run(f"%%gradtrace --gradcheck\n{WRONG_CELL}\n1 / 0")
    assert ran.error == "ZeroDivisionError: division by zero"
    assert "gradcheck  " not in ran.stdout
    assert sys.getprofile() is None


def test_quiet_and_gradcheck_exclude_each_other(shell: Session) -> None:
    """Before anything runs."""
    assert "--gradcheck cannot go with it" in shell.run("%gradtrace -q --gradcheck ran = 1").error
    assert "ran" not in shell.shell.user_ns


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_hostile_names_and_messages_are_only_text(payload: str) -> None:
    """In HTML every one is escaped; in a terminal no control character is left."""
    each = FunctionCheck(name=payload, line=1, calls=2, verdict="failed", message=f"`{payload}`", hint=payload)
    checks = FunctionChecks(checks=(each,), disturbed=payload)
    html = render_html(checks)
    assert "<script" not in html
    assert "<img" not in html
    for width in (60, 160):
        text = render_text(checks, width)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
        assert max(map(len, render_text(checks, width, ascii_only=True).split("\n"))) <= width
