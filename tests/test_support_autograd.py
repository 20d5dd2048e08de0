"""Everyday features of autograd, traced and plain: values, `.grad`, every node's gradient, and what the rows say."""

from __future__ import annotations

from collections import Counter

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
