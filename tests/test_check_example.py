"""The notebook of derived gradients, as a person runs it: which are wrong, beside plain PyTorch, and what is said."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from test_examples import ROOT, assert_saved_as_a_fresh_run, is_traced

# pyzmq and jupyter_client warn about event loops and paths of their own making.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.real]

NOTEBOOK = ROOT / "examples" / "check_your_backprop.ipynb"
CHECKED = ["mistakes", "cured"]
ZERO = 1e-6
"""A gradient below this is zero in exact arithmetic; its digits belong to the machine."""


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def cells_of(notebook: Any) -> dict[str, Any]:
    return {cell.id: cell for cell in notebook.cells}


@cache
def executed() -> dict[str, Any]:
    """The cells after a run from top to bottom."""
    notebook = read_notebook()
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=NOTEBOOK.parent)
    return cells_of(notebook)


def told(cell: Any) -> str:
    """The check as text."""
    texts = [output.data["text/plain"] for output in cell.outputs if "data" in output]
    return next(str(text) for text in texts if text.startswith("check"))


def verdicts(cell: Any) -> dict[str, str]:
    """By the name of each variable; rounding, and so `exact` and `close`, may differ between machines."""
    lines = re.findall(r"^(d\w+) +\w+ +(exact|close|wrong|follows)\b", told(cell), re.MULTILINE)
    return {name: "right" if verdict in ("exact", "close") else verdict for name, verdict in lines}


def differing(cell: str) -> set[str]:
    """The derived gradients that are not those of plain PyTorch: untraced, with `retain_grad` on every tensor."""
    cells = cells_of(read_notebook())
    namespace: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
    exec(cells["forward"].source.partition("\n")[2], namespace)
    named = {
        name: value for name, value in namespace.items() if isinstance(value, torch.Tensor) and value.requires_grad
    }
    for tensor in named.values():
        tensor.retain_grad()
    namespace["loss"].backward()
    exec(cells[cell].source.removesuffix("report.check()"), namespace)
    hands = {name: tensor for name, tensor in named.items() if f"d{name}" in namespace}
    assert len(hands) == 21
    return {f"d{name}" for name, tensor in hands.items() if not alike(namespace[f"d{name}"], tensor.grad)}


def alike(given: torch.Tensor, gradient: Any) -> bool:
    if given.shape != gradient.shape:
        return False
    return bool((given - gradient).abs().max() <= 1e-4 * gradient.abs().max() + ZERO)


@pytest.mark.parametrize("cell", CHECKED)
def test_what_is_called_wrong_is_what_differs_from_plain_pytorch(cell: str) -> None:
    """Twenty-one gradients; of the mended ones none."""
    found = verdicts(executed()[cell])
    assert len(found) == 21
    assert {name for name, verdict in found.items() if verdict != "right"} == differing(cell)


def test_the_three_planted_mistakes_are_found_and_nothing_else() -> None:
    """All others are right, or follow from these."""
    found = verdicts(executed()["mistakes"])
    assert {name for name, verdict in found.items() if verdict == "wrong"} == {"dexps", "db2", "dcentred"}
    assert sum(verdict == "follows" for verdict in found.values()) == 14


def test_each_mistake_is_explained_in_the_notebooks_own_names() -> None:
    """The second use, the sum over the batch, and Bessel's correction."""
    text = " ".join(told(executed()["mistakes"]).split())
    assert "`dexps` lacks the part that comes back through `total` (line 26): `exps` is used twice" in text
    assert "`db2` has the shape (32, 5), and `b2` has (5,): it was broadcast over dimension 0" in text
    assert "through `centred.square()` (line 16) is 32/31 times too small (Bessel's correction" in text
    assert "✖" not in told(executed()["cured"])


def test_the_magics_own_check_stands_above_the_report() -> None:
    """All four are exact, in the same cell."""
    first, second = executed()["small"].outputs
    assert re.match(r"check +4 gradients: (4 exact|\d exact, \d close)\n", first.data["text/plain"])
    assert second.data["text/plain"].startswith("gradtrace  backward from loss")
    assert executed()["data"].outputs[0].text.startswith("wrong\nfactor\n`mine` is 32 times too small; 32 is the size")


@pytest.mark.parametrize("cell", CHECKED)
def test_the_saved_output_is_what_comes_out_today(cell: str) -> None:
    """Verdicts and sentences; where they differ, refresh them as README says."""
    saved = cells_of(read_notebook())[cell]
    assert verdicts(saved) == verdicts(executed()[cell])
    above, *_ = told(saved).partition("yours")
    assert above.split()[:3] == ["check", "21", "gradients:"]
    assert above.partition("\n")[2] == told(executed()[cell]).partition("yours")[0].partition("\n")[2]
    assert 'title="gradients derived by hand"' in saved.outputs[0].data["text/html"]


def test_the_notebook_is_saved_as_a_fresh_run_from_top_to_bottom() -> None:
    """With a report below each traced cell."""
    notebook = read_notebook()
    assert_saved_as_a_fresh_run(notebook)
    traced = [cell for cell in notebook.cells if is_traced(cell)]
    assert [len(cell.outputs) for cell in traced] == [2, 1]
