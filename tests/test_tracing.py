"""What a trace finds: every tensor, what it is called, where it was made, and from where backward ran."""

from __future__ import annotations

import contextlib
import linecache
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from plain import run_traced

import gradmagic
from gradmagic.records import TensorRow
from gradmagic.report import Report
from gradmagic.tracing import CellSource, trace


def row(source: str, name: str) -> TensorRow:
    """The row called `name` after tracing `source`."""
    report, _ = run_traced(source)
    return report[name]


def rows_by_expression(report: Report) -> dict[str, TensorRow]:
    """Rows by their source text."""
    return {found.expression: found for found in report.rows}


# ---- every tensor is found


def test_unnamed_sub_expressions_have_rows_with_their_source_text() -> None:
    """`x @ W` inside `torch.tanh(x @ W + b)` is a row of its own."""
    report, _ = run_traced(
        "W = torch.randn(3, 4, requires_grad=True)\nb = torch.zeros(4, requires_grad=True)\n"
        "h = torch.tanh(torch.ones(2, 3) @ W + b)\nloss = h.sum()\n"
    )
    found = rows_by_expression(report)
    assert found["torch.ones(2, 3) @ W"].op == "matmul"
    assert found["torch.ones(2, 3) @ W + b"].grad is not None
    assert found["torch.ones(2, 3) @ W + b"].name is None
    assert report["h"].op == "tanh"


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("y = w * 2", "y"),
        ("y: torch.Tensor = w * 2", "y"),
        ("(y := w * 2)", "y"),
        ("hs = [0, 0]; t = 1; hs[t] = w * 2", "hs[t]"),
        ("d = {}; d['k'] = w * 2", "d['k']"),
        ("d = {'k': w * 2}", "d['k']"),
        ("hs = [w * 2]", "hs[0]"),
        ("hs = []; hs.append(w * 2)", "hs[0]"),
        ("class A: pass\na = A(); a.h = w * 2", "a.h"),
        ("a, b = (w * 2).chunk(2)", "b"),
        ("parts = (w * 2).chunk(2)", "parts[1]"),
        ("q, k = (w * 2).split(2)", "k"),
        ("def f(t):\n    parts = t.split(2)\n    return parts\nq, k = f(w)", "k"),
        ("a, *rest = (w * 2).chunk(2)", "a"),
        ("(a, b), c = ((w * 2).chunk(2), 0)", "b"),
        ("values, where = (w * 2).max(0, keepdim=True)", "values"),
        ("a = b = w * 2", "a"),
        ("a = b = w * 2", "b"),
        ("y = (w * 2) if True else None", "y"),
        ("y = (w * 2).unbind()[1]", "y"),
        ("u, v, *_ = w * 2", "v"),
        ("y = w * 1\ny += w", "y"),
        ("y = w * 1\ny[0] = w[1]", "y"),
        ("y = w * 1\ny.mul_(2)", "y"),
        ("y = (\n    w\n    .mul(2)\n    .exp()\n)", "y"),
        ("f = lambda t: t * 2\ny = f(w)", "y"),
        ("def f(t):\n    out = t * 2\n    return out\ny = f(w)", "y"),
        ("def f(t):\n    out = t * 2\n    return out, 1\ny, _ = f(w)", "y"),
        ("def f(t):\n    return t * 2\ndef g(t):\n    return f(t)\ny = g(w)", "y"),
        ("def f(t):\n    parts = t.chunk(2)\n    last = parts[1]\n    return 0, last\n_, y = f(w)", "y"),
        ("def f(t):\n    parts = t.chunk(4)\n    rest = parts[1:]\n    return rest\na, b, y = f(w)", "y"),
        ("def f(t):\n    if len(t):\n        s = t * 2\n    else:\n        s = t * 3\n    return s\ny = f(w)", "y"),
        ("for y in w * 2: pass", "y"),
        ("s = sum([t for t in w * 2])", "t"),
        ("y = torch.nn.functional.relu(w)", "y"),
        ("y = torch.nn.MSELoss()(w, torch.zeros(4))", "y"),
        ("y = 1 - w", "y"),
        ("y = w.T", "y"),
        ("y = -w", "y"),
        ("y = w.contiguous() * 1", "y"),
    ],
)
@pytest.mark.filterwarnings("ignore:The use of `x.T`")
def test_a_tensor_has_the_name_that_the_statement_gives_it(statement: str, name: str) -> None:
    """Names come from assignments of every kind, through returns, containers and attributes."""
    found = row(f"w = torch.ones(4, requires_grad=True)\n{statement}\nloss = w.sum()\n", name)
    assert found.kind == "non-leaf"
    assert found.name == name or name in found.aliases


@pytest.mark.parametrize(
    "function",
    [
        "def f(t):\n    s = t * 2\n    out = s\n    out = out + 1\n    return out",
        "def f(t):\n    s = t * 2\n    out = s\n    s = out + 1\n    return s",
        "def f(t):\n    parts = (t * 2, t + 1)\n    out = parts[1]\n    return out",
        "def f(t):\n    s = t * 2\n    if len(t):\n        s = s * 1\n    else:\n        s = s * 3\n    return s + 1",
    ],
)
def test_what_a_function_does_not_return_has_not_the_name_of_its_result(function: str) -> None:
    """Another name for a value counts until it is bound anew."""
    report, _ = run_traced(f"w = torch.ones(4, requires_grad=True)\n{function}\ny = f(w)\nloss = y.sum()\n")
    named = [row.op for row in report.rows if "y" in (row.name, *row.aliases)]
    assert named == ["add"]


def test_the_name_inside_a_function_and_the_callers_name_both_find_the_row() -> None:
    """`out` inside the function, `y` in the cell: the cell's name is shown, the other is an alias."""
    found = row("w = torch.ones(2, requires_grad=True)\ndef f(t):\n    out = t * 2\n    return out\ny = f(w)\n", "out")
    assert found.name == "y"
    assert found.aliases == ("out",)
    assert (found.line, found.function) == (3, "f")


def test_a_leaf_that_is_switched_on_afterwards_is_a_leaf() -> None:
    """`requires_grad_()` in the same expression, on a line of its own, or by the attribute."""
    for source in (
        "w = torch.ones(2).requires_grad_()\nloss = w.sum()\n",
        "w = torch.ones(2)\nw.requires_grad_()\nloss = w.sum()\n",
        "w = torch.ones(2)\nw.requires_grad = True\nloss = w.sum()\n",
        "w = torch.nn.Parameter(torch.ones(2))\nloss = w.sum()\n",
        "w = (torch.ones(2, requires_grad=True) * 1).detach().requires_grad_()\nloss = w.sum()\n",
        "w = torch.zeros_like(torch.ones(2, requires_grad=True), requires_grad=True)\nloss = w.sum()\n",
    ):
        found = row(source, "w")
        assert found.kind in ("leaf", "parameter"), source
        assert found.line == 1, source
        assert found.grad is not None, source
        assert found.grad.values == (1.0, 1.0), source


def test_leaves_of_an_earlier_cell_appear_before_their_first_use() -> None:
    """A leaf the cell only uses stands in the table, in front of what it is used in."""
    w = torch.ones(2, requires_grad=True)
    with trace(namespace={"w": w}) as run:
        loss = (w * 2).sum()
    assert run.report is not None
    assert [found.label for found in run.report.rows][:2] == ["w", "w * 2"]
    assert run.report["w"].grad.values == (2.0, 2.0)
    del loss


MODEL = """
import torch.nn as nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
        self.head = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        self.unused = nn.Linear(2, 2)
        for p in self.blocks[0].parameters():
            p.requires_grad_(False)
    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)
model = Net()
pred = model(torch.randn(5, 3))
loss = pred.mean()
"""


def test_rows_inside_modules_know_the_path_of_the_module_with_the_variable_in_front() -> None:
    """`model.head.2` for the last layer, whose output is `pred` in the cell."""
    report, _ = run_traced(MODEL)
    assert (report["pred"].module, report["pred"].module_type) == ("model.head.2", "Linear")
    assert report["pred"].line == 14
    assert report["model.blocks.1.weight"].kind == "parameter"
    linear = [found.module for found in report.rows if found.op == "linear"]
    assert linear == ["model.blocks.0", "model.blocks.1", "model.head.0", "model.head.2"]
    tanh = [found for found in report.rows if found.op == "tanh"]
    assert [(found.module, found.count) for found in tanh] == [("model", 2)]


def test_parameters_that_took_no_part_say_so() -> None:
    """Frozen and unused parameters of a model that ran are rows with a reason."""
    report, _ = run_traced(MODEL)
    assert report["model.blocks.0.weight"].reason == "frozen"
    assert report["model.unused.weight"].reason == "unused"
    assert report["model.blocks.1.bias"].reason is None


def test_modules_of_an_earlier_cell_and_of_a_file_show_both_places(tmp_path: Any) -> None:
    """The row says where the code stands, and which line of the traced cell was running."""
    module = tmp_path / "resnet.py"
    module.write_text("def block(t):\n    u = t * 2\n    return u\n")
    earlier = "def scale(t):\n\n    return t * 3\n"
    linecache.cache["<earlier>"] = (len(earlier), None, earlier.splitlines(keepends=True), "<earlier>")
    namespace: dict[str, Any] = {"torch": torch}
    exec(compile(module.read_text(), str(module), "exec"), namespace)
    exec(compile(earlier, "<earlier>", "exec"), namespace)
    source = "w = torch.ones(2, requires_grad=True)\na = block(w)\nb = scale(a)\nloss = b.sum()\n"
    linecache.cache["<now>"] = (len(source), None, source.splitlines(keepends=True), "<now>")
    run = trace(namespace=namespace, cell=CellSource("<now>", {"<earlier>": 3, "<now>": 4}.get))
    with run:
        exec(compile(source, "<now>", "exec"), namespace)
    assert run.report is not None
    a, b, loss = (run.report[name] for name in ("a", "b", "loss"))
    assert (str(a.location), a.cell_line, a.file) == ("resnet.py:2", 2, str(module))
    assert (str(b.location), b.cell_line) == ("In [3]:3", 3)
    assert (str(loss.location), loss.cell_line) == ("line 4", 4)


def test_a_loop_makes_one_row_for_each_place_in_it() -> None:
    """Fifty rounds are one row that occurred fifty times; its series has every gradient."""
    report, _ = run_traced(
        "h = torch.ones(2, requires_grad=True)\nfor t in range(50):\n    h = torch.tanh(h * 0.9)\nloss = h.sum()\n"
    )
    tanh = report["h"]
    assert (tanh.op, tanh.count, len(tanh.grads)) == ("tanh", 50, 50)
    assert sorted(tanh.grads.occurrences) == list(range(50))
    last = tanh.grads.norm[list(tanh.grads.occurrences).index(49)]
    assert tanh.grad is not None
    assert tanh.grad.norm == last


def test_recursion_is_one_row_not_one_a_level() -> None:
    """A function that calls itself 200 times makes one place."""
    report, _ = run_traced(
        "def f(t, n):\n    return t if n == 0 else f(t * 1.01, n - 1)\n"
        "w = torch.ones(2, requires_grad=True)\nloss = f(w, 200).sum()\n"
    )
    assert len([found for found in report.rows if found.op == "mul"]) <= 2
    assert sum(found.count for found in report.rows if found.op == "mul") == 200


def test_iterating_over_a_tensor_folds_into_one_row_with_the_loop_variable() -> None:
    """`for x in xs` makes one row `x`."""
    found = row("xs = torch.ones(6, 2, requires_grad=True)\nloss = 0\nfor x in xs:\n    loss = loss + x.sum()\n", "x")
    assert (found.op, found.count, len(found.grads)) == ("unbind", 6, 6)


def test_tuple_outputs_are_rows_of_their_own() -> None:
    """lstm, svd and max give several tensors; each that Python got has its row and gradient."""
    report, _ = run_traced(
        "rnn = torch.nn.LSTM(2, 3)\nout, (h, c) = rnn(torch.ones(4, 1, 2))\n"
        "u, s, v = torch.linalg.svd(out[0] + h[0].T @ c[0])\n"
        "loss = s.sum() + out.sum()\n"
    )
    for name in ("out", "h", "c", "s"):
        assert report[name].grad is not None, name
    assert report["u"].reason == "unused"
    assert report["out"].module == "rnn"


CUSTOM = """
class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2
    @staticmethod
    def backward(ctx, g):
        return g * 2
w = torch.ones(3, requires_grad=True)
y = Double.apply(w)
loss = Double.apply(Double.apply(y).sum())
"""


def test_outputs_of_custom_functions_are_rows_where_they_are_applied() -> None:
    """No torch call returns them to the recorder; they are found all the same, named or not."""
    report, _ = run_traced(CUSTOM)
    assert [(found.label, found.op, found.line) for found in report.rows] == [
        ("w", "ones", 9),
        ("y", "Double", 10),
        ("Double.apply(y)", "Double", 11),
        ("Double.apply(y).sum()", "sum", 11),
        ("loss", "Double", 11),
    ]
    assert [found.grad.norm for found in report.rows if found.grad][-1] == 1.0


def test_every_version_of_a_tensor_changed_in_place_is_a_row() -> None:
    """`y`, then `y += 1`, then `y[0] = ...`: three rows called y, each with the gradient of that version."""
    report, _ = run_traced(
        "w = torch.ones(3, requires_grad=True)\ny = w * 2\ny += 1\n"
        "y[0] = w[1] * 5\nloss = (y * torch.arange(3.)).sum()\n"
    )
    versions = [found for found in report.rows if found.name == "y"]
    assert [found.expression for found in versions] == ["w * 2", "y += 1", "y[0] = w[1] * 5"]
    assert [found.grad.values for found in versions] == [(0.0, 1.0, 2.0)] * 3
    assert report["y"] is versions[-1]


def test_inner_steps_of_composite_operations_belong_to_their_row() -> None:
    """cross_entropy is one call for Python and two nodes for autograd."""
    found = row(
        "x = torch.randn(4, 3, requires_grad=True)\n"
        "loss = torch.nn.functional.cross_entropy(x, torch.tensor([0, 1, 2, 0]))\n",
        "loss",
    )
    assert [step.grad_fn for step in found.inner] == ["LogSoftmaxBackward0"]
    assert found.inner[0].shape == (4, 3)
    assert found.inner[0].grad is not None


def test_a_row_knows_dtype_device_shape_and_op() -> None:
    """Facts in PyTorch's words."""
    found = row("w = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)\ny = w @ w.mT\nloss = y.sum()\n", "y")
    assert (found.dtype, found.device, found.shape, found.op, found.grad_fn) == (
        "float64", "cpu", (2, 2), "matmul", "MmBackward0",
    )  # fmt: skip


def test_gradients_of_tensors_that_are_long_dead_are_captured() -> None:
    """Nothing keeps the intermediate alive, and its gradient is in the table."""
    report, namespace = run_traced(
        "def f(w):\n    inner = w * 3\n    return (inner * inner).sum()\n"
        "w = torch.ones(2, requires_grad=True)\nloss = f(w)\n"
    )
    assert report["inner"].grad.values == (6.0, 6.0)
    assert namespace["w"].grad.tolist() == [18.0, 18.0]


def test_the_live_tensor_is_found_while_it_lives() -> None:
    """`row.tensor` is a weak look-up."""
    report, namespace = run_traced("w = torch.ones(2, requires_grad=True)\ny = w * 2\nloss = y.sum()\n")
    assert report["y"].tensor is namespace["y"]
    namespace.clear()
    assert report["y"].tensor is None


# ---- the root


@pytest.mark.parametrize(
    ("source", "options", "root"),
    [
        ("a = (w * 2).sum()\nb = (w * 3).sum()", {}, "b"),
        ("a = (w * 2).sum()\nb = w * 3", {}, "a"),
        ("a = (w * 2).sum()\nb = (w * 3).sum()", {"backward": "a"}, "a"),
        ("b = w * 3", {"backward": "b.sum()"}, "b.sum()"),
        ("losses = [(w * 2).sum()]", {}, "losses[0]"),
    ],
)
def test_backward_starts_from_the_last_scalar_or_from_what_is_asked_for(
    source: str, options: dict[str, Any], root: str
) -> None:
    """The last scalar bound to a name, or `--backward EXPR`."""
    report, _ = run_traced(f"w = torch.ones(2, requires_grad=True)\n{source}\n", **options)
    assert report.root is not None
    assert report.root.label == root
    assert [(done.root, done.run_by, done.error) for done in report.passes] == [(root, "gradtrace", None)]


def test_the_value_of_the_last_expression_goes_before_names() -> None:
    """What the cell ends with is the first candidate."""
    w = torch.ones(2, requires_grad=True)
    with trace(namespace={}) as run:
        first, second = (w * 2).sum(), (w * 3).sum()
        run.offer(first)
    assert run.report.root.name == "first"
    del second


def test_other_scalars_are_named_as_candidates_unless_they_are_part_of_the_root() -> None:
    """`part` flows into the root; `other` does not."""
    report, _ = run_traced(
        "w = torch.ones(2, requires_grad=True)\nother = (w * 2).sum()\npart = w.sum()\nloss = part * 2\n"
    )
    assert report.candidates == ("other",)


def test_a_backward_of_the_cell_is_reported_and_none_is_added() -> None:
    """Two passes of the cell: by line, root and value."""
    report, _ = run_traced(
        "w = torch.ones(2, requires_grad=True)\na = (w * 2).sum()\na.backward()\n"
        "b = (w * 3).sum()\ntorch.autograd.backward(b)\n"
    )
    assert [(done.root, done.line, done.run_by, done.value) for done in report.passes] == [
        ("a", 3, "cell", 4.0),
        ("b", 5, "cell", 6.0),
    ]
    expected = [torch.full((2,), factor).norm().item() for factor in (2.0, 3.0)]
    assert report["w"].grads.norm.tolist() == expected


def test_autograd_grad_alone_does_not_count_as_backward() -> None:
    """With retain_graph, gradtrace still runs its own; without, the graph is gone and the report says so."""
    head = "w = torch.ones(2, requires_grad=True)\nloss = (w * w).sum()\n"
    report, namespace = run_traced(head + "g, = torch.autograd.grad(loss, w, retain_graph=True)\n")
    assert [done.function for done in report.passes] == ["autograd.grad", "backward"]
    report, namespace = run_traced(head + "g, = torch.autograd.grad(loss, w)\n")
    assert [done.function for done in report.passes] == ["autograd.grad"]
    assert [found.kind for found in report.findings] == ["graph_used_up"]
    assert "line 3" in report.findings[0].message
    assert report["w"].grad.values == tuple(namespace["g"].tolist())
    assert "autograd.grad" in report["w"].note


def test_backward_none_runs_nothing_but_retains_gradients() -> None:
    """The person's later backward finds `.grad` on the non-leaves."""
    report, namespace = run_traced(
        "w = torch.ones(2, requires_grad=True)\ny = w * 2\nloss = y.sum()\n", backward="none"
    )
    assert report.passes == []
    assert report["y"].reason == "no_backward"
    assert namespace["w"].grad is None
    namespace["loss"].backward()
    assert namespace["y"].grad.tolist() == [1.0, 1.0]


def test_grad_of_a_non_leaf_is_there_inside_the_cell_without_a_warning() -> None:
    """After the cell's own backward, `z.grad` is a tensor where plain PyTorch warns and gives None."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, namespace = run_traced(
            "w = torch.tensor([2.0], requires_grad=True)\nz = w * 2\nl = z.pow(2)\nl.backward()\nseen = z.grad\n"
        )
    assert namespace["seen"].tolist() == [8.0]


# ---- errors of backward, and cells without one


def test_a_root_that_the_cell_has_run_backward_from_already_is_not_run_again() -> None:
    """`--backward loss` over a cell that says `loss.backward()`: no second pass, no error."""
    report, namespace = run_traced(
        "w = torch.ones(2, requires_grad=True)\nloss = (w * w).sum()\nloss.backward()\n", backward="loss"
    )
    assert [done.run_by for done in report.passes] == ["cell"]
    assert [found.kind for found in report.findings] == ["graph_used_up"]
    assert "`backward` (line 3)" in report.findings[0].message
    assert namespace["w"].grad.tolist() == [2.0, 2.0]


def test_an_expression_of_the_backward_option_is_a_row_with_its_own_place() -> None:
    """It stands in no line of the cell."""
    report, _ = run_traced("w = torch.ones(2, requires_grad=True)\ny = w * 2\n", backward="y.sum()")
    assert report.root is not None
    assert str(report.root.location) == "--backward"
    assert "--backward" not in linecache.cache


@pytest.mark.parametrize(
    ("source", "options", "kind", "words"),
    [
        (
            "w = torch.ones(2, requires_grad=True)\ny = w.exp()\ny += 1\nloss = y.sum()",
            {},
            "changed_in_place",
            "`y = w.exp()` (line 2)",
        ),
        ("w = torch.ones(8, 10, requires_grad=True)\nlogits = w * 2", {"backward": "logits"}, "not_scalar", "8×10"),
        ("w = torch.ones(8, 10, requires_grad=True)\nlogits = w * 2", {}, "no_scalar", "logits"),
        ("w = torch.ones(2)\nloss = w.sum()", {"backward": "loss"}, "root_without_graph", "loss"),
        ("w = torch.ones(2)\nloss = w.sum()", {}, "nothing_differentiable", "requires a gradient"),
        ("loss = 3", {}, "nothing_made", "nothing to trace"),
        ("w = torch.ones(2, requires_grad=True)", {}, "nothing_computed", "nothing that backward could run through"),
        (
            "w = torch.ones(2, requires_grad=True)\nwith torch.no_grad():\n    y = w * 2",
            {},
            "nothing_computed",
            "nothing that backward could run through",
        ),
        ("model = torch.nn.Linear(2, 1)\nx = torch.ones(2)\ny = x + 1", {}, "nothing_differentiable", "computes"),
        ("logits = torch.ones(2, requires_grad=True) * 1", {"backward": "logit"}, "not_found", "logits"),
        ("loss = torch.ones(1, requires_grad=True) * 1\nname = 'x'", {"backward": "name"}, "not_a_tensor", "name"),
    ],
)
def test_what_keeps_backward_from_running_is_said_in_one_sentence(
    source: str, options: dict[str, Any], kind: str, words: str
) -> None:
    """A finding names the matter; the table still comes."""
    report, _ = run_traced(source + "\n", **options)
    assert [found.kind for found in report.findings] == [kind]
    assert words in report.findings[0].message


def test_the_original_text_of_backwards_error_is_kept() -> None:
    """PyTorch's own words stand beside ours."""
    report, _ = run_traced("w = torch.ones(2, requires_grad=True)\ny = w.exp()\ny += 1\nloss = y.sum()\n")
    assert "modified by an inplace operation" in report.findings[0].detail
    assert report.passes[0].error is not None
    assert report["w"].reason == "backward_failed"


def test_a_second_backward_in_the_cell_raises_as_always_and_is_retold() -> None:
    """The cell's error is the person's: it goes on; the report names the line that used the graph up."""
    source = "w = torch.ones(2, requires_grad=True)\nloss = (w * w).sum()\nloss.backward()\nloss.backward()\n"
    run = trace(namespace={})
    namespace: dict[str, Any] = {"torch": torch}
    with pytest.raises(RuntimeError, match="second time"), run:
        exec(compile(source, "<x>", "exec"), namespace)
    assert run.report is not None
    assert [found.kind for found in run.report.findings] == ["second_backward"]
    assert [done.error is None for done in run.report.passes] == [True, False]


def test_an_error_in_the_cell_leaves_the_report_of_what_was_traced_so_far() -> None:
    """The table ends where the cell did; no backward is run."""
    run = trace(namespace={})
    with pytest.raises(ZeroDivisionError), run:
        w = torch.ones(2, requires_grad=True)
        loss = w.sum()
        1 / 0  # noqa: B018
    assert run.report is not None
    assert [found.label for found in run.report.rows] == ["w", "loss"]
    assert [found.kind for found in run.report.findings] == ["cell_failed"]
    assert w.grad is None
    del loss


def test_zero_element_tensors_have_rows_like_any_other() -> None:
    """Their norm is 0, their extremes are NaN."""
    report, _ = run_traced("e = torch.zeros(0, 3, requires_grad=True)\nloss = (e * 2).sum()\n")
    grad = report["e"].grad
    assert grad is not None
    assert (grad.norm, grad.numel, grad.values) == (0.0, 0, ())
    assert grad.min != grad.min


def test_a_key_error_names_near_misses() -> None:
    """`report["logit"]` reminds of `logits`."""
    report, _ = run_traced("w = torch.ones(2, requires_grad=True)\nlogits = w * 2\n")
    with pytest.raises(KeyError, match="logits"):
        report["logit"]


def test_trace_is_public() -> None:
    """`gradmagic.trace` is the engine as a context manager."""
    with gradmagic.trace() as run:
        w = torch.tensor([2.0], requires_grad=True)
        loss = (w * 3).sum()
    assert run.report["w"].grad.values == (3.0,)
    assert run.report["loss"].line == run.report["w"].line + 1
    del loss


def test_entering_a_running_trace_again_is_refused() -> None:
    """One object, one block at a time."""
    run = trace()
    with run, pytest.raises(RuntimeError, match="running already"), run:
        pass


def test_nested_traces_have_their_own_reports() -> None:
    """The inner block's tensors are in the inner report; the outer one sees them as well."""
    with trace() as outer:
        w = torch.ones(2, requires_grad=True)
        with trace(backward="none") as inner:
            y = w * 2
        loss = y.sum()
    assert [found.label for found in inner.report.rows] == ["w", "y"]
    assert outer.report["loss"].grad is not None
    assert outer.report["y"].grad.values == (1.0, 1.0)
    del loss


def test_a_backward_through_the_graph_of_an_earlier_cell_names_that_cells_tensors() -> None:
    """The traced cell only says `loss.backward()`; `h` and `logits` are rows, in the order they were made."""
    namespace: dict[str, Any] = {"torch": torch}
    exec(
        "w = torch.ones(3, requires_grad=True)\nh = torch.tanh(w * 2)\nlogits = h * 3\nloss = logits.pow(2).sum()",
        namespace,
    )
    run = trace(namespace=namespace)
    with run:
        namespace["loss"].backward()
    assert run.report is not None
    assert [found.label for found in run.report.rows] == ["w", "h", "logits", "loss"]
    assert run.report["h"].grad.values == tuple((18 * namespace["h"]).tolist())
    assert [step.grad_fn for step in run.report["h"].inner] == ["MulBackward0"]


def test_a_tensor_of_another_default_dtype_goes_without_saying() -> None:
    """float64 is no news where the person made it the default."""
    torch.set_default_dtype(torch.float64)
    try:
        report, _ = run_traced("w = torch.ones(3, requires_grad=True)\nloss = w.sum()\n")
    finally:
        torch.set_default_dtype(torch.float32)
    assert report.default_dtype == "float64"
    assert "float64" not in str(report)


def test_a_call_that_python_has_specialised_is_still_the_same_row() -> None:
    """Python 3.11 reports a call at another offset once it has run often."""
    report, _ = run_traced(
        "w = torch.ones(3, requires_grad=True)\n"
        "def dot(a, b):\n    return sum((x * y for x, y in zip(a, b)), 0.0)\n"
        "loss = 0.0\nfor _ in range(40):\n    loss = loss + dot(w, w)\n"
    )
    products = [found for found in report.rows if found.expression == "x * y"]
    assert [found.count for found in products] == [120]


def test_tuple_positions_in_a_loop_keep_their_index() -> None:
    """`grads[0]` and `grads[1]` are two rows, not twice `grads[…]`."""
    report, _ = run_traced(
        "a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)\n"
        "for _ in range(3):\n    grads = torch.autograd.grad((a * b).sum(), [a, b])\n"
    )
    assert {"grads[0]", "grads[1]"} <= {found.name for found in report.rows}


def test_a_cut_names_the_root_it_lies_on_the_way_to() -> None:
    """Two losses; the detached value goes into the first."""
    report, _ = run_traced(
        "v = torch.ones(2, requires_grad=True)\nw = torch.ones(2, requires_grad=True)\n"
        "first = (w * (v * 2).detach()).sum()\nfirst.backward()\nsecond = (w * 3).sum()\nsecond.backward()\n"
    )
    assert report["v"].reason == "cut_upstream"
    assert "`first`" in report["v"].note


def test_a_last_expression_that_is_no_scalar_is_what_the_report_speaks_of() -> None:
    """Nothing has a name, and there is something to write all the same."""
    with trace(namespace={}) as run:
        run.offer(torch.ones(2, requires_grad=True) * 2)
    assert [found.kind for found in run.report.findings] == ["no_scalar"]
    assert "torch.ones(2, requires_grad=True) * 2" in run.report.findings[0].message


def test_an_embedding_with_a_padding_row_is_traced_without_a_word() -> None:
    """Its constructor changes a view in place under no_grad, whose history PyTorch refuses to show."""
    report, _ = run_traced("e = torch.nn.Embedding(4, 3, padding_idx=0)\nloss = e(torch.tensor([0, 1])).sum()\n")
    assert not report.findings
    assert report["e.weight"].grad is not None


def test_all_outputs_of_a_custom_function_are_named_at_their_call() -> None:
    """`a, b = Two.apply(w)`."""
    report, _ = run_traced(
        "class Two(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n"
        "        return x * 2, x * 3\n"
        "    @staticmethod\n    def backward(ctx, a, b):\n        return 2 * a + 3 * b\n"
        "w = torch.ones(2, requires_grad=True)\na, b = Two.apply(w)\nloss = (a * b).sum()\n"
    )
    assert [(report[name].line, report[name].op) for name in ("a", "b")] == [(9, "Two"), (9, "Two")]
    assert report["b"].grad.values == (2.0, 2.0)


def test_an_item_that_is_changed_in_place_is_told_apart_from_its_tensor() -> None:
    """`x[0] += 1`: the item's version and the tensor's version are two rows of their own shapes."""
    report, _ = run_traced("w = torch.ones(2, 3, requires_grad=True)\nx = w * 2\nx[0] += 1\nloss = x.sum()\n")
    assert all(found.shape == (2, 3) for found in report.rows if found.name == "x")
    assert report["x"].grad is not None


def test_a_scalar_that_unseen_code_made_earlier_is_not_taken_for_the_last() -> None:
    """`aux` comes out of a custom Function that no torch call uses; `loss` is made after it."""
    report, _ = run_traced(
        "class Same(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x.clone()\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return g\n"
        "w = torch.ones(2, requires_grad=True)\naux = Same.apply(w.sum())\nloss = (w * w).sum()\n"
    )
    assert report.root is not None
    assert report.root.name == "loss"
    assert report["aux"].reason == "unused"
    assert report.candidates == ("aux",)


def test_parameters_inside_a_reentrant_checkpoint_have_their_gradient() -> None:
    """Their graph is made only while backward runs; the outer one does not know them."""
    source = (
        "lin = torch.nn.Linear(3, 3)\nx = torch.randn(2, 3, requires_grad=True)\n"
        "b = torch.utils.checkpoint.checkpoint(lin, x, use_reentrant=True)\nloss = b.sum()\nloss.backward()\n"
    )
    report, namespace = run_traced(source)
    assert report["lin.weight"].reason is None
    assert report["lin.weight"].grad.norm == namespace["lin"].weight.grad.norm().item()


def test_a_loss_whose_graph_was_cut_is_not_called_dead() -> None:
    """It is bound and alive; what is missing is its graph."""
    report, _ = run_traced("w = torch.ones(2, requires_grad=True)\nloss = (w * 2).detach().sum()\n")
    assert [found.kind for found in report.findings] == ["root_without_graph"]
    assert "`loss`" in report.findings[0].message
    assert report["loss"].culprit.line == 2


def test_parameters_of_a_module_that_was_copied_have_its_names() -> None:
    """Also where only `copy.deepcopy` looked at them: `layer.weight`, not what the library calls its argument."""
    source = "import copy\nlayer = torch.nn.Linear(2, 2)\nnets = [copy.deepcopy(layer) for _ in range(2)]\n"
    source += "loss = nets[1](torch.ones(2)).sum()"
    report, _ = run_traced(source)
    assert {"layer.weight", "layer.bias", "nets[1].weight", "nets[1].bias"} <= {row.name for row in report.rows}


def test_what_a_loop_puts_under_several_keys_is_called_by_none_of_them() -> None:
    """`grads[…]`, as for the items of a list; the last key still finds the row."""
    report, _ = run_traced(
        "grads = {k: torch.ones(2, requires_grad=True) * 2 for k in 'ab'}\nloss = sum(grads.values()).sum()"
    )
    assert report["grads['b']"].name == "grads[…]"
    assert report["grads[…]"].count == 2


def test_parameters_of_a_model_that_is_gone_are_rows_of_their_own() -> None:
    """Weight and bias were given to one call, as different arguments of it."""
    source = "def run(model):\n    return model(torch.ones(1, 2)).sum()\nloss = run(torch.nn.Linear(2, 1))"
    report, _ = run_traced(source)
    shapes = [row.shape for row in report.rows if row.kind == "parameter"]
    assert shapes == [(1, 2), (1,)]


def test_what_autograd_grad_was_not_asked_for_is_said_so() -> None:
    """`backward(inputs=...)` is not what the person wrote."""
    source = "x = torch.ones(2, requires_grad=True)\nw = torch.ones(2, requires_grad=True)\n"
    report, _ = run_traced(source + "g, = torch.autograd.grad((x * w).sum(), x)")
    assert report["w"].note == "`autograd.grad` was not asked for it"


def test_a_module_that_a_loop_passed_by_is_called_by_its_place_in_the_model() -> None:
    """`blocks.2`, like the other two, although the loop's variable still holds it; by that where it is alone."""
    source = "blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))\nh = torch.ones(2)\n"
    report, _ = run_traced(source + "for block in blocks:\n    h = block(h)\nloss = h.sum()")
    assert {f"blocks.{i}.weight" for i in range(3)} <= {row.name for row in report.rows}
    report, _ = run_traced("for net in [torch.nn.Linear(2, 1)]:\n    loss = net(torch.ones(2)).sum()")
    assert report["net.weight"].grad is not None


@pytest.mark.parametrize(
    ("source", "name", "op"),
    [
        ("y = torch._weight_norm(v, torch.ones(3, 1))", "y", "weight_norm"),
        ("y = torch.nn.utils.rnn.pack_padded_sequence(v, [3, 1]).data", "y", "pack_padded_sequence"),
        ("y = v.data", "y", "data"),
        ("y = 2 - v", "y", "sub"),
    ],
)
def test_what_pytorch_keeps_behind_a_public_function_is_called_like_that(source: str, name: str, op: str) -> None:
    """Its private names begin with an underscore."""
    report, _ = run_traced(f"v = torch.ones(3, 2, requires_grad=True)\n{source}\n")
    assert report[name].op == op


def test_a_loss_that_a_thread_has_made_is_said_to_be_made_elsewhere_and_can_be_asked_for() -> None:
    """Autograd numbers the nodes of each thread by themselves, so that it looks like one of an earlier cell."""
    source = "loss = pool.submit(lambda: (x @ w).sum()).result()\n"
    w, x = torch.ones(3, requires_grad=True), torch.randn(3)
    for _ in range(20):
        (w * 2).sum().backward()  # this thread is far ahead
    w.grad = None
    with ThreadPoolExecutor(1) as pool:
        report, _ = run_traced(source, pool=pool, w=w, x=x)
        (finding,) = report.findings
        assert (finding.kind, w.grad) == ("made_elsewhere", None)
        assert "thread" in finding.message
        assert finding.hint == "%%gradtrace --backward loss"
        report, _ = run_traced(source, "loss", pool=pool, w=w, x=x)
    assert torch.equal(w.grad, x)


def test_a_scalar_of_an_earlier_cell_that_gets_another_name_is_no_root() -> None:
    """It is bound here, but was not made here."""
    w = torch.ones(3, requires_grad=True)
    report, _ = run_traced("loss = kept[0]\n", kept=[(w * 2).sum()])
    assert report.root is None
    assert [finding.kind for finding in report.findings] == ["made_elsewhere"]


def test_a_leaf_is_not_called_a_tensor_with_a_graph() -> None:
    """It has none, whatever was computed from it without one."""
    report, _ = run_traced("w = torch.ones(3, requires_grad=True)\nwith torch.no_grad():\n    loss = w.sum()\n")
    (finding,) = report.findings
    assert finding.kind == "root_without_graph"
    assert "`w`" not in finding.message


@pytest.mark.parametrize("unscales", [True, False])
def test_unscaling_is_advised_where_the_cell_does_not_do_it(unscales: bool) -> None:
    """`scaler.step` unscales as well, but not before one looks."""
    lines = [
        "net = torch.nn.Linear(2, 1)",
        "opt = torch.optim.SGD(net.parameters(), 0.1)",
        "scaler = torch.amp.GradScaler('cpu')",
        "scaler.scale(net(torch.ones(4, 2)).mean()).backward()",
        *(["scaler.unscale_(opt)"] if unscales else []),
        "scaler.step(opt)",
        "scaler.update()",
    ]
    report, _ = run_traced("\n".join(lines) + "\n")
    (finding,) = [finding for finding in report.findings if finding.kind == "scaled_loss"]
    assert ("unscale_" in finding.hint) is not unscales


def test_looking_at_the_source_warns_of_nothing_again() -> None:
    """An odd escape in a string is told by Python once, when it compiles the cell; the names are there all the same."""
    source = "w = torch.ones(2, requires_grad=True)\ntext = '\\d'\ny = torch.log(w - 1)\nloss = y.sum()"
    with warnings.catch_warnings(record=True, action="always") as caught:
        compile(source, "<once>", "exec")
        told = len(caught)
        report, _ = run_traced(source)
    assert told == 1
    assert len(caught) == 2 * told
    assert [row.name for row in report.rows if row.name] == ["w", "y", "loss"]


def test_two_in_place_lines_of_a_loop_are_told_apart_when_backward_fails() -> None:
    """Each is a version of the other; looking for the change that broke backward comes to an end."""
    report, _ = run_traced(
        "e = torch.full((3,), 0.5, requires_grad=True) * 1\n"
        "for i in range(2):\n    e *= e\n    e += 1\nloss = e.sum()\n"
    )
    (found,) = [finding for finding in report.findings if finding.kind == "changed_in_place"]
    assert "`e *= e` (line 3)" in found.message


def test_the_traceback_of_an_operator_shows_it_once() -> None:
    """`torch.ops` hands itself to the recorder and is called again; without a trace it stands there once."""

    def wrong() -> None:
        torch.ops.aten.relu(torch.ones(2), no_such=torch.ones(2))

    seen = []
    for around in (contextlib.nullcontext(), trace()):
        with pytest.raises(RuntimeError) as caught, around:
            wrong()
        seen.append([(frame.filename, frame.name) for frame in traceback.extract_tb(caught.value.__traceback__)][1:])
    assert seen[0] == seen[1]
    assert [name for _, name in seen[0]] == ["wrong", "__call__"]


def test_what_a_method_keeps_is_named_by_the_variable_that_leads_to_it() -> None:
    """`self.loss` of two objects: `second.loss` is what a person can write behind `--backward`."""
    source = """class Judge(torch.nn.Module):
    def forward(self, x):
        self.loss = x.pow(2).sum()
        hidden = self.loss * 2
        return x
x = torch.ones(3, requires_grad=True)
first, second = Judge(), Judge()
second(first(x) * 2)
"""
    report, namespace = run_traced(source)
    assert report.passes[0].root == "second.loss"
    assert report.candidates == ("first.loss",)
    assert report["second.loss"].tensor is namespace["second"].loss
    assert report["self.loss"] is report["second.loss"]
    assert "hidden" in report
