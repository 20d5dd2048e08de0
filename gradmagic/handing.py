"""What a function of a library does with its arguments when it computes nothing: it may hand one on as it is. No torch.

``nn.GRU`` returns its state by way of ``self.permute_hidden(hidden, indices)``, which is ``hidden`` where there are no
indices. Nothing is recorded there, so what the caller binds is what the argument was.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Sequence
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .source_tree import FUNCTIONS, SourceTree, Span

_End = tuple[int | None, int | None]


class Calls:
    """The calls that recorded operations lie in, and what those without any may hand on."""

    def __init__(self, tree_of: Callable[[CodeType], SourceTree | None]) -> None:
        self._tree_of = tree_of
        self._ends: dict[CodeType, set[_End]] = {}
        self._returned: dict[CodeType, int | None] = {}
        self._modules: dict[str, dict[str, Any]] = {}

    def note(self, sites: Iterable[tuple[CodeType, Span]]) -> None:
        """Something was recorded within calls at these places."""
        for code, (_, end_line, _, end_column) in sites:
            self._ends.setdefault(code, set()).add((end_line, end_column))

    def ran(self, code: CodeType, tree: SourceTree, statement: ast.AST) -> bool:
        """Whether something was recorded within a statement of this code."""
        first, last = _position(tree, statement, "lineno", "col_offset"), _end_of(tree, statement)
        return any(first <= (line or 0, column or 0) <= last for line, column in self._ends.get(code, ()))

    def hands_on(self, code: CodeType, tree: SourceTree, call: ast.Call) -> int | None:
        """Index of the positional argument that a call returns as it is; None where it does not, or made something."""
        if _end_of(tree, call) in self._ends.get(code, ()):
            return None
        plain = not any(isinstance(argument, ast.Starred) for argument in call.args)
        called = _called(self._names_in(code.co_filename), code, call.func) if plain else None
        index = self._returned_by(called) if called is not None else None
        return index if index is not None and index < len(call.args) else None

    def _names_in(self, file: str) -> dict[str, Any]:
        """What the module that a file holds has names for."""
        if file not in self._modules:
            found = (vars(module) for module in list(sys.modules.values()) if type(module) is ModuleType)
            self._modules[file] = next((names for names in found if names.get("__file__") == file), {})
        return self._modules[file]

    def _returned_by(self, called: FunctionType | MethodType) -> int | None:
        code = called.__code__
        if code not in self._returned:
            index = self._index_returned(code)
            bound = isinstance(called, MethodType)
            self._returned[code] = index - bound if index is not None and index >= bound else None
        return self._returned[code]

    def _index_returned(self, code: CodeType) -> int | None:
        """Which parameter a function returns somewhere, and has not bound anew."""
        tree = self._tree_of(code)
        functions = [node for node in ast.walk(tree.tree) if isinstance(node, FUNCTIONS)] if tree is not None else []
        if tree is None or not functions or isinstance(functions[0], ast.Lambda):
            return None
        names = code.co_varnames[: code.co_argcount]
        statements: Sequence[Any] = tree.in_scope(functions[0])
        given = [node.value for node in statements if isinstance(node, ast.Return)]
        found = {value.id for value in given if isinstance(value, ast.Name)}
        bound = {
            target.id
            for node in statements
            if isinstance(node, (ast.Assign, ast.AugAssign))
            for target in ast.walk(node)
            if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
        }
        kept = [index for index, name in enumerate(names) if name in found - bound]
        return kept[0] if len(kept) == 1 else None


def _called(names: dict[str, Any], code: CodeType, function: ast.expr) -> FunctionType | MethodType | None:
    """What ``f`` or ``self.f`` is in a function of a library, as its module and the class it stands in tell."""
    if isinstance(function, ast.Name):
        found = names.get(function.id)
        return found if isinstance(found, FunctionType) else None
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return None
    owner: Any = names.get(code.co_qualname.partition(".")[0])
    if function.value.id != "self" or not isinstance(owner, type):
        return None
    method = next((vars(kind)[function.attr] for kind in owner.__mro__ if function.attr in vars(kind)), None)
    return MethodType(method, owner) if isinstance(method, FunctionType) else None


def _position(tree: SourceTree, node: ast.AST, line: str, column: str) -> tuple[int, int]:
    return getattr(node, line, 0) + tree.line_shift, getattr(node, column, 0) + tree.column_shift


def _end_of(tree: SourceTree, node: ast.AST) -> tuple[int, int]:
    return _position(tree, node, "end_lineno", "end_col_offset")
