"""The cell is sacred: it does what it does without the magic. Each cell runs plain, then traced."""

from __future__ import annotations

import ast
import inspect
import pickle
import sys
import traceback

import pytest
from IPython.core.error import InputRejected
from shells import HEADING, Session, twins

INTERACTIVITY = ("all", "last", "last_expr", "none", "last_expr_or_assign")

ORDINARY = {
    "the value of the last expression": "x = 3\nx + 1",
    "a last expression that is None": "print(1)\nNone",
    "no expression at the end": "x = 3\ny = x",
    "a semicolon silences the value": "40 + 2;",
    "a semicolon before a comment silences too": "40 + 2;  # quiet",
    "a semicolon inside a string does not silence": "'a;'",
    "two values in a row": "1\n2",
    "statements on one line": "x = 1; x + 1; x + 2",
    "standard output and error": "import sys\nprint('out')\nprint('err', file=sys.stderr)",
    "a multi-line string keeps its lines": "'''\n  %time\n\n\tx\n'''",
    "a multi-line f-string": "a = 3\nf'''\n    {a}\n  !ls\n'''",
    "a string as first statement": "'doc'\n__doc__",
    "a future import": "from __future__ import annotations\ndef f(a: nosuch): ...\nf.__annotations__",
    "a decorator": "import functools\n@functools.cache\ndef f(a):\n    return a\nf(3)",
    "a class": "class A:\n    def __repr__(self):\n        return 'an A'\nA()",
    "a loop at the end": "for i in range(3):\n    i",
    "blank lines on top": "\n\n\nx = 1\nx",
    "only a comment": "# nothing",
    "a system command": "!echo hello",
    "a captured system command": "a = !echo hello\na",
    "a line magic": "%pwd",
    "an assigned line magic": "a = %pwd\na",
    "help": "len?",
    "the display hook": "display(3)\ndisplay('a')",
    "the last values": "_, __",
    "a user's own underscore": "_ = 5\n6",
    "a global statement": "global q\nq = 3\nq",
    "a deleted name": "q = 3\ndel q",
    "the frame's file and line": "import sys\nf = sys._getframe()\n(f.f_lineno, f.f_code.co_name)",
    "input history": "In[-2]",
    "unicode": "é = 'ü'\né",
    "a form feed and tabs": "if True:\n\tx = 1\n\f\nx",
    "a backslash continuation": "x = 1 + \\\n  2\nx",
}

FAILING = {
    "an error in the third line": "x = 1\n\n1 / 0\nx = 2",
    "an error in a function of the cell": "def f(a):\n    return 1 / a\n\nf(0)",
    "an error in the last expression": "[1][2]",
    "an error in a library": "import json\njson.loads('{')",
    "a syntax error": "x = 1\nx = = 2",
    "a syntax error in the last line": "x = (1,\n",
    "a wrong indentation": "if True:\n    x = 1\n  y = 2",
    "an unexpected indentation": "x = 1\n  y = 2",
    "an expected indentation": "def f():\nx = 1",
    "a return outside of a function": "x = 1\nprint(x)\nreturn x",
    "a syntax error while it runs": "x = 1\neval('1 +')",
    "an unknown line magic": "x = 1\n%nosuchmagic",
    "a misused magic": "%load_ext",
    "a chained error": "try:\n    1 / 0\nexcept Exception as error:\n    raise ValueError('b') from error",
    "an error while handling one": "try:\n    1 / 0\nexcept Exception:\n    {}['a']",
    "an exception group": "raise ExceptionGroup('many', [ValueError(1), KeyError('a')])",
    "an interrupt": "x = 1\nraise KeyboardInterrupt",
    "a generator exit": "raise GeneratorExit",
    "an exception that forbids everything": (
        "class E(Exception):\n    __slots__ = ()\n"
        "    def __setattr__(self, name, value):\n        raise RuntimeError\n"
        "    def with_traceback(self, tb):\n        raise RuntimeError\nraise E(1)"
    ),
    "an exception that draws itself": (
        "class E(Exception):\n    def _render_traceback_(self):\n        return ['drawn']\nraise E"
    ),
    "code without a source": "exec('raise ValueError(1)')",
    "an error after a displayed value": "display(3)\nprint(4)\nnosuch",
    "an error of a shape": "import torch\nx = torch.ones(3, 2)\nx @ x",
    "an error inside torch's own Python": "import torch\na = torch.ones(3)\ntorch.einsum('i,ij', a, a)",
    "an error in a module": "import torch\ntorch.nn.Linear(3, 2)(torch.ones(7))",
    "an error in the cell's backward": "import torch\ntorch.ones(3, requires_grad=True).backward()",
    "an error in an operator": "import torch\ntorch.ones(3) // 'a'",
    "a handled error of torch in the chain": (
        "import torch\ntry:\n    torch.einsum('ij', torch.ones(3))\n"
        "except RuntimeError as error:\n    raise ValueError from error"
    ),
}


@pytest.mark.parametrize("body", ORDINARY.values(), ids=ORDINARY.keys())
def test_ordinary_cell_does_what_it_does_without_the_magic(shell: Session, body: str) -> None:
    """Values, output, Out, the underscores and the names in the namespace are equal."""
    plain, traced = twins(shell, body)
    assert traced == plain


@pytest.mark.parametrize("body", ["pwd", "    x = 1\n    x", "len?", "%%capture\n3"])
def test_what_the_shell_does_to_a_whole_cell_it_does_to_the_body(shell: Session, body: str) -> None:
    """Automagic, dedenting and magics on top of the cell need the body to stand alone."""
    plain = shell.fresh().run(body)
    assert shell.fresh().run(f"{HEADING}\n{body}") == plain


def test_deep_recursion_ends_as_without_the_magic(shell: Session) -> None:
    """However long the traceback, it is put in order and raised."""
    plain, traced = twins(shell, "def f():\n    return f()\nf()", "%xmode Minimal")
    assert "RecursionError" in plain.error
    assert traced == plain


@pytest.mark.parametrize("body", FAILING.values(), ids=FAILING.keys())
def test_failing_cell_fails_as_without_the_magic(shell: Session, body: str) -> None:
    """The same error, raised once, with the same traceback: no frame of gradmagic, no outer cell."""
    plain, traced = twins(shell, body)
    assert plain.error
    assert traced == plain


@pytest.mark.parametrize("mode", ["Plain", "Verbose", "Minimal", "Docs"])
def test_every_traceback_mode_is_honoured(shell: Session, mode: str) -> None:
    """The traceback is drawn by the shell, in the mode the person has set."""
    plain, traced = twins(shell, FAILING["an error in a function of the cell"], f"%xmode {mode}")
    assert traced == plain


@pytest.mark.parametrize(
    "body", ["1\n2", "x = 1\nx += 1", "x: int = 4", "1;\n2;", "for i in (1, 2):\n    i", "print(3)", ""]
)
@pytest.mark.parametrize("setting", INTERACTIVITY)
def test_every_display_setting_is_honoured(shell: Session, setting: str, body: str) -> None:
    """What ast_node_interactivity displays without the magic, it displays with it."""
    plain, traced = twins(shell, body + "\n# end", f"%config InteractiveShell.ast_node_interactivity = '{setting}'")
    shell.run("%config InteractiveShell.ast_node_interactivity = 'last_expr'")
    assert traced == plain


def test_ast_transformers_of_the_shell_apply(shell: Session) -> None:
    """Code that the person has set up to be rewritten is rewritten."""

    class Doubled(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.Constant:
            return ast.copy_location(ast.Constant(node.value * 2), node) if type(node.value) is int else node

    transformer = Doubled()
    shell.shell.ast_transformers.append(transformer)
    try:
        plain, traced = twins(shell, "x = 4\nx")
    finally:
        shell.shell.ast_transformers.remove(transformer)
    assert (plain.result, traced) == ("8", plain)


def test_ast_transformer_that_rejects_the_cell_stops_it(shell: Session) -> None:
    """Nothing runs, and the reason is shown."""

    class NoImports(ast.NodeTransformer):
        def visit_Import(self, node: ast.Import) -> ast.Import:
            raise InputRejected("no imports here")

    transformer = NoImports()
    shell.shell.ast_transformers.append(transformer)
    try:
        ran = shell.fresh().run(f"{HEADING}\nx = 1\nimport os")
    finally:
        shell.shell.ast_transformers.remove(transformer)
    assert "InputRejected" in ran.error
    assert "no imports here" in ran.stdout
    assert "x" not in ran.names


def test_a_later_error_points_into_the_traced_cell(shell: Session) -> None:
    """A function defined under the magic shows its cell and the line of the notebook's margin ever after."""
    body = "x = 1\ndef f(a):\n    return x / a"
    shown = []
    for cell in (f"# {HEADING}\n{body}", f"{HEADING}\n{body}"):
        shell.fresh().run(cell)
        shown.append(shell.run("f(0)"))
    assert shown[0] == shown[1]
    assert "Cell In[1], line 4, in f(a)" in shown[1].stdout


def test_blank_lines_above_the_body_count(shell: Session) -> None:
    """The magic line is line 1 of the margin, and blank lines below it are lines like any other."""
    ran = shell.fresh().run(f"{HEADING}\n\n\n1 / 0")
    assert "Cell In[1], line 4" in ran.stdout


def test_source_of_a_traced_function_is_found(shell: Session) -> None:
    """inspect.getsource works as for any function of a cell."""
    shell.fresh().run(f"{HEADING}\n\ndef f(a):\n    return a  # here")
    assert inspect.getsource(shell["f"]) == "def f(a):\n    return a  # here\n"


def test_functions_and_classes_of_a_traced_cell_can_be_pickled(shell: Session) -> None:
    """They live in the person's own module."""
    shell.fresh().run(f"{HEADING}\ndef f(a):\n    return a\nclass A:\n    pass")
    assert pickle.loads(pickle.dumps(shell["f"])) is shell["f"]
    assert pickle.loads(pickle.dumps(shell["A"])) is shell["A"]


def test_a_future_import_reaches_later_cells(shell: Session) -> None:
    """The shell remembers it from a traced cell as from any other."""
    shell.fresh().run(f"{HEADING}\nfrom __future__ import annotations")
    assert shell.run("def f(a: nosuch): ...\nf.__annotations__").result == "{'a': 'nosuch'}"


@pytest.mark.parametrize(
    "call",
    [
        "get_ipython().run_cell_magic('gradtrace', '-q', {!r})",
        "def f():\n    get_ipython().run_cell_magic('gradtrace', '-q', {!r})\nf()",
        "%alias_magic again gradtrace\nget_ipython().run_cell_magic('again', '-q', {!r})",
    ],
)
@pytest.mark.parametrize("body", ["y = 1\nawait g()", "y = 1\nasync with g(): pass", "y = 1\n[i async for i in g()]"])
def test_await_where_nobody_awaits_the_magic_is_refused_before_anything_runs(
    shell: Session, body: str, call: str
) -> None:
    """Called by other code than the cell, the magic is a plain call: the person is told where it awaits."""
    shell.fresh().shell.input_transformers_post, before = [], shell.shell.input_transformers_post
    try:
        ran = shell.run(call.format(body))
    finally:
        shell.shell.input_transformers_post = before
    assert ran.error.startswith("UsageError")
    assert "line 3" in ran.stderr
    assert "gradmagic.trace()" in ran.stderr
    assert "y" not in ran.names


def test_await_inside_a_function_is_no_top_level_await(shell: Session) -> None:
    """The cell only defines a coroutine."""
    plain, traced = twins(shell, "async def f():\n    await g()\nf.__name__")
    assert traced == plain


def test_a_syntax_error_leaves_nothing_behind(shell: Session) -> None:
    """Nothing is run, and the shell's compiler and handlers are as before."""
    before = shell.fresh().shell.compile.flags, shell.shell.custom_exceptions
    ran = shell.run(f"{HEADING}\nfrom __future__ import annotations\nx = 1\n1 +")
    assert "x" not in ran.names
    assert (shell.shell.compile.flags, shell.shell.custom_exceptions) == before


def gradmagic_frames(error: BaseException) -> list[str]:
    return [line for line in traceback.format_exception(error) if "gradmagic" in line or "overrides.py" in line]


def test_consumers_of_the_traceback_see_the_persons_frames(shell: Session) -> None:
    """pdb, %debug, %tb and whoever formats the exception themselves find no frame of gradmagic."""
    shell.fresh().run(f"{HEADING}\nimport torch\ntorch.einsum('ij,jk', torch.ones(3, 3), torch.ones(4, 4))")
    error = sys.last_value
    assert gradmagic_frames(error) == []
    names = [frame.name for frame in traceback.extract_tb(sys.last_traceback)]
    assert names == ["run_code", "<module>", "einsum"]


def test_tb_shows_the_traceback_again(shell: Session) -> None:
    """%tb repeats exactly what was shown."""
    first = shell.fresh().run(f"{HEADING}\nx = 1\n1 / 0")
    assert shell.run("%tb").stdout == first.stdout


def test_an_own_handler_of_the_person_is_called_and_kept(shell: Session) -> None:
    """set_custom_exc of the person's own sees the exception, with the same traceback as without the magic."""
    seen = []

    def own(_shell: object, _type: object, value: object, tb: object, tb_offset: int | None = None) -> None:
        seen.append((value, [frame.name for frame in traceback.extract_tb(tb)]))

    shell.fresh().shell.set_custom_exc((ZeroDivisionError,), own)
    installed = shell.shell.CustomTB
    try:
        shell.run(f"{HEADING}\n1 / 0")
        assert [names for _, names in seen] == [["run_code", "<module>"]]
        assert shell.shell.CustomTB == installed
    finally:
        shell.shell.set_custom_exc((), None)


def test_an_error_the_person_catches_leaves_no_handler(shell: Session) -> None:
    """A line magic inside try raises where it stands; nothing is installed in the shell for it."""
    ran = shell.fresh().run(f"try:\n    {HEADING[1:]} 1 / 0\nexcept ZeroDivisionError as error:\n    caught = error")
    assert ran.error == ""
    assert gradmagic_frames(shell["caught"]) == []
    assert shell.shell.custom_exceptions == ()


def test_an_error_under_another_magic_is_raised_through_it(shell: Session) -> None:
    """%%time and its like see the exception, as they would without us, and no frame of gradmagic."""
    plain = shell.fresh().run("%%time\nx = 1\n1 / 0")
    ran = shell.fresh().run(f"%%time\n{HEADING}\nx = 1\n1 / 0")
    assert ran.error == plain.error  # IPython 8 shows it itself, IPython 9 raises it
    assert ran.stdout.count("ZeroDivisionError: division by zero") == 1
    assert "gradmagic/" not in ran.stdout
    assert shell.shell.custom_exceptions == ()


def test_a_line_magic_points_at_its_own_line(shell: Session) -> None:
    """An error in the statement of a line magic names the line of the enclosing cell."""
    ran = shell.fresh().run(f"x = 0\n\nfor i in range(2):\n    {HEADING[1:]} i / x")
    assert "Cell In[1], line 4\n----> 4 i / x" in ran.stdout
    assert "run_line_magic" not in ran.stdout


def test_a_cell_under_capture_runs_once(shell: Session) -> None:
    """%%capture keeps what the traced cell prints and displays."""
    shell.fresh().run(f"%%capture kept\n{HEADING}\nprint('out')\n7")
    assert shell["kept"].stdout == "out\n"
    assert [output.data["text/plain"] for output in shell["kept"].outputs] == ["7"]


def test_a_cell_under_time_gives_its_value(shell: Session) -> None:
    """%%time times the traced cell and passes its value on."""
    ran = shell.fresh().run(f"%%time\n{HEADING}\nx = 5\nx")
    assert ran.result == "5"
    assert "Wall time" in ran.stdout


def test_another_cell_magic_inside_runs(shell: Session) -> None:
    """%%gradtrace on top of %%capture traces what that magic runs."""
    shell.fresh().run(f"{HEADING}\n%%capture kept\nprint('out')")
    assert shell["kept"].stdout == "out\n"


@pytest.mark.parametrize("ending", ["a;", "1 / 0"])
def test_what_the_cell_made_is_freed_when_the_person_lets_it_go(shell: Session, ending: str) -> None:
    """Neither the magic nor the way out of an error holds on to values."""
    shell.fresh().run(f"%%gradtrace\nimport weakref\nclass A: ...\na = A()\nalive = weakref.ref(a)\n{ending}")
    shell.run("del a")
    assert shell["alive"]() is None
