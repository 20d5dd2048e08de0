"""The quickstart and README's examples, run as a person runs them; their numbers against plain PyTorch."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import os
import re
import runpy
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import html5lib
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from plain import assert_same_as_plain, run_traced

# pyzmq and jupyter_client warn about event loops and paths of their own making.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.real]

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
NOISE = 1e-6
"""A gradient below this is zero in exact arithmetic; its last digits belong to the machine."""

Gradients = dict[str, torch.Tensor]


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def is_traced(cell: Any) -> bool:
    return cell.cell_type == "code" and cell.source.startswith("%%gradtrace")


TRACED = [cell.id for cell in read_notebook().cells if is_traced(cell)]
WITH_OUTPUT = [cell.id for cell in read_notebook().cells if cell.cell_type == "code" and cell.outputs]


# ---- the notebook in a kernel


class Executed:
    """The notebook after a run from top to bottom: cells by id, and the traced ones' reports as dicts."""

    def __init__(self, notebook: Any, reports: dict[str, Any]) -> None:
        self.cells = {cell.id: cell for cell in notebook.cells}
        self.reports = reports

    def rows(self, cell: str) -> dict[str, Any]:
        """Rows by name; of several with one name the last, as `Report` has it."""
        return {row["name"]: row for row in self.reports[cell]["rows"] if row["name"]}


@pytest.fixture(scope="module")
def executed() -> Executed:
    """Runs the notebook as it is, but each report is kept under a name, and read out in a cell below."""
    notebook = read_notebook()
    names = {cell.id: f"report_{index}" for index, cell in enumerate(notebook.cells) if is_traced(cell)}
    for cell in notebook.cells:
        if is_traced(cell):
            heading, body = cell.source.split("\n", 1)
            cell.source = f"{heading} -o {names[cell.id]}\n{body}"
    last = nbformat.v4.new_code_cell("\n".join(f"print({name}.to_json())" for name in names.values()))
    notebook.cells.append(last)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=NOTEBOOK.parent)
    lines = last.outputs[0].text.splitlines()
    return Executed(notebook, {cell: json.loads(line) for cell, line in zip(names, lines, strict=True)})


# ---- the same cells in plain PyTorch


class PlainNotebook:
    """The notebook's code without gradmagic; each statement is followed by hooks on newly bound tensors."""

    def __init__(self) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed: dict[str, str] = {}
        self.gradients: dict[str, Gradients] = {}

    def run(self) -> None:
        for cell in read_notebook().cells:
            if cell.cell_type == "code" and not cell.id.endswith("-after"):
                self._run_cell(cell)

    def _run_cell(self, cell: Any) -> None:
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        found: Gradients = {}
        hooked: dict[tuple[str, int], Any] = {}
        with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings(action="ignore"):
            for statement in ast.parse(source).body:
                exec(compile(ast.Module([statement], []), "<plain>", "exec"), self.namespace)
                self._hook(found, hooked)
            if is_traced(cell) and ".backward(" not in source:
                self._last_backward(source)
        for handle, _ in hooked.values():
            handle.remove()
        self.printed[cell.id], self.gradients[cell.id] = out.getvalue(), found

    def _hook(self, found: Gradients, hooked: dict[tuple[str, int], Any]) -> None:
        for name, tensor in self._named():
            if tensor.requires_grad and (name, id(tensor)) not in hooked:
                hooked[name, id(tensor)] = tensor.register_hook(keeper(found, name)), tensor

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in list(self.namespace.items()):
            if isinstance(value, torch.Tensor):
                yield name, value
            elif isinstance(value, torch.nn.Module):
                yield from ((f"{name}.{path}", parameter) for path, parameter in value.named_parameters())

    def _last_backward(self, source: str) -> None:
        """What gradtrace does for a cell without backward; here the last statement binds the root."""
        last = ast.parse(source).body[-1]
        assert isinstance(last, ast.Assign)
        assert isinstance(last.targets[0], ast.Name)
        self.namespace[last.targets[0].id].backward(retain_graph=True)


def keeper(found: Gradients, name: str) -> Callable[[torch.Tensor], None]:
    """A hook that keeps the last gradient; one that returned something would change it."""

    def keep(gradient: torch.Tensor) -> None:
        found[name] = gradient.detach().clone()

    return keep


@pytest.fixture(scope="module")
def plain() -> PlainNotebook:
    with torch.random.fork_rng():
        notebook = PlainNotebook()
        notebook.run()
    return notebook


@pytest.mark.parametrize("cell", TRACED)
def test_every_named_gradient_is_that_of_plain_pytorch(executed: Executed, plain: PlainNotebook, cell: str) -> None:
    """Norm, extremes and values of each named tensor and parameter; none is missing, none is made up."""
    rows = executed.rows(cell)
    assert plain.gradients[cell]
    for name, gradient in plain.gradients[cell].items():
        assert rows[name]["grad"] is not None, name
        assert_describes(rows[name]["grad"], gradient, name)
    shown = {name for name, row in rows.items() if row["grad"] is not None and row["module"] is None}
    assert shown <= set(plain.gradients[cell])


def assert_describes(statistics: dict[str, Any], gradient: torch.Tensor, name: str) -> None:
    close = {"rel_tol": 1e-5, "abs_tol": 1e-9}
    assert statistics["numel"] == gradient.numel(), name
    assert math.isclose(statistics["norm"], gradient.norm().item(), **close), name
    assert math.isclose(statistics["min"], gradient.min().item(), **close), name
    assert math.isclose(statistics["max"], gradient.max().item(), **close), name
    if gradient.numel() <= 6:
        assert statistics["values"] == gradient.flatten().tolist(), name


@pytest.mark.parametrize("cell", ["nonleaf", "own-backward"])
def test_the_non_leaf_example_has_the_numbers_one_gets_by_hand(executed: Executed, cell: str) -> None:
    """w 16, y 16, z 8, l 1; nobody asked for x."""
    rows = executed.rows(cell)
    values = {name: row["grad"]["values"] for name, row in rows.items() if row["grad"] is not None}
    assert values == {"w": [16.0], "y": [16.0], "z": [8.0], "l": [1.0]}
    assert rows["x"]["reason"] == "requires_grad_false"


def test_a_gradient_is_printed_where_plain_pytorch_prints_none(executed: Executed, plain: PlainNotebook) -> None:
    """`z.grad` in the cell itself, although only `y.retain_grad()` was called; and no warning is shown."""
    assert plain.printed["own-backward"] == "tensor([16.]) tensor([16.]) None\n"
    outputs = executed.cells["own-backward"].outputs
    assert [output.text for output in outputs if output.output_type == "stream"] == [
        "tensor([16.]) tensor([16.]) tensor([8.])\n"
    ]


def test_a_backward_in_the_next_cell_does_not_double(executed: Executed) -> None:
    """The guest gradient leaves before the person's own arrives."""
    assert executed.cells["nonleaf-after"].outputs[0].text == (
        "before: tensor([16.]) tensor([16.]) tensor([8.])\nafter:  tensor([16.])\n"
    )


def test_the_report_says_why_the_input_has_no_gradient_and_what_to_write(executed: Executed) -> None:
    """`print(input.grad)` prints None; the row of `input` answers."""
    assert executed.cells["module-none"].outputs[0].text == "None\n"
    row = executed.rows("module-none")["input"]
    assert row["reason"] == "requires_grad_false"
    assert row["culprit"]["line"] == 3
    assert "requires_grad=True" in row["note"]


def test_the_input_that_asks_for_a_gradient_gets_it(executed: Executed, plain: PlainNotebook) -> None:
    """The same cell with `requires_grad=True`; what is printed is what plain PyTorch prints."""
    assert executed.cells["module-grad"].outputs[0].text == plain.printed["module-grad"]
    assert executed.rows("module-grad")["input"]["grad"]["norm"] > 0


def test_the_gan_step_shows_both_passes_and_the_cut(executed: Executed) -> None:
    """Two passes; `fake.detach()` is a row and says so; G learns in the second pass alone, D gets both."""
    report = executed.reports["gan-step"]
    assert [(done["root"], done["run_by"]) for done in report["passes"]] == [
        ("D_loss", "cell"),
        ("G_loss", "cell"),
    ]
    cut = next(row for row in report["rows"] if row["expression"] == "fake.detach()")
    assert (cut["reason"], cut["location"]["line"]) == ("detached", 9)
    rows = executed.rows("gan-step")
    assert set(rows["G.0.weight"]["grads"]["passes"]) == {1}
    assert set(rows["D.0.weight"]["grads"]["passes"]) == {0, 1}


def test_every_step_between_the_letters_and_the_loss_has_a_gradient(executed: Executed) -> None:
    """Twenty names and more, all of them non-leaves."""
    named = [row for row in executed.rows("letters").values() if row["kind"] == "non-leaf"]
    assert len(named) >= 20
    assert all(row["grad"] is not None for row in named)


@pytest.mark.parametrize(("cells", "root"), [(("nonleaf",), "l"), (("letters-setup", "letters"), "loss")])
def test_no_autograd_node_of_the_example_is_missing(cells: tuple[str, ...], root: str) -> None:
    """Every node between the root and the leaves, bit for bit (law 2 and 3)."""
    sources = {cell.id: cell.source for cell in read_notebook().cells}
    source = "\n".join(sources[cell].replace("%%gradtrace", "# %%gradtrace") for cell in cells)
    with torch.random.fork_rng():
        assert_same_as_plain(source, root)


# ---- the saved outputs


@pytest.mark.parametrize("cell", WITH_OUTPUT)
def test_the_saved_output_is_what_comes_out_today(executed: Executed, cell: str) -> None:
    """Text and numbers, but for times; where they differ, refresh them as README says."""
    saved = next(each for each in read_notebook().cells if each.id == cell).outputs
    fresh = executed.cells[cell].outputs
    assert [output.output_type for output in saved] == [output.output_type for output in fresh]
    for one, other in zip(saved, fresh, strict=True):
        if one.output_type == "stream":
            assert one.text == other.text
        else:
            assert set(one.data) == set(other.data)
            assert_same_text(words_of(one.data), words_of(other.data))


def test_the_notebook_is_saved_with_a_table_for_each_traced_cell() -> None:
    """Both forms, so that it reads well wherever it is opened."""
    for cell in read_notebook().cells:
        if is_traced(cell):
            reports = [output.data for output in cell.outputs if output.output_type == "display_data"]
            assert [set(data) for data in reports] == [{"text/html", "text/markdown", "text/plain"}], cell.id
            assert "<table" in reports[0]["text/html"]


def test_the_notebook_is_saved_as_a_fresh_run_from_top_to_bottom() -> None:
    assert_saved_as_a_fresh_run(read_notebook())


def assert_saved_as_a_fresh_run(notebook: Any, raising: Collection[str] = ()) -> None:
    """Counts 1, 2, 3...; no times inside, and no errors but those of the cells that are to raise, which are tagged."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    tagged = {cell.id: cell.metadata for cell in notebook.cells if cell.metadata}
    assert tagged == {cell: {"tags": ["raises-exception"]} for cell in raising}
    failed = {cell.id for cell in code if any(output.output_type == "error" for output in cell.outputs)}
    assert failed == set(raising)


def words_of(data: Any) -> list[list[str]]:
    """The words of each line or table row, without times and without rows of rounding noise."""
    lines = text_rows(data["text/html"]) if "text/html" in data else data["text/plain"].splitlines()
    lines = [re.sub(r"[\d.]+ (µs|ms|s)\b", "", line).replace("\N{MINUS SIGN}", "-") for line in lines]
    words = [line.split() for line in lines]
    return [line for line in words if not any(0 < abs(number(word)) < NOISE for word in line)]


def text_rows(html: str) -> list[str]:
    """The text above the table of gradients, of each of its rows, and below it; without the cell's code."""
    tree = html5lib.parse(html, namespaceHTMLElements=False)
    for source in tree.findall(".//table[@aria-label='annotated source']"):
        source.clear()
    table = tree.find(".//table[@aria-label='gradients']")
    above, below = " ".join(tree.itertext()).split(" ".join(table.itertext()))
    return [above, *(" ".join(row.itertext()) for row in table.iter("tr")), below]


def number(word: str) -> float:
    try:
        return float(word.strip("[],()"))
    except ValueError:
        return math.nan


def assert_same_text(saved: list[list[str]], fresh: list[list[str]]) -> None:
    """Equal words; numbers may differ in the last digit shown, as they do between processors."""
    stale = "the saved outputs are out of date; README, Development, tells how to refresh them"
    assert [len(line) for line in saved] == [len(line) for line in fresh], stale
    for line, now in zip(saved, fresh, strict=True):
        differing = [pair for pair in zip(line, now, strict=True) if not same_word(*pair)]
        assert differing == [], stale


def same_word(one: str, other: str) -> bool:
    return one == other or math.isclose(number(one), number(other), rel_tol=0.02)


# ---- in the terminal, and in README


def test_the_quickstart_runs_in_the_ipython_shell(tmp_path: Path) -> None:
    """README's first command, without the installation: exit code 0, and a table for each traced cell."""
    command = [sys.executable, "-m", "IPython", "--HistoryManager.enabled=False", str(NOTEBOOK)]
    variables = {**os.environ, "IPYTHONDIR": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=variables, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^gradtrace  ", done.stdout, re.MULTILINE)) == len(TRACED)
    assert done.stderr == ""


def test_an_error_in_a_notebook_ends_the_shell_with_an_error(tmp_path: Path) -> None:
    """Else README's first command could fail unseen."""
    cells = [
        "%load_ext gradmagic\nimport torch",
        "%%gradtrace\nw = torch.ones(2)\nw @ torch.ones(3)",
        "print('went on')",
    ]
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(document, tmp_path / "broken.ipynb")
    command = [
        sys.executable,
        "-m",
        "IPython",
        "--HistoryManager.enabled=False",
        str(tmp_path / "broken.ipynb"),
    ]
    variables = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "went on" not in done.stdout


def readme_example(name: str) -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", readme, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_cell_below_readmes_picture_gives_that_report() -> None:
    """The encoder's way to the loss is cut by argmax in line 10, and the recurrent row occurs six times."""
    with torch.random.fork_rng():
        report, _ = run_traced(readme_example("picture").replace("%%gradtrace", "# %%gradtrace"))
    for name in ("encoder.weight", "encoder.bias", "codes"):
        assert report[name].reason == "cut_upstream"
        assert report[name].culprit is not None
        assert (report[name].culprit.line, report[name].culprit.text) == (10, "codes.argmax(1)")
    assert report["W"].grad is not None
    assert next(row for row in report if row.expression == "h @ W").count == 6


def test_readmes_script_prints_what_its_comments_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`gradmagic.trace()` in a file."""
    source = readme_example("trace")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(source), encoding="utf-8")
    runpy.run_path(str(script))
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(.*\)\s+# (.*)", source)
    assert promised[0] == "the table"
    assert printed[0].startswith("gradtrace")
    assert set(promised[1:]) <= set(printed)
