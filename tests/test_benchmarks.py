"""The benchmark still runs: every section and load, in a size that measures nothing."""

from __future__ import annotations

import gc
import json
import multiprocessing.dummy
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import memory, turns
from benchmarks.__main__ import main
from benchmarks.contenders import RUNS, gradtrace
from benchmarks.loads import LOADS, Load
from benchmarks.prepared import Prepared
from benchmarks.turns import How, Spread, ratio, seconds


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads in place of processes, which would each import PyTorch."""
    for module in (turns, memory):
        monkeypatch.setattr(module, "get_context", lambda _: multiprocessing.dummy)
    gc.freeze()  # garbage is collected before each round; this keeps all of PyTorch out of it
    yield
    gc.unfreeze()


@pytest.mark.parametrize("load", LOADS, ids=[load.key for load in LOADS])
def test_every_row_of_a_load_that_needs_a_gradient_has_one(load: Load) -> None:
    """What is measured is a cell whose backward reaches everything, and that nothing is wrong with."""
    prepared = Prepared(load.with_sizes(load.tiny))
    report = gradtrace(prepared)
    assert report.findings == []
    assert [row.label for row in report.rows if row.kind == "parameter" and row.grad is None] == []
    assert len(report.passes) == 1


@pytest.mark.parametrize("name", RUNS)
def test_every_contender_runs(name: str) -> None:
    """Each gives a time."""
    assert RUNS[name](Prepared(LOADS[1].with_sizes(LOADS[1].tiny)), lambda: 0.0) == 0.0


def test_a_gpu_run_differs_in_device_size_and_dtype_alone() -> None:
    """W2 to W4 at training size."""
    there = [load.on("cuda") for load in LOADS if load.gpu is not None]
    assert [load.key for load in there] == ["W2", "W3", "W4"]
    assert {(load.device, load.dtype, load.sizes["batch"]) for load in there} == {("cuda", "bfloat16", 64)}


@pytest.mark.usefixtures("threads")
def test_the_whole_benchmark_prints_its_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All sections but those that need a shell of their own; the numbers go to a file too."""
    sections = ["cells", "numbers", "operations", "reports", "extremes", "rendering"]
    main([*sections, "--tiny", "--rounds", "1", "--json", str(tmp_path / "found.json")])
    shown = capsys.readouterr().out
    assert all(f"| {load.key} " in shown for load in LOADS)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found.keys() == {"machine", "versions", "date", "command", "clock", "rounds", *sections}


@pytest.mark.real
def test_contenders_take_turns_in_processes_of_their_own() -> None:
    """One time a round each; the shell that has loaded the extension is one of them."""
    load = LOADS[0].with_sizes(LOADS[0].tiny)
    times = seconds(load, ("plain", "untraced"), How(rounds=2, clock="cpu"))
    assert [len(each) for each in times.values()] == [2, 2]


def test_a_ratio_is_that_of_the_medians() -> None:
    """Its least and largest are ratios within one round."""
    times = {"plain": [1.0, 2.0, 3.0], "gradtrace": [2.0, 2.0, 12.0]}
    assert ratio(times, "gradtrace") == Spread(1.0, 1.0, 4.0)
