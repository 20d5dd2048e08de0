"""Everyday features of autograd, traced and plain: values, `.grad`, every node's gradient, and what the rows say."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from plain import assert_equal_tensors, norms_of, run_plain, run_traced

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
