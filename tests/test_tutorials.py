"""Small notebooks after the subjects of PyTorch's tutorials: with the magic they do what they do without."""

from __future__ import annotations

import contextlib
import io
import linecache
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from alike import rounded
from corpus.tutorials import TUTORIALS
from plain import norms_of
from test_fuzz import Run, described, listen, listening, untouched, variables

from gradmagic.report import Report
from gradmagic.tracing import CellSource, trace

CELLS = {name: source.split("# %%\n") for name, source in TUTORIALS.items()}
EACH = [(name, number) for name, cells in CELLS.items() for number in range(len(cells))]
WARNED_OF = {("a polynomial and a Function of one's own", 2): ["dominating_gradient"]}
"""By cell, what is worth a warning: x to the fourth makes one gradient the largest by far."""


@dataclass(frozen=True)
class Shown:
    """What one cell of a notebook shows, and all that the notebook holds after it."""

    printed: str
    warned: list[tuple[str, str, str, int]]
    error: list[Any]
    random: bytes
    variables: dict[str, Any]


@dataclass(frozen=True)
class Ran:
    """A notebook after its run; by cell, what was shown, the norms that were heard, and the report of a traced one."""

    shown: list[Shown]
    norms: list[Counter[float]]
    reports: list[Report | None]


Around = Callable[[int, Run], AbstractContextManager[None]]
"""What the cell of that number runs in."""


def file_of(number: int) -> str:
    return f"<tutorial cell {number}>"


def number_of(file: str) -> int | None:
    """What a shell says for In [1], In [2]..."""
    return next((number + 1 for number in range(9) if file_of(number) == file), None)


def run_notebook(name: str, around: Around) -> Ran:
    """Run the cells one after the other in one namespace."""
    ran = Ran([], [], [])
    namespace: dict[str, Any] = {"torch": torch, "__name__": "tutorial"}
    torch.default_generator.manual_seed(0)
    random.seed(0)
    for number, source in enumerate(CELLS[name]):
        file = file_of(number)
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        run = Run(namespace)
        ran.shown.append(run_cell(compile(source, file, "exec"), run, around(number, run)))
        ran.norms.append(Counter(run.norms))
        ran.reports.append(run.report)
    return ran


def run_cell(code: Any, run: Run, around: AbstractContextManager[None]) -> Shown:
    """Run one cell and take down what it shows."""
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        try:
            with around:
                exec(code, run.namespace)
        except Exception as error:  # noqa: BLE001 - it is compared, and none is expected
            run.error = list(described(error))
    warned = [(each.category.__name__, str(each.message), each.filename, each.lineno) for each in caught]
    stream = torch.get_rng_state().numpy().tobytes()
    return Shown(printed.getvalue(), warned, run.error, stream, variables(run, plain=False))


@contextlib.contextmanager
def traced(number: int, run: Run) -> Iterator[None]:
    tracing = trace(namespace=run.namespace, cell=CellSource(file_of(number), number_of))
    with tracing:
        yield
    assert tracing.fault is None, tracing.fault
    run.report = tracing.report


@contextlib.contextmanager
def heard(report: Report | None, run: Run) -> Iterator[None]:
    """Plain PyTorch with a prehook on every node, in the backward that gradtrace ran for the report's cell too."""
    with listening(run):
        yield
    assert report is not None
    last = report.passes[-1] if report.passes else None
    if last is not None and last.run_by == "gradtrace":
        with gradients_kept(run):
            start = eval(last.root, run.namespace)  # noqa: S307 - a name or an expression of the cell
            handles = listen([start], run.norms)
            start.backward(retain_graph=True)
            for _, handle in handles:
                handle.remove()


@contextlib.contextmanager
def gradients_kept(run: Run) -> Iterator[None]:
    """No leaf of the notebook has another `.grad` afterwards."""
    leaves = {}
    for value in run.namespace.values():
        found = value.parameters() if isinstance(value, torch.nn.Module) else [value]
        leaves.update({id(leaf): leaf for leaf in found if isinstance(leaf, torch.Tensor) and leaf.is_leaf})
    before = [(leaf, leaf.grad) for leaf in leaves.values()]
    for leaf, _ in before:
        leaf.grad = None
    yield
    for leaf, gradient in before:
        leaf.grad = gradient


@cache
def plainly(name: str) -> Ran:
    """Without gradmagic. The first run of a process is not looked at: PyTorch says some things only once."""
    run_notebook(name, lambda _, run: untouched(run))
    return run_notebook(name, lambda _, run: untouched(run))


@cache
def with_the_magic_on_all(name: str) -> Ran:
    return run_notebook(name, traced)


@pytest.mark.parametrize("name", CELLS)
def test_a_notebook_with_the_magic_on_every_cell_does_what_it_does_without(name: str) -> None:
    """After each cell: output, warnings, random numbers, the bits of every variable, `.grad` and optimizer's state."""
    plain, ours = plainly(name), with_the_magic_on_all(name)
    assert [shown.error for shown in plain.shown] == [[]] * len(plain.shown)
    for number, (mine, theirs) in enumerate(zip(ours.shown, plain.shown, strict=True)):
        assert mine == theirs, number


@pytest.mark.parametrize(("name", "number"), EACH)
def test_a_notebook_with_the_magic_on_one_cell_does_what_it_does_without(name: str, number: int) -> None:
    """The cells before and after it run untraced: `loss.backward()` below a traced forward cell doubles nothing."""
    ours = run_notebook(name, lambda index, run: traced(index, run) if index == number else untouched(run))
    assert ours.shown == plainly(name).shown


@pytest.mark.parametrize("name", CELLS)
def test_the_gradient_of_every_node_of_a_notebook_is_in_the_reports_of_its_cells(name: str) -> None:
    """With the norm that an ordinary hook on each node of each backward hears in plain PyTorch, to the last bit."""
    reports = with_the_magic_on_all(name).reports
    truth = run_notebook(name, lambda number, run: heard(reports[number], run))
    assert [shown.error for shown in truth.shown] == [[]] * len(reports)
    for number, (report, norms) in enumerate(zip(reports, truth.norms, strict=True)):
        assert report is not None
        assert rounded(norms_of(report)) == rounded(norms), number
    assert sum(norms.total() for norms in truth.norms) > 20


@pytest.mark.parametrize(("name", "number"), EACH)
def test_a_report_on_a_healthy_cell_explains_every_none_and_warns_of_nothing(name: str, number: int) -> None:
    """A false alarm on what everybody learns from would be the worst; and each row has a gradient or a reason."""
    report = with_the_magic_on_all(name).reports[number]
    assert report is not None
    told = [finding.kind for finding in report.findings if finding.severity != "info"]
    assert told == WARNED_OF.get((name, number), [])
    assert "not_traced" not in {finding.kind for finding in report.findings}
    for row in report.rows:
        assert (row.grad is None) == (row.reason is not None), row
    assert str(report)
    assert "<table" in report.to_html() or not report.rows


def test_the_comparison_sees_a_gradient_that_is_twice_as_large() -> None:
    """Else it would show nothing: with an ordinary backward in the place of a guest's, the next cell's adds to it."""
    name = "a variational autoencoder"

    @contextlib.contextmanager
    def naive(number: int, run: Run) -> Iterator[None]:
        yield
        if number == 1:
            run.namespace["loss"].backward(retain_graph=True)

    assert run_notebook(name, naive).shown[2] != plainly(name).shown[2]
