"""The ways to run a cell that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from gradmagic.tracing import trace

from .prepared import Prepared

if TYPE_CHECKING:
    from gradmagic.report import Report

Contender = Callable[[Prepared], object]


class _Nothing(TorchFunctionMode):
    """Does nothing: what any mode costs."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class _Retaining(TorchFunctionMode):
    """``retain_grad()`` on every result, which is kept: what people write by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.retain_grad()
                self.kept.append(tensor)
        return result


class _Hooking(TorchFunctionMode):
    """A hook that does nothing on each gradient: what it costs to be told of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: dict[int, RemovableHandle] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(self.note)  # dies with the graph
        for tensor in args:
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor.is_leaf and id(tensor) not in self.leaves:
                self.leaves[id(tensor)] = tensor.register_hook(self.note)
        return result

    def note(self, grad: Tensor) -> None:
        """A gradient has arrived."""


class _Reducing(_Hooking):
    """The five numbers of the table for each gradient, once where it is only passed on: what exact statistics cost."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[tuple[Tensor, ...]] = []
        self.last = (0, 0)

    def note(self, grad: Tensor) -> None:
        """Take the numbers, and leave them where they are until the end."""
        key = grad.data_ptr(), grad.numel()
        if key != self.last:
            self.last = key
            norm = torch.linalg.vector_norm(grad)
            self.numbers.append((norm, *torch.aminmax(grad), grad.mean(), torch.count_nonzero(grad)))


def plain(prepared: Prepared) -> None:
    """The cell alone."""
    prepared.run()


def floor(prepared: Prepared) -> None:
    """Under a mode that does nothing."""
    with _Nothing():
        prepared.run()


def hooks(prepared: Prepared) -> None:
    """Under a mode that is told of each gradient, and does nothing with it."""
    _run_hooked(prepared, _Hooking())


def reductions(prepared: Prepared) -> list[float]:
    """Under a mode that takes the table's numbers of each gradient, and nothing else: no names, places or reasons."""
    mode = _Reducing()
    _run_hooked(prepared, mode)
    return [number.item() for numbers in mode.numbers for number in numbers]


def _run_hooked(prepared: Prepared, mode: _Hooking) -> None:
    with mode:
        prepared.run()
    for handle in mode.leaves.values():
        handle.remove()


def by_hand(prepared: Prepared) -> list[list[float]]:
    """Keep everything that needs a gradient, then take the numbers one by one, as tables of gradients have them."""
    with _Retaining() as mode:
        prepared.run()
    leaves = [tensor for value in prepared.namespace.values() for tensor in _leaves(value)]
    return [numbers(tensor.grad) for tensor in (*leaves, *mode.kept) if tensor.grad is not None]


def _leaves(value: object) -> list[Tensor]:
    if isinstance(value, torch.nn.Module):
        return list(value.parameters())
    return [value] if isinstance(value, Tensor) and value.is_leaf else []


def numbers(grad: Tensor) -> list[float]:
    """Norm, minimum, maximum, mean, standard deviation, NaNs and zeros."""
    spread = grad.std(correction=0)  # the other kind warns of a single number
    found = grad.norm(), grad.min(), grad.max(), grad.mean(), spread, grad.isnan().sum(), (grad == 0).sum()
    return [number.item() for number in found]


def gradtrace(prepared: Prepared) -> Report:
    """All of ``%%gradtrace -q``: from entering the trace to the finished report."""
    with trace(namespace=prepared.namespace, cell=prepared.source()) as run:
        prepared.run()
    if run.report is None:
        raise RuntimeError("there is no report") from run.fault
    return run.report


Now = Callable[[], float]
"""A clock: `time.perf_counter`, or `time.process_time`."""


def _clocked(work: Callable[[], object], now: Now) -> float:
    start = now()
    work()
    return now() - start


def _whole(contender: Contender, prepared: Prepared, now: Now) -> float:
    """Seconds of one run, with what it has started on a GPU."""
    wait = torch.cuda.synchronize if prepared.namespace["device"] != "cpu" else _no_wait
    wait()

    def run() -> None:
        contender(prepared)
        wait()

    return _clocked(run, now)


def _no_wait() -> None:
    return None


def _report(prepared: Prepared, now: Now) -> float:
    """Seconds after a cell that has run backward itself: all that is left is the report."""
    with trace(namespace=prepared.namespace, cell=prepared.source()):
        prepared.run()
        start = now()
    return now() - start


def _html(prepared: Prepared, now: Now) -> float:
    return _clocked(gradtrace(prepared).to_html, now)


def _text(prepared: Prepared, now: Now) -> float:
    return _clocked(gradtrace(prepared).__str__, now)


RUNS: Mapping[str, Callable[[Prepared, Now], float]] = MappingProxyType(
    {
        "plain": partial(_whole, plain),
        "floor": partial(_whole, floor),
        "hooks": partial(_whole, hooks),
        "reductions": partial(_whole, reductions),
        "by hand": partial(_whole, by_hand),
        "gradtrace": partial(_whole, gradtrace),
        "in a shell": partial(_whole, plain),
        "untraced": partial(_whole, plain),
        "report": _report,
        "HTML": _html,
        "text": _text,
    }
)
"""Seconds of one run, by the name of the contender, or of the part of gradtrace."""


def make_ready(name: str) -> None:
    """Have this process do first what a contender is to be measured after."""
    if name not in ("in a shell", "untraced"):
        return
    from IPython.core.interactiveshell import InteractiveShell  # nobody else needs a shell

    shell = InteractiveShell.instance()
    if name == "in a shell":
        return
    shell.run_line_magic("load_ext", "gradmagic")
    shell.run_cell("%%gradtrace -q\nimport torch\ntorch.ones(2, requires_grad=True).sum();").raise_error()
