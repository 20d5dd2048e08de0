"""Calls that run again are recorded in short: what comes out is what recording in full gives."""

from __future__ import annotations

import torch

import gradmagic
from gradmagic.answers import Answers


def test_an_activations_answer_is_what_its_last_call_gave_also_when_that_was_changed_since() -> None:
    """The copy that is counted after the cell is of what the function gave, and of its last occurrence."""
    w = torch.ones(4, requires_grad=True)
    answers, kept = Answers(), None
    for scale in (0.1, 100.0):
        result = torch.tanh(w * scale)
        kept = answers.keep(kept, "tanh", result)
        with torch.no_grad():
            result.zero_()
    assert kept is not None
    counted = kept.counted()
    assert counted is not None
    assert counted.result() == (4, 4, 4)


def test_a_place_whose_tensors_change_their_kind_shows_the_last_one() -> None:
    """Shape, dtype and grad mode of a row are those of its last occurrence."""
    w = torch.ones(4, requires_grad=True)
    with gradmagic.trace(backward="none") as run:
        for size, kind, grad in ((4, torch.float32, True), (3, torch.float64, True), (2, torch.int64, False)):
            with torch.set_grad_enabled(grad):
                h = w.detach().to(kind)[:size] * 2 if not grad else w[:size].to(kind) * 2
    row = run.report["h"]
    assert (row.shape, row.dtype) == (tuple(h.shape), str(h.dtype).removeprefix("torch."))


def test_recursion_is_one_row_however_deep() -> None:
    """A call at another depth of the recursion is another occurrence of the same row."""
    w = torch.ones(2, requires_grad=True)

    def power(depth: int) -> torch.Tensor:
        return power(depth - 1) * w if depth else w * 1.0

    with gradmagic.trace() as run:
        loss = power(6).sum()
    assert loss.item() == 2.0
    assert max(row.count for row in run.report.rows) == 5  # the outermost one runs on a path of its own


class _Unhashable:
    __hash__ = None  # type: ignore[assignment]
    __name__ = "unhashable"

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if torch.overrides.has_torch_function((tensor,)):
            result: torch.Tensor = torch.overrides.handle_torch_function(self, (tensor,), tensor)
            return result
        return tensor * 3


def test_a_callable_that_cannot_be_hashed_runs_as_without_the_trace() -> None:
    """What the person hands to PyTorch's override protocol need not be hashable."""
    w = torch.ones(2, requires_grad=True)
    with gradmagic.trace() as run:
        loss = _Unhashable()(w).sum()
    assert loss.item() == 6.0
    assert run.report.root is not None
    assert torch.equal(w.grad, torch.full((2,), 3.0))
