"""Every module of PyTorch's own module database, traced and untraced."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from compared import Body, assert_same, scalar_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)  # PyTorch's own tests would use hypothesis; the database does not
    from torch.testing._internal.common_modules import ModuleInfo, ModuleInput, module_db

CASES = [
    pytest.param(info, training, id=f"{info.name}-{'train' if training else 'eval'}")
    for info in module_db
    for training in ((True, False) if info.train_and_eval_differ else (True,))
]
SAMPLED = CASES[::4]


def bodies(info: ModuleInfo, dtype: torch.dtype, training: bool) -> Iterator[Body]:
    """What to compare: construct a module and call it, for each sample."""
    for twins in zip(_samples(info, dtype, training), _samples(info, dtype, training), strict=True):
        yield _body(info, dtype, training, iter(twins))


def _body(info: ModuleInfo, dtype: torch.dtype, training: bool, twins: Iterator[ModuleInput]) -> Body:
    def body(variables: dict[str, Any]) -> torch.Tensor | None:
        sample = next(twins)
        given = sample.constructor_input
        module = variables["module"] = info.module_cls(*given.args, **given.kwargs).to(dtype).train(training)
        given = sample.forward_input
        if given is None:
            return None
        variables["given"] = (given.args, given.kwargs)
        variables["out"] = module(*given.args, **given.kwargs)
        return scalar_of(variables["out"])

    return body


def _samples(info: ModuleInfo, dtype: torch.dtype, training: bool) -> list[ModuleInput]:
    torch.manual_seed(0)
    samples = info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=training)
    errors = info.module_error_inputs_func
    wrong = errors(info, "cpu", dtype, requires_grad=True, training=training) if errors is not None else ()
    return [*samples, *(sample.module_error_input for sample in wrong)]


@pytest.mark.parametrize(("info", "training"), SAMPLED)
def test_a_module_does_the_same_traced(info: ModuleInfo, training: bool) -> None:
    """Its first sample: outputs, gradients of every node, buffers, random stream, warnings and errors."""
    assert_same(next(bodies(info, torch.float32, training)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("info", "training"), CASES)
def test_a_module_does_the_same_traced_in_every_sample(info: ModuleInfo, training: bool, dtype: torch.dtype) -> None:
    """All samples of every module."""
    for body in bodies(info, dtype, training):
        assert_same(body)
