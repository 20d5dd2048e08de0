"""What a row was made from, and where it stands in the traced code: checked against autograd's own graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import run_traced
from shells import session

import gradmagic
from gradmagic.report import Report

PROGRAMS = {
    "residual": "x = torch.randn(4, 8)\nf = torch.nn.Linear(8, 8)\ng = torch.nn.Linear(8, 8)\nh = x + f(x).relu()\ny = h + g(h).relu()\nloss = y.sum()",
    "tied weights": "e = torch.nn.Embedding(10, 4)\nout = torch.nn.Linear(4, 10, bias=False)\nout.weight = e.weight\ny = out(e(torch.arange(5)))\nloss = y.logsumexp(1).sum()",
    "lstm": "m = torch.nn.LSTM(4, 5, num_layers=2)\ny, (h, c) = m(torch.randn(3, 2, 4))\nloss = y.sum() + h.sum()",
    "attention": "m = torch.nn.MultiheadAttention(8, 2)\nx = torch.randn(3, 1, 8, requires_grad=True)\ny, w = m(x, x, x)\nloss = y.pow(2).sum()",
    "in place": "a = torch.ones(3, requires_grad=True)\nb = torch.ones(3, requires_grad=True)\nx = a * 1\nx += b\nx.mul_(a)\nloss = x.sum()",
    "view": "a = torch.ones(4, requires_grad=True)\nx = a * 1\nx[:2] = torch.zeros(2)\nv = x[1:]\nv *= 2\nloss = x.sum()",
    "loop": "W = torch.eye(3, requires_grad=True)\nU = torch.eye(3, requires_grad=True)\nh = torch.ones(1, 3)\nfor t in range(5):\n    h = torch.tanh(h @ W)\n    if t == 2:\n        h = h @ U\nloss = h.sum()",
    "split": "a = torch.ones(6, 2, requires_grad=True)\np, q = a.mul(2).split(3)\nb = torch.ones(3, 2, requires_grad=True)\nloss = (p * b).sum()\nrest = q.sum()",
    "custom Function": "class F(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, a, b):\n        return a * b\n    @staticmethod\n    def backward(ctx, g):\n        return g, g\na = torch.ones(3, requires_grad=True)\nb = torch.ones(3, requires_grad=True)\ny = F.apply(a, b * 2)\nloss = y.sum()",
    "transformer": "m = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)\ny = m(torch.randn(3, 1, 8))\nloss = y.pow(2).sum()",
    "parametrized": "m = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3))\ny = m(torch.randn(2, 3))\nloss = y.sum()",
}  # fmt: skip


def leaves_by_autograd(tensor: torch.Tensor) -> set[int]:
    """``id`` of every leaf that the tensor's graph leads to."""
    found: set[int] = set()
    pending: list[Any] = [tensor.grad_fn]
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        pending += [parent for parent, _ in node.next_functions]
    return found


def leaves_by_inputs(report: Report, index: int) -> set[int]:
    """``id`` of every leaf that requires a gradient and that the row was made from."""
    pending, seen = [index], {index}
    while pending:
        further = [each for each in report.rows[pending.pop()].inputs if each not in seen]
        seen.update(further)
        pending += further
    rows = [report.rows[each] for each in seen]
    return {id(row.tensor) for row in rows if row.kind in ("leaf", "parameter") and row.tensor is not None}


@pytest.mark.parametrize("source", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_the_inputs_of_the_rows_lead_to_the_leaves_that_autograd_leads_to(source: str) -> None:
    """For the newest version of every tensor that is still there: no leaf is missing, and none is made up."""
    torch.manual_seed(0)
    report, _namespace = run_traced(source)
    rows = {id(row.tensor): (index, row) for index, row in enumerate(report.rows) if row.tensor is not None}
    checked = 0
    for index, row in rows.values():
        if row.tensor.grad_fn is None or row.count > 1:
            continue
        checked += 1
        by_inputs, by_autograd = leaves_by_inputs(report, index), leaves_by_autograd(row.tensor)
        # What attention returns beside its result does not depend on all that the call was given.
        assert by_autograd <= by_inputs if row.op == "multi_head_attention_forward" else by_autograd == by_inputs
    assert checked >= 1


def test_a_row_that_an_occurrence_of_its_own_went_into_is_its_own_input() -> None:
    """Only then."""
    report, _ = run_traced(PROGRAMS["loop"])
    names = [row.label for row in report.rows]
    edges = {(names[source], row.label) for row in report.rows for source in row.inputs}
    assert ("h", "h @ W") in edges
    assert ("h @ W", "h") in edges
    assert all(index not in row.inputs for index, row in enumerate(report.rows) if row.name != "h")


def test_what_went_through_a_number_is_linked_to_what_the_number_went_into_and_no_further() -> None:
    """``.item()`` is no row of the report."""
    report, _ = run_traced("w = torch.ones(2, requires_grad=True)\nk = (w * 2).sum().item()\nz = w * k\nloss = z.sum()")
    labels = [row.label for row in report.rows]
    assert [labels[index] for index in report["z"].inputs] == ["w", "(w * 2).sum()"]
    assert [labels[index] for index in report["loss"].inputs] == ["z"]


def text_at(report: Report, span: tuple[int, int, int, int]) -> str:
    """What stands in the source from the beginning to the end of a span on one line."""
    assert report.source is not None
    assert span[0] == span[2]
    return report.source.lines[span[0] - report.source.line][span[1] : span[3]]


def test_the_source_is_the_cell_as_it_was_written_and_spans_point_into_it() -> None:
    """With its magic line; what the shell transforms has no span; a wide character is one character."""
    body = 'é = "🙂"; y = w * 2\n!true\nz = (y +\n     1)\nl = z.sum()  # end'
    with session() as shell:
        shell.run("import torch\nw = torch.ones(2, requires_grad=True)")
        shell.run(f"%%gradtrace -o report\n{body}\n")
        report = shell["report"]
    assert report.source is not None
    assert report.source.text == f"%%gradtrace -o report\n{body}"
    assert report.source.line == 1
    assert text_at(report, report["y"].location.span) == "w * 2"
    assert text_at(report, report["l"].location.span) == "z.sum()"
    assert report["z"].location.span == (4, 5, 5, 6)


def test_a_line_that_the_shell_transforms_has_no_columns() -> None:
    """Those of the code that ran are not those of the text that was written."""
    with session() as shell:
        shell.run("import torch\nw = torch.ones(2, requires_grad=True)")
        shell.run("%%gradtrace -o report\n%timeit -n 1 -r 1 -q w * 2\nl = w.sum()")
        report = shell["report"]
    assert report["l"].location.span == (3, 4, 3, 11)
    assert all(row.location.span is None or row.location.span[0] == 3 for row in report.rows)


def test_the_source_of_a_block_in_a_file_is_the_block() -> None:
    """From its `with` to its end, with its line in the file."""
    with gradmagic.trace() as run:
        w = torch.ones(2, requires_grad=True)
        loss = w.sum()  # the end
    assert run.report is not None
    assert loss.requires_grad
    source = run.report.source
    assert source is not None
    assert source.text.startswith("    with gradmagic.trace() as run:\n        w = torch.ones")
    assert source.text.endswith("# the end")
    assert text_at(run.report, run.report["loss"].location.span or (0, 0, 0, 0)) == "w.sum()"
