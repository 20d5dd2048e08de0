"""Runs a cell body exactly as the shell would. The only file that knows the shell's insides."""

# mypy: disable-error-code="no-untyped-call"
# Half of IPython's methods carry no type hints.

from __future__ import annotations

import ast
import contextlib
import dis
import inspect
import re
import sys
from bdb import BdbQuit
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType
from typing import Any, Literal

from IPython.core.displayhook import DisplayHook
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from .history import EarlierCell
from .tracebacks import is_ours, linked, links, relink

Mode = Literal["exec", "single", "eval"]

_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell body, compiled by the shell's compiler; one code object a statement, as the shell has it.

    Attributes:
        file: name it is compiled under, which ``linecache`` and the shell's tracebacks know.
        statements: what runs before the last expression.
        last: the last expression, or None when the body ends with another statement.
        shown: whether the shell would display the last expression's value.
        refusal: what the compiler says about the statement after `statements`, which the shell runs first.
        awaits_at: line of the first statement that awaits at its top level, or None.
        shell: the shell whose namespaces the cell runs in.
    """

    file: str
    statements: tuple[CodeType, ...]
    last: CodeType | None
    shown: bool
    refusal: SyntaxError | None
    awaits_at: int | None
    shell: InteractiveShell

    def run(self) -> Any:
        """Runs the cell and gives the value of its last expression, or None."""
        __tracebackhide__ = True
        names = self.shell.user_global_ns, self.shell.user_ns
        for code in self.statements:
            exec(code, *names)  # noqa: S102 - to run the cell is what this is for
        if self.refusal is not None:
            raise self.refusal
        return None if self.last is None else eval(self.last, *names)  # noqa: S307 - as above

    async def run_awaiting(self) -> Any:
        """Does what `run` does, and awaits what awaits at its top level."""
        __tracebackhide__ = True
        names = self.shell.user_global_ns, self.shell.user_ns
        value: Any
        for code in self.statements:
            value = eval(code, *names)  # noqa: S307 - as above
            if code.co_flags & _ASYNC:
                await value
        if self.refusal is not None:
            raise self.refusal
        value = None if self.last is None else eval(self.last, *names)  # noqa: S307 - as above
        return await value if self.last is not None and self.last.co_flags & _ASYNC else value


def cell_of(shell: InteractiveShell, body: str, heading: str) -> Cell:
    """The body of a cell magic, ready to run; its lines count as the notebook's margin does.

    Args:
        shell: the running shell.
        body: the cell below the magic line.
        heading: the magic line; it becomes a comment, so that the body starts at line 2.

    Raises:
        SyntaxError: the body is not Python.
    """
    # The shell strips blank lines at the start of what it transforms, then looks for a nested cell magic.
    lines = body.splitlines(keepends=True)
    blank = next((i for i, line in enumerate(lines) if not line.isspace()), len(lines))
    return _compiled(shell, _transformed(shell, f"# {heading}\n" + "\n" * blank, body))


def statement_of(shell: InteractiveShell, statement: str) -> Cell:
    """The code behind a line magic, ready to run; its line is that of the enclosing cell where that is known.

    Raises:
        SyntaxError: the statement is not Python.
    """
    caller = _caller(shell)
    in_a_cell = caller is not None and execution_count(shell, caller.f_code.co_filename) is not None
    line = caller.f_lineno if caller is not None and in_a_cell else 1
    return _compiled(shell, _transformed(shell, "\n" * (line - 1), statement))


def execution_count(shell: InteractiveShell, file: str) -> int | None:
    """The number of the cell that was compiled under a file name, or None when it was no cell."""
    name = shell.compile.format_code_name(file)
    found = re.search(r"\d+", name[1]) if name is not None else None
    return int(found.group()) if found is not None else None


def cell_id(shell: InteractiveShell) -> str | None:
    """The front end's own id of the running cell (JEP 62), which it keeps when it is edited; None in a terminal."""
    message: Any = getattr(shell, "get_parent", dict)()
    found = message.get("metadata", {}).get("cellId")
    return found if isinstance(found, str) else None


def earlier_cells(shell: InteractiveShell) -> list[EarlierCell]:
    """The cells that ran before the running one, the oldest first, as Python: a magic on top is a comment."""
    history = shell.history_manager
    raw = list(history.input_hist_raw)[1 : shell.execution_count] if history is not None else []
    cells = []
    for number, source in enumerate(raw, start=1):
        head, newline, body = source.partition("\n")
        text = f"# {head}\n{body}" if head.startswith("%%") and newline else source
        with contextlib.suppress(SyntaxError):  # a cell that did not run has bound nothing
            cells.append(EarlierCell(number, shell.transform_cell(text)))
    return cells


def _transformed(shell: InteractiveShell, above: str, code: str) -> str:
    """The code as the shell's input transformers leave it, below some lines of ours."""
    try:
        return above + str(shell.transform_cell(code))
    except SyntaxError as error:
        offset = above.count("\n")
        error.lineno = error.lineno and error.lineno + offset
        error.end_lineno = error.end_lineno and error.end_lineno + offset
        raise


def _compiled(shell: InteractiveShell, source: str) -> Cell:
    file = shell.compile.cache(source, _number(shell), raw_code=source)
    nodes = shell.transform_ast(shell.compile.ast_parse(source, filename=file)).body
    interactivity = shell.ast_node_interactivity
    if interactivity == "last_expr_or_assign":
        nodes = nodes + _name_assigned(nodes)
    silenced = DisplayHook.semicolon_at_end_of_expression(source)
    codes: list[CodeType] = []
    refusal = awaits_at = None
    try:
        for node, mode in _modes(nodes, "none" if silenced else interactivity):
            codes.append(_code(shell, node, mode, file))
            if awaits_at is None and codes[-1].co_flags & _ASYNC:
                awaits_at = node.lineno
    except SyntaxError as error:
        refusal = error.with_traceback(None)
    ends_with_value = bool(nodes) and isinstance(nodes[-1], ast.Expr) and refusal is None
    last = codes.pop() if ends_with_value else None
    return Cell(file, tuple(codes), last, interactivity != "none" and not silenced, refusal, awaits_at, shell)


def _number(shell: InteractiveShell) -> int:
    """The number of the cell that calls the magic: a cell that another cell runs has one of its own."""
    caller = _caller(shell)
    number = execution_count(shell, caller.f_code.co_filename) if caller is not None else None
    return shell.displayhook.prompt_count if number is None else number


def _modes(nodes: list[ast.stmt], interactivity: str) -> Iterator[tuple[ast.stmt, Mode]]:
    """Each statement with the way to compile it; "single" displays what its expressions give."""
    for node in nodes:
        if node is nodes[-1] and isinstance(node, ast.Expr):
            yield node, "eval"
        elif interactivity == "all" or (interactivity == "last" and node is nodes[-1]):
            yield node, "single"
        else:
            yield node, "exec"


def _name_assigned(nodes: list[ast.stmt]) -> list[ast.stmt]:
    """The name a closing assignment binds, as the expression the shell adds for ``last_expr_or_assign``."""
    last = nodes[-1] if nodes else None
    target: ast.expr | None = None
    if isinstance(last, ast.Assign) and len(last.targets) == 1:
        target = last.targets[0]
    elif isinstance(last, (ast.AugAssign, ast.AnnAssign)):
        target = last.target
    if last is None or not isinstance(target, ast.Name):
        return []
    name = ast.copy_location(ast.Name(target.id, ast.Load()), target)
    return [ast.copy_location(ast.Expr(name), target)]


def _code(shell: InteractiveShell, node: ast.stmt, mode: Mode, file: str) -> CodeType:
    tree: ast.Module | ast.Interactive | ast.Expression
    if mode == "eval" and isinstance(node, ast.Expr):
        tree = ast.Expression(node.value)
    elif mode == "single":
        tree = ast.Interactive([node])
    else:
        tree = ast.Module([node], [])
    compiler: Any = shell.compile  # typed for source text only; IPython itself hands it trees
    with shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if shell.autoawait else 0):
        code: CodeType = compiler(tree, file, mode)
    return code


def require_awaited(shell: InteractiveShell, code: Cell) -> bool:
    """Whether what the magic returns is awaited; then it has to be a coroutine.

    Raises:
        UsageError: the code awaits, and nobody would await the magic.
        SyntaxError: it awaits, and the compiler refuses it; the shell takes such code for code that awaits nothing.
    """
    caller = _caller(shell)
    awaited = caller is not None and _is_awaited(caller)
    if code.awaits_at is not None and not awaited and code.refusal is not None:
        raise code.refusal
    if code.awaits_at is not None and not awaited:
        raise UsageError(
            f"gradtrace cannot await here (line {code.awaits_at}): the magic is called by other code than the cell "
            "itself; nothing was run. Write %%gradtrace on top of the cell, or put the traced code under "
            "`with gradmagic.trace() as run:` without the magic."
        )
    return awaited


def _is_awaited(frame: FrameType) -> bool:
    """Whether the call that a frame is at is the operand of an ``await``."""
    following = [each.opname for each in dis.get_instructions(frame.f_code) if each.offset > frame.f_lasti]
    # Python 3.11 prepares a call with an instruction of its own, and may say that it is there.
    return following[:1] == ["GET_AWAITABLE"] or following[:2] == ["CALL", "GET_AWAITABLE"]


_RUNNERS = (Cell.run.__code__, Cell.run_awaiting.__code__)


def pass_on(shell: InteractiveShell, error: BaseException) -> None:
    """Makes an exception that is about to leave the magic look as it would without the magic.

    The frames of gradmagic go from its traceback. What the shell itself adds for the magic (the call in the
    outer cell) goes where nothing but the shell can catch the exception; the shell's own means then show it.
    """
    if any(link.tb_frame.f_code in _RUNNERS for link in links(error.__traceback__)):
        for each in linked(error):
            relink(each)
    elif isinstance(error, SyntaxError):
        error.with_traceback(None)  # it never ran: the shell shows no frames then
    else:
        return
    # SystemExit and BdbQuit have clauses of their own in the shell, ahead of custom handlers.
    if _straight_from_shell(shell) and not isinstance(error, (SystemExit, BdbQuit)):
        handler = _Handler(error, shell.custom_exceptions, shell.CustomTB)
        shell.set_custom_exc((type(error),), handler)


class _Handler:
    """Shows one exception as the shell does, with the traceback it has without the magic, and is gone.

    It is needed because the shell's own frames for the magic join the traceback after the magic has let go of
    the exception, and ``_render_traceback_``, the other way in, is not asked for SyntaxError and groups.
    """

    def __init__(self, error: BaseException, types: tuple[type[BaseException], ...], custom: Any) -> None:
        self._error = error
        self._frames = error.__traceback__
        self._previous = types, custom

    def __call__(
        self,
        shell: InteractiveShell,
        etype: type[BaseException],
        value: BaseException,
        tb: TracebackType,
        tb_offset: int | None = None,  # noqa: ARG002 - part of the shell's protocol
    ) -> None:
        types, custom = self._previous
        shell.custom_exceptions, shell.CustomTB = types, custom
        if value is self._error and self._frames is None:
            _show_refused(shell, value)
            return
        if value is self._error:
            tb = TracebackType(self._frames, tb.tb_frame, tb.tb_lasti, tb.tb_lineno)
            BaseException.with_traceback(value, tb)
        if isinstance(value, types):
            custom(etype, value, tb)
        else:
            shell.showtraceback((etype, value, tb), running_compiled_code=True)


def _show_refused(shell: InteractiveShell, error: BaseException) -> None:
    """What the shell does with code it cannot run."""
    BaseException.with_traceback(error, None)
    if isinstance(error, IndentationError):
        shell.showindentationerror()
    else:
        shell.showsyntaxerror()


def _caller(shell: InteractiveShell) -> FrameType | None:
    """The frame that called the magic, by way of the shell; None when the magic was called directly."""
    ways_in = {shell.run_cell_magic.__func__.__code__, shell.run_line_magic.__func__.__code__}  # type: ignore[attr-defined]
    frame = _outside()
    return frame.f_back if frame is not None and frame.f_code in ways_in else None


def _outside() -> FrameType | None:
    """The innermost frame that is not gradmagic's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_ours(frame):
        frame = frame.f_back
    return frame


def _straight_from_shell(shell: InteractiveShell) -> bool:
    """Whether the magic was called, or is awaited, by a statement that the shell runs and that catches nothing."""
    statement = _caller(shell) or _outside()
    if statement is None or statement.f_code.co_name != "<module>" or not _catches_nothing(statement.f_code):
        return False
    run_code = getattr(shell.run_code, "__func__", None)
    return statement.f_back is not None and statement.f_back.f_code is getattr(run_code, "__code__", None)


def _catches_nothing(code: CodeType) -> bool:
    """Whether no exception is handled; ``await`` itself has handlers, so those have to be the only ones."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    calls = ("run_cell_magic('', '', '')", "run_line_magic('', '')") if code.co_flags & _ASYNC else ()
    awaits = [
        compile(f"await get_ipython().{call}", "", mode, flags, dont_inherit=True).co_exceptiontable
        for call in calls
        for mode in ("exec", "single")
    ]
    return not code.co_exceptiontable or code.co_exceptiontable in awaits
