"""Every operator of PyTorch's own database that supports autograd: traced as untraced, and every gradient found.

``python tests/databases.py`` prints the counts; see there for what is run, and `side_by_side` for what is compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DATABASES = Path(__file__).parent / "databases.py"
PARTS = 16


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
