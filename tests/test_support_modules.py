"""Everyday features of torch.nn, traced and plain: values, `.grad`, every node's gradient, and what the rows say."""

from __future__ import annotations

import linecache
from typing import Any

import pytest
import torch
from plain import assert_same_as_plain

from gradmagic.tracing import CellSource, trace

NN = "import copy\nimport torch.nn as nn\n"


# ---- memory that is none of the person's tensors


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazily_built_module_shows_its_parameters_as_an_ordinary_one() -> None:
    """Neither the parameters that have no shape yet nor the memory they get are rows."""
    report = assert_same_as_plain(
        NN + "net = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(1))\n"
        "x = torch.randn(5, 3)\ny = net(x)\nloss = y.sum()\n"
    )
    assert [row.label for row in report.rows if row.kind != "parameter"] == ["x", "net(x)", "net(x)", "y", "loss"]
    assert [row.name for row in report.rows if row.kind == "parameter"] == [
        f"net.{layer}.{which}" for layer in range(3) for which in ("weight", "bias")
    ]
    assert (report["net.0.weight"].shape, report["net.2.bias"].shape) == ((4, 3), (1,))
    assert report.findings == []


def test_a_template_layer_that_was_copied_from_and_dropped_is_no_row() -> None:
    """`copy.deepcopy(layer)` makes the layers; nothing but their own parameters is shown."""
    report = assert_same_as_plain(
        NN + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        layer = nn.Linear(3, 3)\n"
        "        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(2)])\n"
        "    def forward(self, x):\n        for layer in self.layers:\n            x = layer(x)\n        return x\n"
        "net = Net()\ny = net(torch.ones(2, 3))\nloss = y.sum()\n"
    )
    assert {row.name for row in report.rows if row.kind == "parameter"} == {
        f"net.layers.{layer}.{which}" for layer in range(2) for which in ("weight", "bias")
    }
    assert all(row.reason == "requires_grad_false" for row in report.rows if row.kind == "constant")


# ---- names of parameters


def test_a_parameter_under_two_names_has_both() -> None:
    """Tied weights: the embedding's weight is the head's."""
    report = assert_same_as_plain(
        NN + "class LM(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.emb = nn.Embedding(7, 4)\n        self.head = nn.Linear(4, 7, bias=False)\n"
        "        self.head.weight = self.emb.weight\n    def forward(self, i):\n        return self.head(self.emb(i))\n"
        "lm = LM()\nlogits = lm(torch.tensor([1, 2, 3]))\nloss = logits.logsumexp(-1).sum()\n"
    )
    assert [(row.name, row.aliases) for row in report.rows if row.kind == "parameter"] == [
        ("lm.emb.weight", ("lm.head.weight",))
    ]
    assert report["lm.head.weight"].grad is not None


def test_the_averaged_model_of_an_ema_has_its_names_and_is_not_missed() -> None:
    """Its parameters take no part in the loss, which is as it should be."""
    report = assert_same_as_plain(
        NN + "from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn\nnet = nn.Linear(3, 1)\n"
        "ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))\n"
        "loss = net(torch.randn(4, 3)).pow(2).mean()\n"
        "ema.update_parameters(net)\nema.update_parameters(net)\n"
    )
    assert {row.name: row.reason for row in report.rows if row.kind == "parameter"} == {
        "net.weight": None, "net.bias": None, "ema.module.weight": "unused", "ema.module.bias": "unused"
    }  # fmt: skip
    assert report.findings == []


# ---- names that were never bound


def names_after_error(source: str) -> dict[str, str | None]:
    """Name of the rows by operation (the last of a kind), after the cell has raised."""
    file = "<cell>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"torch": torch}
    run = trace(namespace=namespace, cell=CellSource(file, lambda _: 1))
    with pytest.raises(RuntimeError), run:
        exec(compile(source, file, "exec"), namespace)
    assert run.report is not None
    return {row.op: row.name for row in run.report.rows}


BROKEN = NN + "net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(4, 1))\n"
SOMETIMES = (
    NN + "class Last(nn.Module):\n    def forward(self, x):\n        assert_small(x)\n        return x.exp()\n"
    "def assert_small(x):\n    if len(x) > 2:\n        raise RuntimeError\n"
    "net = nn.Sequential(nn.Linear(3, 1), nn.Tanh(), Last())\n"
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (BROKEN + "y = net(torch.ones(2, 3))\n", {"tanh": None, "linear": None}),
        (SOMETIMES + "for n in (1, 2, 3):\n    y = net(torch.ones(n, 3))\n", {"tanh": None, "exp": "y"}),
        ("def f(t):\n    out = t * 2\n    t @ torch.ones(9)\n    return out\ny = f(torch.ones(3))\n", {"mul": "out"}),
        ("x = torch.ones(3) * 2\ny = x.exp() @ torch.ones(9)\n", {"mul": "x", "exp": None}),
    ],
)
def test_a_name_that_an_exception_kept_from_being_bound_is_no_rows_name(source: str, expected: dict[str, Any]) -> None:
    """The last layer that finished does not carry the name of the call that never did."""
    names = names_after_error(source)
    assert {op: names[op] for op in expected} == expected


# ---- hooks of the person's


HOOKED = NN + (
    "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        self.first = nn.Linear(3, 4)\n        self.last = nn.Linear(4, 4)\n"
    "    def forward(self, x):\n        h = self.first(x)\n        out = self.last(h)\n        return out\n"
    "net = Net()\nlog = []\nx = torch.randn(2, 3, requires_grad=True)\n"
    "def note(module, *gradients):\n    log.append(type(module).__name__)\n"
)


@pytest.mark.parametrize(
    ("hooked", "names"),
    [
        ("net.first, net.last, net", [None, None, "h", None, "out", "y"]),
        ("net.first,", [None, "h"]),
        ("net,", [None, "y"]),
    ],
)
def test_a_module_with_a_backward_hook_gives_its_name_to_what_it_returns(hooked: str, names: list[str | None]) -> None:
    """PyTorch puts a node before and behind the module: the last is what the caller gets, and has the caller's name."""
    report = assert_same_as_plain(
        f"{HOOKED}for module in ({hooked}):\n    module.register_full_backward_hook(note)\ny = net(x)\nloss = y.sum()\n"
    )
    hooks = [row for row in report.rows if row.op == "BackwardHookFunction"]
    assert [row.name for row in hooks] == names
    assert [row.count for row in hooks] == [1] * len(names)
    modules = [row.module for row in hooks]
    assert sorted(modules) == sorted(2 * [name.strip() for name in hooked.split(",") if name.strip()])
    named = [name for row in report.rows for name in (row.name, *row.aliases) if name is not None]
    assert len(set(named)) == len(named), "no name is on two rows"
