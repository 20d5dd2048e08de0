"""One source, run plain and run traced: what a person could notice of the difference. There must be none."""

from __future__ import annotations

import copy
import itertools
import linecache
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from plain import norms_of
from side_by_side import random_state
from torch.masked import MaskedTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradmagic.report import Report
from gradmagic.tracing import CellSource, trace

_FILE = "<alike>"
_numbers = itertools.count()


@dataclass
class Outcome:
    """What a run left: variables, its error with the lines of the cell, its warnings, the next random number."""

    namespace: dict[str, Any]
    error: tuple[str, str, list[int]] | None
    warnings: list[tuple[str, str, str, int]]
    random: bytes


def outcome_of(source: str, run: Callable[[dict[str, Any]], None], variables: dict[str, Any]) -> Outcome:
    """Run a cell and take down what it left behind."""
    linecache.cache[_FILE] = (len(source), None, source.splitlines(keepends=True), _FILE)
    module = ModuleType(f"alike_{next(_numbers)}")
    sys.modules[module.__name__] = module  # dynamo looks a function's globals up there
    namespace = module.__dict__
    namespace.update(torch=torch, **copy.deepcopy(variables))
    torch.manual_seed(0)
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run(namespace)
        except Exception as raised:  # noqa: BLE001 - whatever it is, it is to be the same
            lines = [
                frame.lineno or 0 for frame in traceback.extract_tb(raised.__traceback__) if frame.filename == _FILE
            ]
            error = (type(raised).__name__, str(raised), lines)
    told = [(each.category.__name__, from_cell_on(str(each.message)), each.filename, each.lineno) for each in caught]
    return Outcome(namespace, error, told, random_state())


def from_cell_on(message: str) -> str:
    """A message, less the lines of a traceback before the cell's: these are the test's own."""
    head, entry, tail = message.partition(f'  File "{_FILE}"')
    return f"{head.partition('  File ')[0]}{entry}{tail}"


def assert_alike(source: str, nodes: str | None = "loss", several: bool = False, **variables: Any) -> Report:
    """Values, gradients, warnings, errors and random numbers of `source` are those of plain PyTorch.

    Args:
        source: the cell.
        nodes: the root whose every node's gradient is compared too; None where the cell runs backward itself.
        several: the cell runs passes of its own beside it, whose gradients the report shows too.
        variables: what the cell finds; each run gets a copy.
    """
    expected: list[float] = []

    def plainly(namespace: dict[str, Any]) -> None:
        exec(compile(source, _FILE, "exec"), namespace)

    outcome_of(source, plainly, variables)  # what PyTorch says, compiles and decides only once in a process
    plain = outcome_of(source, plainly, variables)
    if nodes is not None and plain.error is None:
        with warnings.catch_warnings(action="ignore"):
            expected = gradients_below(plain.namespace[nodes])
    tracing = trace("auto", namespace={}, cell=CellSource(_FILE, lambda name: 1 if name == _FILE else None))

    def traced(namespace: dict[str, Any]) -> None:
        tracing._namespace = namespace
        with tracing:
            exec(compile(source, _FILE, "exec"), namespace)

    found = outcome_of(source, traced, variables)
    assert tracing.fault is None, tracing.fault
    report = tracing.report
    assert report is not None
    assert found.error == plain.error, (found.error, plain.error)
    assert found.warnings == plain.warnings, (found.warnings, plain.warnings)
    assert found.random == plain.random, "the random stream differs"
    assert "not_traced" not in {finding.kind for finding in report.findings}, report.findings
    if nodes is not None and plain.error is None:
        assert report.root is not None, [str(finding) for finding in report.findings]
        ours, theirs = rounded(norms_of(report)), rounded(Counter(expected))
        assert not theirs - ours, (theirs - ours, ours - theirs)
        assert several or ours == theirs, ours - theirs
    with warnings.catch_warnings(action="ignore"):  # what layouts in beta say when they are looked at
        assert_same(persons(found.namespace), persons(plain.namespace), "")
    assert str(report)
    assert report.to_html()
    assert report.to_json()
    return report


def persons(namespace: dict[str, Any]) -> dict[str, Any]:
    """The variables that are compared: those with an underscore are not."""
    return {name: value for name, value in namespace.items() if not name.startswith("_")}


def rounded(norms: Counter[float]) -> Counter[str]:
    """NaN is equal to no NaN, so numbers are compared by what they look like, to the last bit."""
    found: Counter[str] = Counter()
    for norm, count in norms.items():
        found[repr(norm)] += count
    return found


def gradients_below(root: torch.Tensor) -> list[float]:
    """The norm of the gradient at each node between a root and the leaves; runs backward."""
    found: list[float] = []

    def note(leaf: torch.Tensor | None, gradients: tuple[torch.Tensor | None, ...]) -> None:
        found.extend(norm_of(gradient, leaf) for gradient in gradients if gradient is not None)

    pending: list[Any] = [root.grad_fn]
    seen: dict[int, Any] = {}
    while pending:
        node = pending.pop()
        if node is not None and id(node) not in seen:
            seen[id(node)] = node
            node.register_prehook(partial(note, getattr(node, "variable", None)))
            pending.extend(parent for parent, _ in node.next_functions)
    root.backward()
    return found


def norm_of(gradient: torch.Tensor, leaf: torch.Tensor | None) -> float:
    """The norm of a gradient of any layout, of its stored values, added up in the order of `.grad`."""
    data = stored(gradient.detach())
    if data.is_meta:
        return float("nan") if data.numel() else 0.0
    if leaf is not None and leaf.layout is torch.strided and not leaf.is_nested and data.shape == leaf.shape:
        data = torch.empty_like(leaf, dtype=data.dtype).copy_(data)
    if data.dtype in (torch.bfloat16, torch.float16):
        data = data.float()
    return float(torch.linalg.vector_norm(data.clone())) if data.numel() else 0.0


def stored(data: torch.Tensor) -> torch.Tensor:
    """The values that a tensor of any layout stores."""
    if data.layout is torch.strided and not data.is_nested:
        return data
    if data.is_mkldnn:
        return data.to_dense()
    if data.is_nested and data.layout is torch.strided:
        return torch.cat([part.reshape(-1) for part in data.unbind()])
    return data.coalesce().values() if data.layout is torch.sparse_coo else data.values()


def assert_same(ours: Any, plain: Any, name: str) -> None:
    """Equal to the last bit, in containers, modules and optimizers too."""
    assert type(ours).__name__ == type(plain).__name__, name
    if isinstance(plain, torch.Tensor):
        assert_same_tensor(ours, plain, name)
    elif isinstance(plain, dict):
        assert list(ours) == list(plain), name
        for key, value in plain.items():
            assert_same(ours[key], value, f"{name}.{key}")
    elif isinstance(plain, (list, tuple)):
        assert len(ours) == len(plain), (name, ours, plain)
        for index, (mine, theirs) in enumerate(zip(ours, plain, strict=True)):
            assert_same(mine, theirs, f"{name}[{index}]")
    elif isinstance(plain, torch.nn.Module):
        assert_same(dict(ours.named_parameters()), dict(plain.named_parameters()), name)
        assert_same(dict(ours.named_buffers()), dict(plain.named_buffers()), name)
    elif isinstance(plain, (int, float, str, bool, torch.dtype, torch.Size, torch.device)):
        assert repr(ours) == repr(plain), name


def assert_same_tensor(ours: torch.Tensor, plain: torch.Tensor, name: str) -> None:
    """Kind, shape, type, values and `.grad`; a subclass of the cell is asked nothing, as it is another one each run."""
    with torch._C.DisableTorchFunction():
        _assert_same_tensor(ours, plain, name)


def _assert_same_tensor(ours: torch.Tensor, plain: torch.Tensor, name: str) -> None:
    for what in ("dtype", "device", "layout", "is_leaf", "requires_grad", "is_nested"):
        assert getattr(ours, what) == getattr(plain, what), f"{name}.{what}"
    assert type(ours.grad_fn).__name__ == type(plain.grad_fn).__name__, name
    assert_same_values(ours.detach(), plain.detach(), name)
    if plain.is_leaf and plain.grad is not None:
        assert ours.grad is not None, f"{name}.grad"
        assert_same_values(ours.grad.detach(), plain.grad.detach(), f"{name}.grad")


def assert_same_values(ours: torch.Tensor, plain: torch.Tensor, name: str) -> None:
    """Bit for bit, NaN included; of a meta or fake tensor, there is the shape."""
    if isinstance(plain, MaskedTensor):
        assert_same_values(ours.get_mask(), plain.get_mask(), f"{name}.mask")
        ours, plain = ours.get_data(), plain.get_data()
    if is_traceable_wrapper_subclass(plain) and not plain.is_nested:
        for inner in plain.__tensor_flatten__()[0]:
            if isinstance(getattr(plain, inner), torch.Tensor):
                assert_same_values(getattr(ours, inner), getattr(plain, inner), f"{name}.{inner}")
        return
    ours, plain = stored(ours), stored(plain)
    assert ours.shape == plain.shape, name
    if not plain.is_meta and type(plain).__name__ != "FakeTensor":
        assert torch.equal(bits(ours), bits(plain)), name


def bits(data: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, in order of its elements."""
    data = data.int_repr() if data.is_quantized else data.resolve_conj().resolve_neg()
    return data.contiguous().reshape(-1).view(torch.uint8)
