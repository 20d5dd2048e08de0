"""Ctrl-C at any moment of gradmagic's own work: it reaches the person, and everything is as it was before."""

from __future__ import annotations

import linecache
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from interrupts import Moment, interrupted, moments_of, told
from torch.nn.modules import module as module_state
from torch.optim import optimizer as optimizer_state
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from gradmagic.guest import GuestGradient, guest_of
from gradmagic.tracing import trace


class Noisy(torch.autograd.Function):
    """Draws from the random stream in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g + torch.rand_like(g) * 0


class Cell:
    """Variables of a person, and a cell to trace."""

    def __init__(self) -> None:
        torch.default_generator.manual_seed(0)
        self.model = torch.nn.Linear(3, 2)
        self.weight, self.bias = self.model.parameters()
        self.before = self.weight.grad = torch.ones_like(self.weight)
        self.stepped: list[torch.Tensor] = []
        self.weight.register_post_accumulate_grad_hook(self.stepped.append)
        self.optimizer = torch.optim.SGD([self.bias], lr=0.1)
        self.x = torch.randn(4, 3)
        self.loss: torch.Tensor | None = None
        self.random = torch.get_rng_state()
        self.report: Any = None

    def by_gradtrace(self) -> None:
        """gradtrace runs backward; the report is shown in every way."""
        run = trace(namespace=vars(self))
        with run:
            h = torch.sigmoid(self.model(self.x)) * 3
            h[0] = 1
            self.loss = Noisy.apply(h * 2).sqrt().sum()
        self.report = run.report
        str(run.report)
        run.report.to_html()  # type: ignore[union-attr]

    def by_itself(self) -> None:
        """The cell runs backward and steps."""
        with trace(namespace=vars(self)):
            for _ in range(2):
                self.optimizer.zero_grad()
                h = torch.tanh(self.model(self.x))
                torch.autograd.grad(h.sum(), [self.weight], retain_graph=True)
                self.loss = h.square().mean()
                self.loss.backward(retain_graph=True)
                torch.nn.utils.clip_grad_norm_([self.bias], 1.0)
                self.optimizer.step()

    def by_expression(self) -> None:
        """Backward starts from an expression; statistics of values are taken too."""
        with trace("loss * 2", namespace=vars(self), values=True):
            self.loss = self.model(self.x).sum()


def world() -> dict[str, Any]:
    """What the process has that a trace could leave changed."""
    import torch._dynamo.eval_frame as dynamo

    return {
        "function modes": _get_current_function_mode_stack(),
        "dispatch modes": _get_current_dispatch_mode_stack(),
        "stance": dynamo._stance,
        "before steps": [hook for hook in optimizer_state._global_optimizer_pre_hooks.values() if not is_guest(hook)],
        "after steps": list(optimizer_state._global_optimizer_post_hooks.values()),
        "module hooks": [
            len(v) for k, v in vars(module_state).items() if k.startswith("_global") and "hooks" in k and v
        ],
        "saved tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "grad mode": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch._C._is_torch_function_enabled(),
        ),
        "filters": list(warnings.filters),
        "expression": "--backward" in linecache.cache,
        "hooks": (sys.displayhook, sys.excepthook, sys.gettrace(), sys.getprofile()),
        "functions": (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad, torch.nn.Module.__call__),
    }


def is_guest(hook: Any) -> bool:
    """Whether a hook before an optimizer's step is the one that lets guests leave, which may stay."""
    return type(hook).__name__ == "_BeforeStep"


def ways_into_gradmagic(program: Callable[[], Any]) -> list[str]:
    """Functions of gradmagic that a program comes through, but for those of guests."""
    codes = {code for code, _ in moments_of(program)}
    return sorted({code.co_qualname for code in codes if "guest" not in code.co_filename} - {"version_of"})


def check_as_before(cell: Cell, before: dict[str, Any], by_gradtrace: bool) -> None:
    """After an interrupt nothing is left of the trace."""
    assert world() == before
    for tensor in (cell.weight, cell.bias, cell.x, cell.loss):
        hooks = list((tensor._backward_hooks or {}).values()) if tensor is not None else []
        assert all(isinstance(hook, GuestGradient) for hook in hooks)
    assert list((cell.weight._post_accumulate_grad_hooks or {}).values()) == [cell.stepped.append]
    assert set(vars(cell.model)) == set(vars(torch.nn.Linear(1, 1, device="meta")))
    assert not any(vars(cell.model)[name] for name in vars(cell.model) if name.endswith("_hooks"))
    if by_gradtrace:
        assert not cell.stepped
        assert torch.equal(torch.get_rng_state(), cell.random)
        guest = guest_of(cell.weight)
        assert (guest.makes_way_for() if guest is not None else cell.weight.grad) is cell.before
        guest = guest_of(cell.bias)
        assert (guest.makes_way_for() if guest is not None else cell.bias.grad) is None
    if cell.loss is not None:
        assert ways_into_gradmagic(cell.loss.backward) == []
        assert cell.weight.grad is not None


def check_interrupt(name: str, moment: Moment) -> None:
    """Ctrl-C at one moment of one cell."""
    cell, before = Cell(), world()
    caught: BaseException | None = None
    try:
        came = interrupted(getattr(cell, name), moment)
    except BaseException as error:  # noqa: BLE001 - it is looked at
        caught, came = error.with_traceback(None), True
    assert came
    assert isinstance(caught, KeyboardInterrupt), caught
    assert caught.args == ("the person's",)
    check_as_before(cell, before, by_gradtrace=name != "by_itself")
    w = torch.ones(2, requires_grad=True)
    with trace(namespace={}) as run:
        run.offer((w * 3).sum())
    assert run.report is not None
    assert run.report.rows[0].grad is not None
    assert run.report.rows[0].grad.values == (3.0, 3.0)


def where(error: BaseException) -> str:
    """The line of a failed assertion, and what it says."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"line {last.lineno}, {last.line} {str(error)[:200]}"


CELLS = ["by_gradtrace", "by_itself", "by_expression"]
ENTRY_OF_EXIT = trace.__exit__.__code__, -1
"""Before the first instruction of ``__exit__`` nothing can be caught: a limit of every context manager in Python."""


def check_some(name: str, part: Callable[[list[Moment]], list[Moment]]) -> int:
    """Ctrl-C at some of the moments of a cell; how many there were."""
    getattr(Cell(), name)()  # what is imported on first use is there
    moments = [moment for moment in moments_of(getattr(Cell(), name)) if moment != ENTRY_OF_EXIT]
    failures = []
    chosen = part(moments)
    for moment in chosen:
        try:
            check_interrupt(name, moment)
        except AssertionError as error:
            failures.append(f"{told(moment)}: {where(error)}")
            while _get_current_function_mode_stack():
                torch.overrides._pop_mode()
    assert not failures, f"{len(failures)} of {len(chosen)}:\n" + "\n".join(failures)
    return len(chosen)


@pytest.mark.real
@pytest.mark.parametrize("name", CELLS)
def test_an_interrupt_reaches_the_person_and_leaves_everything_as_it_was(name: str) -> None:
    """At every 40th moment at which Python looks for signals, from the entry to the last line of the report."""
    assert check_some(name, lambda moments: moments[::40]) > 10


def test_an_interrupt_right_after_a_hook_was_set_takes_it_off() -> None:
    """The hook is on its node, and its handle has not been returned yet."""
    assert check_some("by_itself", lambda moments: [each for each in moments if "._set" in each[0].co_qualname]) > 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CELLS)
def test_an_interrupt_at_every_moment_leaves_everything_as_it_was(name: str) -> None:
    """All of them."""
    assert check_some(name, lambda moments: moments) > 400
