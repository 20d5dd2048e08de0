"""Reports made by hand: looking up, exporting and drawing are tested without a tracer and without torch."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gradmagic.checks import GradientCheck, GradientChecks
from gradmagic.curves import Curve, GradSeries
from gradmagic.function_checks import FunctionCheck, FunctionChecks
from gradmagic.records import BackwardPass, Finding, GradStats, InnerStep, LedgerEntry, Location, TensorRow
from gradmagic.report import Report

CELL = "/tmp/ipykernel_1/123.py"


def at(line: int, **more: Any) -> Location:
    """A line of the traced cell."""
    return Location(**{"file": CELL, "line": line, "cell": 7, "own": True, **more})


def stats(norm: float, low: float = -1e-2, high: float = 1e-2, zeros: float = 0.0, **more: Any) -> GradStats:
    """Statistics of a gradient of 512 elements."""
    given = {"rms": norm / 22.6, "mean": 0.0, "nan_count": 0, "inf_count": 0, "numel": 512, "values": None}
    return GradStats(**{"norm": norm, "min": low, "max": high, "zero_fraction": zeros, **given, **more})


def small(*values: complex) -> GradStats:
    """Statistics of a gradient of at most six elements."""
    sizes = [abs(v) for v in values]
    norm = math.hypot(*sizes)
    reals = [v.real for v in values]
    return GradStats(
        norm=norm,
        rms=norm / math.sqrt(len(values)) if values else 0.0,
        mean=sum(reals) / len(values) if values else math.nan,
        min=min(reals, default=math.nan),
        max=max(reals, default=math.nan),
        zero_fraction=sum(v == 0 for v in values) / len(values) if values else 0.0,
        nan_count=sum(math.isnan(v) for v in sizes),
        inf_count=sum(math.isinf(v) for v in sizes),
        numel=len(values),
        values=tuple(values),
    )


def series(norms: list[float], passes: list[int] | None = None, losses: list[int] | None = None) -> GradSeries:
    """The gradients of a loop in one pass; or one of each pass, when those are given."""
    n = len(norms)
    return GradSeries(
        passes=array("q", passes or [0] * n),
        losses=array("q", losses or [0] * n),
        steps=array("q", passes or [0] * n),
        occurrences=array("q", range(n)),
        times=array("q", [0] * n if passes else range(n)),
        norm=array("d", norms),
        min=array("d", [-x for x in norms]),
        max=array("d", norms),
        zero_fraction=array("d", [0.0] * n),
        nan_count=array("q", [0] * n),
        total=n,
    )


def row(name: str | None, line: int, op: str = "mul", **more: Any) -> TensorRow:
    """A non-leaf row of the traced cell."""
    given = {
        "expression": f"{op}(...)",
        "grad_fn": None if more.get("kind", "non-leaf") != "non-leaf" else f"{op.title().replace('_', '')}Backward0",
        "location": at(line),
        "kind": "non-leaf",
        "shape": (8, 64),
        "dtype": "torch.float32",
        "device": "cpu",
        "cell_line": line,
    }
    return TensorRow(**{"name": name, "op": op, **given, **more})


def constant(name: str | None, line: int, op: str = "randn", **more: Any) -> TensorRow:
    """A row nobody asked a gradient of."""
    return row(name, line, op, **{"kind": "constant", "reason": "requires_grad_false", **more})


def rnn() -> Report:
    """The sketch: a recurrent net whose gradients vanish, and an encoder that argmax cuts off."""
    decay = [2.1e-1 * 0.7**k for k in range(49, -1, -1)]
    loop = {"count": 50, "location": at(10, text="h = torch.tanh(x[t] @ W + h @ U)")}
    head = {"location": Location("/lib/torch/nn/modules/linear.py", 134), "cell_line": 11, "shape": (8, 32)}
    loss = row("loss", 13, "mse_loss", shape=(), grad=small(1.0), expression="F.mse_loss(out, y)")
    no_way = {"kind": "parameter", "reason": "cut_upstream", "culprit": at(7), "shape": (64, 16)}
    rows = [
        constant("x", 2, shape=(50, 8, 32), expression="torch.randn(50, 8, 32)"),
        row("W", 3, "Parameter", kind="parameter", shape=(32, 64), grad=stats(4.1e-1, -1.9e-2, 2.2e-2)),
        row("U", 4, "Parameter", kind="parameter", shape=(64, 64), grad=stats(2.7e-2, -3.0e-3, 2.8e-3)),
        row("encoder.weight", 6, "Parameter", **no_way),
        row("encoder.bias", 6, "Parameter", **{**no_way, "shape": (64,)}),
        row("z", 6, "linear", reason="cut_upstream", culprit=at(7), module="encoder", module_type="Linear"),
        constant(
            "codes",
            7,
            "argmax",
            reason="not_differentiable",
            shape=(8,),
            dtype="torch.int64",
            note="not differentiable (int64)",
            expression="z.argmax(-1)",
        ),
        row(
            None,
            10,
            "matmul",
            expression="x[t] @ W",
            grad=stats(1.1e-1, -1.1e-2, 9.8e-3),
            grads=series([x / 2 for x in decay]),
            **loop,
        ),
        row(
            None,
            10,
            "matmul",
            expression="h @ U",
            grad=stats(1.1e-1, -1.1e-2, 9.8e-3, 0.02),
            grads=series([x / 2 for x in decay]),
            **loop,
        ),
        row(
            "h",
            10,
            "tanh",
            expression="torch.tanh(x[t] @ W + h @ U)",
            grad=stats(2.1e-1, -1.2e-2, 1.0e-2),
            grads=series(decay),
            note="vanishing",
            **loop,
        ),
        row(
            None,
            134,
            "linear",
            expression="F.linear(input, self.weight, self.bias)",
            module="head.0",
            module_type="Linear",
            grad=stats(3.3e-1, -4.0e-2, 5.1e-2),
            **head,
        ),
        row(
            None,
            134,
            "relu",
            expression="F.relu(input, inplace=self.inplace)",
            module="head.1",
            module_type="ReLU",
            grad=stats(1.9e-1, -4.0e-2, 4.4e-2, 0.61),
            note="dead: 9 of 32 units",
            **head,
        ),
        constant(None, 12, "zeros_like", shape=(8, 32), expression="torch.zeros_like(out)"),
        loss,
    ]
    findings = [
        Finding(
            kind="not_differentiable",
            severity="error",
            message="No gradient reaches `encoder.weight`, `encoder.bias`: `codes = z.argmax(-1)` (line 7) "
            "is not differentiable.",
            hint="Use a soft relaxation, or a straight-through estimator.",
            location=at(7),
            rows=(3, 4, 5, 6),
        ),
        Finding(
            kind="vanishing",
            severity="warning",
            message="Vanishing: ‖∂loss/∂h‖ falls 0.21 → 3.4e-9 over 50 steps of "
            "`h = torch.tanh(x[t] @ W + h @ U)` (line 10).",
            location=at(10),
            rows=(9,),
        ),
    ]
    run = BackwardPass(root="loss", value=0.70421, run_by="gradtrace", seconds=1e-3)
    return Report(
        rows=rows,
        root=loss,
        root_value=0.70421,
        passes=[run],
        findings=findings,
        candidates=("aux",),
        seconds=3.1e-3,
        guest=True,
    )


def quickstart() -> Report:
    """The first example of the README: five tensors of one element."""
    root = row("l", 6, "pow", shape=(1,), expression="z.pow(2)", grad=small(1.0))
    rows = [
        constant(
            "x",
            2,
            "tensor",
            shape=(1,),
            expression="torch.tensor([1.0])",
            note="write `x = torch.tensor([1.0], requires_grad=True)` to get one",
        ),
        row(
            "w",
            3,
            "tensor",
            kind="leaf",
            shape=(1,),
            expression="torch.tensor([2.0], requires_grad=True)",
            grad=small(16.0),
        ),
        row("y", 4, "mul", shape=(1,), expression="x * w", grad=small(16.0)),
        row("z", 5, "mul", shape=(1,), expression="y * 2", grad=small(8.0)),
        root,
    ]
    run = BackwardPass(root="l", value=16.0, run_by="gradtrace")
    return Report(rows=rows, root=root, root_value=16.0, passes=[run], seconds=8.12e-4, guest=True)


def curve(*values: float, total: int = 0) -> Curve:
    """A number for each time that something ran."""
    return Curve(array("q", range(len(values))), array("d", values), total or len(values))


def gan() -> Report:
    """Three rounds of a loop with two losses: a column each, and a ledger of what ran."""
    times, twice = [0, 2, 4], [0, 0, 1, 1, 2, 2]
    both = series([0.5, 0.04, 0.4, 0.05, 0.3, 0.06], passes=[0, 1, 2, 3, 4, 5], losses=[0, 1] * 3)
    both = replace(both, steps=array("q", twice), times=array("q", [0] * 6))
    one = replace(series([0.1, 0.2, 0.12], passes=times), steps=array("q", range(3)))
    other = replace(one, passes=array("q", [1, 3, 5]), losses=array("q", [1] * 3), norm=array("d", [1.0] * 3))
    updates = curve(2e-3, 1e-3, 9e-4)
    rows = [
        row("fake", 8, "linear", module="G.net.2", module_type="Linear", grad=stats(0.12), grads=other, count=3),
        row(None, 9, "detach", kind="constant", expression="fake.detach()", reason="detached"),
        row("D.weight", 10, "parameter", kind="parameter", grad=stats(0.06), grads=both, updates=updates),
        row("lossD", 11, "add", shape=(), grad=small(1.0), grads=one, count=3),
        row("lossG", 18, "binary_cross_entropy", shape=(), grad=small(1.0), grads=other, count=3),
    ]
    names = ("lossD", "lossG") * 3
    passes = [
        BackwardPass(root=name, value=1.386, location=at(12 + 8 * (i % 2)), number=i, loss=i % 2, step=i // 2)
        for i, name in enumerate(names)
    ]
    ledger = [
        LedgerEntry(kind="zero_grad", name="optD.zero_grad()", location=at(9), count=2),
        LedgerEntry(
            kind="backward", name="lossD", location=at(12), count=3, values=curve(1.386, 1.2, 0.9), seconds=3e-3
        ),
        LedgerEntry(
            kind="clip",
            name="torch.nn.utils.clip_grad_norm_(D.parameters(), 0.4)",
            location=at(13),
            count=3,
            values=curve(0.5, 0.4, 0.3),
            max_norm=0.4,
            clipped=1,
        ),
        LedgerEntry(kind="step", name="optD.step()", location=at(14), count=3, values=updates),
        LedgerEntry(
            kind="backward", name="lossG", location=at(20), count=3, values=curve(0.693, 0.7, 0.71), seconds=2e-3
        ),
    ]
    return Report(rows=rows, root=rows[4], root_value=0.693, passes=passes, pass_count=6, ledger=ledger, seconds=0.0123)


def nothing_differentiable() -> Report:
    """A cell of plain arithmetic."""
    rows = [constant("a", 2), constant("b", 3), constant(None, 4, "add")]
    finding = Finding(
        kind="nothing_differentiable",
        severity="info",
        message="Nothing in this cell requires grad, so there is no gradient to show.",
        hint="a = torch.randn(3, requires_grad=True)",
    )
    return Report(rows=rows, findings=[finding], seconds=2e-4)


def empty() -> Report:
    """A cell without any tensor."""
    return Report()


def failed() -> Report:
    """A backward that raised."""
    detail = (
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        "[torch.FloatTensor [3]], which is output 0 of SigmoidBackward0, is at version 1; "
        "expected version 0 instead.\nHint: enable anomaly detection to find the operation that failed "
        "to compute its gradient."
    )
    finding = Finding(
        kind="in_place",
        severity="error",
        message="Backward failed: `y.add_(1)` (line 4) changed `y`, whose value sigmoid still needed.",
        hint="y = y + 1",
        location=at(4),
        rows=(1,),
        detail=detail,
    )
    rows = [
        row("x", 2, "randn", kind="leaf", shape=(3,), reason="backward_failed"),
        row("y", 3, "sigmoid", shape=(3,), reason="backward_failed", culprit=at(4)),
        row("loss", 5, "sum", shape=(), reason="backward_failed"),
    ]
    run = BackwardPass(root="loss", value=2.5, run_by="gradtrace", error=detail)
    return Report(rows=rows, root=rows[2], root_value=2.5, passes=[run], findings=[finding], seconds=0.5)


def large(count: int = 200) -> Report:
    """A deep model: rows from a library's file, from an earlier cell and from the traced cell."""
    library = Location("/lib/torchvision/models/resnet.py", 92, function="forward")
    earlier = Location("/tmp/ipykernel_1/9.py", 5, cell=3, function="forward")
    rows = []
    for i in range(count):
        place = (library, earlier, at(4))[i % 3]
        norm = 10.0 ** (-6 * i / count)
        rows.append(
            row(
                (f"model.layer{i}.weight", None, f"h{i}")[i % 3],
                place.line,
                ("Parameter", "conv2d", "batch_norm")[i % 3],
                kind=("parameter", "non-leaf", "non-leaf")[i % 3],
                location=place,
                cell_line=4,
                expression=f"self.conv{i}(self.bn{i}(torch.relu(x)))",
                module=f"model.layer{i // 20}.{i % 20}.conv1",
                module_type="Conv2d",
                shape=(64, 128, 14, 14),
                grad=stats(norm, -norm / 9, norm / 8, (i % 7) / 7),
                inner=(InnerStep("SoftmaxBackward0", (8, 8), stats(norm)),) if i % 50 == 1 else (),
            )
        )
    run = BackwardPass(root="loss", value=2.3, location=at(6), seconds=0.4)
    return Report(rows=rows, passes=[run], root_value=2.3, seconds=75.0)


HOSTILE = "<script>alert('x')</script>\"&\x1b[31mred\r\u202eevil[bold]x[/bold]{{ 7*7 }}\ud800"


def hostile() -> Report:
    """Strings that would like to be HTML, markup, or a terminal's commands."""
    rows = [
        row(
            HOSTILE,
            2,
            HOSTILE,
            expression=HOSTILE,
            module=HOSTILE,
            module_type=HOSTILE,
            note=HOSTILE,
            grad=stats(1.0),
            device=HOSTILE,
            inner=(InnerStep(HOSTILE, (2,), None),),
        ),
        row(
            None,
            3,
            "mul",
            expression=f"d['{HOSTILE}'] * \n 2",
            reason="unused",
            culprit=at(2),
            location=Location(f"/x/{HOSTILE}", 5, own=False),
        ),
    ]
    finding = Finding(
        kind="x",
        severity="error",
        message=f"`{HOSTILE}` and {HOSTILE}",
        hint=f"f('{HOSTILE}')",
        detail=f"line one\n  {HOSTILE}",
    )
    run = BackwardPass(root=HOSTILE, value=1.0, location=at(9))
    return Report(rows=rows, passes=[run], findings=[finding], candidates=(HOSTILE,))


def odd() -> Report:
    """Gradients that are NaN, infinite, huge, tiny, zero, empty or complex; odd names, dtypes, devices."""
    nan, inf = math.nan, math.inf
    rows = [
        row("nan", 1, "log", grad=stats(nan, nan, nan, nan_count=12), note=""),
        row("inf", 2, "div", grad=stats(inf, -inf, inf, inf_count=3)),
        row("huge", 3, "exp", grad=stats(3.0e38, -2.5e38, 1.1e38), dtype="torch.float64", device="cuda:0"),
        row("tiny", 4, "exp", grad=stats(1.0e-45, -1e-45, 0.0, 0.999), dtype="torch.bfloat16", device="cuda:1"),
        row("zero", 5, "relu", grad=stats(0.0, 0.0, 0.0, 1.0)),
        row("empty", 6, "cat", shape=(0, 3), grad=small(), note="no elements"),
        row("z", 7, "fft_fft", shape=(2,), grad=small(1 + 2j, -0.5j), dtype="torch.complex64"),
        row("six", 8, "stack", shape=(2, 3), grad=small(-0.0123, 123.456, 1e-9, 99999.0, 0.0, -1 / 3)),
        row("scalar", 9, "sum", shape=(), grad=small(-0.25)),
        row("重み🔥", 10, "linear", grad=stats(1.0), module="モデル.層"),
        row("loop", 11, "tanh", count=5, grad=stats(1.0), grads=series([1.0, nan, 0.0, 1e-8, 1.0])),
        row(
            None,
            12,
            "einsum",
            expression="torch.einsum('bhqk,bhkd->bhqd', attention_weights, values)" * 3,
            grad=stats(0.5),
            shape=(8, 16, 1024, 64),
        ),
        row(
            "model.encoder.layers.11.self_attention.out_projection.weight",
            13,
            "Parameter",
            kind="parameter",
            grad=stats(0.031),
        ),
    ]
    run = BackwardPass(root="scalar", value=nan, location=at(14))
    return Report(rows=rows, root=rows[8], root_value=nan, passes=[run], seconds=1.5)


SAMPLES: dict[str, Callable[[], Report]] = {
    "rnn": rnn,
    "quickstart": quickstart,
    "gan": gan,
    "nothing_differentiable": nothing_differentiable,
    "empty": empty,
    "failed": failed,
    "large": large,
    "hostile": hostile,
    "odd": odd,
}


def checks() -> GradientChecks:
    """Derived gradients with every verdict and cause."""
    wrong = GradientCheck(
        name="dW",
        label="W",
        row=1,
        verdict="wrong",
        max_difference=0.0316,
        index=(3, 0),
        given=-0.14,
        gradient=-0.108,
        cause="factor",
        message="`dW` is 32 times too large; 32 is the size of dimension 0 of `x`.",
        hint="dW = dW / 32",
    )
    told = [
        GradientCheck(
            name="dh", label="h", row=2, verdict="exact", max_difference=0.0, index=(0,), given=1, gradient=1
        ),
        replace(wrong, name="dz", verdict="close", cause=None, message="", hint="", max_difference=4e-9),
        wrong,
        replace(wrong, name="db", cause="inherited", message="`db` follows rightly from `dW`, which is wrong."),
        replace(wrong, name="dx", cause="unconfirmed", message="`dx` is wrong, perhaps only because `dW` is."),
        replace(
            wrong, name="dq", cause="missing_use", hint="Add to `dq` what `dW` gives there.", given=1j, gradient=-2j
        ),
        GradientCheck(name="mine", label="nowhere", verdict="not_checked", message="no tensor named 'nowhere'"),
    ]
    return GradientChecks(checks=tuple(told))


def function_checks() -> FunctionChecks:
    """Custom Functions with every verdict."""
    message = "`backward` of `Square` (line 3) gives 1/2 times the gradient of `x`."
    told = [
        FunctionCheck(name="Right", line=2, calls=3, verdict="passed"),
        FunctionCheck(
            name="Square", line=3, calls=1, verdict="failed", input="x", message=message, hint="return 2 * g * x"
        ),
        FunctionCheck(name="Single", line=None, calls=1, verdict="not_checked", message="`Single` was not checked."),
    ]
    return FunctionChecks(checks=tuple(told), disturbed="the cell started a profiler, which Python has only one of")
