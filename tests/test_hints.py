"""The code that findings propose: the person's own line with one part of it exchanged."""

from __future__ import annotations

import pytest

from gradmagic.diagnosis import hints
from gradmagic.records import Location


def at(statement: str, text: str) -> Location:
    return Location("cell", 1, text=text, statement=statement)


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        ("x.sum(1)", ["x", "1"]),
        ("torch.sum(x, 1)", ["x", "1"]),
        ("nn.functional.relu(h + 1)", ["h + 1"]),
        ("a @ b", ["a", "b"]),
        ("-x", ["x"]),
        ("größe.exp()", ["größe"]),
        ("not python(", []),
    ],
)
def test_operands_are_told_apart_from_the_name_of_the_function(expression: str, parts: list[str]) -> None:
    """A method's receiver is an operand, a module such as torch is not."""
    assert [piece.text for piece in hints.operands(expression)] == parts


@pytest.mark.parametrize(
    ("statement", "text", "new", "whole"),
    [
        ("y = x.sqrt()", "x.sqrt()", "x + 1", "y = x + 1"),
        ("q = torch.round(w) / 4", "torch.round(w)", "w + 1", "q = (w + 1) / 4"),
        ("loss = (a @ b).sum()", "a @ b", "c @ b", "loss = (c @ b).sum()"),
        ("", "x.sqrt()", "x + 1", "x + 1"),
    ],
)
def test_an_exchanged_expression_keeps_its_place_in_the_statement(
    statement: str, text: str, new: str, whole: str
) -> None:
    """Brackets stand where the operators around it would bind otherwise."""
    assert hints.in_statement(at(statement, text), new) == whole


@pytest.mark.parametrize(
    ("statement", "plain"),
    [
        ("y += 1", "y = y + 1"),
        ("y *= a + b", "y = y * (a + b)"),
        ("y[0] += 1", ""),
        ("h.relu_()", "h = h.relu()"),
        ("torch.relu_(h)", "h = torch.relu(h)"),
        ("out = F.relu(h, inplace=True)", "out = F.relu(h)"),
        ("torch.add(a, 1, out=y)", "y = torch.add(a, 1)"),
        ("h.zero_()", ""),
    ],
)
def test_a_change_in_place_is_written_out_of_place(statement: str, plain: str) -> None:
    """Where that takes more than a line, nothing is proposed as code."""
    assert hints.out_of_place(at(statement, statement)) == plain


@pytest.mark.parametrize(
    ("statement", "leaf"),
    [
        ("w = torch.randn(3, requires_grad=True) * 0.01", "w = (torch.randn(3) * 0.01).requires_grad_()"),
        ("w = torch.randn(3, requires_grad=True).double()", "w = torch.randn(3).double().requires_grad_()"),
        ("w = nn.Parameter(torch.zeros(3)) + 1", "w = nn.Parameter(torch.zeros(3) + 1)"),
    ],
)
def test_the_request_for_a_gradient_comes_last(statement: str, leaf: str) -> None:
    """So the name is bound to the leaf."""
    assert hints.leaf_at_last(statement) == leaf


def test_nested_lists_of_tensors_are_stacked() -> None:
    """`torch.tensor` of them would copy the values."""
    assert hints.stacked("[[a, 1.0], [b, c]]") == (
        "torch.stack([torch.stack([a, torch.tensor(1.0)]), torch.stack([b, c])])"
    )
