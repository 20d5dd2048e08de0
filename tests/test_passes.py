"""Loops, several passes and optimizer steps, against plain PyTorch with ordinary hooks, bit for bit."""

from __future__ import annotations

import gc
import math
import statistics
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import run_traced

from gradmagic.curves import POINTS
from gradmagic.passes import KEPT
from gradmagic.places import Entry
from gradmagic.report import Report
from gradmagic.tracing import trace

Gradients = dict[str, list[torch.Tensor]]


def in_plain_pytorch(source: str) -> tuple[Gradients, dict[str, Any]]:
    """Every gradient of the tensors that the source hands to `watch`, as an ordinary hook sees them arrive."""
    found: Gradients = {}

    def watch(name: str, tensor: torch.Tensor) -> None:
        tensor.register_hook(keeper(found.setdefault(name, [])))

    namespace: dict[str, Any] = {"torch": torch, "watch": watch, "__name__": "__main__"}
    torch.manual_seed(0)
    exec(compile(source, "<plain>", "exec"), namespace)
    return found, namespace


def keeper(into: list[torch.Tensor]) -> Callable[[torch.Tensor], None]:
    """A hook that keeps what it sees, and changes nothing."""

    def keep(gradient: torch.Tensor) -> None:
        into.append(gradient.detach().clone())

    return keep


def compared(source: str, **variables: Any) -> tuple[Report, dict[str, Any]]:
    """The traced run, after its series and its leaves' `.grad` were found equal to those of the plain one."""
    expected, plain = in_plain_pytorch(source)
    torch.manual_seed(0)
    report, namespace = run_traced(source, watch=lambda name, tensor: None, **variables)
    assert expected
    for name, gradients in expected.items():
        series = report[name].grads
        # Backward delivers the last occurrence of each pass first.
        order = sorted(range(len(series)), key=lambda i: (series.passes[i], -series.occurrences[i]))
        assert series.total == len(gradients), name
        assert [series.norm[i] for i in order] == [norm_of(gradient) for gradient in gradients], name
        assert [series.min[i] for i in order] == [gradient.min().item() for gradient in gradients], name
        assert [series.max[i] for i in order] == [gradient.max().item() for gradient in gradients], name
        zeros = [1 - int(gradient.count_nonzero()) / gradient.numel() for gradient in gradients]
        assert [series.zero_fraction[i] for i in order] == zeros, name
    for name, value in plain.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(namespace[name], value), name
            if value.is_leaf and value.grad is not None:
                assert torch.equal(namespace[name].grad, value.grad), name
    return report, namespace


def norm_of(tensor: torch.Tensor) -> float:
    return torch.linalg.vector_norm(tensor).item()


RNN = """
W = torch.randn(4, 4, requires_grad=True)
U = torch.eye(4).mul(0.95).requires_grad_()
watch("W", W)
h = torch.zeros(2, 4)
for t in range(50):
    h = torch.tanh(torch.randn(2, 4) @ W * 0.1 + h @ U)
    watch("h", h)
loss = h.pow(2).mean()
loss.backward()
"""


def test_an_unrolled_rnn_shows_its_hidden_state_over_time() -> None:
    """t = 0..49 in order of execution, and the factor from each step to the one before."""
    report, _ = compared(RNN)
    series = report["h"].grads
    assert series.times.tolist() == series.occurrences.tolist() == list(range(50))
    assert set(series.passes) == {0}
    (summary,) = series.summaries()
    assert summary.count == 50
    assert summary.factor == pytest.approx((series.norm[0] / series.norm[-1]) ** (1 / 49))
    assert report["W"].grads.total == 1


TRAINING = """
model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
first = model[0].weight
watch("model.0.weight", first)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
losses, ratios, norms = [], [], []
for step in range(30):
    x = torch.randn(8, 3)
    out = model(x)
    watch("out", out)
    loss = (out - x.sum(1, keepdim=True)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    changes = zip(before, model.parameters())
    ratios.append([(torch.linalg.vector_norm(p.detach() - b) / torch.linalg.vector_norm(b)).item() for b, p in changes])
    losses.append(loss.item())
"""


def test_a_training_loop_shows_each_tensor_over_its_steps() -> None:
    """One loss, thirty passes; a parameter and a non-leaf, the loss' values, the numbers of the passes."""
    report, namespace = compared(TRAINING)
    (loss,) = report.losses
    assert (loss.name, loss.count, loss.location and loss.location.line) == ("loss", 30, 13)
    assert loss.values.values.tolist() == namespace["losses"]
    assert [(done.number, done.step, done.value) for done in report.passes] == [
        (step, step, value) for step, value in enumerate(namespace["losses"])
    ]
    for name in ("model.0.weight", "out"):
        assert report[name].grads.steps.tolist() == list(range(30))
        assert set(report[name].grads.times) == {0}


def test_update_to_weight_ratios_are_those_taken_by_hand() -> None:
    """For each parameter and step; the ledger has their median."""
    report, namespace = compared(TRAINING)
    ratios = namespace["ratios"]
    for index, name in enumerate(("model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias")):
        assert report[name].updates.values.tolist() == pytest.approx([each[index] for each in ratios], rel=1e-5)
    step = next(entry for entry in report.ledger if entry.kind == "step")
    assert (step.name, step.count) == ("optimizer.step()", 30)
    assert step.values.values.tolist() == pytest.approx([statistics.median(each) for each in ratios], rel=1e-5)


STEPPING_IN_BACKWARD = """
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
optimizers = {p: torch.optim.SGD([p], 0.01) for p in net.parameters()}
ratios = []
def step(p):
    before = p.detach().clone()
    optimizers[p].step()
    ratios.append(float((p.detach() - before).norm() / before.norm()))
    optimizers[p].zero_grad()
for p in net.parameters():
    p.register_post_accumulate_grad_hook(step)
for _ in range(3):
    net(torch.randn(8, 3)).pow(2).mean().backward()
"""


def test_optimizers_that_step_at_one_line_are_one_entry_with_the_median_over_all_of_them() -> None:
    """Optimizer in backward: one optimizer for each parameter."""
    report, namespace = run_traced(STEPPING_IN_BACKWARD)
    (entry,) = [entry for entry in report.ledger if entry.kind == "step"]
    assert entry.count == 12
    taken = [namespace["ratios"][step * 4 : step * 4 + 4] for step in range(3)]
    assert list(entry.values.values) == pytest.approx([statistics.median(ratios) for ratios in taken], rel=1e-4)


def test_clipping_is_in_the_ledger_with_the_norm_that_it_returned() -> None:
    """And how often it was above the limit; clearing is counted from when there was something to clear."""
    report, namespace = compared(TRAINING)
    clip = next(entry for entry in report.ledger if entry.kind == "clip")
    assert clip.values.values.tolist() == namespace["norms"]
    assert (clip.count, clip.max_norm) == (30, 1.0)
    assert clip.clipped == sum(norm > 1.0 for norm in namespace["norms"])
    assert [(entry.kind, entry.count) for entry in report.ledger] == [
        ("zero_grad", 29),
        ("backward", 30),
        ("clip", 30),
        ("step", 30),
    ]


@pytest.mark.parametrize(
    "call",
    [
        "clip_grad_norm_(parameters, 0.5, foreach=False)",
        "clip_grad_norm_(parameters, 0.5, norm_type=float('inf'))",
        "clip_grad_norm_(parameters, max_norm=torch.tensor(0.5).item(), norm_type=1)",
    ],
)
def test_every_way_of_clipping_by_norm_is_seen(call: str) -> None:
    """Without foreach, and in other norms."""
    source = (
        "parameters = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)]\nnorms = []\n"
        "for _ in range(3):\n    sum(p.pow(2).sum() for p in parameters).backward()\n"
        f"    norms.append(torch.nn.utils.{call}.item())\n"
    )
    report, namespace = run_traced(source)
    clip = next(entry for entry in report.ledger if entry.kind == "clip")
    assert clip.values.values.tolist() == namespace["norms"]
    assert (clip.count, clip.max_norm) == (3, 0.5)


@pytest.mark.parametrize("foreach", [None, False])
def test_clipping_by_value_is_counted_once_a_call(foreach: bool | None) -> None:
    """However many gradients it goes through."""
    report, _ = run_traced(
        "parameters = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]\n"
        "for _ in range(4):\n    sum(p.pow(2).sum() for p in parameters).backward()\n"
        f"    torch.nn.utils.clip_grad_value_(parameters, 0.5, foreach={foreach})\n"
    )
    assert [(entry.kind, entry.count) for entry in report.ledger] == [("backward", 4), ("clip", 4)]


@pytest.mark.parametrize(
    "clearing",
    [
        "optimizer.zero_grad()",
        "optimizer.zero_grad(set_to_none=False)",
        "model.zero_grad()",
        "for p in model.parameters(): p.grad = None",
        "for p in model.parameters(): p.grad = None if p.grad is None else p.grad.zero_()",
    ],
)
def test_every_way_of_clearing_counts_once_for_all_parameters(clearing: str) -> None:
    """By the optimizer, by the module and by hand."""
    report, _ = run_traced(
        "model = torch.nn.Linear(3, 1)\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "for _ in range(5):\n    loss = model(torch.randn(4, 3)).pow(2).mean()\n    loss.backward()\n"
        f"    optimizer.step()\n    {clearing}\n"
    )
    cleared = [entry for entry in report.ledger if entry.kind == "zero_grad"]
    assert [(entry.location and entry.location.line, entry.count) for entry in cleared] == [(7, 5)]
    assert report.findings == []


NESTED = """
W = torch.randn(3, 3).mul(0.4).requires_grad_()
watch("W", W)
optimizer = torch.optim.Adam([W], lr=0.01)
for epoch in range(2):
    for batch in range(3):
        h = torch.zeros(2, 3)
        for t in range(4):
            h = torch.tanh(torch.randn(2, 3) + h @ W)
            watch("h", h)
        loss = h.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_a_nested_loop_is_a_series_over_passes_each_with_its_time_steps() -> None:
    """Two epochs of three batches of four time steps: six summaries of four."""
    report, _ = compared(NESTED)
    series = report["h"].grads
    assert series.passes.tolist() == [number for number in range(6) for _ in range(4)]
    assert series.times.tolist() == [0, 1, 2, 3] * 6
    assert series.occurrences.tolist() == list(range(24))
    for number, summary in enumerate(series.summaries()):
        norms = series.norm[4 * number : 4 * number + 4]
        assert (summary.number, summary.step, summary.count) == (number, number, 4)
        assert (summary.first, summary.last) == (norms[0], norms[-1])
        assert (summary.smallest, summary.largest) == (min(norms), max(norms))
        assert summary.factor == pytest.approx((norms[0] / norms[-1]) ** (1 / 3))


GAN = """
G, D = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
optG, optD = torch.optim.Adam(G.parameters(), lr=1e-2), torch.optim.Adam(D.parameters(), lr=1e-2)
watch("G.weight", G.weight)
watch("D.weight", D.weight)
for step in range(5):
    fake = G(torch.randn(4, 3))
    optD.zero_grad()
    lossD = D(torch.randn(4, 2) + 2).mean() - D(fake.detach()).mean()
    lossD.backward()
    optD.step()
    optG.zero_grad()
    lossG = D(fake).mean()
    lossG.backward()
    optG.step()
"""


def test_a_gan_tells_for_each_tensor_which_loss_reached_it_with_what_norm() -> None:
    """The discriminator gets both, the generator one."""
    report, _ = compared(GAN)
    assert [(loss.name, loss.location and loss.location.line, loss.count) for loss in report.losses] == [
        ("lossD", 10, 5),
        ("lossG", 14, 5),
    ]
    expected, _ = in_plain_pytorch(GAN)
    norms = list(map(norm_of, expected["D.weight"]))
    both = report["D.weight"].grads
    assert (both.of(0).norm.tolist(), both.of(1).norm.tolist()) == (norms[::2], norms[1::2])
    assert both.of(1).steps.tolist() == [0, 1, 2, 3, 4]
    assert set(report["G.weight"].grads.losses) == {1}
    assert report.findings == []


SITUATIONS = {
    "gradients accumulate over four micro-batches": """
w = torch.randn(3, requires_grad=True)
watch("w", w)
optimizer = torch.optim.SGD([w], lr=0.1)
for round in range(3):
    for micro in range(4):
        loss = (w * torch.randn(3)).sum().pow(2) / 4
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
(w * 2).sum().backward()
""",
    "one graph twice, with retain_graph, at one line": """
w = torch.randn(3, requires_grad=True)
h = w.exp()
watch("h", h)
watch("w", w)
loss = h.sum()
for again in (True, False):
    loss.backward(retain_graph=again)
""",
    "one graph twice, at two lines, from two roots": """
w = torch.randn(3, requires_grad=True)
h = w.exp()
watch("h", h)
watch("w", w)
a, b = h.sum(), h.pow(2).sum()
a.backward(retain_graph=True)
b.backward()
""",
    "a gradient penalty by autograd.grad with create_graph": """
D = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
watch("D.0.weight", D[0].weight)
for step in range(3):
    x = torch.randn(5, 2, requires_grad=True)
    out = D(x)
    watch("out", out)
    slope = torch.autograd.grad(out.sum(), x, create_graph=True)[0]
    watch("slope", slope)
    penalty = (slope.norm(dim=1) - 1).pow(2).mean()
    D.zero_grad()
    penalty.backward()
""",
    "MAML: inner steps with create_graph, one outer pass": """
w = torch.randn(3, requires_grad=True)
watch("w", w)
outer = torch.zeros(())
for task in range(2):
    x, y = torch.randn(4, 3), torch.randn(4)
    inner = (x @ w - y).pow(2).mean()
    g = torch.autograd.grad(inner, w, create_graph=True)[0]
    watch("g", g)
    fast = w - 0.1 * g
    watch("fast", fast)
    outer = outer + (x @ fast - y).pow(2).mean()
outer.backward()
""",
    "a Hessian-vector product": """
w = torch.randn(3, requires_grad=True)
watch("w", w)
loss = w.pow(3).sum()
g = torch.autograd.grad(loss, w, create_graph=True)[0]
watch("g", g)
(g * torch.randn(3)).sum().backward()
""",
    "truncated backpropagation through time": """
W = torch.randn(3, 3).mul(0.5).requires_grad_()
watch("W", W)
h = torch.zeros(2, 3)
for chunk in range(4):
    h = h.detach()
    for t in range(5):
        h = torch.tanh(torch.randn(2, 3) + h @ W)
        watch("h", h)
    loss = h.pow(2).mean()
    loss.backward()
    with torch.no_grad():
        W -= 0.1 * W.grad
    W.grad = None
""",
    "generators and comprehensions": """
w = torch.randn(3, requires_grad=True)
watch("w", w)
def batches():
    for _ in range(4):
        yield torch.randn(3)
losses = [(w * x).sum().pow(2) for x in batches()]
for loss in losses:
    loss.backward()
total = sum((w * x).sum() for x in batches())
total.backward()
""",
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_gradient_of_every_pass_is_that_of_plain_pytorch(situation: str) -> None:
    """Norm, extremes and zeros of each, in order; and `.grad` afterwards."""
    report, _ = compared(SITUATIONS[situation])
    # A last bias has no part in a gradient penalty.
    assert [found for found in report.findings if found.severity != "info" and "D.2.bias" not in found.message] == []


def test_gradtrace_runs_no_backward_where_a_second_autograd_grad_has_used_up_the_graph() -> None:
    """A Hessian-vector product through the loss itself: there is nothing left to run, and nothing is wrong."""
    report, _ = run_traced(
        "w = torch.tensor([1.0, 2.0], requires_grad=True)\nloss = w.prod()\n"
        "g, = torch.autograd.grad(loss, w, create_graph=True)\nhv, = torch.autograd.grad(g.sum(), w)\n"
    )
    assert report.pass_count == 2
    assert [found.kind for found in report.findings if found.severity != "info"] == []


def test_gradtrace_runs_backward_where_the_last_graph_is_still_whole() -> None:
    """`autograd.grad` has used up those of the rounds before, at the same line; the last round's is new."""
    report, _ = run_traced(
        "w = torch.tensor([1.0, 2.0], requires_grad=True)\nfor step in range(3):\n    loss = w.pow(2).sum()\n"
        "    if step < 2:\n        torch.autograd.grad(loss, w)\n"
    )
    assert [(done.function, done.run_by) for done in report.passes] == [
        ("autograd.grad", "cell"),
        ("autograd.grad", "cell"),
        ("backward", "gradtrace"),
    ]
    assert report.findings == []


def test_truncated_backpropagation_counts_time_within_each_chunk() -> None:
    """Each pass reaches its own five steps."""
    report, _ = compared(SITUATIONS["truncated backpropagation through time"])
    assert report["h"].grads.times.tolist() == [0, 1, 2, 3, 4] * 4


def test_a_weight_of_zero_has_an_infinite_ratio_and_one_that_stays_there_none() -> None:
    """0/0 is NaN; the median leaves it out."""
    report, _ = run_traced(
        "w, z, b = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True), "
        "torch.zeros(1, requires_grad=True)\n"
        "optimizer = torch.optim.SGD([w, z, b], lr=0.5)\nloss = (w + z).sum() + 0 * b.sum()\nloss.backward()\n"
        "optimizer.step()\n"
    )
    assert report["w"].updates.values.tolist() == [0.5]
    assert report["z"].updates.values.tolist() == [math.inf]
    assert math.isnan(report["b"].updates.values[0])


def test_a_closure_runs_backward_within_the_step() -> None:
    """LBFGS: each evaluation is a pass, and the step is measured."""
    report, namespace = run_traced(
        "w = torch.tensor([3.0, -2.0], requires_grad=True)\noptimizer = torch.optim.LBFGS([w], max_iter=4)\ncalls = 0\n"
        "def closure():\n    global calls\n    calls += 1\n    optimizer.zero_grad()\n    loss = w.pow(2).sum()\n"
        "    loss.backward()\n    return loss\noptimizer.step(closure)\n"
    )
    assert report.pass_count == namespace["calls"] > 1
    assert len(report["w"].updates) == 1
    assert report.findings == []


def test_an_optimizer_that_raises_leaves_nothing_asleep() -> None:
    """What the cell does afterwards is recorded."""
    report, _ = run_traced(
        "w = torch.ones(2, requires_grad=True)\noptimizer = torch.optim.SGD([w], lr=0.1)\nw.sum().backward()\n"
        "optimizer.param_groups[0]['lr'] = 'fast'\ntry:\n    optimizer.step()\nexcept Exception:\n    pass\n"
        "h = w * 3\nloss = h.sum()\nloss.backward()\n"
    )
    assert report["h"].grad is not None


# ---- loops that end early, or never begin


def test_a_loop_that_runs_zero_times_is_no_trouble() -> None:
    """No pass, no row of its own."""
    report, _ = run_traced(
        "w = torch.ones(2, requires_grad=True)\nfor x in []:\n    (w * x).sum().backward()\nloss = w.sum()\n"
    )
    assert report.pass_count == 1
    assert report["w"].grads.total == 1


@pytest.mark.parametrize("ending", ["break", "raise ValueError('step 37')", "raise KeyboardInterrupt"])
def test_what_ends_a_loop_in_step_37_leaves_the_report_of_37_passes(ending: str) -> None:
    """Steps 0 to 36."""
    namespace = {"torch": torch}
    source = (
        "w = torch.ones(2, requires_grad=True)\nstep = 0\nwhile True:\n    if step == 37:\n"
        f"        {ending}\n    loss = w.pow(2).sum() * step\n    w.grad = None\n    loss.backward()\n    step += 1\n"
    )
    run = trace(namespace=namespace)
    try:
        with run:
            exec(compile(source, "<cell>", "exec"), namespace)
    except (ValueError, KeyboardInterrupt):
        assert ending != "break"
    assert run.report is not None
    assert run.report.pass_count == 37
    assert run.report["w"].grads.steps.tolist() == list(range(37))
    assert run.report["w"].grads.norm[-1] == norm_of(torch.full((2,), 72.0))


# ---- bounded


LONG = """
w = torch.tensor([1.0, 2.0], requires_grad=True)
optimizer = torch.optim.SGD([w], lr=1e-3)
for step in range(5000):
    x = torch.tensor([step % 97 / 97, 1.0])
    loss = (w * x).sum().pow(2) * (1000.0 if step == 3210 else 1.0)
    optimizer.zero_grad()
    loss.backward()
    watch("w", w) if step < 0 else None
"""


def test_a_long_loop_is_thinned_and_what_is_left_is_true() -> None:
    """5,000 passes: bounded, with the first, the last and the largest, each equal to plain PyTorch's."""
    norms = []
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    for step in range(5000):
        x = torch.tensor([step % 97 / 97, 1.0])
        w.grad = None
        ((w * x).sum().pow(2) * (1000.0 if step == 3210 else 1.0)).backward()
        assert w.grad is not None
        norms.append(norm_of(w.grad))
    report, _ = run_traced(LONG, watch=lambda name, tensor: None)
    series = report["w"].grads
    assert len(series) <= POINTS
    assert (series.total, report.pass_count, report.losses[0].count) == (5000, 5000, 5000)
    assert all(norms[step] == norm for step, norm in zip(series.steps, series.norm, strict=True))
    assert (series.first, series.last) == ((0, 0, norms[0]), (4999, 0, norms[-1]))
    assert series.largest == (3210, 0, norms[3210])
    assert series.smallest is not None
    assert series.smallest.norm == min(norms)
    assert len(report.passes) <= KEPT + 1
    assert (report.passes[0].number, report.passes[-1].number) == (0, 4999)


def test_the_pass_in_which_nan_was_born_is_kept_among_very_many() -> None:
    """The finding names its line, though the pass is one of three thousand."""
    report, _ = run_traced(
        "w = torch.tensor([1.0], requires_grad=True)\nfor step in range(3000):\n"
        "    h = (w * (0.0 if step == 1001 else 1.0)).sqrt()\n    loss = h.sum()\n    w.grad = None\n"
        "    loss.backward()\n"
    )
    assert [(found.kind, found.line) for found in report.findings] == [("nan_gradient", 3)]
    assert 1001 in {done.number for done in report.passes}


def test_nothing_of_an_iteration_outlives_it() -> None:
    """Graph, hidden tensors and their gradients are gone before the next loss is computed, without the collector."""
    alive: list[int] = []
    watched: list[weakref.ref[torch.Tensor]] = []
    gc.collect()
    gc.disable()
    try:
        with trace(namespace={}):
            model = torch.nn.Linear(3, 3)
            optimizer = torch.optim.Adam(model.parameters())
            for _ in range(4):
                h = torch.tanh(model(torch.randn(2, 3)))
                loss = h.pow(2).mean()
                alive.append(sum(ref() is not None for ref in watched))
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                assert h.grad is not None
                watched = [weakref.ref(each) for each in (h, loss, h.grad)]
    finally:
        gc.enable()
    # `h` is bound anew before `loss` is: of the last round, `loss` alone could still be there, and is not.
    assert alive == [0, 0, 0, 0]


KEEPING = {
    "losses are kept in a list": ("", "(w * 2).square().sum()"),
    "losses are kept, and a custom Function may hide a graph": (
        """
class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2
""",
        "Twice.apply(w).square().sum()",
    ),
}


@pytest.mark.parametrize("name", KEEPING)
def test_a_pass_takes_no_longer_because_the_loop_keeps_its_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as many rounds look at about ten times as many tensors, not at a hundred times as many."""
    before, loss = KEEPING[name]
    looks = 0
    look = Entry.ref

    def counted(entry: Entry) -> Any:
        nonlocal looks
        looks += 1
        return look(entry)

    monkeypatch.setattr(Entry, "ref", counted)
    counts = []
    for rounds in (20, 200):
        source = f"""{before}
w = torch.ones(3, requires_grad=True)
kept = []
for _ in range({rounds}):
    loss = {loss}
    loss.backward()
    kept.append(loss.detach())
"""
        looks = 0
        run_traced(source)
        counts.append(looks)
    assert counts[1] < 12 * counts[0]


MEMORY = """
import torch
from gradmagic.tracing import trace

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

with trace() as run:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    for step in range(LAST + 1):
        h = model(x)
        loss = torch.nn.MSELoss()(h, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == FIRST:
            early = resident()
    late = resident()
print(late - early)
print(run.report.pass_count)
"""


@pytest.mark.real
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures the process as Linux tells it")
@pytest.mark.parametrize(
    ("first", "last"), [(4_000, 8_000), pytest.param(4_000, 20_000, marks=pytest.mark.slow)], ids=["8,000", "20,000"]
)
def test_memory_stays_flat_over_thousands_of_training_steps(tmp_path: Path, first: int, last: int) -> None:
    """The process grows by less than 500 bytes a step, with a loss module that is made anew in each."""
    script = tmp_path / "long.py"
    script.write_text(MEMORY.replace("FIRST", str(first)).replace("LAST", str(last)))
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    grown, passes = map(int, ran.stdout.split())
    assert passes == last + 1
    assert grown < 500 * (last - first)
