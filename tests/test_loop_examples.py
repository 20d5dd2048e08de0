"""The notebooks about loops, as a person runs them: their findings, and their numbers against plain PyTorch."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import math
import os
import re
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from test_examples import ROOT, assert_same_text, assert_saved_as_a_fresh_run, is_traced, words_of
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

# pyzmq and jupyter_client warn about event loops and paths of their own making.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.real]

Findings = list[tuple[str, int | None]]

EXPECTED: dict[str, dict[str, Findings]] = {
    "rnn_through_time": {"tanh": [("vanishing", 8)], "orthogonal": [], "lstm": []},
    "gan": {"stray": [("stray_gradient", 7)], "stray-cured": [], "mixed": [("mixed_gradients", 7)], "mixed-cured": []},
    "training_loop": {"train": [], "nested": []},
}
"""For each traced cell of each notebook the kinds of its findings and the lines to blame."""

TRACED = [(name, cell) for name, cells in EXPECTED.items() for cell in cells]
LIVE = ("training_loop", "train")
TRAINED = [("training_loop", "train-after"), ("training_loop", "weight-after")]
"""What these print comes from 500 steps, in which the last digits of another processor grow."""

PLAYERS = ["G.0.weight", "G.2.bias", "D.0.weight", "D.2.bias"]


def read_notebook(name: str) -> Any:
    return nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)


WITH_OUTPUT = [(name, cell.id) for name in EXPECTED for cell in read_notebook(name).cells if cell.get("outputs")]


# ---- the notebooks in a kernel


class Executed:
    """A notebook after a run from top to bottom: cells by id, and the traced ones' reports as dicts."""

    def __init__(self, notebook: Any, reports: dict[str, Any]) -> None:
        self.cells = {cell.id: cell for cell in notebook.cells}
        self.reports = reports

    def row(self, cell: str, name: str) -> dict[str, Any]:
        """The last row of this name, as `Report` has it."""
        found: dict[str, Any] = next(row for row in reversed(self.reports[cell]["rows"]) if row["name"] == name)
        return found

    def norms(self, cell: str, name: str, loss: int = 0) -> list[float]:
        """The norm of each gradient of a row that came from one loss."""
        grads = self.row(cell, name)["grads"]
        return [norm for norm, other in zip(grads["norm"], grads["losses"], strict=True) if other == loss]

    def line(self, cell: str, kind: str) -> dict[str, Any]:
        """The only line of the ledger of this kind."""
        (found,) = [line for line in self.reports[cell]["ledger"] if line["kind"] == kind]
        return found

    def printed(self, cell: str) -> str:
        (output,) = self.cells[cell].outputs
        text: str = output.text
        return text


@functools.cache
def executed(name: str) -> Executed:
    """Runs the notebook as it is, but each report is kept under a name, and read out in a cell below."""
    notebook = read_notebook(name)
    names: dict[str, str] = {}
    for cell in notebook.cells:
        if not is_traced(cell):
            continue
        heading, body = cell.source.split("\n", 1)
        kept = re.search(r" -o (\w+)", heading)
        if kept is None:
            names[cell.id] = f"report_of_{len(names)}"
            cell.source = f"{heading} -o {names[cell.id]}\n{body}"
        else:
            names[cell.id] = kept.group(1)
    assert len(set(names.values())) == len(names), "each cell's report needs a name of its own"
    last = nbformat.v4.new_code_cell("\n".join(f"print({kept}.to_json())" for kept in names.values()))
    notebook.cells.append(last)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(cwd=ROOT / "examples", env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = "".join(output.text for output in last.outputs).splitlines()
    return Executed(notebook, {cell: json.loads(line) for cell, line in zip(names, lines, strict=True)})


# ---- the same cells in plain PyTorch


class Watch(ast.NodeTransformer):
    """Writes `keep(name, value)` below every assignment to names of the cell."""

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt]:
        names = [name.id for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)]
        kept = [ast.parse(f"keep({name!r}, {name})").body[0] for name in names]
        return [node, *(ast.copy_location(statement, node) for statement in kept)]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return node  # what happens inside a function has no name in the cell


class PlainCell:
    """What one cell did without gradmagic, as ordinary hooks see it.

    Attributes:
        norms: by name, for each tensor bound to it the norm of each gradient that reached it.
        values: by name, each number that was bound to it.
        updates: for each step of an optimizer, ``||update|| / ||weight||`` of each of its parameters.
    """

    def __init__(self) -> None:
        self.norms: dict[str, list[list[float]]] = defaultdict(list)
        self.values: dict[str, list[float]] = defaultdict(list)
        self.updates: list[list[float]] = []
        self._before: list[torch.Tensor] = []

    def keep(self, name: str, value: object) -> None:
        if isinstance(value, torch.nn.Module):
            for path, parameter in value.named_parameters():
                self.keep(f"{name}.{path}", parameter)
        elif isinstance(value, torch.Tensor):
            if value.ndim == 0:
                self.values[name].append(value.item())
            if value.requires_grad:
                self.norms[name].append(found := [])
                value.register_hook(lambda gradient: found.append(gradient.norm().item()))

    def flat(self, name: str) -> list[float]:
        """One norm for each tensor of that name."""
        return [norm for found in self.norms[name] for norm in found]

    @contextlib.contextmanager
    def watching_steps(self) -> Iterator[None]:
        before = register_optimizer_step_pre_hook(lambda optimizer, *_: self._note(optimizer))
        after = register_optimizer_step_post_hook(lambda optimizer, *_: self._compare(optimizer))
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _note(self, optimizer: torch.optim.Optimizer) -> None:
        self._before = [parameter.detach().clone() for parameter in parameters_of(optimizer)]

    def _compare(self, optimizer: torch.optim.Optimizer) -> None:
        pairs = zip(parameters_of(optimizer), self._before, strict=True)
        self.updates.append([((new.detach() - old).norm() / old.norm()).item() for new, old in pairs])


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As the kernel has it: two threads on a machine that lends one and a half wait for each other 20 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def plain(name: str) -> dict[str, PlainCell]:
    """Runs the notebook's code, without the lines of IPython and the cells that look at a report."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells: dict[str, PlainCell] = {}
    with torch.random.fork_rng(), one_thread(), warnings.catch_warnings(action="ignore"):
        for cell in read_notebook(name).cells:
            if cell.cell_type == "code" and not cell.id.endswith("-after"):
                cells[cell.id] = run_plain(cell, namespace)
    return cells


def run_plain(cell: Any, namespace: dict[str, Any]) -> PlainCell:
    source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
    found = PlainCell()
    namespace["keep"] = found.keep
    with contextlib.redirect_stdout(io.StringIO()), found.watching_steps():
        exec(compile(ast.fix_missing_locations(Watch().visit(ast.parse(source))), "<plain>", "exec"), namespace)
        if is_traced(cell) and ".backward(" not in source:
            namespace["loss"].backward()
    return found


def assert_close(found: Sequence[float], expected: Sequence[float]) -> None:
    assert len(found) == len(expected)
    assert expected
    for one, other in zip(found, expected, strict=True):
        assert math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-12)


# ---- what is found


@pytest.mark.parametrize("name", EXPECTED)
def test_every_traced_cell_is_expected(name: str) -> None:
    assert [cell.id for cell in read_notebook(name).cells if is_traced(cell)] == list(EXPECTED[name])


@pytest.mark.parametrize(("name", "cell"), TRACED)
def test_the_sick_cell_is_told_what_is_wrong_and_the_cured_one_nothing(name: str, cell: str) -> None:
    """Exactly the findings expected, each with its line."""
    findings = executed(name).reports[cell]["findings"]
    found = [(finding["kind"], finding["location"] and finding["location"]["line"]) for finding in findings]
    assert found == EXPECTED[name][cell]


def test_the_stray_gradient_is_told_with_its_loss_its_way_and_its_goal() -> None:
    (finding,) = executed("gan").reports["stray"]["findings"]
    for word in ("`G.0.weight`", "`lossD`", "`fake`"):
        assert word in finding["message"]
    assert finding["hint"] == "lossD = bce(D(real), yes) + bce(D(fake.detach()), no)"


def test_the_mixed_gradients_are_told_with_both_losses_and_the_clearing() -> None:
    (finding,) = executed("gan").reports["mixed"]["findings"]
    for word in ("`D.0.weight`", "`lossG`", "`lossD`", "`optD.step()`"):
        assert word in finding["message"]
    assert "optD.zero_grad()" in finding["hint"]


# ---- one backward through time


@pytest.mark.parametrize(("cell", "name"), [("tanh", "h"), ("orthogonal", "h"), ("lstm", "h"), ("lstm", "c")])
def test_the_norm_at_each_time_step_is_that_of_plain_pytorch(cell: str, name: str) -> None:
    """One row, a hundred norms."""
    row = executed("rnn_through_time").row(cell, name)
    assert row["count"] == row["grads"]["total"] == 100
    assert row["grads"]["times"] == list(range(100))
    assert_close(row["grads"]["norm"], plain("rnn_through_time")[cell].flat(name))


def test_the_gradient_vanishes_in_the_sick_cell_alone() -> None:
    whole = {}
    for cell, name in (("tanh", "h"), ("orthogonal", "h"), ("lstm", "c")):
        norms = plain("rnn_through_time")[cell].flat(name)
        whole[cell] = norms[0] / norms[-1]
    assert whole["tanh"] < 1e-4
    assert min(whole["orthogonal"], whole["lstm"]) > 0.01


def test_the_table_of_factors_is_that_of_plain_pytorch() -> None:
    """The geometric mean over 99 steps."""
    lines = executed("rnn_through_time").printed("factors-after").splitlines()[1:]
    for line, (cell, name) in zip(lines, [("tanh", "h"), ("orthogonal", "h"), ("lstm", "c")], strict=True):
        norms = plain("rnn_through_time")[cell].flat(name)
        ratio = norms[0] / norms[-1]
        assert line.split()[1:] == [f"{ratio ** (1 / 99):.3f}", f"{ratio:.0e}"]


def test_a_half_open_gate_lets_nothing_through() -> None:
    """What the text says of an LSTM as PyTorch makes it."""
    source = next(cell for cell in read_notebook("rnn_through_time").cells if cell.id == "lstm").source
    opening = "with torch.no_grad():\n    cell.bias_ih[16:32] = 3.0  # the forget gate's quarter\n"
    assert opening in source
    namespace: dict[str, Any] = {}
    with torch.random.fork_rng():
        for cell in read_notebook("rnn_through_time").cells:
            if cell.id in ("load", "data"):
                run_plain(cell, namespace)
        changed = nbformat.v4.new_code_cell(source.replace(opening, ""))
        norms = run_plain(changed, namespace).flat("c")
    assert norms[0] / norms[-1] < 1e-15


# ---- two losses


@pytest.mark.parametrize("cell", EXPECTED["gan"])
def test_the_passes_are_sorted_by_loss(cell: str) -> None:
    """Five each, with the values that plain PyTorch gives."""
    losses = [line for line in executed("gan").reports[cell]["ledger"] if line["kind"] == "backward"]
    assert [(line["name"], line["count"]) for line in losses] == [("lossD", 5), ("lossG", 5)]
    for line in losses:
        assert line["values"]["values"] == plain("gan")[cell].values[line["name"]]


@pytest.mark.parametrize("cell", EXPECTED["gan"])
@pytest.mark.parametrize("parameter", PLAYERS)
def test_the_norms_of_each_loss_are_those_of_plain_pytorch(cell: str, parameter: str) -> None:
    """Every second gradient is that of `lossD`, where it comes that far."""
    (norms,) = plain("gan")[cell].norms[parameter]
    both = parameter.startswith("D") or cell == "stray"
    assert len(norms) == (10 if both else 5)
    assert_close(executed("gan").norms(cell, parameter, 1), norms[1::2] if both else norms)
    if both:
        assert_close(executed("gan").norms(cell, parameter, 0), norms[0::2])
    else:
        assert executed("gan").norms(cell, parameter, 0) == []


@pytest.mark.parametrize("cell", EXPECTED["gan"])
def test_the_table_has_a_column_for_each_loss(cell: str) -> None:
    (report,) = executed("gan").cells[cell].outputs
    for text in report.data.values():
        assert "lossD" in text
        assert "lossG" in text
    heading = next(line for line in report.data["text/plain"].splitlines() if line.split()[:2] == ["line", "tensor"])
    assert heading.split()[3:5] == ["lossD", "lossG"]


def test_what_is_printed_about_the_losses_is_what_plain_pytorch_gives() -> None:
    done = plain("gan")["stray"]
    expected = []
    for number, loss in enumerate(("lossD", "lossG")):
        values = done.values[loss]
        expected.append(f"{loss}: 5 passes, first {values[0]:.3f}, last {values[-1]:.3f}")
        for name in ("D.0.weight", "G.0.weight"):
            norms = done.norms[name][0][number::2]
            expected.append(f"  {name}: " + " ".join(f"{norm:.3f}" for norm in norms))
    assert executed("gan").printed("stray-after").splitlines() == expected


# ---- a training loop


def test_the_500_losses_are_those_of_plain_pytorch() -> None:
    """Equal to the last bit: the trace changes nothing, and keeps them all."""
    line = executed("training_loop").line("train", "backward")
    assert line["values"]["steps"] == list(range(500))
    assert line["values"]["values"] == plain("training_loop")["train"].values["loss"]


def test_what_is_clipped_is_what_plain_pytorch_clips() -> None:
    line = executed("training_loop").line("train", "clip")
    norms = plain("training_loop")["train"].values["norm"]
    assert line["values"]["values"] == norms
    assert line["clipped"] == sum(norm > 1.0 for norm in norms)
    assert 0 < line["clipped"] < line["count"] == 500
    assert line["max_norm"] == 1.0


def test_the_gradients_of_a_weight_are_those_of_plain_pytorch() -> None:
    """As backward gave them, before clipping."""
    (norms,) = plain("training_loop")["train"].norms["model.0.weight"]
    assert len(norms) == 500
    assert_close(executed("training_loop").norms("train", "model.0.weight"), norms)


def test_the_updates_are_those_of_plain_pytorch() -> None:
    """Of the first weight, and their median over the parameters."""
    updates = plain("training_loop")["train"].updates
    found = executed("training_loop").row("train", "model.0.weight")["updates"]
    assert found["steps"] == list(range(500))
    for one, other in zip(found["values"], updates, strict=True):
        assert math.isclose(one, other[0], rel_tol=1e-4)
    medians = executed("training_loop").line("train", "step")["values"]["values"]
    for one, other in zip(medians, updates, strict=True):
        assert math.isclose(one, statistics.median(other), rel_tol=1e-4)


def test_what_is_printed_about_the_loop_is_what_plain_pytorch_gives() -> None:
    done = plain("training_loop")["train"]
    losses, norms = done.values["loss"], done.norms["model.0.weight"][0]
    median = statistics.median(statistics.median(each) for each in done.updates)
    for line in (
        f"loss: {losses[0]:.3f} -> {losses[-1]:.3f}",
        f"clipped: {sum(norm > 1.0 for norm in done.values['norm'])} of 500, at 1.0",
        f"update / weight: {median:.4f} in the median",
    ):
        assert line in executed("training_loop").printed("train-after").splitlines()
    low, high = min(norms), max(norms)
    for line in (
        "first five steps: 0 1 2 3 4",
        f"first     step   0  norm {norms[0]:.4f}",
        f"last      step 499  norm {norms[-1]:.4f}",
        f"smallest  step {norms.index(low):3}  norm {low:.4f}",
        f"largest   step {norms.index(high):3}  norm {high:.4f}",
    ):
        assert line in executed("training_loop").printed("weight-after").splitlines()


def test_loops_in_a_loop_are_told_apart() -> None:
    """Two epochs of four batches of six time steps."""
    row = executed("training_loop").row("nested", "h")
    assert row["count"] == 48
    assert row["grads"]["passes"] == [number for number in range(8) for _ in range(6)]
    assert row["grads"]["times"] == 8 * list(range(6))
    norms = plain("training_loop")["nested"].flat("h")
    assert_close(row["grads"]["norm"], norms)
    for number, line in enumerate(executed("training_loop").printed("nested-after").splitlines()):
        first, last = norms[6 * number], norms[6 * number + 5]
        factor = (first / last) ** (1 / 5)
        assert line == (f"pass {number}: 6 time steps, {first:.4f} ... {last:.4f}, times {factor:.2f} a step back")


# ---- the saved outputs


def saved_cell(name: str, cell: str) -> Any:
    return next(each for each in read_notebook(name).cells if each.id == cell)


@pytest.mark.parametrize(("name", "cell"), TRACED)
def test_the_notebook_is_saved_with_the_report_of_each_traced_cell(name: str, cell: str) -> None:
    """One, in both forms, and with each message that comes out today."""
    for outputs in (saved_cell(name, cell).outputs, executed(name).cells[cell].outputs):
        (report,) = [output.data for output in outputs if output.output_type == "display_data"]
        assert set(report) == {"text/html", "text/markdown", "text/plain"}
        assert "<table" in report["text/html"]
        words = "".join(report["text/plain"].split())
        for finding in executed(name).reports[cell]["findings"]:
            assert "".join(finding["message"].split()) in words


def test_the_live_report_that_stays_is_the_last_one() -> None:
    """All 500 passes, and it no longer runs."""
    assert executed(LIVE[0]).reports[LIVE[1]]["running"] is False
    for cell in (saved_cell(*LIVE), executed(LIVE[0]).cells[LIVE[1]]):
        assert cell.source.startswith("%%gradtrace --live")
        (output,) = cell.outputs
        assert "500 backward passes" in output.data["text/plain"]
        assert "running" not in output.data["text/plain"]


@pytest.mark.parametrize(("name", "cell"), [each for each in WITH_OUTPUT if each != LIVE])
def test_the_saved_output_is_what_comes_out_today(name: str, cell: str) -> None:
    """Text and numbers, but for times; where they differ, refresh them as README says."""
    saved, fresh = saved_cell(name, cell).outputs, executed(name).cells[cell].outputs
    assert [output.output_type for output in saved] == [output.output_type for output in fresh]
    for one, other in zip(saved, fresh, strict=True):
        if one.output_type != "stream":
            assert set(one.data) == set(other.data)
            assert_same_text(words_of(one.data), words_of(other.data))
        elif (name, cell) in TRAINED:
            assert without_numbers(one.text) == without_numbers(other.text)
        else:
            assert_same_text(words_of({"text/plain": one.text}), words_of({"text/plain": other.text}))


def without_numbers(text: str) -> list[str]:
    return re.sub(r"[\d.]+", "0", text).split()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_notebook_is_saved_as_a_fresh_run_from_top_to_bottom(name: str) -> None:
    """It loads the extension first."""
    notebook = read_notebook(name)
    assert_saved_as_a_fresh_run(notebook)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith("%load_ext gradmagic")
