"""A trace within a trace: two reports, each right, and the outer one sees what the inner one sees."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from gradmagic.report import Report
from gradmagic.tracing import trace


def told(report: Report | None) -> list[tuple[str | None, object]]:
    """Name and gradient of each row."""
    assert report is not None
    return [(row.name, row.grad and row.grad.values) for row in report.rows]


def step(w: Tensor, factor: int, inner: trace | None) -> None:
    """One training step, traced on its own or not."""
    if inner is None:
        h = w * factor
        h.sum().backward()
        return
    with inner:
        h = w * factor
        h.sum().backward()


@pytest.mark.parametrize("own_reports", [False, True])
def test_the_outer_trace_of_a_loop_of_traces_has_a_row_a_line(own_reports: bool) -> None:
    """As many occurrences as without the inner ones; names, passes and gradients too."""
    w = torch.ones(2, requires_grad=True)
    inner = [trace() if own_reports else None for _ in range(3)]
    with trace() as outer:
        for factor, each in enumerate(inner, start=1):
            step(w, factor, each)
    assert outer.report is not None
    assert [(row.op, row.name, row.count) for row in outer.report.rows] == [
        ("leaf", "w", 1),
        ("mul", "h", 3),
        ("sum", None, 3),
    ]
    assert outer.report["w"].grad is not None
    assert [each.run_by for each in outer.report.passes] == ["cell"] * 3
    assert outer.report["h"].grads.total == 3
    assert outer.report.findings == []
    for each in inner if own_reports else ():
        assert each is not None
        assert each.report is not None
        assert [(row.name, row.count) for row in each.report.rows] == [("w", 1), ("h", 1), (None, 1)]
        assert [one.run_by for one in each.report.passes] == ["cell"]
    assert w.grad is not None
    assert w.grad.tolist() == [6.0, 6.0]


def test_the_guests_of_an_inner_trace_are_none_of_the_outer_ones_passes() -> None:
    """What gradtrace runs for the inner report is neither a pass of the outer one nor left in its gradients."""
    w = torch.ones(2, requires_grad=True)
    with trace() as outer:
        with trace() as inner:
            middle = (w * 3).sum()
        assert w.grad is not None
        assert w.grad.tolist() == [3.0, 3.0]
        loss = middle * 2
    assert told(inner.report) == [("w", (3.0, 3.0)), (None, (1.0, 1.0)), ("middle", (1.0,))]
    assert outer.report is not None
    assert [each.root for each in outer.report.passes] == ["loss"]
    assert outer.report["w"].grad is not None
    assert outer.report["w"].grad.values == (6.0, 6.0)
    assert w.grad.tolist() == [6.0, 6.0]
    loss.backward()
    assert w.grad.tolist() == [6.0, 6.0]


def test_an_error_that_leaves_both_traces() -> None:
    """Both reports are there, and say how far it came; no mode is left on the stack."""
    outer, inner = trace(), trace()
    with pytest.raises(ZeroDivisionError), outer:
        a = torch.ones(2, requires_grad=True) * 2
        with inner:
            b = a * 3  # noqa: F841 - its name is looked for
            raise ZeroDivisionError
    assert [name for name, _ in told(outer.report) if name] == ["a", "b"]
    assert [name for name, _ in told(inner.report) if name] == ["a", "b"]
    assert torch.overrides._get_current_function_mode_stack() == []


def test_traces_that_end_in_the_wrong_order_are_both_right() -> None:
    """As with ExitStack and by hand: the outer one is left first."""
    w = torch.ones(2, requires_grad=True)
    first, second = trace(backward="none"), trace(backward="none")
    with first:
        a = w * 2  # noqa: F841 - its name is looked for
        second.__enter__()
        b = w * 3  # noqa: F841
    c = w * 4  # noqa: F841
    second.__exit__(None, None, None)
    assert [name for name, _ in told(first.report)] == ["w", "a", "b"]
    assert [name for name, _ in told(second.report)] == ["w", "b", "c"]
    assert torch.overrides._get_current_function_mode_stack() == []


def test_traces_that_overlap_give_the_compiler_back_its_stance() -> None:
    """The first to begin is the first to end, as with two tasks of an event loop."""
    import torch._dynamo.eval_frame as dynamo

    before = dynamo._stance
    first, second = trace(backward="none"), trace(backward="none")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert dynamo._stance is not before
    second.__exit__(None, None, None)
    assert dynamo._stance is before


def test_clipping_under_two_traces_is_in_both_ledgers() -> None:
    """With the norm that clip_grad_norm_ returned."""
    w = torch.ones(4, requires_grad=True)
    with trace() as outer, trace() as inner:
        w.sum().backward()
        torch.nn.utils.clip_grad_norm_([w], 0.5)
    for report in (outer.report, inner.report):
        assert report is not None
        assert [(each.kind, each.max_norm) for each in report.ledger] == [("backward", None), ("clip", 0.5)]


def test_an_optimizer_in_another_thread_is_not_the_traces() -> None:
    """Threads train on by themselves: their steps are not recorded, as their tensors are not."""

    def train() -> None:
        weight = torch.ones(2, requires_grad=True)
        optimizer = torch.optim.SGD([weight], 0.1)
        weight.sum().backward()
        optimizer.step()

    with trace() as run:
        loss = torch.ones(2, requires_grad=True).sum()  # noqa: F841 - the root
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert run.report is not None
    assert [each.kind for each in run.report.ledger] == ["backward"]
    assert run.report.findings == []
