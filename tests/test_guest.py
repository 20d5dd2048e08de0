"""Law 1, "later cells too": what gradtrace's own backward leaves behind makes way for the person's next one."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain import run_plain, run_traced
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook

from gradmagic.entries import references_of_ours
from gradmagic.tracing import trace

Cell = Callable[[dict[str, Any]], None]

FORWARD = """
import torch.nn as nn
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
x = torch.randn(5, 4)
w = torch.randn(4, requires_grad=True)
y = model(x * w)
loss = y.pow(2).mean()
"""


def plain_forward() -> dict[str, Any]:
    """The namespace after the forward cell without the magic."""
    namespace: dict[str, Any] = {"torch": torch}
    exec(FORWARD, namespace)
    return namespace


def state_of(namespace: dict[str, Any]) -> list[torch.Tensor | None]:
    """Values and gradients of everything that can be trained."""
    tensors = [*namespace["model"].parameters(), namespace["w"]]
    return [*(t.detach().clone() for t in tensors), *(t.grad for t in tensors)]


def assert_same(ours: list[torch.Tensor | None], plain: list[torch.Tensor | None]) -> None:
    """Equal to the last bit, None where plain is None."""
    for one, other in zip(ours, plain, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


def step_without_backward(ns: dict[str, Any]) -> None:
    ns["optimizer"].step()
    ns["loss"].backward()


def zero_then_backward(ns: dict[str, Any]) -> None:
    ns["optimizer"].zero_grad()
    ns["loss"].backward()
    ns["optimizer"].step()


def zero_in_place(ns: dict[str, Any]) -> None:
    ns["optimizer"].zero_grad(set_to_none=False)
    ns["loss"].backward()
    ns["optimizer"].step()


def clip_after_backward_of_a_part(ns: dict[str, Any]) -> None:
    """Backward reaches the last layer only; the total norm must not see guests elsewhere."""
    ns["model"][2](torch.ones(8)).sum().backward()
    ns["norm"] = nn.utils.clip_grad_norm_(ns["model"].parameters(), 0.1)
    ns["optimizer"].step()


def backward_twice(ns: dict[str, Any]) -> None:
    ns["loss"].backward(retain_graph=True)
    ns["loss"].backward()


def gradients_only(ns: dict[str, Any]) -> None:
    ns["g"] = torch.autograd.grad(ns["loss"], ns["w"])[0]
    ns["model"](ns["x"]).sum().backward()


@pytest.mark.parametrize(
    "next_cell",
    [
        lambda ns: ns["loss"].backward(),
        step_without_backward,
        zero_then_backward,
        zero_in_place,
        clip_after_backward_of_a_part,
        backward_twice,
        gradients_only,
    ],
    ids=["backward", "step", "zero_grad", "zero_in_place", "clip", "twice", "autograd_grad"],
)
def test_an_untraced_cell_after_a_traced_forward_cell_computes_what_it_would_have(next_cell: Cell) -> None:
    """The next cell's gradients and weights are bit for bit those of a notebook without the magic."""
    plain = plain_forward()
    _, traced = run_traced(FORWARD)
    assert traced["w"].grad is not None
    next_cell(plain)
    next_cell(traced)
    assert_same(state_of(traced), state_of(plain))


def test_gradients_of_non_leaves_are_replaced_not_doubled() -> None:
    """The person's backward through the kept graph leaves on `y` what one backward leaves."""
    plain = run_plain(FORWARD).namespace
    _, traced = run_traced(FORWARD)
    assert torch.equal(traced["y"].grad, plain["y"].grad)
    traced["loss"].backward()
    assert torch.equal(traced["y"].grad, plain["y"].grad)
    traced["loss"].grad_fn.metadata.clear()


def test_running_the_traced_cell_three_times_leaves_grad_as_after_one() -> None:
    """A leaf from an earlier cell does not collect gradients over runs."""
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    expected = torch.tensor([3.0, 3.0])
    for _ in range(3):
        namespace: dict[str, Any] = {"torch": torch, "w": w}
        run_in(namespace, "loss = (w * 3).sum()")
        assert torch.equal(w.grad, expected)


def run_in(namespace: dict[str, Any], source: str) -> Any:
    from gradmagic.tracing import trace

    run = trace(namespace=namespace)
    with run:
        exec(source, namespace)
    return run.report


def test_a_gradient_that_was_there_before_is_added_to_and_comes_back() -> None:
    """`.grad` shows what PyTorch would have accumulated; the next backward starts from what was there."""
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    (w * 5).sum().backward()
    before = w.grad
    assert before is not None
    run_in({"torch": torch, "w": w}, "loss = (w * 3).sum()")
    assert w.grad.tolist() == [8.0, 8.0]
    assert before.tolist() == [5.0, 5.0]
    (w * 2).sum().backward()
    assert w.grad is before
    assert before.tolist() == [7.0, 7.0]


@pytest.mark.parametrize("value", [None, torch.tensor([9.0, 9.0])])
def test_a_grad_that_the_person_has_set_stays(value: torch.Tensor | None) -> None:
    """The guest hook does nothing once `.grad` is the person's own."""
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    run_in({"torch": torch, "w": w}, "loss = (w * 3).sum()")
    w.grad = value
    (w * 2).sum().backward()
    assert w.grad.tolist() == ([2.0, 2.0] if value is None else [11.0, 11.0])


def test_a_grad_that_the_person_has_changed_in_place_stays() -> None:
    """Scaling the gradient makes it the person's own."""
    w = torch.tensor([1.0], requires_grad=True)
    run_in({"torch": torch, "w": w}, "loss = (w * 3).sum()")
    w.grad.mul_(2)
    (w * 2).sum().backward()
    assert w.grad.tolist() == [8.0]


def test_saving_and_copying_between_the_cells_warns_of_nothing() -> None:
    """deepcopy, pickle and torch.save see no hook worth a warning, and give the values back."""
    _, namespace = run_traced(FORWARD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied = copy.deepcopy(namespace["model"])
        leaf = copy.deepcopy(namespace["w"])
        pickled = pickle.loads(pickle.dumps(namespace["w"]))
        buffer = io.BytesIO()
        torch.save({"model": namespace["model"].state_dict(), "w": namespace["w"], "y": namespace["y"]}, buffer)
        torch.save(namespace["model"], io.BytesIO())
    assert torch.equal(copied[0].weight, namespace["model"][0].weight)
    assert torch.equal(leaf, namespace["w"])
    assert torch.equal(pickled, namespace["w"])
    assert copied[0].weight.grad is None


def test_no_hook_is_left_once_the_guests_have_gone() -> None:
    """After the person's backward no hook of ours is on any tensor, nor on the optimizers."""
    _, namespace = run_traced(FORWARD)
    namespace["loss"].backward()
    for tensor in [*namespace["model"].parameters(), namespace["w"], namespace["y"]]:
        assert not tensor._backward_hooks
    assert not _global_optimizer_pre_hooks


def test_a_cell_that_runs_backward_itself_leaves_no_guests() -> None:
    """The person's own backward is theirs: nothing is hooked."""
    _, namespace = run_traced(FORWARD + "loss.backward()\n")
    assert not namespace["w"]._backward_hooks
    assert not _global_optimizer_pre_hooks


def test_zero_grad_option_drops_what_was_there() -> None:
    """With --zero-grad the leaf starts from an empty `.grad`."""
    w = torch.tensor([1.0], requires_grad=True)
    (w * 5).sum().backward()
    from gradmagic.tracing import trace

    with trace(zero_grad=True, namespace={"w": w}):
        loss = (w * 3).sum()
    assert w.grad.tolist() == [3.0]
    del loss


def test_leaves_that_die_take_their_guests_and_hooks_with_them() -> None:
    """Running a forward cell many times piles nothing up."""
    for _ in range(5):
        _, namespace = run_traced(FORWARD)
    assert len(_global_optimizer_pre_hooks) == 1
    del namespace
    gc.collect()
    assert not _global_optimizer_pre_hooks


def test_a_step_with_several_traced_cells_and_the_persons_own_hook_before_it_works() -> None:
    """PyTorch walks a dict of hooks that must not change under it."""
    first, second = run_traced(FORWARD)[1], run_traced(FORWARD)[1]
    calls = []
    handle = register_optimizer_step_pre_hook(lambda *_: calls.append(1))
    third = run_traced(FORWARD)[1]
    for namespace in (first, second, third, first):
        namespace["optimizer"].step()
        assert all(p.grad is None for p in namespace["model"].parameters())
    handle.remove()
    second["optimizer"].step()
    assert len(calls) == 4
    assert not _global_optimizer_pre_hooks


def test_an_optimizer_that_steps_inside_backward_does_not_step_in_gradtraces_own() -> None:
    """The plain forward cell would not have stepped; the person's own backward does, once."""
    source = """
w = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([w], lr=1.0)
def step(parameter):
    optimizer.step()
    optimizer.zero_grad()
w.register_post_accumulate_grad_hook(step)
loss = (w * 3).sum()
"""
    report, namespace = run_traced(source)
    assert namespace["w"].tolist() == [1.0, 1.0]
    assert report["w"].grad.values == (3.0, 3.0)
    namespace["loss"].backward()
    assert namespace["w"].tolist() == [-2.0, -2.0]
    assert namespace["w"].grad is None


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["sparse CSR", "nested"])
def test_a_gradient_that_could_not_be_put_back_is_not_set_aside(kind: str) -> None:
    """PyTorch refuses to set what its own backward has stored: no backward is run then, and the report tells that."""
    leaf = torch.eye(3).to_sparse_csr() if kind == "sparse CSR" else torch.nested.nested_tensor([torch.ones(2, 3)])
    leaf.requires_grad_()

    def loss_of() -> torch.Tensor:
        return (leaf @ torch.ones(3, 2) if kind == "sparse CSR" else leaf.to_padded_tensor(0.0)).sum()

    loss_of().backward()
    gradient = leaf.grad
    with trace() as run:
        loss = loss_of()
        run.offer(loss)
    assert leaf.grad is gradient
    assert run.report is not None
    assert [finding.kind for finding in run.report.findings] == ["backward_failed"]


def test_an_optimizer_steps_although_the_collector_ends_a_guest_in_the_midst_of_its_hooks() -> None:
    """PyTorch walks through a dict of hooks then, from which nothing may be taken; the next step takes ours out."""

    def leave_a_guest() -> None:
        lost: list[Any] = [torch.ones(2, requires_grad=True)]
        lost.append(lost)
        with trace():
            lost.append((lost[0] * 2).sum())

    before = len(_global_optimizer_pre_hooks)
    collects = register_optimizer_step_pre_hook(lambda *_: gc.collect() and None)
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([w], lr=0.5)
    w.grad = torch.ones(2)
    gc.disable()
    try:
        leave_a_guest()
        assert len(_global_optimizer_pre_hooks) == before + 2
        optimizer.step()
    finally:
        gc.enable()
        collects.remove()
    assert w.tolist() == [0.5, 0.5]
    optimizer.step()
    assert len(_global_optimizer_pre_hooks) == before


LAYERS = """
import weakref
w = torch.full((4, 4), 0.1, requires_grad=True)
refs = []
def layers(x):
    saved = torch.tanh(x @ w)
    refs.append(weakref.ref(saved))
    held = HOLDER
    return saved @ w, held
out, held = layers(w)
loss = out.sum()
"""


@pytest.mark.skipif(references_of_ours() is None, reason="this PyTorch does not tell what only a graph holds")
@pytest.mark.parametrize("backward", ["", "loss.backward(retain_graph=True)"])
def test_what_only_the_graph_holds_gets_a_row_but_no_grad(backward: str) -> None:
    """A network's activations are saved for backward: gradients kept on all of them would take as much memory again."""
    source = LAYERS.replace("HOLDER", "None")
    plain = run_plain(source).namespace
    report, namespace = run_traced(source + backward)
    saved = namespace["refs"][0]()
    assert saved is not None, "the graph does not hold it"
    assert not saved.retains_grad
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a look at the .grad of a non-leaf
        assert saved.grad is None
    assert report["saved"].grad is not None
    assert torch.equal(namespace["w"].grad, plain["w"].grad)


@pytest.mark.parametrize("backward", ["", "loss.backward(retain_graph=True)"])
@pytest.mark.parametrize(
    "holder",
    [
        "saved",
        "[saved, w]",
        "{'a': (saved,)}",
        "lambda: saved",
        "type('Box', (), {'h': saved})",
        "(each for each in [saved])",
    ],
)
def test_what_an_object_of_any_kind_holds_gets_its_grad(holder: str, backward: str) -> None:
    """It needs no name of its own, and that it is saved for backward as well makes no difference."""
    source = LAYERS.replace("HOLDER", holder)
    plain: dict[str, Any] = {"torch": torch}
    exec(source, plain)
    (expected,) = torch.autograd.grad(plain["loss"], plain["refs"][0]())
    _, namespace = run_traced(source + backward)
    found = namespace["refs"][0]().grad
    assert found is not None
    assert torch.equal(found, expected)
