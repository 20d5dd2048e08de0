"""Where a value goes once it has left torch: through Python names, lists and arithmetic, as the source tells. No torch.

``scale = x.max().item()`` and, below, ``y = w * (scale + 1)``: no tensor connects the two, but the name does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from .sites import Site
from .source_tree import FUNCTIONS, SourceTree, walk_scope
from .sources import Sources

Range = tuple[str, int, int, int, int]
"""File, first line, first column, last line, last column of a piece of source."""

_LOOPS = (ast.For, ast.AsyncFor, ast.While, *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp))


class DataFlow:
    """Follows plain values through the person's source. Everything is remembered as long as this object lives."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._ranges: dict[Site, tuple[Range, ...]] = {}
        self._definitions: dict[ast.AST, dict[str, list[tuple[ast.AST, ast.AST]]]] = {}

    def feeds(self, made: Sequence[Site], used: Sequence[Site]) -> Site | None:
        """The site on the way `made` whose value goes into what stands on the way `used`; None where none does."""
        for site in used:
            if self._sources.is_library(site.code):
                continue
            own = self._range(site)
            ranges = self._feeding(site)
            for inner in made:
                found = self._range(inner)
                if found is not None and found != own and any(_holds(outer, found) for outer in ranges):
                    return inner
        return None

    def feeds_range(self, made: Sequence[Site], ranges: Sequence[Range]) -> bool:
        """Whether what stands on the way `made` goes into one of these pieces of source."""
        found = [self._range(site) for site in made]
        return any(_holds(outer, inner) for inner in found if inner is not None for outer in ranges)

    def _range(self, site: Site) -> Range | None:
        line, end_line, column, end_column = site.span
        if line is None or end_line is None or column is None or end_column is None:
            return None
        return site.code.co_filename, line, column, end_line, end_column

    def _feeding(self, site: Site) -> tuple[Range, ...]:
        if site not in self._ranges:
            tree, node = self._sources.node(site)
            found = () if tree is None or node is None else tuple(self.behind(tree, node, site.code.co_filename))
            self._ranges[site] = found
        return self._ranges[site]

    def behind(self, tree: SourceTree, node: ast.AST, file: str) -> Iterator[Range]:
        """The node's own piece of source, and those of every value its names were computed from."""
        if isinstance(getattr(node, "ctx", None), ast.Store):
            node = tree.statement_of(node)
        pending, seen = [(node, node)], {id(node)}
        while pending:
            current, place = pending.pop()
            yield _range_of(tree, current, file)
            for name in _names_in(current):
                for statement, value in self._reaching(tree, name, place):
                    if id(value) not in seen:
                        seen.add(id(value))
                        pending.append((value, statement))

    # ---- definitions

    def _reaching(self, tree: SourceTree, name: str, place: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        """Statements that may have given a name its value at a place, each with that value."""
        scope = tree.scope_of(place)
        found = self._all(tree, scope).get(name, [])
        if not found and not isinstance(scope, ast.Module) and not _is_local(name, scope):
            # A function sees the names of the scopes around it, as they are when it is called.
            outer = tree.scope_of(scope)
            while not self._all(tree, outer).get(name) and not isinstance(outer, ast.Module):
                outer = tree.scope_of(outer)
            yield from reversed(self._all(tree, outer).get(name, []))
            return
        around = tree.blocks_of(place)
        line = getattr(place, "lineno", 0)
        loops = [block for block in around if isinstance(block, _LOOPS)]
        for statement, value in reversed(found):
            before = statement.lineno < line  # type: ignore[attr-defined]  # statements have a line
            if statement is place or (not before and not any(loop in tree.blocks_of(statement) for loop in loops)):
                continue
            yield statement, value
            plain = isinstance(statement, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == name for target in statement.targets
            )
            if before and plain and set(around).issuperset(tree.blocks_of(statement)):
                return  # whatever stood above is overwritten here

    def _all(self, tree: SourceTree, scope: ast.AST) -> dict[str, list[tuple[ast.AST, ast.AST]]]:
        if scope not in self._definitions:
            found: dict[str, list[tuple[ast.AST, ast.AST]]] = {}
            for statement in tree.statements_in(scope):
                for name, value in _definitions_in(statement):
                    found.setdefault(name, []).append((statement, value))
            for name, statement, value in _from_inside(tree, scope, scope):
                found.setdefault(name, []).append((statement, value))
            for definitions in found.values():
                definitions.sort(key=lambda pair: (pair[0].lineno, pair[0].col_offset))  # type: ignore[attr-defined]
            self._definitions[scope] = found
        return self._definitions[scope]


def _from_inside(tree: SourceTree, scope: ast.AST, owner: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Names of `owner` that functions inside `scope` give a value: they say ``nonlocal`` or ``global``."""
    kind = ast.Global if isinstance(owner, ast.Module) else ast.Nonlocal
    for function in walk_scope(scope):
        if not isinstance(function, FUNCTIONS):
            continue
        statements = tree.statements_in(function)
        shared = {name for found in statements if isinstance(found, kind) for name in found.names}
        for statement in statements if shared else ():
            yield from ((name, statement, value) for name, value in _definitions_in(statement) if name in shared)
        yield from _from_inside(tree, function, owner)


def _is_local(name: str, scope: ast.AST) -> bool:
    """Whether a function has a variable of its own by this name: a parameter, or what something in it binds."""
    arguments = ast.walk(scope.args) if isinstance(scope, FUNCTIONS) else ()
    return any(isinstance(node, ast.arg) and node.arg == name for node in arguments) or any(
        isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store) for node in walk_scope(scope)
    )


def _definitions_in(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names that a statement gives a value, or changes: also ``losses.append(v)`` and ``table[k] = v``."""
    if isinstance(node, ast.Assign):
        targets: list[ast.expr] = node.targets
    elif isinstance(node, (ast.AugAssign, ast.NamedExpr, ast.For, ast.AsyncFor)) or (
        isinstance(node, ast.AnnAssign) and node.value is not None
    ):
        targets = [node.target]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        name = _root_name(node.value.func.value)
        yield from ((name, argument) for argument in node.value.args if name)
        return
    else:
        return
    value = node.iter if isinstance(node, (ast.For, ast.AsyncFor)) else node.value
    if value is not None:
        yield from ((name, value) for target in targets for name in _target_names(target))


def _target_names(target: ast.expr) -> Iterator[str]:
    if isinstance(target, (ast.Tuple, ast.List)):
        for element in target.elts:
            yield from _target_names(element)
    elif isinstance(target, ast.Starred):
        yield from _target_names(target.value)
    elif name := _root_name(target):
        yield name


def _root_name(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _names_in(node: ast.AST) -> set[str]:
    """Names whose value goes into the node's; conditions decide, but do not go in."""
    found: set[str] = set()
    pending: list[ast.AST] = [node]
    while pending:
        current = pending.pop()
        if isinstance(current, ast.Name) and isinstance(current.ctx, ast.Load):
            found.add(current.id)
        if isinstance(current, ast.IfExp):
            pending += [current.body, current.orelse]
        elif isinstance(current, ast.AugAssign):
            pending += [current.value]
        elif not isinstance(current, FUNCTIONS):
            pending += ast.iter_child_nodes(current)
    return found


def _range_of(tree: SourceTree, node: ast.AST, file: str) -> Range:
    shift = tree.column_shift
    line, end = tree.line_of(node), int(getattr(node, "end_lineno", 0) or 0) + tree.line_shift
    return file, line, int(getattr(node, "col_offset", 0)) + shift, end, int(getattr(node, "end_col_offset", 0)) + shift


def _holds(outer: Range, inner: Range) -> bool:
    starts = (outer[1], outer[2]) <= (inner[1], inner[2])
    return outer[0] == inner[0] and starts and (inner[3], inner[4]) <= (outer[3], outer[4])
