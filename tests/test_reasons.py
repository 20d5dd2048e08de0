"""Law 5: a row without a gradient says why, and which line is to blame."""

from __future__ import annotations

from typing import get_args

import pytest
from plain import run_traced

from gradmagic.diagnosis.facts import PassFacts, RowFacts, RunFacts
from gradmagic.diagnosis.flow import Flow
from gradmagic.diagnosis.reasons import explain
from gradmagic.records import Location, Reason

LEAF = "w = torch.ones(3, requires_grad=True)\n"

CASES = [
    # situation, source below the leaf on line 1, row, reason, line to blame
    ("an input nobody asked", "x = torch.ones(3)\nloss = (w * x).sum()", "x", "requires_grad_false", 2),
    ("computed from such inputs", "x = torch.ones(3)\ny = x * 2\nloss = (w * y).sum()", "y", "requires_grad_false", 3),
    ("an index tensor", "i = torch.tensor([0, 1])\nloss = w[i].sum()", "i", "integer_dtype", 2),
    ("a mask of constants", "m = torch.ones(3) > 0\nloss = w[m].sum()", "m", "integer_dtype", 2),
    ("under no_grad", "with torch.no_grad():\n    y = w * 2\nloss = (w * y).sum()", "y", "no_grad", 3),
    ("from a no_grad value", "with torch.no_grad():\n    y = w * 2\nz = y + 1\nloss = (w * z).sum()", "z", "no_grad", 3),
    ("inference mode", "with torch.inference_mode():\n    y = w * 2\nloss = w.sum()", "y", "inference_mode", 3),
    ("detach", "y = (w * 2).detach()\nloss = (w * y).sum()", "y", "detached", 2),
    ("detach in place", "y = w * 2\ny.detach_()\nloss = (w * y).sum()", "y", "detached", 3),
    (".data", "y = (w * 2).data\nloss = (w * y).sum()", "y", "detached", 2),
    ("torch.as_tensor keeps, clone().detach() cuts", "y = w.clone().detach()\nloss = w.sum()", "y", "detached", 2),
    ("computed from a detached value", "y = w.detach()\nz = y * 2\nloss = (w * z).sum()", "z", "detached", 2),
    ("argmax", "c = w.argmax(-1)\nloss = w.sum()", "c", "not_differentiable", 2),
    ("a view of a leaf under no_grad", "with torch.no_grad():\n    v = w[:2]\nloss = w.sum()", "v", "no_grad", 3),
    ("a comparison", "m = w > 0\nloss = w[m].sum()", "m", "not_differentiable", 2),
    ("a mask turned into numbers", "m = (w > 0).float()\nloss = (w * m).sum()", "m", "not_differentiable", 2),
    ("a cast to integers", "i = w.long()\nloss = w[i % 3].sum()", "i", "not_differentiable", 2),
    ("indices of max", "v, i = w.max(0)\nloss = v * 1", "i", "not_differentiable", 2),
    ("never used", "u = torch.ones(2, requires_grad=True)\nloss = w.sum()", "u", "unused", None),
    ("used, but not on the way", "y = w * 3\nloss = w.sum()", "y", "unused", None),
    ("the other output", "a, b = w[:2].unbind()\nloss = a * 1", "b", "unused", None),
    ("cut on its only way", "v = torch.ones(3, requires_grad=True)\nc = (v * 2).argmax(-1)\nloss = w[c].sum()", "v", "cut_upstream", 3),
    ("detached on its only way", "v = torch.ones(3, requires_grad=True)\nd = (v * 2).detach()\nloss = (w * d).sum()", "v", "cut_upstream", 3),
    ("no_grad on its only way", "v = torch.ones(3, requires_grad=True)\nwith torch.no_grad():\n    d = v * 2\nloss = (w * d).sum()", "v", "cut_upstream", 4),
    ("switched on too late", "v = torch.ones(3)\ny = w * v\nv.requires_grad_()\nloss = y.sum()", "v", "requires_grad_too_late", 3),
    ("frozen", "p = torch.nn.Parameter(torch.ones(3), requires_grad=False)\nloss = (w * p).sum()", "p", "frozen", 2),
    ("left out by inputs", "v = torch.ones(3, requires_grad=True)\nloss = (w * v).sum()\nloss.backward(inputs=[w])", "v", "backward_inputs", None),
    ("made after backward", "loss = w.sum()\nloss.backward()\nz = w * 2", "z", "after_backward", 4),
    ("no scalar to start from", "y = w * 2", "y", "no_backward", None),
    ("backward failed", "y = w.exp()\ny += 1\nloss = y.sum()", "w", "backward_failed", None),
    ("grad without create_graph", "g, = torch.autograd.grad((w * w).sum(), w)\nloss = (w * g).sum()", "g", "detached", 2),
]  # fmt: skip


@pytest.mark.parametrize(("source", "name", "reason", "line"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_a_row_without_a_gradient_says_why(source: str, name: str, reason: str, line: int | None) -> None:
    """The reason is one of the closed list, and the culprit is the line that is to blame."""
    report, _ = run_traced(LEAF + source + "\n")
    row = report[name]
    assert row.grad is None
    assert row.reason == reason
    assert (row.culprit.line if row.culprit else None) == line
    assert row.note


CUSTOM_NONE = """
class Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        return a + b
    @staticmethod
    def backward(ctx, g):
        return g, None
v = torch.ones(3, requires_grad=True)
loss = Sum.apply(w, v * 2).sum()
"""


def test_a_custom_backward_that_returns_none_is_named() -> None:
    """The function is on the way to the root, and gave nothing."""
    report, _ = run_traced(LEAF + CUSTOM_NONE)
    assert report["v"].reason == "custom_backward_none"
    assert report["w"].reason is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("y = w * 2\nloss = y.sum()\nloss.backward()\nw.grad = None", "line 5"),
        ("loss = w.sum()\nloss.backward()\ntorch.optim.SGD([w], 0.1).zero_grad()", "line 4"),
        ("g, = torch.autograd.grad(w.sum(), w)", "autograd.grad"),
    ],
    ids=["set to None", "zero_grad", "autograd.grad"],
)
def test_a_gradient_that_flowed_and_is_not_stored_has_a_note(source: str, words: str) -> None:
    """The row has its gradient; the note says why `.grad` is None."""
    report, namespace = run_traced(LEAF + source + "\n", backward="none")
    assert namespace["w"].grad is None
    assert report["w"].grad is not None
    assert report["w"].reason is None
    assert words in report["w"].note


def test_a_zero_grad_before_backward_is_not_blamed() -> None:
    """Only what clears `.grad` after the last pass is worth a note."""
    report, _ = run_traced(LEAF + "for _ in range(3):\n    w.grad = None\n    loss = w.sum()\n    loss.backward()\n")
    assert report["w"].note == ""


def test_every_reason_that_is_given_is_one_of_the_closed_list() -> None:
    """No case invents a reason."""
    assert {case[3] for case in CASES} <= set(get_args(Reason))


def fact(label: str, parents: tuple[int, ...] = (), **known: object) -> RowFacts:
    """A hand-made row."""
    location = Location("cell", 1, own=True, text=label)
    values = {"op": "mul", "kind": "non-leaf", "dtype": "float32", **known}
    return RowFacts(label=label, name=label, location=location, parents=parents, **values)  # type: ignore[arg-type]


def test_the_first_cut_on_the_way_is_blamed_without_any_torch() -> None:
    """The diagnosis is a pure function over records: a -> cut -> cut again -> root."""
    rows = (
        fact("a", kind="leaf"),
        fact("b", (0,), op="argmax", kind="constant", is_floating=False, dtype="int64", input_requires_grad=True),
        fact("c", (1,), kind="constant"),
        fact("loss", (2,), has_gradient=True),
    )
    run = RunFacts(rows=rows, roots=(3,), passes=(PassFacts(root="loss", roots=(3,)),))
    verdicts = explain(run, Flow(rows))
    assert [verdict.reason for verdict in verdicts] == [
        "cut_upstream",
        "not_differentiable",
        "not_differentiable",
        None,
    ]
    assert verdicts[0].culprit == 1
    assert verdicts[2].culprit == 1


@pytest.mark.parametrize("switch", ["v.requires_grad = False", "v.requires_grad_(False)"])
def test_a_leaf_whose_request_was_withdrawn_is_not_told_to_make_one(switch: str) -> None:
    """Its line says ``requires_grad=True`` already."""
    report, _ = run_traced(f"{LEAF}v = torch.ones(3, requires_grad=True)\n{switch}\nloss = (w * v).sum()\n")
    assert report["v"].reason == "requires_grad_false"
    assert report["v"].note == "`requires_grad` was switched off; `v.requires_grad_()` switches it on again"
