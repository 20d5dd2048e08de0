"""Everyday features of autograd, traced and plain: values, `.grad`, every node's gradient, and what the rows say."""

from __future__ import annotations

import bisect
import sys
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from plain import assert_equal_tensors, assert_same_as_plain, norms_of, run_plain, run_traced

from gradmagic.report import Report

W = "w = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)\n"


def assert_holds_plain(source: str) -> Report:
    """As `assert_same_as_plain`, for a cell with passes before the last, whose gradients the report has too.

    Of an inner step the report has the last occurrence only, so a cell that repeats some is compared by its tensors.
    """
    torch.manual_seed(0)
    plain = run_plain(source)
    torch.manual_seed(0)
    report, namespace = run_traced(source)
    expected = Counter(float(torch.linalg.vector_norm(gradient)) for _, gradient in plain.nodes)
    if all(row.count == 1 for row in report.rows if row.inner):
        assert not expected - norms_of(report)
    for name, value in plain.namespace.items():
        if isinstance(value, torch.Tensor):
            assert_equal_tensors(namespace[name], value, name)
    return report


def summary(report: Report, *names: str) -> list[tuple[str, int, str | None]]:
    """Operation, line and reason of the rows with these names."""
    return [(row.op, row.line, row.reason) for row in map(report.__getitem__, names)]


# ---- backward in other ways


def test_a_whole_batch_of_gradients_at_once_is_measured_as_one() -> None:
    """`is_grads_batched`: the hooks get a tensor whose values nobody may ask for; the row has all of the batch."""
    report = assert_holds_plain(
        W + "y = w.pow(2)\njac, = torch.autograd.grad(y, w, torch.eye(3), is_grads_batched=True, create_graph=True)\n"
        "loss = jac.sum()\n"
    )
    assert report["y"].grad is not None
    assert (report["y"].grad.numel, report["y"].grad.norm) == (9, float(torch.eye(3).norm()))
    assert report.findings == []


def test_a_batch_of_gradients_that_goes_bad_is_named() -> None:
    """The square root of zero under `is_grads_batched`."""
    report, namespace = run_traced(
        "w = torch.zeros(3, requires_grad=True)\ny = w.sqrt()\n"
        "jac, = torch.autograd.grad(y, w, torch.eye(3), is_grads_batched=True)\n"
    )
    assert namespace["jac"].isinf().sum() == 3
    assert report["w"].grads.nan_count[0] == 6


# ---- names through C code that calls back


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("ys = list(map(lambda t: t * 2, xs))", {"mul": "ys[…]"}),
        ("ys = [*map(lambda t: t * 2, xs)]", {"mul": "ys[…]"}),
        ("ys = list(itertools.accumulate(xs, lambda p, q: p + q))", {"add": "ys[…]"}),
        ("def f(ts):\n    out = tuple(map(lambda t: t * 2, ts))\n    return out\nys = f(xs)", {"mul": "ys[…]"}),
        ("for y in map(lambda t: t * 2, xs): pass", {"mul": "y"}),
        ("for y in list(map(torch.sin, xs)): pass", {"sin": "y"}),
        ("y = next(map(lambda t: t * 2, xs))", {"mul": "y"}),
        ("y = sum(map(lambda t: t * 2, xs))", {"mul": None, "add": "y"}),
        ("y = max(xs, key=lambda t: t * 3)", {"mul": None, "gt": None}),
        ("ys = sorted(xs, key=lambda t: t * 3)", {"mul": None, "lt": None}),
        ("ys = list(filter(lambda t: t * 3 > 0, xs))", {"mul": None, "gt": None}),
        ("y = functools.reduce(lambda p, q: p * q, xs)", {"mul": "y"}),
        ("y = functools.partial(lambda a, b: a * b, w)(2)", {"mul": "y"}),
        ("def map(t):\n    return t * 2\ny = map(w)", {"mul": "y"}),
        ("ys = list(map(lambda t: t * 2, w))", {"unbind": None, "mul": "ys[…]"}),
        ("for i, y in enumerate(w): pass", {"unbind": "y"}),
        ("ys = list(w)", {"unbind": "ys[2]"}),
        ("def f(ts):\n    for t in ts:\n        yield t * 2\nfor y in f(xs): pass", {"mul": "y"}),
        ("def f(ts):\n    for t in ts:\n        out = t * 2\n        yield out\nfor y in f(xs): pass", {"mul": "y"}),
        ("def f(ts):\n    for t in ts:\n        yield t * 2\nys = list(f(xs))", {"mul": "ys[…]"}),
        ("def f(ts):\n    for t in ts:\n        yield t * 2\ny = next(f(xs))", {"mul": "y"}),
        ("def f(ts):\n    for t in ts:\n        yield 0, t * 2\nfor i, y in f(xs): pass", {"mul": "y"}),
        ("def f(ts):\n    for t in ts:\n        yield t * 2\ny = sum(f(xs))", {"mul": None, "add": "y"}),
        ("total = 0\nfor a, b in zip(w, xs):\n    total = total + b", {"unbind": "a", "add": "total"}),
    ],
)
def test_a_value_has_the_name_of_what_it_becomes_and_not_of_what_its_call_is_for(
    statement: str, names: dict[str, str | None]
) -> None:
    """`map`, `sorted(key=...)` and the like call back: what they are given is not always what they give."""
    setting = "import functools, itertools\n" + W + "xs = [t.exp() for t in w.unbind()]\n"
    report, _ = run_traced(f"{setting}{statement}\nloss = w.sum()\n")
    begin = setting.count("\n")
    assert {row.op: row.name for row in report.rows if row.line > begin and row.name != "loss"} == names


@pytest.mark.parametrize("loss", ["w.sum()", "val", "val + (g * w).sum()"])
def test_what_a_transform_returns_stands_where_it_was_called(loss: str) -> None:
    """`g, val = torch.func.grad_and_value(f)(w)`: used further on or not."""
    report = assert_same_as_plain(
        W + f"def f(t):\n    return (t ** 2).sum()\ng, val = torch.func.grad_and_value(f)(w)\nloss = {loss} * 1\n"
    )
    assert [(report[name].line, report[name].kind) for name in ("g", "val")] == [(4, "non-leaf")] * 2
    assert report["val"].expression == "torch.func.grad_and_value(f)(w)"


def test_each_of_several_values_that_are_unpacked_at_once_has_its_own_origin() -> None:
    """`a, (b, c) = f(), (g(), h())` with leaves that no torch call makes."""
    report = assert_same_as_plain(
        "a, (b, c) = torch.nn.Parameter(torch.ones(2)), (torch.nn.Parameter(torch.zeros(2)), 3)\n"
        "loss = (a * b * c).sum()\n"
    )
    assert [report[name].expression for name in "ab"] == [
        "torch.nn.Parameter(torch.ones(2))",
        "torch.nn.Parameter(torch.zeros(2))",
    ]


# ---- containers


CONTAINERS = """
from collections import namedtuple
from dataclasses import dataclass
from typing import Any, NamedTuple
Pair = namedtuple("Pair", "first second")
class Typed(NamedTuple):
    first: Any
    second: Any
@dataclass
class Data:
    first: Any
    second: Any
@dataclass(slots=True)
class Slots:
    first: Any
    second: Any
def make(kind, t):
    return kind(t * 2, second=t * 3)
"""


@pytest.mark.parametrize("kind", ["Pair", "Typed", "Data", "Slots"])
def test_items_of_named_tuples_and_dataclasses_have_the_names_of_their_fields(kind: str) -> None:
    """Made in a function, held by a variable; unpacked they have the names of what they are unpacked to."""
    report = assert_same_as_plain(f"{CONTAINERS}{W}out = make({kind}, w)\nloss = (out.first * out.second).sum()\n")
    assert summary(report, "out.first", "out.second") == [("mul", 18, None)] * 2
    assert report["out.first"].expression == "t * 2"


@pytest.mark.parametrize(
    ("made", "last"),
    [
        ("{key: w * 2 for key in ('a', 'b')}", "out['b']"),
        ("dict(a=w * 1)\nfor key in 'bc':\n    out.update({key: w * 2})", "out['c']"),
        ("[w * 2 for _ in range(3)]", "out[2]"),
    ],
)
def test_items_that_one_place_makes_are_one_row_of_some_item(made: str, last: str) -> None:
    """A row that occurs more than once is called `out[…]`; the last item's own name finds it as well."""
    report, _ = run_traced(f"{W}out = {made}\nloss = w.sum()\n")
    assert report[last].name == "out[…]"
    assert report[last].count > 1


def test_items_of_torchs_own_named_tuples_are_found_by_index_and_by_field() -> None:
    """`top[0]` and `top.values`, of topk, max(dim) and qr."""
    report = assert_same_as_plain(
        "w = torch.randn(3, 3, requires_grad=True)\ntop = torch.topk(w, 2)\nmost = w.max(0)\nqr = torch.linalg.qr(w)\n"
        "best = w.min(dim=1).values\nloss = top.values.sum() + most[0].sum() + qr.R.sum() + best.sum()\n"
    )
    assert report["top.values"] is report["top[0]"]
    assert summary(report, "top.values", "top.indices", "most.values", "qr.R", "best") == [
        ("topk", 2, None), ("topk", 2, "not_differentiable"), ("max", 3, None), ("linalg_qr", 4, None), ("min", 5, None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("a, b = w.chunk(2)", "a b"),
        ("a, b, c, d = w.unbind()", "a b c d"),
        ("a, b = torch.split(w, 2)", "a b"),
        ("a, b, c = torch.linalg.svd(w.view(2, 2))", "a b c"),
        ("a, (b, c) = w.sum(), w.view(2, 2).max(1)", "a b c"),
        ("out = {'a': w * 2, 'b': w * 3}", "out['a'] out['b']"),
        ("def f(t):\n    return {'a': t * 2, 'b': [t * 3]}\nout = f(w)", "out['a'] out['b'][0]"),
    ],
)
def test_several_results_of_one_call_are_rows_of_their_own(statement: str, names: str) -> None:
    """Each with its name, its own gradient, or the reason that nothing used it."""
    first = names.split(maxsplit=1)[0]
    report = assert_same_as_plain(
        f"w = torch.randn(4, requires_grad=True)\n{statement}\nloss = {first}.sum() + w.sum()\n"
    )
    rows = [report[name] for name in names.split()]
    assert len({id(row) for row in rows}) == len(rows)
    assert [row.reason for row in rows if row.dtype == "float32"][1:] == ["unused"] * sum(
        row.dtype == "float32" for row in rows[1:]
    )
    assert rows[0].grad is not None


# ---- plain numbers through scopes


X = W + "x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)\n"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("s = 0.0\ndef f():\n    global s\n    s = x.max().item()\nf()\ny = w * s", 6),
        ("s = x.max().item()\ndef f():\n    return w * s\ny = f()", 3),
        ("def f():\n  s = 1.0\n  def g():\n    nonlocal s\n    s = x.sum().item()\n  g()\n  return w * s\ny = f()", 7),
        ("def f():\n    s = x.sum().item()\n    def g():\n        return w * s\n    return g\ny = f()()", 4),
        ("s = x.sum().item()\ny = (lambda: w * s)()", 3),
    ],
)  # fmt: skip
def test_a_number_that_goes_through_another_scope_is_followed(source: str, line: int) -> None:
    """`global`, `nonlocal` and what a function sees of the scopes around it: `.item()` cut the graph."""
    report = assert_same_as_plain(f"{X}{source}\nloss = y.sum()\n")
    assert (report["x"].reason, report["x"].culprit and report["x"].culprit.line) == ("cut_upstream", line)


@pytest.mark.parametrize(
    "source",
    [
        "s = x.max().item()\ndef f(s):\n    return w * s\ny = f(2.0)",
        "s = x.max().item()\ndef f():\n    return sum(w * s for s in (1.0, 2.0))\ny = f()",
        "def g():\n    s = x.max().item()\ns = 1.0\ng()\ny = w * s",
    ],
)
def test_a_number_by_the_same_name_in_another_scope_is_another(source: str) -> None:
    """Parameters, loop variables and locals of other functions hide it."""
    report = assert_same_as_plain(f"{X}{source}\nloss = y.sum()\n")
    assert report["x"].reason == "unused"


# ---- custom functions


def function(name: str, forward: str, backward: str, above: str = "") -> str:
    """Source of a custom `autograd.Function`."""
    return (
        f"class {name}(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, *xs):\n        {forward}\n"
        f"    @staticmethod\n{above}    def backward(ctx, *gs):\n        {backward}\n"
    )


TWO = function("Two", "return xs[0] * 2, xs[0] * 3", "return gs[0] * 2 + gs[1] * 3")
DOUBLE = function("Double", "ctx.mark_dirty(xs[0]); return xs[0].mul_(2)", "return gs[0] * 2")
SORTED = function(
    "Sorted",
    "v, i = xs[0].sort(); ctx.mark_non_differentiable(i); ctx.save_for_backward(i); return v, i",
    "return torch.zeros_like(gs[0]).index_add_(0, ctx.saved_tensors[0], gs[0])",
    above="    @torch.autograd.function.once_differentiable\n",
)
FIRST = function("First", "return xs[0] + xs[1]", "return gs[0], None")
CUBE = """class Cube(torch.autograd.Function):
    @staticmethod
    def forward(x, scale):
        return x ** 3 * scale, x.detach()
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.scale = inputs[1]
        ctx.set_materialize_grads(False)
    @staticmethod
    def backward(ctx, first, second):
        return 3 * ctx.saved_tensors[0] ** 2 * first * ctx.scale, None
"""


@pytest.mark.parametrize(
    ("definition", "source", "expected"),
    [
        (TWO, "a, b = Two.apply(w)\nloss = (a * b).sum()", {"a": None, "b": None}),
        (TWO, "h = w * 1\na, b = Two.apply(h)\nloss = a.sum()", {"h": None, "a": None, "b": "unused"}),
        (TWO, "f = lambda t: Two.apply(t)\np, q = f(w)\nloss = q.sum()", {"p": "unused", "q": None}),
        (DOUBLE, "h = w * 1\nk = Double.apply(h)\nloss = (h * k).sum()", {"k": None, "h": None}),
        (DOUBLE, "h = w * 1\nDouble.apply(h)\nloss = h.sum()", {"h": None}),
        (SORTED, "v, i = Sorted.apply(w)\nloss = (v * i).sum()", {"v": None, "i": "integer_dtype"}),
        (CUBE, "a, b = Cube.apply(w, 2.0)\nloss = a.sum()", {"a": None, "b": "unused"}),
        (FIRST, "v = torch.ones(3, requires_grad=True)\nh = v * 2\na = First.apply(w, h)\nloss = a.sum()",
         {"a": None, "h": "custom_backward_none", "v": "custom_backward_none"}),
    ],
)  # fmt: skip
def test_outputs_of_a_custom_function_are_rows_at_its_call(
    definition: str, source: str, expected: dict[str, str | None]
) -> None:
    """Several outputs, `mark_dirty`, `mark_non_differentiable`, `once_differentiable`, `setup_context`, a None."""
    report = assert_same_as_plain(f"{definition}{W}{source}\n")
    assert {name: report[name].reason for name in expected} == expected
    applied = [row for row in report.rows if ".apply(" in row.expression]
    above = (definition + W + source).partition(".apply(")[0]
    assert {row.line for row in applied} == {above.count("\n") + 1}
    assert all((row.grad is not None) == (row.reason is None) for row in report.rows)


# ---- in place, views, indices


def test_base_and_view_are_shown_before_and_after_a_change_through_either() -> None:
    """A change of the view makes a new version of the base, and the other way round."""
    report = assert_same_as_plain(
        "w = torch.randn(4, 4, requires_grad=True)\nbase = w * 1\nview = base[1]\nview.mul_(2)\nbase.add_(1)\n"
        "loss = (view.exp() * base[0]).sum()\n"
    )
    assert [
        (row.name, row.op, row.line, row.shape, row.reason) for row in report.rows if row.name in ("base", "view")
    ] == [
        ("base", "mul", 2, (4, 4), None),
        ("view", "getitem", 3, (4,), "replaced_in_place"),
        ("view", "mul_", 4, (4,), None),
        ("base", "mul_", 4, (4, 4), None),
        ("base", "add_", 5, (4, 4), None),
    ]


def test_a_view_whose_history_was_taken_over_blames_the_change_and_no_comparison() -> None:
    """The mask of a later line is not what keeps the gradient away."""
    report = assert_same_as_plain(
        "w = torch.ones(3, requires_grad=True)\nx = w * 2\nv = x[:2]\nv.mul_(3)\nm = x > 0\nloss = x[m].sum()\n"
    )
    before, after = (row for row in report.rows if row.name == "v")
    assert (before.reason, before.culprit and before.culprit.line) == ("replaced_in_place", 4)
    assert after.reason == "unused"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("buf = torch.zeros(4)\nbuf[1:] = w\nbuf[0] = w[0] * 2", [("zeros", 2), ("setitem", 3), ("setitem", 4)]),
        ("buf = torch.zeros(2, 4)\nbuf[[0, 1], [1, 2]] = w[:2]", [("zeros", 2), ("setitem", 3)]),
        ("buf = torch.zeros(3)\nbuf[w > 0] = w[w > 0]", [("zeros", 2), ("setitem", 3)]),
        ("buf = torch.zeros(4).index_put((torch.tensor([0, 2]),), w[:2])", [("index_put", 2)]),
        ("buf = torch.zeros(4)\nbuf.index_add_(0, torch.tensor([0, 2, 2]), w)", [("zeros", 2), ("index_add_", 3)]),
        ("buf = torch.zeros(3)\nbuf += w\nbuf *= w", [("zeros", 2), ("add_", 3), ("mul_", 4)]),
        ("buf = w[torch.tensor([0, 0, 2])]", [("getitem", 2)]),
        ("buf = w[None, :, None][..., 0]", [("getitem", 2)]),
        ("buf = torch.where(w > 0, w, 0.1 * w)", [("where", 2)]),
        ("buf = w.clone()\nbuf[:2].zero_()", [("clone", 2), ("zero_", 3)]),
        ("buf = w.clone()\nbuf[0] += w[1]", [("clone", 2), ("add_", 3), ("setitem", 3)]),
    ],
)
def test_each_version_of_a_tensor_that_is_indexed_or_written_into_is_a_row(
    source: str, expected: list[tuple[str, int]]
) -> None:
    """`__setitem__`, advanced indices, masks, in-place operators."""
    report = assert_same_as_plain(f"{W}{source}\nloss = buf.pow(2).sum()\n")
    rows = [row for row in report.rows if row.name == "buf"]
    assert [(row.op, row.line) for row in rows] == expected
    assert rows[-1].grad is not None


def test_out_gives_a_tensor_new_values_and_no_history() -> None:
    """PyTorch allows `out=` only where nothing asks for a gradient."""
    report = assert_same_as_plain(
        W + "y = torch.empty(3)\ntorch.add(torch.ones(3), 1, out=y)\nwith torch.no_grad():\n    z = torch.empty(3)\n"
        "    torch.mul(w, 2, out=z)\nloss = (w * y + z).sum()\n"
    )
    assert [(report[name].kind, report[name].reason) for name in "yz"] == [
        ("constant", "requires_grad_false"), ("constant", "no_grad")
    ]  # fmt: skip
    assert report["w"].grad is not None
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        run_traced(W + "y = torch.empty(3)\ntorch.mul(w, 2, out=y)\n")


# ---- the person's hooks


def traced_and_plain(source: str) -> tuple[Report, list[object], list[object]]:
    """The report, and what the hooks noted in `log`, traced and plain."""
    torch.manual_seed(0)
    plain = run_plain(f"{source}")
    torch.manual_seed(0)
    report, namespace = run_traced(source)
    return report, namespace["log"], plain.namespace["log"]


HOOKS = {
    "tensor hooks": "y.register_hook(lambda g: note('a', g) or g * 10)\ny.register_hook(lambda g: note('b', g))",
    "a hook of a leaf": "w.register_hook(lambda g: note('w', g) or g + 1)",
    "a hook after a node": "z.grad_fn.register_hook(lambda to, of: note('z', of[0]) or (to[0] * 0.5,))",
    "a hook before a node": "z.grad_fn.register_prehook(lambda of: note('z', of[0]) or (of[0] * 3,))",
    "a hook after accumulation": "w.register_post_accumulate_grad_hook(lambda t: note('w', t.grad))",
    "a hook that wants several": "torch.autograd.graph.register_multi_grad_hook((y, z), lambda gs: note('m', *gs))",
    "a hook that wants any": "torch.autograd.graph.register_multi_grad_hook((y, z), lambda g: note('m'), mode='any')",
    "a hook and retain_grad": "y.retain_grad()\ny.register_hook(lambda g: note('a', g) or g * 10)",
}
HOOKED = W + (
    "log = []\ndef note(name, *gradients):\n    log.append((name, *(tuple(g.tolist()) for g in gradients)))\n"
    "y = w * 2\nz = y.sin()\n{hooks}\nloss = z.sum()\n"
)


@pytest.mark.parametrize("backward", ["", "loss.backward()\n"])
@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_of_the_persons_sees_and_changes_what_it_does_without_us(name: str, backward: str) -> None:
    """What a hook makes of a gradient shows in the rows; who runs backward makes no difference to that."""
    source = HOOKED.format(hooks=HOOKS[name])
    assert_same_as_plain(source)
    report, ours, plain = traced_and_plain(source)
    by_cell, namespace = run_traced(source + backward)
    assert [row.grad for row in by_cell.rows] == [row.grad for row in report.rows]
    # gradtrace's own backward is not the person's: hooks after accumulation (an optimizer, perhaps) wait for theirs.
    expected = [] if name == "a hook after accumulation" else plain
    assert ours == expected
    assert namespace["log"] == (plain if backward else expected)


def test_hooks_of_the_persons_run_in_their_order_and_before_ours() -> None:
    """All kinds at once: the log is the plain one, and the rows have the gradients that came out."""
    source = HOOKED.format(hooks="\n".join(text for name, text in HOOKS.items() if "accumulation" not in name))
    report, ours, plain = traced_and_plain(source)
    assert ours == plain
    assert len(ours) == 8
    assert_same_as_plain(source)
    assert report["w"].grad is not None


def test_an_optimizer_that_steps_in_backward_is_traced_by_the_cells_own_backward() -> None:
    """`register_post_accumulate_grad_hook` that steps and clears: the gradient is in the row, with a note."""
    source = W + (
        "optimizer = torch.optim.SGD([w], lr=0.1)\n"
        "def step(t):\n    optimizer.step()\n    optimizer.zero_grad()\n"
        "w.register_post_accumulate_grad_hook(step)\nloss = w.pow(2).sum()\nloss.backward()\n"
    )
    report, namespace = run_traced(source)
    plain: dict[str, Any] = {"torch": torch}
    exec(source, plain)
    assert torch.equal(namespace["w"], plain["w"])
    assert namespace["w"].grad is plain["w"].grad is None
    assert report["w"].grad is not None
    assert report["w"].grad.values == (1.0, -2.0, 4.0)
    assert "register_post_accumulate_grad_hook" in report["w"].note


# ---- checkpoints and saved tensors


NET = "import torch.nn as nn\nfrom torch.utils.checkpoint import checkpoint, checkpoint_sequential\n" + (
    "net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 4))\n"
    "x = torch.randn(2, 4, requires_grad=True)\n"
)


@pytest.mark.parametrize(
    ("call", "inside"),
    [
        ("checkpoint(net, x, use_reentrant=False)", 4),
        ("checkpoint(net, x, use_reentrant=True)", 0),
        ("checkpoint_sequential(net, 2, x, use_reentrant=False)", 4),
        ("checkpoint_sequential(net, 2, x, use_reentrant=True)", 2),
    ],
)
@pytest.mark.parametrize("backward", ["", "loss.backward()\n"])
def test_what_a_checkpoint_computes_anew_in_backward_is_no_new_row(call: str, inside: int, backward: str) -> None:
    """The rows are those of the forward; parameters have their gradients, dropout draws the same numbers."""
    assert_holds_plain(f"{NET}y = {call}\nloss = y.sum()\n")
    report, _ = run_traced(f"{NET}y = {call}\nloss = y.sum()\n{backward}")
    made = [row for row in report.rows if row.module is not None and row.kind == "non-leaf"]
    assert (len(made), {row.count for row in made} - {1}) == (inside, set())
    assert report["y"].grad is not None
    assert all(row.grad is not None for row in report.rows if row.kind == "parameter")


@pytest.mark.parametrize(
    "context",
    [
        "torch.autograd.graph.save_on_cpu()",
        "torch.autograd.graph.saved_tensors_hooks(lambda t: t * 1, lambda t: t * 1)",
    ],
)
def test_hooks_on_saved_tensors_make_no_rows_of_their_own(context: str) -> None:
    """What they pack and unpack is not the cell's; the gradients flow as always."""
    report = assert_same_as_plain(W + f"with {context}:\n    a = w.exp()\n    b = a.sin() * a\nloss = b.sum()\n")
    assert [row.label for row in report.rows if row.kind != "constant"] == ["w", "a", "a.sin()", "b", "loss"]


# ---- gradients of gradients


def test_a_gradient_penalty_is_traced_through_the_gradient() -> None:
    """`create_graph=True`: what `autograd.grad` returned is a row of its own, with the steps of its making inside."""
    report = assert_holds_plain(
        "import torch.nn as nn\nnet = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))\n"
        "x = torch.randn(2, 3, requires_grad=True)\nout = net(x)\n"
        "g, = torch.autograd.grad(out.sum(), x, create_graph=True)\npenalty = (g.norm(dim=1) - 1).pow(2).mean()\n"
        "loss = out.mean() + penalty\n"
    )
    assert summary(report, "g", "penalty", "out") == [("grad", 5, None), ("mean", 6, None), ("linear", 4, None)]
    assert "TanhBackwardBackward0" in {step.grad_fn for step in report["g"].inner}
    assert [done.function for done in report.passes] == ["autograd.grad", "backward"]


def test_a_learning_step_that_is_learned_through_is_one_row_for_each_place() -> None:
    """MAML: the fast weights of three inner steps, and the slow ones they came from."""
    report = assert_holds_plain(
        W + "x = torch.randn(5, 3)\nfast = w\nfor _ in range(3):\n    inner = (x @ fast).pow(2).mean()\n"
        "    gr, = torch.autograd.grad(inner, fast, create_graph=True)\n    fast = fast - 0.1 * gr\n"
        "loss = (x @ fast).pow(2).mean()\n"
    )
    assert [(report[name].count, report[name].grad is not None) for name in ("fast", "gr", "inner")] == [(3, True)] * 3
    assert report["w"].grad is not None


def test_backward_with_create_graph_can_be_run_through_again() -> None:
    """The first backward's `.grad` is part of the second one's graph."""
    source = (
        W + "first = (w ** 3).sum()\nfirst.backward(create_graph=True)\nloss = w.grad.pow(2).sum()\nloss.backward()\n"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
        report, namespace = run_traced(source)
        plain: dict[str, Any] = {"torch": torch}
        exec(source, plain)
    assert torch.equal(namespace["w"].grad, plain["w"].grad)
    assert [done.root for done in report.passes] == ["first", "loss"]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("jacobian(lambda t: t ** 2, w, create_graph=True)", "J"),
        ("jacobian(lambda t: t ** 2, w, create_graph=True, vectorize=True)", "J"),
        ("hessian(lambda t: (t ** 3).sum(), w, create_graph=True)", "J"),
        ("vjp(lambda t: t.sin(), w, torch.ones(3), create_graph=True)[1]", "J"),
        ("jvp(lambda t: t.cos(), w, torch.ones(3), create_graph=True)[1]", "J"),
        ("hvp(lambda t: (t ** 3).sum(), w, torch.ones(3), create_graph=True)[1]", "J"),
    ],
)
def test_the_functional_interface_is_traced_like_what_it_calls(call: str, name: str) -> None:
    """`torch.autograd.functional`: its passes are in the ledger, its result is a row with a gradient."""
    report = assert_holds_plain(
        "from torch.autograd.functional import hessian, hvp, jacobian, jvp, vjp\n" + W + f"J = {call}\nloss = J.sum()\n"
    )
    assert (report[name].line, report[name].grad is not None) == (3, True)
    assert "autograd.grad" in {done.function for done in report.passes}
    assert report["w"].grad is not None
    assert [found.kind for found in report.findings if found.kind == "not_traced"] == []


# ---- depth and copies


RECURSION = {
    "an operation at the bottom": "def f(t, n):\n    return f(t, n - 1) if n else t * 2\n",
    "an operation in every frame": "def f(t, n):\n    t = t * 2\n    return f(t, n - 1) if n else t\n",
    "a module in every fourth": "class F(torch.nn.Module):\n    def forward(self, t, n):\n"
    "        return self(t, n - 1) if n else t * 2\nf = F()\n",
}


@pytest.mark.parametrize("name", RECURSION)
def test_code_that_recurses_as_deep_as_python_allows_runs_but_for_a_few_frames(name: str) -> None:
    """The recorder needs three frames of its own; what is closer to the limit is disclosed, or Python's own error."""

    def runs(depth: int) -> bool:
        try:
            exec(f"{W}{RECURSION[name]}y = f(w, {depth})\n", {"torch": torch, "__name__": "__main__"})
        except RecursionError:
            return False
        return True

    deepest = bisect.bisect_left(range(sys.getrecursionlimit()), True, key=lambda depth: not runs(depth)) - 1
    # `run_traced` is two frames deeper than `runs`.
    report, namespace = run_traced(f"{W}{RECURSION[name]}y = f(w, {deepest - 5})\nloss = y[0] * 1\n")
    assert deepest > 200
    assert report["y"].grad is not None
    assert report["w"].grad is not None
    assert namespace["y"].grad is not None


def test_a_copy_of_a_traced_model_is_a_copy_of_the_plain_model() -> None:
    """No guest gradient, hook or mark of ours comes along; both then train as they would have."""
    source = "import copy\nimport torch.nn as nn\nnet = nn.Linear(3, 1)\nloss = net(torch.ones(2, 3)).sum()\n"
    torch.manual_seed(0)
    _, namespace = run_traced(source)
    made = namespace["copy"].deepcopy(namespace["net"])
    for parameter in made.parameters():
        assert parameter.grad is None
        assert not parameter._backward_hooks
    made(torch.ones(2, 3)).sum().backward()
    assert torch.equal(made.weight.grad, torch.full((1, 3), 2.0))
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        namespace["copy"].deepcopy(namespace["loss"])


def test_copies_made_in_the_cell_are_leaves_of_their_own() -> None:
    """`copy.deepcopy` of a tensor, a parameter, and of both in a dict; `copy.copy`."""
    report = assert_same_as_plain(
        W + "import copy\np = torch.nn.Parameter(torch.ones(3))\nv = copy.deepcopy(w)\nq = copy.deepcopy(p)\n"
        "d = copy.deepcopy({'a': w, 'b': p})\nloss = (v * q * d['a'] * d['b']).sum()\n"
    )
    copied = [report[name] for name in ("v", "q", "d['a']", "d['b']")]
    assert [row.kind for row in copied] == ["leaf", "parameter"] * 2
    assert [row.line for row in copied] == [4, 5, 6, 7]  # a parameter in a dict is first seen where it is used
    assert all(row.grad is not None for row in copied)
    assert report["w"].reason == report["p"].reason == "unused"


@pytest.mark.parametrize(
    "change",
    ["buf.copy_(h)", "buf += h", "buf[0] = h[0]", "buf[1:] = h[1:]", "torch.mul(h, 2, out=buf)", "buf.lerp_(h, 0.5)"],
)
def test_values_written_into_a_constant_where_no_graph_is_recorded_are_followed(change: str) -> None:
    """The buffer's next version says that its history was cut there, and so do the tensors whose values went in."""
    report = assert_same_as_plain(
        W + "v = torch.ones(3, requires_grad=True)\nh = v.exp()\nbuf = torch.zeros(3)\n"
        f"with torch.no_grad():\n    {change}\nloss = (w * buf).sum()\n"
    )
    before, after = (row for row in report.rows if row.name == "buf")
    assert (before.line, before.reason, after.line, after.reason) == (4, "requires_grad_false", 6, "no_grad")
    assert [(report[name].reason, report[name].culprit and report[name].culprit.line) for name in "vh"] == [
        ("cut_upstream", 6)
    ] * 2


def test_a_running_average_that_is_updated_in_a_loop_is_two_rows() -> None:
    """The buffer as it was made, and what each round makes of it."""
    report, namespace = run_traced(
        W + "average = torch.zeros(3)\nfor _ in range(20):\n    with torch.no_grad():\n"
        "        average.mul_(0.9).add_(w, alpha=0.1)\nloss = w.sum()\n"
    )
    assert [(row.op, row.count) for row in report.rows if row.name == "average"] == [("zeros", 1), ("add_", 20)]
    assert torch.allclose(namespace["average"], namespace["w"] * (1 - 0.9**20))


# ---- leaves that one line makes


def test_leaves_of_an_unpacked_comprehension_are_rows_of_their_own() -> None:
    """One line makes them all; each has its own name and gradient."""
    report = assert_same_as_plain(
        "q, k, v = (torch.randn(2, 4, requires_grad=True) for _ in range(3))\n"
        "loss = (torch.softmax(q @ k.T, -1) @ v).sum()\n"
    )
    assert [(row.name, row.count) for row in report.rows if row.kind == "leaf"] == [("q", 1), ("k", 1), ("v", 1)]


def test_leaves_in_a_list_and_in_a_dict_are_rows_of_their_own() -> None:
    """Each is called as it is reached."""
    report = assert_same_as_plain(
        "ws = [torch.randn(4, requires_grad=True) for _ in range(2)]\n"
        "d = {key: torch.ones(4, requires_grad=True) for key in 'ab'}\nloss = (ws[0] * ws[1] * d['a'] * d['b']).sum()\n"
    )
    assert [row.name for row in report.rows if row.kind == "leaf"] == ["ws[0]", "ws[1]", "d['a']", "d['b']"]


def test_a_leaf_that_a_loop_makes_anew_is_one_row() -> None:
    """The one of the round before is still there while the next is made; they are never in use together."""
    report, _ = run_traced(
        "for i in range(5):\n    x = torch.full((2,), float(i), requires_grad=True)\n"
        "    loss = x.pow(2).sum()\n    loss.backward()\n"
    )
    assert [(row.name, row.count) for row in report.rows if row.kind == "leaf"] == [("x", 5)]
    assert list(report["x"].grads.norm) == [float(torch.full((2,), 2.0 * i).norm()) for i in range(5)]


def test_very_many_leaves_of_one_line_are_one_row() -> None:
    """Forty of a kind would fill the table; each gradient is in the series, in the order they were made."""
    report, namespace = run_traced(
        "xs = [torch.full((2,), float(i), requires_grad=True) for i in range(40)]\n"
        "loss = torch.stack(xs).pow(2).sum()\n"
    )
    (row,) = [row for row in report.rows if row.kind == "leaf"]
    assert (row.name, row.count) == ("xs[…]", 40)
    assert list(row.grads.norm) == [float(x.grad.norm()) for x in namespace["xs"]]
