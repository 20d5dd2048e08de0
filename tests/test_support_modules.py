"""Everyday features of torch.nn, traced and plain: values, `.grad`, every node's gradient, and what the rows say."""

from __future__ import annotations

import linecache
from typing import Any

import pytest
import torch
from plain import assert_same_as_plain, run_traced

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


@pytest.mark.parametrize("use", ["nn.functional.relu(p)", "p * 2", "nn.functional.linear(p, p)"])
def test_a_leaf_that_was_used_and_dropped_is_still_a_row(use: str) -> None:
    """It is the person's own, whatever function of PyTorch's saw it first."""
    report = assert_same_as_plain(
        NN + f"def f():\n    p = nn.Parameter(torch.ones(3))\n    {use}\nf()\n"
        "w = torch.ones(2, requires_grad=True)\nloss = w.sum()\n"
    )
    assert report["p"].reason == "unused"


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


# ---- parametrizations


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_the_old_weight_norm_shows_its_two_parameters_at_the_persons_line() -> None:
    """It stands behind a decorator of typing_extensions, and deletes the weight that it found."""
    report = assert_same_as_plain(
        NN + "lin = nn.utils.weight_norm(nn.Linear(3, 2))\nx = torch.ones(2, 3)\ny = lin(x)\nloss = y.pow(2).sum()\n"
    )
    assert {row.line for row in report.rows} == {3, 4, 5, 6}
    assert [row.name for row in report.rows if row.kind == "parameter"] == ["lin.weight_v", "lin.weight_g", "lin.bias"]
    weight = [row for row in report.rows if row.op == "weight_norm"][-1]
    assert (weight.name, weight.module, weight.grad is not None) == ("lin.weight", "lin", True)


@pytest.mark.parametrize(
    ("source", "parameters", "op"),
    [
        ("weight_norm(nn.Linear(3, 3))", ["original0", "original1"], "weight_norm"),
        ("spectral_norm(nn.Linear(3, 3))", ["original"], "div"),
        ("orthogonal(nn.Linear(3, 3))", ["original"], "matmul"),
        ("nn.Linear(3, 3)\nparametrize.register_parametrization(lin, 'weight', Symmetric())", ["original"], "add"),
    ],
)
def test_a_parametrized_weight_is_traced_from_its_originals(source: str, parameters: list[str], op: str) -> None:
    """The originals are parameters with gradients; what makes the weight of them is inside the parametrization."""
    report = assert_same_as_plain(
        NN + "from torch.nn.utils import parametrize\n"
        "from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm\n"
        "class Symmetric(nn.Module):\n    def forward(self, X):\n        return X.triu() + X.triu(1).T\n"
        f"lin = {source}\ny = lin(torch.ones(2, 3))\nloss = y.pow(2).sum()\n"
    )
    assert {row.name for row in report.rows if row.kind == "parameter"} == {
        *(f"lin.parametrizations.weight.{name}" for name in parameters),
        "lin.bias",
    }
    assert all(row.grad is not None for row in report.rows if row.kind == "parameter")
    made = [row for row in report.rows if row.op == op][-1]
    assert (made.module, made.shape, made.grad is not None) == ("lin.parametrizations.weight.0", (3, 3), True)


# ---- modules that run


def test_a_module_that_runs_three_times_makes_three_rows_with_one_weight() -> None:
    """The parameter's gradient is the sum; each output has its own."""
    report = assert_same_as_plain(
        NN + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.lin = nn.Linear(3, 3)\n"
        "    def forward(self, x):\n        a = self.lin(x)\n        b = self.lin(a)\n        return self.lin(b)\n"
        "net = Net()\ny = net(torch.randn(2, 3))\nloss = y.sum()\n"
    )
    assert [(report[name].module, report[name].line, report[name].count) for name in ("a", "b", "y")] == [
        ("net.lin", 8, 1), ("net.lin", 9, 1), ("net.lin", 10, 1)
    ]  # fmt: skip
    assert [row.name for row in report.rows if row.kind == "parameter"] == ["net.lin.weight", "net.lin.bias"]


def test_a_module_with_a_getattr_of_its_own_is_traced_by_its_real_paths() -> None:
    """What `__getattr__` finds elsewhere is called by where it is, and by what the code calls it."""
    report = assert_same_as_plain(
        NN + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.inner = nn.Linear(3, 3)\n"
        "    def __getattr__(self, name):\n        try:\n            return super().__getattr__(name)\n"
        "        except AttributeError:\n            return getattr(super().__getattr__('inner'), name)\n"
        "    def forward(self, x):\n        return x @ self.weight + self.bias\n"
        "net = Net()\ny = net(torch.randn(2, 3))\nloss = y.sum()\n"
    )
    assert [(row.name, row.aliases) for row in report.rows if row.kind == "parameter"] == [
        ("net.inner.weight", ("self.weight",)), ("net.inner.bias", ("self.bias",))
    ]  # fmt: skip


RECURRENT = "from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence\nx = torch.randn(5, 2, 3)\n"


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_layers_give_outputs_and_states_with_their_names(kind: str, packed: bool) -> None:
    """Two layers in both directions, plain and with a packed sequence."""
    states = "(h, c)" if kind == "LSTM" else "h"
    given, opened = (
        ("pack_padded_sequence(x, [5, 3])", "out, lengths = pad_packed_sequence(out)\n") if packed else ("x", "")
    )
    report = assert_same_as_plain(
        NN + f"{RECURRENT}rnn = nn.{kind}(3, 4, 2, bidirectional=True)\nout, {states} = rnn({given})\n{opened}"
        "loss = out.sum() + h.mean()\n"
    )
    assert len([row for row in report.rows if row.kind == "parameter" and row.grad is not None]) == 16
    made = [row for row in report.rows if row.module == "rnn" and row.kind == "non-leaf"]
    assert len(made) == (3 if kind == "LSTM" else 2)
    assert (report["h"].line, report["h"].grad is not None) == (6, True)
    assert report["out"].shape == (5, 2, 8)
    if kind == "LSTM":
        assert report["c"].reason == "unused"


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("given", ["x", "x[:, 0]", "pack_padded_sequence(x, [3, 5], enforce_sorted=False)"])
def test_a_state_has_its_name_also_where_the_name_is_bound_anew(kind: str, given: str) -> None:
    """The layer hands it through a function of its own, which may put its batch into another order, or do nothing."""
    states = "(h, c)" if kind == "LSTM" else "h"
    source = f"rnn = nn.{kind}(3, 4)\n_, {states} = rnn({given})\nh = h[-1]\nloss = h.sum()\n"
    report, _ = run_traced(NN + RECURRENT + source)
    first, last = [row for row in report.rows if row.name == "h"]
    assert (first.line, first.shape[-1], last.line, last.op) == (6, 4, 7, "getitem")
    assert first.op == {"x": kind.lower(), "x[:, 0]": "squeeze"}.get(given, "index_select").replace("rnn", "rnn_tanh")


def test_the_states_of_truncated_backpropagation_are_named_in_their_tuple() -> None:
    """`out, state = lstm(x, state)`, and `state` is bound anew to its detached parts."""
    report, _ = run_traced(
        NN + "lstm, state = nn.LSTM(3, 4), None\nfor x in torch.randn(6, 2, 3).split(3):\n"
        "    out, state = lstm(x, state)\n    out.sum().backward()\n    state = tuple(s.detach() for s in state)\n"
    )
    assert [(row.name, row.count) for row in report.rows if row.op == "lstm"] == [
        ("out", 2),
        ("state[0]", 2),
        ("state[1]", 2),
    ]


def test_each_call_of_a_recurrent_cell_has_its_own_state() -> None:
    """`h, c = cell(x, (h, c))`: the same names, another row for each line."""
    report = assert_same_as_plain(
        NN + "cell = nn.LSTMCell(3, 4)\nx = torch.randn(2, 2, 3)\nh, c = cell(x[0])\nh, c = cell(x[1], (h, c))\n"
        "loss = h.sum()\n"
    )
    assert [(row.name, row.line) for row in report.rows if row.op == "lstm_cell"] == [
        ("h", 5), ("c", 5), ("h", 6), ("c", 6)
    ]  # fmt: skip


def test_the_steps_inside_attention_are_inner_steps_of_its_row() -> None:
    """`nn.MultiheadAttention` and `scaled_dot_product_attention` are one call each for Python."""
    report = assert_same_as_plain(
        NN + "att = nn.MultiheadAttention(8, 2, batch_first=True)\nx = torch.randn(3, 2, 8, requires_grad=True)\n"
        "out, weights = att(x, x, x)\nq = torch.randn(2, 3, 4, requires_grad=True)\n"
        "s = nn.functional.scaled_dot_product_attention(q, q * 2, q * 3, is_causal=True)\n"
        "loss = out.sum() + weights.max() + s.sum()\n"
    )
    whole = [row for row in report.rows if row.op == "multi_head_attention_forward"]
    assert [row.shape for row in whole] == [(2, 3, 8), (3, 2, 2)]
    assert {"BmmBackward0", "SoftmaxBackward0"} <= {step.grad_fn for step in whole[0].inner} | {
        step.grad_fn for step in whole[1].inner
    }
    assert (report["out"].module, report["weights"].grad is not None) == ("att", True)
    assert all(step.grad is not None for row in report.rows for step in row.inner)
    assert report["s"].inner


def test_data_parallel_without_devices_is_the_module_itself() -> None:
    """On the CPU `nn.DataParallel` hands on to its module."""
    report = assert_same_as_plain(
        NN + "net = nn.DataParallel(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))\n"
        "y = net(torch.randn(2, 3))\nloss = y.sum()\n"
    )
    assert report["y"].module == "net.module.2"
    assert {row.name for row in report.rows if row.kind == "parameter"} == {
        f"net.module.{layer}.{which}" for layer in (0, 2) for which in ("weight", "bias")
    }


@pytest.mark.parametrize("hook", ["lambda module, args, out: out * 2", "lambda module, args, out: (out * 2).tanh()"])
def test_what_a_forward_hook_returns_has_the_name_and_the_layers_own_result_has_not(hook: str) -> None:
    """A hook that returns something else puts it in the place of what the layer computed."""
    report = assert_same_as_plain(
        f"{HOOKED}net.first.register_forward_hook({hook})\nnet.last.register_forward_hook(lambda *given: None)\n"
        "y = net(x)\nloss = y.sum()\n"
    )
    named = {row.name: row.op for row in report.rows if row.name in ("h", "out", "y")}
    assert named == {"h": "tanh" if "tanh" in hook else "mul", "y": "linear"}
    assert [row.name for row in report.rows if row.op == "linear"] == [None, "y"]


def test_of_several_hooks_on_one_module_the_last_one_gives_what_the_caller_gets() -> None:
    """Two forward hooks and the node for a backward hook behind them."""
    report = assert_same_as_plain(
        f"{HOOKED}net.first.register_forward_hook(lambda module, args, out: out * 2)\n"
        "net.first.register_forward_hook(lambda module, args, out: out + 1)\n"
        "net.first.register_full_backward_hook(note)\ny = net(x)\nloss = y.sum()\n"
    )
    assert [row.op for row in report.rows if row.name == "h"] == ["BackwardHookFunction"]
    assert {row.op: row.name for row in report.rows if row.op in ("mul", "add")} == {"mul": None, "add": None}


def test_what_unseen_code_of_pytorchs_makes_is_called_by_the_persons_call() -> None:
    """Rows that no call of the cell's returned say which call they belong to, not PyTorch's own variables."""
    report = assert_same_as_plain(
        "w = torch.randn(3, requires_grad=True)\nj = torch.func.jacrev(lambda t: t ** 2)(w)\nloss = j.sum()\n"
    )
    inside = {row.expression for row in report.rows if row.line == 2}
    assert inside <= {"torch.func.jacrev(lambda t: t ** 2)(w)", "t ** 2", "t"}
