"""The notebook of initialisations, as a person runs it: what `--diff` tells, beside plain PyTorch."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from test_examples import ROOT, assert_saved_as_a_fresh_run, is_traced

# pyzmq and jupyter_client warn about event loops and paths of their own making.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.real]

NOTEBOOK = ROOT / "examples" / "compare_inits.ipynb"
PAIRS = {"large": "small", "xavier": "small", "kaiming": "xavier"}
"""Each network, and the one it is compared with."""


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


TRACED = [cell.id for cell in read_notebook().cells if is_traced(cell)]


@cache
def executed() -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The cells after a run from top to bottom, and the factors of each comparison, by label."""
    notebook = read_notebook()
    told = "import json\nfor a, b in " + repr(list(PAIRS.items())) + ":\n"
    told += "    print(json.dumps({c.label: c.factor for c in globals()[a].compare(globals()[b]).changes}))"
    notebook.cells.append(last := nbformat.v4.new_code_cell(told))
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=NOTEBOOK.parent)
    lines = "".join(output.text for output in last.outputs).splitlines()
    return {cell.id: cell for cell in notebook.cells}, dict(zip(PAIRS, map(json.loads, lines), strict=True))


@cache
def plain() -> dict[str, dict[str, float]]:
    """For each network the norms of its parameters' gradients, in plain PyTorch."""
    cells = {cell.id: cell for cell in read_notebook().cells}
    namespace: dict[str, Any] = {}
    exec(cells["load"].source.replace("%load_ext gradmagic", ""), namespace)
    exec(cells["network"].source, namespace)
    norms = {}
    for cell in TRACED:
        exec(cells[cell].source.partition("\n")[2] + "\nloss.backward()", namespace)
        parameters = namespace["model"].named_parameters()
        norms[cell] = {f"model.{name}": float(parameter.grad.norm()) for name, parameter in parameters}
    return norms


def first_text(cell: Any) -> str:
    """What stands above the report."""
    return str(cell.outputs[0].data["text/plain"])


@pytest.mark.parametrize(("after", "before"), PAIRS.items())
def test_every_parameters_factor_is_that_of_plain_pytorch(after: str, before: str) -> None:
    """Sixteen of them, over eight orders of magnitude."""
    factors = executed()[1][after]
    assert len(plain()[after]) == 16
    for name, norm in plain()[after].items():
        assert factors[name] == pytest.approx(norm / plain()[before][name], rel=1e-3)


@pytest.mark.parametrize(("after", "before"), PAIRS.items())
def test_the_comparison_stands_above_the_report_most_changed_first(after: str, before: str) -> None:
    """With the name of the earlier report, in the saved notebook as in one that runs today."""
    for cells in (executed()[0], {cell.id: cell for cell in read_notebook().cells}):
        text = first_text(cells[after])
        assert text.startswith(f"compared with {before}  loss ")
        sizes = [abs(math.log(float(size))) for size in re.findall(r"×([\d.e-]+)$", text, re.MULTILINE)]
        assert len(sizes) == 20
        assert sizes == sorted(sizes, reverse=True)
        assert cells[after].outputs[1].data["text/plain"].startswith("gradtrace  backward from loss")


def test_what_the_text_says_of_each_network_is_found_in_it() -> None:
    """Small weights vanish, large ones saturate, the others have no finding; so say the factors of the last cell."""
    cells = executed()[0]
    assert "The gradient falls through 8 layers" in first_text(cells["small"])
    assert "saturated" in cells["large"].outputs[1].data["text/plain"]
    for name in ("xavier", "kaiming"):
        assert not re.search("[▲✖]", cells[name].outputs[1].data["text/plain"])
    factors = dict(re.findall(r"^(\w+) +([\d.]+)$", cells["summary"].outputs[0].text, re.MULTILINE))
    assert float(factors["small"]) < 0.2
    assert float(factors["large"]) > 2
    assert 0.8 < float(factors["xavier"]) < 1.2
    assert 0.8 < float(factors["kaiming"]) < 1.2


@pytest.mark.parametrize("cell", [*TRACED, "xavier-large", "summary"])
def test_the_saved_output_is_what_comes_out_today(cell: str) -> None:
    """Word for word, but for the numbers, whose last digits belong to the machine; refresh it as README says."""
    saved = next(each for each in read_notebook().cells if each.id == cell)
    assert words(saved) == words(executed()[0][cell])


def words(cell: Any) -> list[str]:
    """The outputs without their numbers, and without the order that only these give."""
    texts = [output.text if "text" in output else output.data["text/plain"] for output in cell.outputs]
    return sorted(re.sub(r"[\d.,e×▏▎▍▌▋▊▉█-]+|\b[µm]?s\b", " ", "\n".join(texts)).split())


def test_the_notebook_is_saved_as_a_fresh_run_from_top_to_bottom() -> None:
    assert_saved_as_a_fresh_run(read_notebook())
