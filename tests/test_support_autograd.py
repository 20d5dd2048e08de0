"""Everyday features of autograd, traced and plain: values, `.grad`, every node's gradient, and what the rows say."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from plain import assert_equal_tensors, assert_same_as_plain, norms_of, run_plain, run_traced

from gradmagic.report import Report

W = "w = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)\n"


def assert_holds_plain(source: str) -> Report:
    """As `assert_same_as_plain`, for a cell with passes before the last, whose gradients the report has too."""
    torch.manual_seed(0)
    plain = run_plain(source)
    torch.manual_seed(0)
    report, namespace = run_traced(source)
    expected = Counter(float(torch.linalg.vector_norm(gradient)) for _, gradient in plain.nodes)
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
def make(kind, t):
    return kind(t * 2, second=t * 3)
"""


@pytest.mark.parametrize("kind", ["Pair", "Typed", "Data"])
def test_items_of_named_tuples_and_dataclasses_have_the_names_of_their_fields(kind: str) -> None:
    """Made in a function, held by a variable; unpacked they have the names of what they are unpacked to."""
    report = assert_same_as_plain(f"{CONTAINERS}{W}out = make({kind}, w)\nloss = (out.first * out.second).sum()\n")
    assert summary(report, "out.first", "out.second") == [("mul", 14, None)] * 2
    assert report["out.first"].expression == "t * 2"


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
