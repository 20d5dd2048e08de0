"""Numbers that arrive from a device only after the cell: what is said of them is what is said when nothing waits.

On the CPU, where a gradient is made to wait as on a GPU. ``test_cuda`` does the same on one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import run_traced

from gradmagic import births, statistics
from gradmagic.report import Report

BORN = {
    "sqrt at zero": "x = torch.tensor([4.0, 0.0, 1.0]).to(DEVICE, copy=True).requires_grad_()\ny = x * 1\nr = y.sqrt()\nloss = r.sum()",
    "log of zero": "x = torch.tensor([1.0, 0.0]).to(DEVICE, copy=True).requires_grad_()\np = x * 2\nloss = p.log().clamp(min=-9).sum()",
    "where after a division": (
        "x = torch.tensor([1.0, 0.0]).to(DEVICE, copy=True).requires_grad_()\nd = x * 1\nq = 1 / d\n"
        "loss = torch.where(d > 0, q, torch.zeros_like(q)).sum()"
    ),
    "norm of zeros": "w = torch.zeros(3).to(DEVICE, copy=True).requires_grad_()\nh = w * 2\nn = h.pow(2).sum().sqrt()\nloss = n * 3",
    "one of two ways": (
        "x = torch.tensor([0.0, 2.0]).to(DEVICE, copy=True).requires_grad_()\nh = x * 1\ngood = h.exp()\nbad = h.sqrt()\n"
        "loss = (good + bad).sum()"
    ),
    "overflow in half precision": (
        "w = torch.full((4,), 100.0).to(DEVICE, torch.float16).requires_grad_()\nh = w * 2\ns = h.pow(2)\nloss = s.sum()"
    ),
    "in the third round": (
        "w = torch.tensor([3.0]).to(DEVICE, copy=True).requires_grad_()\nfor step in range(5):\n    w.grad = None\n"
        "    h = w - step\n    loss = h.sqrt().sum()\n    loss.backward()"
    ),
    "a dead relu": (
        "w = torch.full((8, 4), -1.0).to(DEVICE, copy=True).requires_grad_()\nx = torch.ones(16, 8).to(DEVICE, copy=True)\n"
        "h = x @ w\na = h.relu()\nv = torch.ones(4).to(DEVICE, copy=True).requires_grad_()\nloss = (a @ v).sum()"
    ),
    "saturated sigmoids": (
        "w = torch.full((32, 16), 9.0).to(DEVICE, copy=True).requires_grad_()\nh = torch.ones(32, 32).to(DEVICE, copy=True) @ w\n"
        "loss = h.sigmoid().mean()"
    ),
    "gradients that vanish": (
        "w = torch.full((4,), 0.01).to(DEVICE, copy=True).requires_grad_()\nh = w * 1\nfor layer in range(12):\n    h = h * 0.01\n"
        "loss = h.sum()"
    ),
    "weights held from before": (
        "w = torch.ones(9).to(DEVICE, copy=True).requires_grad_()\nw.grad = torch.ones_like(w)\nloss = (w * 2).sum()\nloss.backward()"
    ),
    "zeros held from before": (
        "w = torch.ones(9).to(DEVICE, copy=True).requires_grad_()\nw.grad = torch.zeros_like(w)\nloss = (w * 2).sum()\nloss.backward()"
    ),
    "gradients that add up": (
        "w = torch.ones(9).to(DEVICE, copy=True).requires_grad_()\noptimizer = torch.optim.SGD([w], lr=0.1)\nfor step in range(4):\n"
        "    loss = (w * 2).pow(2).sum()\n    loss.backward()\n    optimizer.step()"
    ),
    "an optimizer in backward": (
        "w = torch.ones(9).to(DEVICE, copy=True).requires_grad_()\noptimizer = torch.optim.SGD([w], lr=0.1)\n"
        "def step_now(p):\n    optimizer.step()\n    optimizer.zero_grad()\n"
        "handle = w.register_post_accumulate_grad_hook(step_now)\n"
        "for step in range(3):\n    loss = (w * 2).pow(2).sum()\n    loss.backward()"
    ),
    "NaN in the data": (
        "x = torch.tensor([1.0, float('nan')]).to(DEVICE, copy=True)\nw = torch.ones(2).to(DEVICE, copy=True).requires_grad_()\n"
        "h = w * x\nloss = h.sum()"
    ),
    "a detached step": "w = torch.ones(3).to(DEVICE, copy=True).requires_grad_()\nh = (w * 2).detach()\nv = h * w\nloss = v.sum()",
    "an integer": "w = torch.ones(3).to(DEVICE, copy=True).requires_grad_()\nn = w.argmax()\nloss = w[n] * 2",
    "changed in place": (
        "w = torch.ones(3).to(DEVICE, copy=True).requires_grad_()\nh = w.sigmoid()\ng = h.exp()\nh.mul_(2)\ng.add_(1)\nloss = g.sum() + h.sum()"
    ),
}


def on(device: str, source: str, **options: Any) -> Report:
    return run_traced(source.replace("DEVICE", f"'{device}'"), **options)[0]


def told(report: Report) -> list[Any]:
    """What is said, less the device and the digits that may differ."""
    rows = [
        (r.name, r.op, r.grad_fn, r.kind, r.shape, r.dtype, r.count, r.reason, str(r.culprit), r.note, r.line)
        + (() if r.grad is None else (r.grad.numel, r.grad.nan_count, r.grad.inf_count, r.grad.zero_fraction))
        for r in report.rows
    ]
    findings = [(f.kind, f.severity, _on_any(f.message), f.hint, str(f.location), f.rows) for f in report.findings]
    ledger = [(e.kind, e.name, str(e.location), e.count, e.clipped, _on_any(e.error)) for e in report.ledger]
    return [rows, findings, ledger, str(report.root and report.root.name)]


def _on_any(text: str | None) -> str | None:
    return text and text.replace("torch.cuda.FloatTensor", "torch.FloatTensor").replace("cuda", "cpu")


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be read before the cell is over."""
    for module in (births, statistics):
        monkeypatch.setattr(module, "is_at_hand", lambda tensor: False)


@pytest.mark.parametrize("source", BORN.values(), ids=BORN)
def test_report_of_what_waits_is_the_same(source: str, waiting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Births of NaN, zeros held from before, dead units: found after the cell, at the same lines."""
    found = told(on("cpu", source))
    monkeypatch.undo()
    assert found == told(on("cpu", source))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("counted", [2**24, 7])
def test_numbers_that_wait_are_the_same(
    dtype: torch.dtype, counted: int, waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extremes, signed zeros, NaN and infinities; also where there is more than can be counted at once."""
    data = torch.tensor([3.0, 0.0, -0.0, float("inf"), float("nan"), -float("inf"), 1e-5] * 5).to(dtype)
    for count in range(1, len(data) + 1):
        with monkeypatch.context() as patched:
            patched.setattr(statistics, "_COUNTED", counted)
            found = statistics.measure(data[:count]).result()
            patched.setattr(statistics, "is_at_hand", lambda tensor: True)
            expected = statistics.measure(data[:count]).result()
        for name in ("norm", "min", "max", "zero_fraction", "nan_count", "inf_count", "numel"):
            assert repr(getattr(found, name)) == repr(getattr(expected, name)), (count, name)
        assert repr(found.values) == repr(expected.values)


def test_conjugate_that_waits_shows_its_values(waiting: None) -> None:
    """And so does the gradient of a sparse tensor, whose values are a view."""
    data = torch.tensor([1 + 2j, 3 - 4j])
    assert statistics.measure(data.conj()).result().values == (1 - 2j, 3 + 4j)


def test_many_passes_keep_the_first_that_is_sick(waiting: None) -> None:
    """Which one that is becomes known before passes are forgotten."""
    report = on(
        "cpu",
        "w = torch.ones(2).requires_grad_()\nfor step in range(1500):\n    w.grad = None\n"
        "    loss = (w * (float('nan') if step == 401 else 1)).sum()\n    loss.backward()",
    )
    assert 401 in {done.number for done in report.passes}
