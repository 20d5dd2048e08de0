"""The same code twice, in plain PyTorch and traced: what it leaves, gives, says and raises, bit for bit."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from plain import norms_of
from torch import Tensor, nn

from gradmagic.report import Report
from gradmagic.tracing import trace

_SEED = 20
_TESTS = str(Path(__file__).parent)


@dataclass
class Run:
    """What a run showed.

    Attributes:
        tensors: outputs, inputs, parameters and buffers with their gradients, by name.
        random: the state of the random stream at the end.
        said: warnings: category and text.
        error: type and text of what was raised, and the frames below the test's own.
        norms: of each gradient that reached an autograd node, untraced; None where the code runs backward itself.
        report: of a traced run.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    random: Tensor | None = None
    said: list[tuple[str, str]] = field(default_factory=list)
    error: tuple[str, ...] = ()
    norms: list[tuple[str, str]] | None = None
    report: Report | None = None


Body = Callable[[dict[str, Any]], Tensor | None]
"""Code to compare: puts its variables into a dict, and gives the loss."""


def plain(body: Body) -> Run:
    """Untraced, then backward with a prehook on every node."""
    run, variables, norms = Run(), {}, []

    def note(gradients: tuple[Tensor | None, ...]) -> None:
        norms.extend(norm_of(gradient) for gradient in gradients if gradient is not None)

    with _watched(run):
        loss = body(variables)
        if loss is not None and loss.requires_grad:
            _hook_every_node(loss, note)
            loss.backward()
            run.norms = norms
    _take(run, variables)
    return run


def traced(body: Body) -> Run:
    """Traced; gradtrace runs backward."""
    run, variables = Run(), {}
    tracing = trace(namespace=variables)
    with _watched(run), tracing:
        loss = body(variables)
        tracing.offer(loss)
    run.report = tracing.report
    assert tracing.fault is None, tracing.fault
    assert run.report is not None
    _take(run, variables)
    return run


def assert_same(body: Body) -> tuple[Run, Run]:
    """Both runs, which differ in nothing."""
    without, with_trace = plain(body), traced(body)
    assert with_trace.error == without.error, f"{without.error}\nnow {with_trace.error}"
    assert with_trace.said == without.said, f"{without.said}\nnow {with_trace.said}"
    assert torch.equal(with_trace.random, without.random), "the random stream differs"
    assert with_trace.tensors.keys() == without.tensors.keys()
    for name, tensor in without.tensors.items():
        assert same_bits(with_trace.tensors[name], tensor), name
    if without.norms is not None:
        report = with_trace.report
        invented, missing = _without_partner(Counter(map(_hexed, norms_of(report).elements())), without.norms)
        assert not invented, invented
        # Of an inner step in a loop, the report keeps the last gradient.
        assert not missing or any(row.inner and row.count > 1 for row in report.rows), missing
    return without, with_trace


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Equal in kind, shape and every bit; NaN equals itself."""
    kind = (ours.dtype, ours.layout, ours.shape, ours.requires_grad, ours.is_leaf)
    if kind != (theirs.dtype, theirs.layout, theirs.shape, theirs.requires_grad, theirs.is_leaf):
        return False
    if ours.layout is not torch.strided:
        ours, theirs = ours.to_dense(), theirs.to_dense()
    return torch.equal(_bits(ours), _bits(theirs))


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1).view(torch.uint8)


def norm_of(gradient: Tensor) -> tuple[str, str]:
    """Norm of a gradient, exactly: of a copy that lies in memory as it does, and of a contiguous one.

    The order of summation depends on that, and with it the last bit of the norm, not of the gradient.
    """
    dense = gradient.detach().to_dense() if gradient.layout is not torch.strided else gradient.detach().clone()
    as_it_lies, contiguous = (torch.linalg.vector_norm(copy) for copy in (dense, dense.contiguous()))
    return _hexed(float(as_it_lies)), _hexed(float(contiguous))


def _without_partner(ours: Counter[str], plain: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Norms that only the report has, and those that only plain PyTorch has."""
    left, missing = Counter(ours), []
    for norms in plain:
        found = next((norm for norm in norms if left[norm] > 0), None)
        if found is None:
            missing.append(norms[0])
        else:
            left[found] -= 1
    return list(left.elements()), missing


def _hexed(norm: float) -> str:
    return norm.hex() if norm == norm else "nan"


class _watched:
    """Notes warnings and errors of a block, and begins and ends with the random stream."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._catching = warnings.catch_warnings(record=True)

    def __enter__(self) -> None:
        torch.manual_seed(_SEED)
        self._caught = self._catching.__enter__()
        self._always = torch.is_warn_always_enabled()
        torch.set_warn_always(True)  # PyTorch says some things once in a process: the second run would miss them
        warnings.simplefilter("always")

    def __exit__(self, kind: Any, error: Any, where: Any) -> bool:
        self._catching.__exit__(kind, error, where)
        torch.set_warn_always(self._always)
        self._run.random = torch.get_rng_state()
        self._run.said = [(warning.category.__name__, str(warning.message)) for warning in self._caught]
        if error is not None:
            frames = [frame for frame in traceback.extract_tb(where) if not frame.filename.startswith(_TESTS)]
            lines = (f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
            self._run.error = (type(error).__name__, str(error), *lines)
        return isinstance(error, Exception)


def _hook_every_node(loss: Tensor, note: Callable[[Any], None]) -> None:
    pending, seen = [loss.grad_fn], {}
    while pending:
        node = pending.pop()
        if node is not None and id(node) not in seen:
            seen[id(node)] = node
            node.register_prehook(note)
            pending.extend(parent for parent, _ in node.next_functions)


def _take(run: Run, variables: dict[str, Any]) -> None:
    for name, value in variables.items():
        for path, tensor in _tensors(name, value):
            run.tensors[path] = tensor
            if tensor.is_leaf and tensor.grad is not None:
                run.tensors[f"{path}.grad"] = tensor.grad


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, nn.Module):
        state = [*value.named_parameters(), *value.named_buffers()]
        yield from ((f"{name}.{path}", tensor) for path, tensor in state if not nn.parameter.is_lazy(tensor))
    elif isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(f"{name}[{key}]", item)
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _tensors(f"{name}[{index}]", item)


def scalar_of(value: Any) -> Tensor | None:
    """One number that every differentiable tensor in an output has a part in."""
    parts = [tensor for _, tensor in _tensors("", value) if tensor.requires_grad]
    if not parts:
        return None
    reals = [torch.view_as_real(part) if part.is_complex() else part for part in parts]
    return sum((real.sin() + real).sum() for real in reals)
