"""Attention modules that plain PyTorch fuses in eval mode give the same bits when traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import run_traced
from torch.nn.modules import module as module_state
from torch.overrides import _get_current_function_mode_stack

SETUP = """
import torch.nn as nn
torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
encoder = nn.TransformerEncoder(layer, 2).eval()
attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
x = torch.randn(3, 5, 16)
padding = torch.arange(5) >= torch.tensor([[5], [3], [2]])
class Model(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside, self.head = inside, nn.Linear(16, 1)
    def forward(self, x):
        return self.head(self.inside(x))
class Trainer: pass
trainer = Trainer(); trainer.parts = [Model(encoder).eval()]
class Plain(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None): return func(*args, **(kwargs or {}))
"""

FUSED = {
    "encoder": "with torch.no_grad(): out = encoder(x)",
    "encoder by keyword": "with torch.no_grad(): out = encoder(src=x)",
    "encoder with padding": "with torch.no_grad(): out = encoder(x, src_key_padding_mask=padding)",
    "one layer": "with torch.no_grad(): out = layer(x)",
    "attention": "with torch.no_grad(): out, weights = attention(x, x, x)",
    "inference mode": "with torch.inference_mode(): out = encoder(x)",
    "frozen": "out = encoder.requires_grad_(False)(x)",
    "in a model": "with torch.no_grad(): out = Model(encoder).eval()(x)",
    "in an object": "del encoder, layer, attention\nwith torch.no_grad(): out = trainer.parts[0](x)",
    "after another module": "hidden = (lambda m: lambda x: m(x))(nn.Sequential(nn.Linear(16, 16), encoder).eval())\n"
    "del encoder, layer, attention, trainer\nwith torch.no_grad(): out = hidden(x)",
    "made in the cell": "torch.manual_seed(1); made = nn.MultiheadAttention(16, 4, batch_first=True).eval()\n"
    "with torch.no_grad(): out, _ = made(x, x, x)",
    "whole transformer": "torch.manual_seed(1); made = nn.Transformer(16, 2, 1, 1, 32, batch_first=True).eval()\n"
    "with torch.no_grad(): out = made(x, x)",
    "a subclass": "class Mine(nn.TransformerEncoderLayer): pass\ntorch.manual_seed(1)\n"
    "made = Mine(16, 2, 32, batch_first=True).eval()\nwith torch.no_grad(): out = made(x)",
    "called again": "with torch.no_grad():\n  for _ in range(3): x = out = encoder(x)",
    "a mode of the person's": "with torch.no_grad(), Plain(): out = encoder(x)",
    "hooks of the person's": "layer.linear1.register_forward_hook(lambda *a: None)\n"
    "with torch.no_grad(): out = layer(x)",
    "asks for gradients": "out = encoder(x); out.sum().backward()\ngrad = encoder.layers[0].linear1.weight.grad",
    "input asks": "z = x.clone().requires_grad_(); out = encoder.requires_grad_(False)(z)\n"
    "out.sum().backward(); grad = z.grad",
    "training": "torch.manual_seed(1); out = encoder.train()(x)",
}


def untraced(cell: str) -> dict[str, Any]:
    """The variables after setup and cell, without a trace."""
    namespace: dict[str, Any] = {"torch": torch, "__name__": "__main__"}
    exec(SETUP, namespace)
    exec(cell, namespace)
    return namespace


def traced(cell: str) -> tuple[Any, dict[str, Any]]:
    """The report of the cell, and the variables; only the cell is traced."""
    variables: dict[str, Any] = {"torch": torch}
    exec(SETUP, variables)
    return run_traced(cell, **{name: value for name, value in variables.items() if not name.startswith("__")})


@pytest.fixture(autouse=True)
def _nothing_stays() -> Any:
    yield
    assert not _get_current_function_mode_stack()
    assert not module_state._global_forward_hooks
    assert not module_state._global_forward_pre_hooks
    assert not module_state._global_forward_hooks_always_called


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("situation", FUSED)
def test_results_of_modules_that_may_be_fused_are_those_of_plain_pytorch(situation: str) -> None:
    """Bit for bit, whether PyTorch fuses the call or not, and nothing is disclosed as untraced."""
    plain = untraced(FUSED[situation])
    report, ours = traced(FUSED[situation])
    assert "not_traced" not in [found.kind for found in report.findings]
    for name in ("out", "weights", "grad"):
        if name in plain:
            assert torch.equal(ours[name], plain[name]), name


def test_the_fused_path_gives_other_bits_than_the_steps() -> None:
    """Else the tests here would show nothing."""
    with torch.no_grad():
        assert not torch.equal(untraced(FUSED["encoder"])["out"], untraced(FUSED["a mode of the person's"])["out"])


def test_a_fused_call_is_one_row_with_its_name_its_reason_and_its_parameters() -> None:
    """What ran without the recorder stands in the table like any other operation."""
    report, _ = traced(
        "with torch.no_grad():\n    h = encoder(x)\nw = torch.ones(16, requires_grad=True)\nloss = (h * w).sum()"
    )
    row = report["h"]
    assert (row.op, row.expression, row.line, row.module) == ("TransformerEncoder", "encoder(x)", 2, "encoder")
    assert (row.reason, row.shape) == ("no_grad", (3, 5, 16))
    weight = report["encoder.layers.0.linear1.weight"]
    assert (weight.kind, weight.reason, weight.culprit.line) == ("parameter", "cut_upstream", 2)
    assert report["w"].grad is not None


def test_the_steps_of_an_encoder_that_asks_for_gradients_are_rows() -> None:
    """Where gradients flow, nothing is left out."""
    report, _ = traced("loss = encoder(x).sum()")
    assert {"layer_norm", "relu", "linear"} <= {row.op for row in report.rows if row.grad is not None}


def test_rows_are_named_alike_whether_attention_is_about_or_not() -> None:
    """The hooks put a frame into each module's call, which no name depends on."""
    cell = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Sequential(nn.Linear(8, 4), nn.Tanh())
    def forward(self, x):
        h = self.a(x)
        return self.b(h)
net = Net()
y = net(x)
loss = y.sum()
"""
    with_attention, _ = traced(cell)
    without, _ = traced("del layer, encoder, attention, trainer\n" + cell)
    about = [
        [(row.name, row.op, row.expression, row.module, row.kind) for row in report.rows if row.grad is not None]
        for report in (with_attention, without)
    ]
    assert about[0] == about[1]


RAISES = """
import traceback
def caught(module, *given):
    try:
        with torch.no_grad(): module(*given)
    except BaseException as error:
        return [(f.filename.rpartition("/")[2], f.name, f.line) for f in traceback.extract_tb(error.__traceback__)]
class Breaks(nn.Module):
    def forward(self, x): raise {error}
class Broken(nn.TransformerEncoderLayer):
    def forward(self, x): return Breaks()(x)
seen = [caught(Broken(16, 2, batch_first=True).eval(), x), caught(nn.Sequential(nn.Linear(16, 3), Breaks()), x)]
w = torch.ones(16, requires_grad=True)
loss = (w * 2).sum()
"""


@pytest.mark.parametrize("error", ["ValueError('mine')", "KeyboardInterrupt()"])
def test_tracing_goes_on_after_an_error_in_a_module_that_may_be_fused(error: str) -> None:
    """The person catches it; what comes after is traced."""
    cell = RAISES.format(error=error)
    report, _ = traced(cell + "encoder(x)")
    assert report["loss"].grad is not None
    assert report["w"].grad is not None


def test_the_traceback_of_an_error_in_a_module_is_that_of_the_untraced_run() -> None:
    """Frame by frame, though hooks are registered."""
    cell = RAISES.format(error="ValueError('mine')")
    plain, (_, ours) = untraced(cell), traced(cell)
    for with_trace, without in zip(ours["seen"], plain["seen"], strict=True):
        assert [name for _, name, _ in with_trace] == [name for _, name, _ in without]
        library = [frame for frame in with_trace if frame[0] == "module.py"]
        assert library == [frame for frame in without if frame[0] == "module.py"] != []


def test_a_call_that_comes_by_another_way_is_disclosed() -> None:
    """`encoder.forward(x)` calls no hook: its steps are recorded, and the report says that bits may differ."""
    report, _ = traced("with torch.no_grad(): out = layer.forward(x)")
    (found,) = [found for found in report.findings if found.kind == "not_traced"]
    assert "TransformerEncoderLayer" in found.detail
