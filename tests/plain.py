"""Ground truth: the same source in plain PyTorch, without gradmagic, with ordinary hooks on every autograd node."""

from __future__ import annotations

import linecache
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gradmagic.report import Report
from gradmagic.tracing import CellSource, trace


@dataclass
class PlainRun:
    """What an untraced run shows."""

    namespace: dict[str, Any]
    nodes: list[tuple[str, torch.Tensor]]
    """Name of each autograd node between the root and the leaves, and the gradient that reached it."""


def run_plain(source: str, root: str = "loss") -> PlainRun:
    """Run `source` untraced, then backward from `root` with a prehook on every node of its graph."""
    namespace: dict[str, Any] = {"torch": torch, "__name__": "__main__"}
    exec(compile(source, "<plain>", "exec"), namespace)
    found: list[tuple[str, torch.Tensor]] = []

    def note(name: str, gradients: tuple[torch.Tensor | None, ...]) -> None:
        found.extend((name, gradient.detach().clone()) for gradient in gradients if gradient is not None)

    pending, seen = [namespace[root].grad_fn], {}
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        node.register_prehook(partial(note, node.name()))
        pending.extend(parent for parent, _ in node.next_functions)
    for value in namespace.values():
        if isinstance(value, torch.Tensor) and value.grad_fn is not None:
            value.retain_grad()
    namespace[root].backward()
    return PlainRun(namespace, found)


def run_traced(
    source: str, backward: str = "auto", zero_grad: bool = False, **variables: Any
) -> tuple[Report, dict[str, Any]]:
    """Run `source` as a notebook cell would be traced, with some variables; returns the report and the namespace."""
    file = f"<cell {abs(hash(source))}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"torch": torch, "__name__": "__main__", **variables}
    cell = CellSource(file, lambda name: 1 if name == file else None)
    run = trace(backward, zero_grad=zero_grad, namespace=namespace, cell=cell)
    with run:
        exec(compile(source, file, "exec"), namespace)
    assert run.report is not None
    return run.report, namespace


def norms_of(report: Report) -> Counter[float]:
    """Norm of every gradient the report knows, rows and inner steps."""
    rows = [norm for row in report.rows for norm in row.grads.norm]
    inner = [norm for row in report.rows for step in row.inner for norm in step.grads.norm]
    return Counter(rows + inner)


def assert_same_as_plain(source: str, root: str = "loss") -> Report:
    """Every gradient of every node, every leaf's `.grad` and every named value, bit for bit."""
    torch.manual_seed(0)
    plain = run_plain(source, root)
    plain_next = torch.rand(1)
    torch.manual_seed(0)
    report, namespace = run_traced(source)
    assert torch.equal(torch.rand(1), plain_next), "the random stream differs"
    expected = Counter(float(torch.linalg.vector_norm(gradient)) for _, gradient in plain.nodes)
    assert norms_of(report) == expected
    for name, value in plain.namespace.items():
        if isinstance(value, torch.Tensor):
            assert_equal_tensors(namespace[name], value, name)
    return report


def assert_equal_tensors(ours: torch.Tensor, plain: torch.Tensor, name: str) -> None:
    """Values and `.grad` are equal to the last bit."""
    assert torch.equal(ours, plain), name
    retained = plain.is_leaf or plain.retains_grad
    if retained and plain.grad is not None:
        assert ours.grad is not None, f"{name}.grad"
        assert torch.equal(ours.grad, plain.grad), f"{name}.grad"
