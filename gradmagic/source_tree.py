"""A parsed piece of source, searchable by the spans CPython reports for its instructions (PEP 657)."""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

Span = tuple[int | None, int | None, int | None, int | None]
"""Line, end line, column and end column, as in ``code.co_positions()``."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_BLOCKS = (ast.If, ast.For, ast.While, ast.Try, ast.With, ast.AsyncFor, ast.AsyncWith, ast.Match, *FUNCTIONS)
TEXT_LIMIT = 300
_REMEMBERED = 256
"""So many parsed functions and cells are remembered."""


@lru_cache(maxsize=_REMEMBERED)
def _parsed(piece: str, first: int) -> SourceTree | None:
    # Every traced cell goes through the same functions of PyTorch: to parse those of a Transformer takes 20 ms.
    return SourceTree.of(piece, first)


def walk_scope(root: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `root` that belong to its own scope: nested functions and classes are not entered."""
    pending = list(ast.iter_child_nodes(root))
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            pending.extend(ast.iter_child_nodes(node))


@dataclass(slots=True)
class SourceTree:
    """A parsed piece of source, searchable by the spans CPython reports."""

    lines: list[str]
    tree: ast.Module
    line_shift: int = 0
    column_shift: int = 0
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    _spans: dict[tuple[int, int, int, int], ast.AST] = field(default_factory=dict)
    _call_ends: dict[tuple[int, int], ast.AST] = field(default_factory=dict)
    _statements: dict[ast.AST, list[ast.stmt]] = field(default_factory=dict)
    _bodies: dict[ast.AST, list[ast.AST]] = field(default_factory=dict)

    @classmethod
    def parse(cls, lines: list[str], first: int = 1, last: int | None = None) -> SourceTree | None:
        """Parse lines `first` to `last` (counted from 1); None where they are no Python on their own."""
        return _parsed("".join(lines[first - 1 : last]), first)

    @classmethod
    def of(cls, piece: str, first: int) -> SourceTree | None:
        """Parse a piece of source that stands on line `first`."""
        dedented = textwrap.dedent(piece)
        try:
            with warnings.catch_warnings(action="ignore"):  # of an odd escape Python has warned when it ran the code
                tree = ast.parse(dedented)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        indent = len(piece.split("\n", 1)[0].encode()) - len(dedented.split("\n", 1)[0].encode())
        found = cls(dedented.splitlines(), tree, first - 1, indent)
        found._index()
        return found

    def _index(self) -> None:
        pending: deque[ast.AST] = deque([self.tree])
        while pending:  # as `ast.walk`, which would ask for the children once more: half of the time
            parent = pending.popleft()
            children = list(ast.iter_child_nodes(parent))
            pending.extend(children)
            self.parents.update(dict.fromkeys(children, parent))
            if isinstance(parent, (ast.expr, ast.AugAssign, ast.For)):
                span = (parent.lineno, parent.col_offset, parent.end_lineno or 0, parent.end_col_offset or 0)
                self._spans[span] = parent
                if isinstance(parent, ast.Call):
                    self._call_ends[span[2:]] = parent

    def node_at(self, span: Span) -> ast.AST | None:
        """The node with this span, given as in ``code.co_positions()``."""
        line, end_line, column, end_column = span
        if line is None or end_line is None or column is None or end_column is None:
            return None
        start = (line - self.line_shift, column - self.column_shift)
        end = (end_line - self.line_shift, end_column - self.column_shift)
        # A method call that is spread over several lines reports the attribute's line as its start.
        return self._spans.get((*start, *end)) or self._call_ends.get(end)

    def text(self, node: ast.AST) -> str:
        """Source of a node on one line, shortened when very long."""
        if not isinstance(node, (ast.expr, ast.stmt)):
            return ""
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        rows = [line.encode() for line in self.lines[first : last + 1]]
        if not rows:
            return ""
        rows[-1] = rows[-1][: node.end_col_offset]
        rows[0] = rows[0][node.col_offset :]
        joined = _on_one_line(node, [row.decode(errors="replace").strip() for row in rows])
        return joined if len(joined) <= TEXT_LIMIT else joined[: TEXT_LIMIT - 1] + "…"

    def line_of(self, node: ast.AST) -> int:
        """Line of a node in its file."""
        return int(getattr(node, "lineno", 1)) + self.line_shift

    def span_of(self, node: ast.AST) -> tuple[int, int, int, int] | None:
        """Where a node stands in its file: line, column, last line and the column behind its end, in characters."""
        if not isinstance(node, (ast.expr, ast.stmt)) or node.end_lineno is None or node.end_col_offset is None:
            return None
        begin = self._characters(node.lineno, node.col_offset)
        end = self._characters(node.end_lineno, node.end_col_offset)
        return node.lineno + self.line_shift, begin, node.end_lineno + self.line_shift, end

    def _characters(self, line: int, column: int) -> int:
        """A column in characters; the parser counts the bytes of UTF-8."""
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        return len(text.encode()[:column].decode(errors="replace")) + self.column_shift

    def scope_of(self, node: ast.AST) -> ast.AST:
        """The function (or module) a node stands in."""
        current = self.parents.get(node)
        while current is not None and not isinstance(current, (*FUNCTIONS, ast.Module)):
            current = self.parents.get(current)
        return current or self.tree

    def in_scope(self, scope: ast.AST) -> list[ast.stmt]:
        """The returns, yields and assignments of a function (or module), in no particular order."""
        if scope not in self._statements:
            kinds = (ast.Return, ast.Assign, ast.AugAssign)
            self._statements[scope] = [
                node
                for node in walk_scope(scope)
                if isinstance(node, kinds) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield))
            ]
        return self._statements[scope]

    def statements_in(self, scope: ast.AST) -> list[ast.AST]:
        """The statements of a function (or module), and its ``:=``, in no particular order."""
        if scope not in self._bodies:
            self._bodies[scope] = [node for node in walk_scope(scope) if isinstance(node, (ast.stmt, ast.NamedExpr))]
        return self._bodies[scope]

    def statement_text(self, node: ast.AST) -> str:
        """Source of the whole statement a node belongs to; empty for the head of a block, and where it is very long."""
        statement = self.statement_of(node)
        if not isinstance(statement, ast.stmt) or isinstance(statement, (*_BLOCKS, ast.ClassDef)):
            return ""
        text = self.text(statement)
        return "" if text.endswith("…") else text

    def statement_of(self, node: ast.AST) -> ast.AST:
        """The statement a node belongs to."""
        current = node
        while not isinstance(current, ast.stmt) and current in self.parents:
            current = self.parents[current]
        return current

    def blocks_of(self, node: ast.AST) -> list[ast.AST]:
        """The blocks (if, for, function...) around a node, innermost first."""
        found: list[ast.AST] = []
        current = self.parents.get(node)
        while current is not None:
            if isinstance(current, _BLOCKS):
                found.append(current)
            current = self.parents.get(current)
        return found


def _on_one_line(node: ast.AST, rows: list[str]) -> str:
    if len(rows) == 1:
        return rows[0]
    if any("#" in row for row in rows):
        # A comment at the end of a line would swallow the rest.
        return ast.unparse(node)
    joined = rows[0]
    for row in rows[1:]:
        tight = row.startswith((".", ")", "]", "}")) or joined.endswith(("(", "[", "{"))
        joined += row if tight else f" {row}"
    return joined
