"""`Report.coverage`: every autograd node between root and leaves is a row or an inner step, or it is said why not."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from plain import run_traced
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradmagic import trace
from gradmagic.report import Report

CELLS = {
    "two leaves and a product": """
x = torch.ones(3, requires_grad=True)
w = torch.ones(3, requires_grad=True)
loss = (x * w).sum()
""",
    "a tensor that is used twice": """
x = torch.ones(3, requires_grad=True)
h = x.exp()
loss = (h * h + h.sin()).sum()
""",
    "an LSTM, whose layers are inner steps": """
net = torch.nn.LSTM(3, 4, num_layers=2)
out, (h, c) = net(torch.randn(5, 2, 3))
loss = out.pow(2).mean() + c.sum()
""",
    "attention, which is one call of many nodes": """
net = torch.nn.MultiheadAttention(8, 2)
q = torch.randn(5, 1, 8, requires_grad=True)
out, weights = net(q, q, q)
loss = out.sum() + weights.pow(2).sum()
""",
    "views, in-place changes and __setitem__": """
x = torch.ones(4, 4, requires_grad=True)
h = x * 2
h[0] = 0
h[:, 1].mul_(3)
a, b = h.unbind(0)[1:3]
loss = (a * b).sum() + h.t().sum()
""",
}


def nodes_of(*roots: torch.Tensor) -> int:
    """Distinct autograd nodes below the roots, counted by a plain walk."""
    seen: dict[int, Any] = {}
    pending = [root.grad_fn for root in roots]
    while pending:
        node = pending.pop()
        if node is not None and id(node) not in seen:
            seen[id(node)] = node
            pending.extend(parent for parent, _ in node.next_functions)
    return len(seen)


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


@pytest.mark.parametrize("source", CELLS.values(), ids=CELLS)
def test_every_node_of_the_graph_is_seen_and_shown(source: str) -> None:
    """As many nodes as the untraced graph has; each is named by a row or is one of the inner steps."""
    namespace: dict[str, Any] = {"torch": torch}
    exec(source, namespace)
    report, _ = run_traced(source)
    assert report.coverage.seen == nodes_of(namespace["loss"])
    assert report.coverage.missed == 0
    assert report.coverage.complete
    assert report.coverage.inner >= len({step.grad_fn for row in report.rows for step in row.inner})


def test_a_node_counts_once_for_each_pass_through_it() -> None:
    """Two passes through one graph, and one through another: the sum of the three."""
    with trace() as run:
        w = torch.ones(2, requires_grad=True)
        first = (w * 2).sum()
        first.backward(retain_graph=True)
        first.backward()
        second = w.exp().sum()
        second.backward()
    assert run.report is not None
    assert run.report.coverage.seen == run.report.coverage.named == 3 + 3 + 3


def test_without_backward_no_node_is_seen() -> None:
    """Nothing ran, nothing is claimed."""
    with trace(backward="none") as run:
        (torch.ones(2, requires_grad=True) * 2).sum()
    assert run.report is not None
    assert (run.report.coverage.seen, run.report.coverage.missed) == (0, 0)


def test_a_graph_that_is_too_deep_is_not_called_complete() -> None:
    """The walk stops at 15,000 operations in a row; the report says so."""
    with trace() as run:
        w = torch.ones(1, requires_grad=True)
        h = w
        for _ in range(16_000):
            h = h * 1
        loss = h.sum()  # noqa: F841 - the root
    assert run.report is not None
    assert not run.report.coverage.complete
    assert "too_deep" in kinds(run.report)


def test_coverage_is_part_of_the_export() -> None:
    """`to_dict` has the counts."""
    report, _ = run_traced(CELLS["two leaves and a product"])
    assert report.to_dict()["coverage"] == {"seen": 4, "named": 4, "inner": 0, "complete": True}


def test_a_reentrant_checkpoint_is_disclosed_with_what_to_write() -> None:
    """Its backward computes the block anew and runs a graph of its own, which no walk from the root can find."""
    layer = nn.Linear(3, 3)
    x = torch.ones(2, 3, requires_grad=True)
    with trace() as run:
        y = checkpoint(layer, x, use_reentrant=True)
        loss = y.sum()  # noqa: F841 - the root
    assert run.report is not None
    (found,) = [finding for finding in run.report.findings if finding.kind == "hidden_in_backward"]
    assert "`layer.weight` and `layer.bias`" in found.message
    assert found.hint == "checkpoint(..., use_reentrant=False)"
    assert run.report["layer.weight"].grad is not None


def test_a_checkpoint_that_is_not_reentrant_hides_nothing() -> None:
    """Its forward makes the graph as usual; what backward computes anew are no new tensors."""
    layer = nn.Linear(3, 3)
    x = torch.ones(2, 3, requires_grad=True)
    with trace() as run:
        loss = checkpoint(lambda a: layer(a).tanh(), x, use_reentrant=False).sum()  # noqa: F841 - the root
    assert run.report is not None
    assert run.report.findings == []
    assert [row.op for row in run.report.rows if row.kind == "non-leaf"] == ["linear", "tanh", "sum"]


def test_what_torchscript_made_is_disclosed() -> None:
    """A traced function runs outside of Python: one row for what came out, inner steps for what autograd knows."""
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.trace"):
        script = torch.jit.trace(lambda a: (a * 2).sin().cos(), torch.ones(3))
    with trace() as run:
        a = torch.ones(3, requires_grad=True)
        loss = script(a).sum()  # noqa: F841 - the root
    assert run.report is not None
    (found,) = [finding for finding in run.report.findings if finding.kind == "made_unseen"]
    assert "`script(a)`" in found.message
    assert run.report.coverage.missed == 0
    assert run.report.coverage.inner == 2


def test_code_in_another_thread_is_not_passed_over() -> None:
    """What another thread computed is there with its gradients, as rows or as inner steps."""
    made: list[torch.Tensor] = []
    a = torch.ones(3, requires_grad=True)
    with trace() as run:
        worker = threading.Thread(target=lambda: made.append((a * 2).sin()))
        worker.start()
        worker.join()
        loss = made[0].sum()
    assert run.report is not None
    assert run.report.coverage.seen == nodes_of(loss)
    assert run.report.coverage.missed == 0
