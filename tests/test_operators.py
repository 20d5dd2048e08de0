"""Every operator of PyTorch's own database that supports autograd: traced as untraced, and every gradient found.

``python tests/databases.py`` prints the counts; see there for what is run, and `side_by_side` for what is compared.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from side_by_side import SideBySide

DATABASES = Path(__file__).parent / "databases.py"
PARTS = 8


def different_value(x: torch.Tensor, run: int) -> torch.Tensor:
    return x.detach() + run


def different_sign_of_zero(x: torch.Tensor, run: int) -> torch.Tensor:
    return torch.tensor(0.0 if run else -0.0)


def different_gradient(x: torch.Tensor, run: int) -> torch.Tensor:
    return x * 2 if run else x + x.detach()


def different_input(x: torch.Tensor, run: int) -> torch.Tensor:
    return x.detach().add_(run).isnan()


def different_draw(x: torch.Tensor, run: int) -> int:
    return int(torch.rand(run + 1).isnan().sum())


def different_warning(x: torch.Tensor, run: int) -> None:
    warnings.warn(f"run {run}", stacklevel=1)


def different_error(x: torch.Tensor, run: int) -> None:
    raise ValueError(run)


def different_line(x: torch.Tensor, run: int) -> None:
    if run:
        raise ValueError
    raise ValueError


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (different_value, "output"),
        (different_sign_of_zero, "output"),
        (different_gradient, "leaves"),
        (different_gradient, "nodes"),
        (different_input, "inputs"),
        (different_draw, "random"),
        (different_warning, "warnings"),
        (different_error, "error"),
        (different_line, "error"),
    ],
)
def test_what_differs_from_the_plain_run_is_noticed(call: Callable[..., Any], what: str) -> None:
    """The comparison itself: a call that is told which run it is."""
    runs = itertools.count()
    found = SideBySide(lambda: partial(call, torch.ones(3, requires_grad=True), next(runs))).compare()
    assert [difference for difference in found.differences if difference.startswith(f"guest: {what}")]
    assert [difference for difference in found.differences if difference.startswith(f"own: {what}")]


def different_buffer(run: int, variables: dict[str, Any]) -> None:
    variables["norm"] = torch.nn.BatchNorm1d(2)
    variables["norm"].running_mean[0] = run


def different_parameter(run: int, variables: dict[str, Any]) -> None:
    variables["layers"] = [torch.nn.Linear(2, 2, bias=bool(run))]


def different_gradient_of_a_parameter(run: int, variables: dict[str, Any]) -> torch.Tensor:
    layer = variables["layer"] = torch.nn.Linear(2, 2)
    return layer(torch.ones(2)) + run * layer.bias


def different_before_an_error(run: int, variables: dict[str, Any]) -> None:
    variables["x"] = torch.tensor(run)
    raise ValueError


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (different_buffer, "inputs: {\"[1]['variables']['norm'].running_mean"),
        (different_parameter, "inputs: {\"[1]['variables']['layers'][0].bias"),
        (different_gradient_of_a_parameter, "leaves: {\"[1]['variables']['layer'].bias"),
        (different_before_an_error, "inputs: {\"[1]['variables']['x']"),
    ],
)
def test_what_differs_in_a_calls_own_variables_is_noticed(call: Callable[..., Any], what: str) -> None:
    """Those of a module are told by name, and only those that differ."""
    runs = itertools.count()
    found = SideBySide(lambda: partial(call, next(runs), variables={})).compare()
    assert [difference for difference in found.differences if difference.startswith(f"guest: {what}")]
    assert [difference for difference in found.differences if difference.startswith(f"own: {what}")]


def test_nothing_differs_between_equal_runs() -> None:
    """And the nodes are counted: sum, weights, product, leaf."""
    found = SideBySide(lambda: partial(torch.mul, torch.ones(3, requires_grad=True), 2)).compare()
    assert found.differences == []
    assert found.nodes == 4


VARY = {"linalg.lstsq", "linalg.lstsq.grad_oriented"}
"""Operators that give other last digits from one plain call on a CPU to the next: LAPACK's `gelsy` does."""


def run_database(*options: str) -> dict[str, Any]:
    """Counts of a run in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(DATABASES), *options], stdout=subprocess.PIPE, text=True, check=False, timeout=3600
    )
    assert done.returncode == 0, f"the process itself crashed: {done.returncode}"
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


def assert_nothing_differs(counts: dict[str, Any]) -> None:
    assert counts["told"] == []
    assert counts["mismatches"] == counts["crashes"] == counts["not_traced"] == 0
    assert {name.split()[0] for name in counts["undetermined"]} <= VARY


@pytest.mark.real
def test_one_sample_of_every_operator() -> None:
    """One call of every operator, and one that must raise."""
    counts = run_database("--samples", "1", "--dtype", "float32", "--variant", "function")
    assert_nothing_differs(counts)
    assert counts["operators"] > 500
    assert counts["nodes"] > 2500
    assert counts["raising"] > 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_every_operator(dtype: str, part: int) -> None:
    """Up to twelve samples of every operator, in all its variants, and as many that must raise."""
    counts = run_database("--samples", "12", "--dtype", dtype, "--first", str(part), "--step", str(PARTS))
    assert_nothing_differs(counts)
