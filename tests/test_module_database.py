"""Every module of PyTorch's own module database, traced and untraced; see `side_by_side` for what is compared."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from side_by_side import SideBySide, assert_nothing_differs, fresh

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)  # PyTorch's own tests would use hypothesis; the database does not
    from torch.testing._internal.common_modules import ModuleInfo, module_db

CASES = [
    pytest.param(info, training, id=f"{info.name}-{'train' if training else 'eval'}")
    for info in module_db
    for training in ((True, False) if info.train_and_eval_differ else (True,))
]
FEW = CASES[::3]
MOST = 40
"""Of a loss with 1,724 samples, so many are run: from the first to the last."""

Given = tuple[Any, ...]
"""Arguments of the constructor and of the call, the positional and those by keyword; None in place of a call."""


def samples(info: ModuleInfo, dtype: torch.dtype, training: bool) -> Iterator[Given]:
    """What to construct the module with, and to call it with: also what it must refuse."""
    torch.manual_seed(0)
    found = info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=training)
    errors = info.module_error_inputs_func
    wrong = errors(info, "cpu", dtype, requires_grad=True, training=training) if errors is not None else ()
    for sample in [*found[:: -(-len(found) // MOST)], *(sample.module_error_input for sample in wrong)]:
        yield _arguments(sample.constructor_input), sample.forward_input and _arguments(sample.forward_input)


def _arguments(given: Any) -> Given:
    return given.args, given.kwargs


def run(info: ModuleInfo, dtype: torch.dtype, training: bool, given: Given, variables: dict[str, Any]) -> Any:
    """Construct a module and call it."""
    (args, kwargs), call = given
    module = variables["module"] = info.module_cls(*args, **kwargs).to(dtype).train(training)
    return module(*call[0], **call[1]) if call is not None else None


def side_by_side(info: ModuleInfo, dtype: torch.dtype, training: bool, given: Given) -> SideBySide:
    """Each run on a module of its own."""
    return SideBySide(lambda: partial(fresh(partial(run, info, dtype, training), (given,)), variables={}))


@pytest.mark.parametrize(("info", "training"), FEW)
def test_a_module_does_the_same_traced(info: ModuleInfo, training: bool) -> None:
    """Its first sample: outputs, gradients of every node, buffers, random stream, warnings and errors."""
    assert_nothing_differs(side_by_side(info, torch.float32, training, next(samples(info, torch.float32, training))))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("info", "training"), CASES)
def test_a_module_does_the_same_traced_in_every_sample(info: ModuleInfo, training: bool, dtype: torch.dtype) -> None:
    """All samples of every module, up to forty of them."""
    for given in samples(info, dtype, training):
        assert_nothing_differs(side_by_side(info, dtype, training, given))
