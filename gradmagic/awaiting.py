"""Lets a traced cell await at its top level: the shell's own loop runs it, as it runs any cell that awaits.

A magic is a plain call, and cannot await. So an ``await`` is put in front of its call, in the source that the shell has
transformed, wherever the code behind the magic awaits. There the magic returns a coroutine that runs the code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_WAYS_IN = ("run_cell_magic", "run_line_magic")
_NEWLINE = re.compile(rb"\r\n?|\n")
_OTHER_SCOPES = (ast.FunctionDef, ast.Lambda, ast.ClassDef)


class AwaitTransformer:
    """An input transformer for ``shell.input_transformers_post``.

    Args:
        shell: the shell that it is for.
        magic: name of the magic.
        is_there: whether the shell's magic of that name is still ours.
        statement_behind: the statement in the line of a line magic, behind the options.
    """

    def __init__(
        self,
        shell: InteractiveShell,
        magic: str,
        is_there: Callable[[], bool],
        statement_behind: Callable[[str], str],
    ) -> None:
        self._shell = shell
        self._magic = magic
        self._is_there = is_there
        self._statement_behind = statement_behind

    def __call__(self, lines: list[str]) -> list[str]:
        """The lines of a transformed cell, with the calls awaited that have to be."""
        source = "".join(lines)
        if self._magic not in source or ("await" not in source and "async" not in source):
            return lines
        try:
            return self._awaited(source).splitlines(keepends=True) if self._is_there() else lines
        except Exception:  # noqa: BLE001 - what is wrong with the code is for the shell, or the magic, to meet and to tell
            return lines

    def _awaited(self, source: str) -> str:
        text = source.encode()
        starts = [0, *(newline.end() for newline in _NEWLINE.finditer(text))]
        calls = [call for call in _calls(ast.parse(source)) if self._awaits(call)]
        for place in sorted((starts[call.lineno - 1] + call.col_offset for call in calls), reverse=True):
            text = text[:place] + b"await " + text[place:]
        return text.decode()

    def _awaits(self, call: ast.Call) -> bool:
        """Whether a call runs our magic, with code that awaits at its top level."""
        given = [each.value if isinstance(each, ast.Constant) else None for each in call.args]
        code = given[-1]
        if given[0] != self._magic or not isinstance(code, str):
            return False
        body = code if len(given) > 2 else self._statement_behind(code)
        return bool(self._shell.should_run_async(body, transformed_cell=self._shell.transform_cell(body)))


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    """The calls of magics that stand where an ``await`` may stand, and are not awaited yet."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and _is_way_in(node) and not isinstance(tree, ast.Await):
            yield node
        elif not isinstance(node, _OTHER_SCOPES):
            yield from _calls(node)


def _is_way_in(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in _WAYS_IN
        and isinstance(function.value, ast.Call)
        and isinstance(function.value.func, ast.Name)
        and function.value.func.id == "get_ipython"
        and len(call.args) == (3 if function.attr == "run_cell_magic" else 2)
    )
