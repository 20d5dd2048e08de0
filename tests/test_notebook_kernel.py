"""Law 1 in a real Jupyter kernel: what arrives in the notebook is what arrives without the magic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

# pyzmq and jupyter_client warn about event loops and paths of their own making.
pytestmark = pytest.mark.filterwarnings("ignore")

BODIES = {
    "value": "x = 3\nx + 1",
    "semicolon": "40 + 2;",
    "both streams": "import sys\nprint('out')\nprint('err', file=sys.stderr)\n_",
    "system command": "!echo hello",
    "nested magic": "a = %pwd\na",
    "multi-line string": "'''\n  %time\n!ls\n'''",
    "help": "len?",
    "rich display": "from IPython.display import HTML\nHTML('<b>b</b>')",
    "display before the value": "display({'a': 1})\n2",
    "updated display": "h = display(1, display_id=True)\nh.update(2)",
    "input waiting": "get_ipython().set_next_input('x')",
    "error in line 4": "x = 1\n\n1 / 0\nx = 2",
    "error in a function": "def f(a):\n    return a / 0\n\nf(1)",
    "syntax error": "x = 1\nx = = 2",
    "syntax error of the compiler": "print(1)\nreturn",
    "syntax error at run time": "eval('1 +')",
    "wrong indentation": "if True:\n    x = 1\n  y = 2",
    "exception group": "raise ExceptionGroup('many', [ValueError(1)])",
    "interrupt": "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)",
    "usage error": "%nosuchmagic",
    "error in torch": "import torch\ntorch.einsum('ij,jk', torch.ones(3, 3), torch.ones(4, 4))",
    "error while drawing": "class A(int):\n    def _repr_html_(self):\n        raise ValueError(1)\nA(3)",
    "random numbers": "import torch\nseeded = torch.manual_seed(3)\ntorch.randn(2, requires_grad=True) * 2",
    "repeated traceback": "%tb",
}


NUMBER = re.compile(r"(?<=In\[)\d+|(?<=execution_count': )\d+|\d+(?=\.py)")
"""What tells two cells of the same text apart: their count, and the file name the kernel gives them."""


class Notebook:
    """A running kernel and the cells that were sent to it."""

    def __init__(self) -> None:
        self.document = nbformat.v4.new_notebook()
        self.client = NotebookClient(self.document, timeout=60, kernel_name="python3")

    def run(self, source: str, *, allow_errors: bool = True) -> Any:
        self.client.allow_errors = allow_errors
        self.document.cells.append(nbformat.v4.new_code_cell(source))
        return self.client.execute_cell(self.document.cells[-1], len(self.document.cells) - 1)


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    opened = Notebook()
    with opened.client.setup_kernel():
        opened.run("%load_ext gradmagic", allow_errors=False)
        yield opened


def is_report(output: Any) -> bool:
    return output.output_type == "display_data" and output.data["text/plain"].startswith("gradtrace")


def outputs(cell: Any) -> list[str]:
    """What the person sees but for the report, with what numbers the cell taken out."""
    shown = [str(dict(output)) for output in cell.outputs if not is_report(output)]
    texts = [re.sub(r"\\x1b\[[0-9;]*m", "", text) for text in shown]
    return [NUMBER.sub("", text) for text in texts]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_cell_arrives_as_without_the_magic(notebook: Notebook, body: str) -> None:
    """Streams, displays, values and errors are equal; the report is one output more."""
    plain = notebook.run(f"# %%gradtrace\n{body}")
    traced = notebook.run(f"%%gradtrace\n{body}")
    assert outputs(traced) == outputs(plain)
    assert sum(is_report(output) for output in plain.outputs) == 0
    refused = "SyntaxError" in str(plain.outputs) and "eval" not in body and "return" not in body
    refused = refused or "IndentationError" in str(plain.outputs)
    assert sum(is_report(output) for output in traced.outputs) == (0 if refused else 1)


def test_a_system_exit_warns_as_without_the_magic(notebook: Notebook) -> None:
    """The kernel lives on, and says how to leave it."""
    for heading in ("# %%gradtrace", "%%gradtrace"):
        # Python shows a warning once a place; each of the two shall show it.
        notebook.run("import warnings\nwarnings.simplefilter('always')")
        cell = notebook.run(f"{heading}\nx = 1\nraise SystemExit(3)")
        told = "".join(outputs(cell))
        assert "SystemExit" in told
        assert "To exit: use" in told
    assert outputs(notebook.run("x")) == outputs(notebook.run("x"))


def test_the_value_is_the_cells_out(notebook: Notebook) -> None:
    """Out[n] and _ hold the value under the number of the traced cell."""
    number = notebook.run("%%gradtrace\n'a value'").execution_count
    cell = notebook.run(f"(Out[{number}], _{number}, _)")
    assert cell.outputs[0].data["text/plain"] == "('a value', 'a value', 'a value')"


def test_an_error_stops_the_run(notebook: Notebook) -> None:
    """Run All, nbclient and papermill stop at an error of a traced cell; the report is among the outputs."""
    with pytest.raises(CellExecutionError, match="division by zero"):
        notebook.run("%%gradtrace\nx = 1\n1 / 0", allow_errors=False)
    types = [output.output_type for output in notebook.document.cells[-1].outputs]
    assert types == ["display_data", "error"]


def test_a_refused_cell_stops_the_run(notebook: Notebook) -> None:
    """So does a cell that is not Python, and one with an option that does not exist."""
    for source in ("%%gradtrace\nx = = 1", "%%gradtrace --nosuch\nx = 1", "%%gradtrace\nawait x"):
        with pytest.raises(CellExecutionError):
            notebook.run(source, allow_errors=False)


def test_the_report_comes_before_the_error(notebook: Notebook) -> None:
    """The rows made so far are there, with the lines of the notebook's margin."""
    cell = notebook.run(
        "%%gradtrace\nimport torch\nw = torch.ones(3, requires_grad=True)\ny = w * 2\ny @ torch.ones(7)"
    )
    report, error = cell.outputs
    assert is_report(report)
    assert re.search(r"^ *4 +y ", report.data["text/plain"], re.MULTILINE)
    assert error.output_type == "error"
    assert "line 5" in "\n".join(error.traceback)


def test_a_later_error_points_into_the_traced_cell(notebook: Notebook) -> None:
    """Cell and line of a function are those of the cell that defined it."""
    number = notebook.run("%%gradtrace\ndef f(a):\n    return a / 0").execution_count
    cell = notebook.run("f(1)")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(cell.outputs[0].traceback))
    assert f"Cell In[{number}], line 3, in f(a)" in shown


def test_both_forms_of_the_report_arrive(notebook: Notebook) -> None:
    """One output with text and HTML; nothing else."""
    cell = notebook.run("%%gradtrace\nimport torch\nl = torch.ones(2, requires_grad=True).sum()")
    [report] = cell.outputs
    assert {"text/plain", "text/html"} <= report.data.keys()


def test_the_random_stream_goes_on_as_without_the_magic(notebook: Notebook) -> None:
    """Tracing, backward and the report draw no random number."""
    drawn = []
    for heading in ("# %%gradtrace", "%%gradtrace"):
        notebook.run("seeded = torch.manual_seed(0)\nw = torch.ones(4, requires_grad=True)")
        notebook.run(f"{heading}\nl = (torch.nn.functional.dropout(w * torch.randn(4))).sum()")
        drawn.append(outputs(notebook.run("l.item(), torch.randn(3)")))
    assert drawn[0] == drawn[1]
