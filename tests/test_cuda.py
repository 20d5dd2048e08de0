"""On a GPU: the cell is as untraced, to the last bit, nothing of ours waits, and the report is that of the CPU."""

from __future__ import annotations

import gc
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from alike import assert_alike
from plain import run_traced
from test_waiting import BORN, on, told

from gradmagic.function_calls import FunctionWatch
from gradmagic.gradchecking import gradchecked
from gradmagic.report import Report
from gradmagic.statistics import measure

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may add up in another order on another stream


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """The same kernels in each run: cuDNN must not try out which one is fastest."""
    with warnings.catch_warnings(action="ignore"):  # said once in a process: the switch is a prototype
        torch.cuda.set_sync_debug_mode(1)
        torch.cuda.set_sync_debug_mode(0)
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
    assert torch.cuda.get_sync_debug_mode() == 0


FORWARD = {
    "MLP with dropout": """
import torch.nn as nn
model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(0.3), nn.Linear(32, 4)).cuda()
x = torch.randn(8, 16, device="cuda")
loss = nn.functional.cross_entropy(model(x), torch.arange(8, device="cuda") % 4)
""",
    "convolutions": """
import torch.nn as nn
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)).cuda()
x = torch.randn(2, 3, 16, 16, device="cuda")
loss = model(x).flatten(1).logsumexp(1).mean()
""",
    "channels last": """
import torch.nn as nn
model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).cuda().to(memory_format=torch.channels_last)
x = torch.randn(2, 4, 16, 16, device="cuda").to(memory_format=torch.channels_last)
loss = model(x).pow(2).mean()
""",
    "transformer encoder": """
import torch.nn as nn
layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
encoder = nn.TransformerEncoder(layer, 2).cuda()
source = torch.randn(4, 10, 32, device="cuda")
loss = encoder(source).pow(2).mean()
""",
    "transformer encoder in eval mode": """
import torch.nn as nn
encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).cuda().eval()
source = torch.randn(4, 10, 32, device="cuda")
with torch.no_grad():
    target = encoder(source)
w = torch.ones(32, device="cuda", requires_grad=True)
loss = (target * w).sum()
""",
    "LSTM": """
import torch.nn as nn
lstm = nn.LSTM(8, 16, 2, bidirectional=True).cuda()
out, (h, c) = lstm(torch.randn(5, 3, 8, device="cuda"))
loss = out.sum() + h.mean() + c.pow(2).mean()
""",
    "GRU on packed sequences": """
import torch.nn as nn
gru = nn.GRU(8, 16, batch_first=True).cuda()
packed = nn.utils.rnn.pack_padded_sequence(torch.randn(3, 5, 8, device="cuda"), [5, 4, 2], batch_first=True)
out, lengths = nn.utils.rnn.pad_packed_sequence(gru(packed)[0], batch_first=True)
loss = out.pow(2).mean()
""",
    "RNN cells through time": """
import torch.nn as nn
cell = nn.RNNCell(4, 6).cuda()
h = torch.zeros(2, 6, device="cuda")
for step in range(5):
    h = cell(torch.randn(2, 4, device="cuda"), h)
loss = h.pow(2).sum()
""",
    "scaled dot product attention": """
q, k, v = (torch.randn(2, 4, 16, 32, device="cuda", requires_grad=True) for _ in range(3))
attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
loss = attended.pow(2).mean()
""",
    "scaled dot product attention in half precision": """
q, k, v = (torch.randn(2, 4, 16, 64, device="cuda", dtype=torch.float16, requires_grad=True) for _ in range(3))
attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
loss = attended.float().pow(2).mean()
""",
    "autocast to bfloat16": """
import torch.nn as nn
model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 4)).cuda()
with torch.autocast("cuda", dtype=torch.bfloat16):
    loss = model(torch.randn(8, 16, device="cuda")).float().pow(2).mean()
""",
    "CPU and GPU in one graph": """
w = torch.randn(4, 4, requires_grad=True)
v = torch.randn(4, 4, device="cuda", requires_grad=True)
h = (w * 2).cuda() @ v
back = h.cpu().tanh() @ w
again = back.to("cuda", torch.float64)
loss = again.sum().cpu() + h.exp().sum().to("cpu")
""",
    "a stream of its own": """
w = torch.randn(64, 64, device="cuda", requires_grad=True)
side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side):
    h = (w @ w).relu()
    h = (h @ w).sigmoid()
torch.cuda.current_stream().wait_stream(side)
loss = (h * 2).mean()
""",
    "pinned memory": """
w = torch.randn(32, 32, requires_grad=True)
x = torch.randn(32, 32).pin_memory().to("cuda", non_blocking=True)
loss = (x @ w.to("cuda", non_blocking=True)).pow(2).mean()
""",
    "checkpoint": """
import torch.nn as nn
from torch.utils.checkpoint import checkpoint
block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Softmax(-1)).cuda()
head = nn.Linear(8, 1).cuda()
x = torch.randn(4, 8, device="cuda", requires_grad=True)
loss = head(checkpoint(block, x, use_reentrant=False)).log_softmax(0).exp().pow(2).sum()
""",
    "saved tensors on the CPU": """
x = torch.rand(64, 8, device="cuda", requires_grad=True)
with torch.autograd.graph.save_on_cpu(pin_memory=True):
    loss = (x.sqrt().softmax(1).log() / x).pow(2).sum()
""",
    "complex numbers": """
z = torch.randn(16, dtype=torch.complex64, device="cuda", requires_grad=True)
loss = torch.fft.fft(z * z.conj() + z).abs().pow(2).mean()
""",
    "views and in-place changes": """
x = torch.randn(6, 6, device="cuda", requires_grad=True)
y = x * 2
y[0] = 0
y.t_().mul_(x).add_(1)
loss = y[1:].masked_fill(y[1:] > 0, 0).sum()
""",
    "hooks and a custom Function": """
class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x ** 3
    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x ** 2
x = torch.randn(5, device="cuda", requires_grad=True)
y = Cube.apply(x)
handle = y.register_hook(lambda gradient: gradient.clamp(-1, 1) * 2)
loss = y.sin().sum()
""",
    "float64": """
w = torch.randn(8, 8, device="cuda", dtype=torch.float64, requires_grad=True)
loss = torch.linalg.inv(w @ w.T + torch.eye(8, device="cuda", dtype=torch.float64)).trace()
""",
    "torch.func": """
w = torch.randn(3, 3, device="cuda", requires_grad=True)
x = torch.randn(5, 3, device="cuda")
per_sample = torch.func.vmap(lambda row: (row @ w).pow(2).sum())(x)
loss = per_sample.mean()
""",
    "shapes that do not fit": """
a = torch.randn(3, 4, device="cuda", requires_grad=True)
h = a.exp()
loss = (h @ torch.randn(3, 4, device="cuda")).sum()
""",
    "tensors on two devices": """
a = torch.randn(3, 3, device="cuda", requires_grad=True)
h = a.exp()
loss = (h @ torch.randn(3, 3)).sum()
""",
    "an index that is out of range on the host": """
a = torch.randn(3, device="cuda", requires_grad=True)
loss = a[7]
""",
}


@pytest.mark.parametrize("source", FORWARD.values(), ids=FORWARD)
def test_forward_cell_is_as_untraced(source: str) -> None:
    """Values, gradients of every node, random streams, warnings, errors: to the last bit."""
    assert_alike(source)


TRAINING = {
    "AdamW": "torch.optim.AdamW(model.parameters(), lr=0.01)",
    "fused AdamW": "torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)",
    "foreach AdamW": "torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True)",
    "capturable AdamW": "torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01, device='cuda'), capturable=True)",
    "SGD with momentum": "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)",
    "Adagrad": "torch.optim.Adagrad(model.parameters(), lr=0.1)",
}
LOOP = """
import torch.nn as nn
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 1)).to(DEVICE)
optimizer = OPTIMIZER
x, y = torch.randn(64, 8).to(DEVICE), torch.randn(64, 1).to(DEVICE)
losses = []
for step in range(6):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.detach())
"""


@pytest.mark.parametrize("optimizer", TRAINING.values(), ids=TRAINING)
def test_training_loop_is_as_untraced(optimizer: str) -> None:
    """Weights and the optimizer's losses are the same, and the report has the curves of loss, norm and update."""
    report = assert_alike(LOOP.replace("DEVICE", "'cuda'").replace("OPTIMIZER", optimizer), nodes=None)
    backward, clip, step = (next(e for e in report.ledger if e.kind == kind) for kind in ("backward", "clip", "step"))
    assert len(backward.values) == len(clip.values) == len(step.values) == 6
    assert all(0 < value < 10 for curve in (backward, clip, step) for value in curve.values.values)


def test_loss_curve_has_the_very_losses() -> None:
    """They arrive after the cell, each at its step."""
    source = LOOP.replace("DEVICE", "'cuda'").replace("OPTIMIZER", TRAINING["AdamW"])
    report, namespace = run_traced(source)
    assert list(report.losses[0].values.values) == [float(loss) for loss in namespace["losses"]]


OTHER = {
    "float16 with a scaler": """
import torch.nn as nn
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cuda")
x = torch.randn(8, 16, device="cuda")
for step in range(4):
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(x).float().pow(2).mean() * (1e6 if step == 1 else 1)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
scale = scaler.get_scale()
""",
    "sparse gradients": """
import torch.nn as nn
embedding = nn.Embedding(10, 4, sparse=True).cuda()
optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=0.1)
for step in range(3):
    optimizer.zero_grad()
    loss = embedding(torch.tensor([1, 4, 7], device="cuda")).pow(2).sum()
    loss.backward()
    optimizer.step()
""",
    "an optimizer in backward": """
import torch.nn as nn
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).cuda()
optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
def step_now(p):
    optimizers[p].step()
    optimizers[p].zero_grad()
_handles = [p.register_post_accumulate_grad_hook(step_now) for p in model.parameters()]
for step in range(3):
    loss = model(torch.ones(5, 4, device="cuda")).pow(2).mean()
    loss.backward()
del optimizers
""",
    "a reentrant checkpoint": """
import torch.nn as nn
from torch.utils.checkpoint import checkpoint
block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh()).cuda()
x = torch.randn(4, 8, device="cuda", requires_grad=True)
loss = checkpoint(block, x, use_reentrant=True).pow(2).sum()
loss.backward()
""",
    "a compiled module": """
import torch.nn as nn
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).cuda()
compiled = torch.compile(model, backend="aot_eager")
x = torch.randn(4, 8, device="cuda")
loss = compiled(x).pow(2).mean()
loss.backward()
del compiled
""",
    "double backward": """
x = torch.randn(8, device="cuda", requires_grad=True)
loss = x.sin().pow(3).sum()
(first,) = torch.autograd.grad(loss, x, create_graph=True)
penalty = first.norm()
penalty.backward()
""",
    "a gradient accumulated on zeros": """
w = torch.randn(8, device="cuda", requires_grad=True)
w.grad = torch.zeros_like(w)
for step in range(2):
    loss = (w * 2).pow(2).sum()
    loss.backward()
""",
    "an error in backward": """
w = torch.rand(8, device="cuda", requires_grad=True)
h = w.sigmoid()
h2 = h.exp()
h.mul_(2)
loss = h2.sum() + h.sum()
loss.backward()
""",
    "an error in a hook": """
w = torch.rand(8, device="cuda", requires_grad=True)
h = w.exp()
def refuse(gradient):
    raise ValueError("no")
h.register_hook(refuse)
loss = h.sum()
loss.backward()
""",
    "a captured graph": """
import torch.nn as nn
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).cuda()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, capturable=True)
x, y = torch.randn(16, 8, device="cuda"), torch.randn(16, 1, device="cuda")
def train():
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss
_side = torch.cuda.Stream()
_side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(_side):
    for _ in range(3):
        train()
torch.cuda.current_stream().wait_stream(_side)
_graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(_graph):
    _static = train()
for _ in range(4):
    x.copy_(torch.randn(16, 8, device="cuda"))
    _graph.replay()
loss = _static.detach().clone()
""",
    "a graphed callable": """
import torch.nn as nn
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).cuda()
_graphed = torch.cuda.make_graphed_callables(model, (torch.randn(4, 8, device="cuda"),))
loss = _graphed(torch.randn(4, 8, device="cuda")).pow(2).mean()
loss.backward()
value = loss.detach().clone()
del loss, _graphed
""",
}


@pytest.mark.parametrize("source", OTHER.values(), ids=OTHER)
def test_cell_that_runs_backward_is_as_untraced(source: str) -> None:
    """As above, where the cell itself runs backward."""
    assert_alike(source, nodes=None)


# ---- the report is that of the CPU


@pytest.mark.parametrize("source", BORN.values(), ids=BORN)
def test_report_is_that_of_the_cpu(source: str) -> None:
    """Numbers arrive only after the cell; what they give occasion to say is the same, line by line."""
    assert told(on("cuda", source)) == told(on("cpu", source))


def test_first_nan_among_the_values_is_found() -> None:
    """With `values`, of all occurrences the first that is not finite is kept."""
    source = (
        "w = torch.ones(3).to(DEVICE, copy=True).requires_grad_()\nh = w * 1\nfor step in range(4):\n"
        "    h = (h - 0.5).log() if step < 2 else h * 1\nloss = h.sum()"
    )
    reports = [_values_traced(source.replace("DEVICE", f"'{device}'")) for device in ("cuda", "cpu")]
    assert told(reports[0]) == told(reports[1])


def _values_traced(source: str) -> Report:
    from gradmagic.tracing import trace

    namespace: dict[str, Any] = {"torch": torch}
    run = trace(values=True, namespace=namespace)
    with run:
        exec(compile(source, "<values>", "exec"), namespace)
    assert run.report is not None
    return run.report


def test_rows_say_where_they_lie() -> None:
    """Each row has its tensor's device, and every way to draw the report works."""
    report = on("cuda", "w = torch.ones(3, requires_grad=True)\nv = w.to(DEVICE)\nh = v * 2\nloss = h.sum()")
    devices = {name: report[name].device for name in ("w", "v", "h", "loss")}
    assert devices == {"w": "cpu", "v": "cuda:0", "h": "cuda:0", "loss": "cuda:0"}
    assert "cuda:0" in str(report)
    assert "cuda:0" in report.to_html()
    assert "cuda:0" in report.to_json()
    assert report["h"].grad is not None
    assert report["h"].grad.values == (1.0, 1.0, 1.0)


def test_statistics_of_large_gradients_are_exact() -> None:
    """Beyond what float32 can count, numbers of zeros, infinities and NaNs are still whole."""
    source = (
        "n = 2**24 + 3\nw = torch.ones(n).to(DEVICE, copy=True).requires_grad_()\nm = torch.ones(n).to(DEVICE, copy=True)\n"
        "m[:5] = 0\nm[7] = float('nan')\nm[8:10] = float('inf')\nloss = (w * m).sum()"
    )
    found = on("cuda", source)["w"].grad
    assert found is not None
    assert (found.nan_count, found.inf_count, found.numel) == (1, 2, 2**24 + 3)
    assert found.zero_fraction == 1 - (2**24 - 2) / (2**24 + 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_extreme_values_are_counted_as_on_the_cpu(dtype: torch.dtype) -> None:
    """The largest, the smallest, zeros of both signs, NaN and infinities."""
    limits = torch.finfo(dtype)
    values = [
        limits.max,
        -limits.max,
        limits.tiny,
        limits.smallest_normal / 2,
        0.0,
        -0.0,
        1.0,
        math.inf,
        -math.inf,
        math.nan,
    ]
    for count in range(1, len(values) + 1):
        found, expected = (
            measure(torch.tensor(values[:count] * 7, dtype=torch.float64).to(dtype).to(device)).result()
            for device in ("cuda", "cpu")
        )
        for name in ("nan_count", "inf_count", "zero_fraction", "min", "max"):
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert ours == theirs or (ours != ours and theirs != theirs), (count, name)


# ---- guests

GUEST = "import torch.nn as nn\nmodel = nn.Linear(4, 1).cuda()\nx = torch.randn(5, 4, device='cuda')\nloss = model(x).pow(2).mean()"


def test_guest_gradients_make_way_for_the_next_backward() -> None:
    """What a later cell's backward leaves is what it leaves without us."""
    torch.manual_seed(0)
    plain: dict[str, Any] = {"torch": torch}
    exec(GUEST, plain)
    plain["loss"].backward()
    torch.manual_seed(0)
    _, namespace = run_traced(GUEST)
    guests = [p.grad.clone() for p in namespace["model"].parameters()]
    namespace["loss"].backward()
    for ours, theirs, guest in zip(namespace["model"].parameters(), plain["model"].parameters(), guests, strict=True):
        assert torch.equal(ours.grad, theirs.grad)
        assert torch.equal(guest, theirs.grad)


# ---- no waiting

STEPS = """
import torch.nn as nn
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.LayerNorm(32), nn.Linear(32, 4)).cuda()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
x = torch.randn(64, 8, device="cuda")
y = torch.randn(64, 4, device="cuda")
torch.cuda.set_sync_debug_mode("error")
for step in range(3):
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        h = model(x).softmax(-1)
        loss = (h.float().log() - y).pow(2).mean().sqrt()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
END
"""


@pytest.mark.parametrize("end", ["torch.cuda.set_sync_debug_mode(0)", ""], ids=["until the last line", "for good"])
@pytest.mark.parametrize("own", [True, False], ids=["the cell runs backward", "gradtrace runs backward"])
def test_nothing_of_ours_waits_for_the_device(end: str, own: bool) -> None:
    """Where the cell forbids to wait for the device, it is traced all the same, and the person's setting stays."""
    source = STEPS.replace("END", end)
    if not own:
        source = source.replace("    loss.backward()\n    nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n", "")
        source = source.replace("    optimizer.step()\n", "")
    try:
        report, _ = run_traced(source)
        assert torch.cuda.get_sync_debug_mode() == (0 if end else 2)
    finally:
        torch.cuda.set_sync_debug_mode(0)
    assert [finding for finding in report.findings if finding.kind == "not_traced"] == []
    assert all(row.grad is not None for row in report.rows if row.kind == "parameter")
    assert str(report)
    assert report.to_html()


# ---- memory

DEEP = """
w = torch.randn(1024, 1024, device="cuda", requires_grad=True)
torch.cuda.reset_peak_memory_stats()
def net(h):
    for layer in range(12):
        h = (h @ w).tanh() * 0.5
    return h.pow(2).mean()
for step in range(4):
    loss = net(torch.ones(4096, 1024, device="cuda"))
    loss.backward()
peak, left = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
"""


def _plainly(source: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"torch": torch}
    exec(source, namespace)
    return namespace


def test_tensors_die_as_in_the_plain_cell() -> None:
    """What is allocated at the end is the same but for a few waiting numbers; at the peak hardly more."""
    measured = []
    for run in (_plainly, _plainly, lambda source: run_traced(source)[1]):
        namespace = run(DEEP)
        measured.append((namespace["peak"], namespace["left"]))
        namespace.clear()
        gc.collect()
        torch.cuda.empty_cache()
    _, plain, traced = measured
    assert traced[1] - plain[1] < 2**21
    assert traced[0] < 1.1 * plain[0]


def test_report_holds_no_memory_of_the_device() -> None:
    """Once the person's variables are gone, the device is as empty as before."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    report, namespace = run_traced(GUEST)
    namespace.clear()
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    assert report["loss"].grad is not None


def test_captured_graph_has_none_of_our_kernels() -> None:
    """As many nodes as the same graph captured untraced."""
    source = OTHER["a captured graph"].replace("torch.cuda.CUDAGraph()", "torch.cuda.CUDAGraph(keep_graph=True)")
    source = source.replace(
        "for _ in range(4):", "_graph.debug_dump(PATH) if PATH else None\n_graph.instantiate()\nfor _ in range(4):"
    )
    counts = [_nodes_of(run, source) for run in (_plainly, _plainly, lambda text: run_traced(text)[1])]
    assert counts[1] == counts[2]


def _nodes_of(run: Callable[[str], dict[str, Any]], source: str) -> int:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        text = source.replace("CUDAGraph(keep_graph=True)", "CUDAGraph(keep_graph=True); _graph.enable_debug_mode()")
        with warnings.catch_warnings(action="ignore"):  # that it is for debugging
            run(text.replace("PATH", repr(str(path))))
        torch.cuda.synchronize()
        return path.read_text().count("[style=")


RANDOM = """
class Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mask = torch.rand_like(x) > 0.5
        return x * ctx.mask
    @staticmethod
    def backward(ctx, g):
        return g * ctx.mask
x = torch.randn(64, 4, device="cuda", requires_grad=True)
y = Dropout.apply(x)
"""


@pytest.mark.parametrize("size", ["64, 4", "640, 40"])
def test_gradcheck_repeats_the_random_numbers_of_the_gpu_and_puts_its_generator_back(size: str) -> None:
    """Each run of forward draws the same mask, also of many elements; what is drawn next is what would have been."""
    watch = FunctionWatch("<cell>")
    with watch:
        exec(compile(RANDOM.replace("64, 4", size), "<cell>", "exec"), {"torch": torch, "__name__": "__main__"})
    before = torch.cuda.get_rng_state()
    (found,) = gradchecked(watch)
    assert (found.verdict, found.message) == ("passed", "")
    assert torch.equal(torch.cuda.get_rng_state(), before)
