"""The notebook of sick gradients, as a person runs it: what each cell is told, and that its cure is told nothing."""

from __future__ import annotations

import json
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from test_examples import ROOT, assert_saved_as_a_fresh_run, is_traced

# pyzmq and jupyter_client warn about event loops and paths of their own making.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.real]

NOTEBOOK = ROOT / "examples" / "why_none.ipynb"

Findings = list[tuple[str, int | None]]

EXPECTED: dict[str, Findings] = {
    "argmax": [("cut_upstream", 8)],
    "item": [("cut_upstream", 6)],
    "shadowed": [("shadowed_leaf", 4)],
    "unused": [("unused", None)],
    "in-place": [("changed_in_place", 4)],
    "twice": [("second_backward", 7)],
    "sqrt": [("nan_gradient", 5)],
    "relu": [("dead_relu", 6)],
    "accumulated": [("accumulated", 6)],
    "optimizer": [("optimizer_mismatch", 5)],
}
"""For each sick cell the kinds of its findings and the lines to blame; that of `argmax` is in the cell of the class."""

ERRORS = {"in-place": "RuntimeError", "twice": "RuntimeError"}
"""The cells that raise, and so are tagged `raises-exception`."""


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


TRACED = [cell.id for cell in read_notebook().cells if is_traced(cell)]
CURED = [cell for cell in TRACED if cell.endswith("-cured")]


class Executed:
    """The notebook after a run from top to bottom: cells by id, and the traced ones' reports as dicts."""

    def __init__(self, notebook: Any, reports: dict[str, Any]) -> None:
        self.cells = {cell.id: cell for cell in notebook.cells}
        self.reports = reports

    def findings(self, cell: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.reports[cell]["findings"]
        return found


@pytest.fixture(scope="module")
def executed() -> Executed:
    """Runs the notebook as it is, but each report is kept under a name, and read out in a cell below."""
    notebook = read_notebook()
    names = {cell: f"report_{index}" for index, cell in enumerate(TRACED)}
    for cell in notebook.cells:
        if cell.id in names:
            heading, body = cell.source.split("\n", 1)
            cell.source = f"{heading} -o {names[cell.id]}\n{body}"
    last = nbformat.v4.new_code_cell("\n".join(f"print({name}.to_json())" for name in names.values()))
    notebook.cells.append(last)
    # An error stops the run, but for cells tagged `raises-exception`.
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=NOTEBOOK.parent)
    lines = "".join(output.text for output in last.outputs).splitlines()
    return Executed(notebook, {cell: json.loads(line) for cell, line in zip(names, lines, strict=True)})


def errors_of(cell: Any) -> list[str]:
    return [output.ename for output in cell.get("outputs", []) if output.output_type == "error"]


def lines_of(cell: Any) -> int:
    return len(cell.source.splitlines())


def test_there_are_ten_ways_and_each_has_its_cure() -> None:
    assert len(EXPECTED) == 10
    assert [cell for sick in EXPECTED for cell in (sick, f"{sick}-cured")] == TRACED


@pytest.mark.parametrize("cell", EXPECTED)
def test_the_sick_cell_is_told_what_is_wrong_and_where(executed: Executed, cell: str) -> None:
    """Exactly the findings expected, each with its line."""
    found = [
        (finding["kind"], finding["location"] and finding["location"]["line"]) for finding in executed.findings(cell)
    ]
    assert found == EXPECTED[cell]


@pytest.mark.parametrize("cell", CURED)
def test_the_cured_cell_is_told_nothing(executed: Executed, cell: str) -> None:
    assert executed.findings(cell) == []


@pytest.mark.parametrize("cell", CURED)
def test_every_leaf_of_the_cured_cell_has_a_finite_gradient(executed: Executed, cell: str) -> None:
    """Of those that ask for one; and it is not all zero."""
    rows = executed.reports[cell]["rows"]
    leaves = [row for row in rows if row["kind"] in ("leaf", "parameter") and row["reason"] != "requires_grad_false"]
    assert leaves
    for row in leaves:
        assert row["grad"] is not None, row["name"]
        assert row["grad"]["nan_count"] == row["grad"]["inf_count"] == 0, row["name"]
        assert row["grad"]["norm"] > 0, row["name"]


def test_only_the_tagged_cells_raise(executed: Executed) -> None:
    """In a fresh run and in the saved outputs."""
    tagged = {cell.id for cell in read_notebook().cells if "raises-exception" in cell.metadata.get("tags", [])}
    assert tagged == set(ERRORS)
    for cells in (executed.cells, {cell.id: cell for cell in read_notebook().cells}):
        assert {name: errors_of(cell) for name, cell in cells.items() if errors_of(cell)} == {
            name: [error] for name, error in ERRORS.items()
        }


@pytest.mark.parametrize("cell", TRACED)
def test_the_notebook_is_saved_with_the_report_of_each_traced_cell(executed: Executed, cell: str) -> None:
    """Both forms, and with each message that comes out today."""
    saved = next(each for each in read_notebook().cells if each.id == cell)
    reports = [output.data for output in saved.outputs if output.output_type == "display_data"]
    assert [set(data) for data in reports] == [{"text/html", "text/markdown", "text/plain"}]
    assert "<table" in reports[0]["text/html"]
    words = "".join(reports[0]["text/plain"].split())
    for finding in executed.findings(cell):
        assert "".join(finding["message"].split()) in words


def test_the_notebook_is_saved_as_a_fresh_run_from_top_to_bottom() -> None:
    assert_saved_as_a_fresh_run(read_notebook(), raising=ERRORS)


def test_the_cells_are_short() -> None:
    """Four to ten lines."""
    assert [cell.id for cell in read_notebook().cells if is_traced(cell) and not 4 <= lines_of(cell) <= 10] == []
