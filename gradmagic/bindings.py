"""What a statement binds an expression's value to, and whether its function hands the value on to the caller."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Protocol

from .source_tree import COMPREHENSIONS, SourceTree

Position = tuple[int | str, ...]
"""Where a tensor stands in what an operation returned: () for the whole, (1, 0) for ``result[1][0]``."""

SOME_ITEM = -1
SOME = "[…]"
"""In place of an index, and of its text: one of the items, whichever it is (``list(map(f, xs))``)."""

_SAME_ITEMS = frozenset({"iter", "list", "tuple"})
_ITEM_BY_ITEM = frozenset({"map", "accumulate", "starmap"})
"""Their items are what the function returns that they call back."""
_COMPARING = frozenset({"max", "min", "sorted"})
_ASKING = _COMPARING | {"filter", "any", "all", "sum", "dict", "zip", "enumerate", "nlargest", "nsmallest"}
"""What these call back is asked for an opinion, or handed on in ways that its value alone does not tell."""
_CONTAINERS = _SAME_ITEMS | {"set", "frozenset", "deque"}
_FROM_MODULES = frozenset({"accumulate", "starmap", "nlargest", "nsmallest", "deque"})
"""Of these it is taken for granted that ``something.deque`` is meant as well."""
_PARTS_OF_A_TENSOR = frozenset({"data", "grad"})
"""``p.data -= lr * p.grad`` gives no name to anything."""


def through_c(node: ast.AST, callee: str | None, position: Position) -> Position | None:
    """Where a value stands in that of `node`, when code in C may have called back for it; None where nowhere.

    Args:
        node: what was running: perhaps ``list(map(f, xs))``, while ``f`` ran.
        callee: name of the function that returned the value; None for an operation right there.
        position: where the value stands in what was returned.
    """
    name = _builtin(node)
    if name is None or name == callee:
        return position
    if callee is None:
        return None if name in _COMPARING else position
    if callee == "__iter__":
        # What is gone through gives its items to a list of it; those of a map are others.
        if name == "enumerate" and position:
            return (*position[:1], 1, *position[1:])
        return position if name in _SAME_ITEMS else None
    if position[:1] == (SOME_ITEM,) and name in _CONTAINERS | {"next"} and _builtin(_gone_through(node)) != "map":
        return position[1:] if name == "next" else position  # it comes from a generator
    if name in _CONTAINERS:
        return (SOME_ITEM, *position) if _builtin(_gone_through(node)) in _ITEM_BY_ITEM else None
    if name in _ITEM_BY_ITEM:
        return (SOME_ITEM, *position)
    return None if name in _ASKING else position


def _builtin(node: ast.AST | None) -> str | None:
    """Name of the function that is called, as far as it may be one in C; a display ``[*xs]`` makes a list."""
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return "list" if any(isinstance(item, ast.Starred) for item in node.elts) else None
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr if function.attr in _FROM_MODULES else None
    return function.id if isinstance(function, ast.Name) else None


def _gone_through(node: ast.AST) -> ast.AST | None:
    """What ``list(xs)`` or ``[*xs]`` goes through."""
    if isinstance(node, ast.Call):
        return node.args[0] if node.args else None
    items = node.elts if isinstance(node, (ast.List, ast.Tuple, ast.Set)) else []
    return items[0].value if len(items) == 1 and isinstance(items[0], ast.Starred) else None


_GIVING = (ast.Return, ast.Expr)
"""Statements that hand a value on to the caller; of expressions those that `SourceTree.in_scope` gives: ``yield``."""


class Run(Protocol):
    """What is known of how the code around a statement ran."""

    def hands_on(self, call: ast.Call) -> int | None:
        """Index of the argument that a call returned as it was, or None."""

    def ran(self, statement: ast.AST) -> bool:
        """Whether something was recorded within a statement."""


class Binding:
    """What one statement binds a result to, and whether its function hands the result on to the caller."""

    def __init__(self, tree: SourceTree, node: ast.AST, position: Position, run: Run | None = None) -> None:
        self._tree = tree
        self._run = run
        self._node = node
        self._position = position
        self._names: list[str] = []
        self._holders: list[tuple[str, Position]] = []
        """What was bound, and where in it the result is: ``parts`` and (1,) for ``parts[1]``."""
        self.in_loop = False
        """Whether only the last round of a loop hands its value on (``for m in self: x = m(x)``, ``return x``)."""

    def resolve(self) -> tuple[list[str], Position | None]:
        """Names bound, and the position in the returned value (None when it is not returned)."""
        node = self._node
        if isinstance(node, ast.AugAssign):
            self._bind(node.target)
            return self._names, self._returned_later(node)
        loop = node.generators[0] if isinstance(node, COMPREHENSIONS) else node
        if isinstance(loop, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._bind(loop.target, self._position[1:])
            return self._names, None
        if isinstance(getattr(node, "ctx", None), ast.Store):
            return self._stored(node)
        return self._names, self._climb(node)

    def _stored(self, node: ast.AST) -> tuple[list[str], Position | None]:
        if isinstance(node, ast.Subscript):
            # ``y[0] = 0`` changes ``y``.
            self._names.append(self._tree.text(node.value))
        elif isinstance(node, (ast.Tuple, ast.List)):
            self._bind(node, self._position)
        return self._names, None

    def _climb(self, node: ast.AST) -> Position | None:
        current: ast.AST | None = node
        while current is not None:
            parent = self._tree.parents.get(current)
            if isinstance(parent, (ast.Return, ast.Lambda)):
                return self._position
            if isinstance(parent, ast.Yield):
                return (SOME_ITEM, *self._position)
            if isinstance(parent, (ast.Assign, ast.AnnAssign)):
                return self._assign(parent)
            if isinstance(parent, (ast.For, ast.comprehension)) and current is parent.iter:
                self._bind(parent.target, self._position[1:])
                return None
            current = parent if parent is not None and self._passes_through(current, parent) else None
        return None

    def _passes_through(self, node: ast.AST, parent: ast.AST) -> bool:
        """Whether the value of `parent` holds the value of `node`; moves the position along."""
        if isinstance(parent, ast.NamedExpr):
            self._bind(parent.target)
            return True
        if isinstance(parent, (ast.Tuple, ast.List)):
            if any(isinstance(element, ast.Starred) for element in parent.elts):
                return False
            self._position = (parent.elts.index(node), *self._position)  # type: ignore[arg-type]  # a child of it
            return True
        if isinstance(parent, ast.Subscript) and node is parent.value and isinstance(parent.slice, ast.Constant):
            if not self._position or parent.slice.value != self._position[0]:
                return False
            self._position = self._position[1:]
            return True
        if isinstance(parent, ast.IfExp):
            return node is not parent.test
        if isinstance(parent, ast.Call):
            # ``iter(x.unbind())``, as in Tensor.__iter__, and its like hold the same tensors in the same order.
            return isinstance(parent.func, ast.Name) and parent.func.id in _SAME_ITEMS and node in parent.args
        return isinstance(parent, (ast.BoolOp, ast.Await))

    def _assign(self, statement: ast.Assign | ast.AnnAssign) -> Position | None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            self._bind(target, self._position)
        return self._returned_later(statement)

    def _bind(self, target: ast.expr, position: Position = ()) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            if position and isinstance(position[0], int):
                element = _element(target.elts, position[0])
                if element is not None:
                    self._bind(element, position[1:])
            return
        if isinstance(target, ast.Attribute) and target.attr in _PARTS_OF_A_TENSOR:
            return
        # Python has folded compatibility characters of a plain name (NFKC), and it may be of any length.
        text = target.id if isinstance(target, ast.Name) else self._tree.text(target)
        self._names.append(text + "".join(SOME if step == SOME_ITEM else f"[{step!r}]" for step in position))
        self._holders.append((text, position))

    def _returned_later(self, statement: ast.stmt) -> Position | None:
        """Position in the return value when the name bound here is what the function returns."""
        scope = self._tree.scope_of(statement)
        if isinstance(scope, ast.Module) or not self._holders:
            return None
        found = self._tree.in_scope(scope)
        returns: list[ast.stmt] = sorted((n for n in found if isinstance(n, _GIVING)), key=_begins)
        for given in returns:
            if _begins(given) > _begins(statement):
                position = self._given_by(given, scope, statement)
                if position is not None:
                    return position
        return self._returned_by_another_name(scope, statement, returns)

    def _given_by(self, found: ast.stmt, scope: ast.AST, statement: ast.stmt) -> Position | None:
        """Position in what a return or yield hands on."""
        value: ast.expr | None = found.value  # type: ignore[attr-defined]  # one of `_GIVING`
        given = value.value if isinstance(value, ast.Yield) else value
        item = (SOME_ITEM,) if isinstance(value, ast.Yield) else ()
        for name, inside in self._holders:
            position = self._position_in(given, name)
            if position is not None and not self._rebound(scope, name, statement, found):
                self.in_loop = self._leaves_loop(statement, found)
                return (*item, *position, *inside)
        return None

    def _returned_by_another_name(
        self, scope: ast.AST, statement: ast.stmt, returns: list[ast.stmt]
    ) -> Position | None:
        """The same for what takes a part of it over: ``result = f()``, ``hidden = result[1]``, ``return 0, hidden``."""
        assigned = (node for node in self._tree.in_scope(scope) if isinstance(node, ast.Assign))
        for taken in sorted((node for node in assigned if _begins(node) > _begins(statement)), key=_begins):
            for name, inside in self._holders:
                part = _part(taken.value, name, inside)
                if part is None or self._rebound(scope, name, statement, taken) or len(taken.targets) > 1:
                    continue
                other = Binding(self._tree, taken, part, self._run)
                other._bind(taken.targets[0], part)
                later = [found for found in returns if _begins(found) > _begins(taken)]
                positions = {other._given_by(found, scope, taken) for found in later}
                if len(positions) == 1 and None not in positions:
                    self.in_loop = other.in_loop
                    return positions.pop()
        return None

    def _leaves_loop(self, inner: ast.stmt, outer: ast.stmt) -> bool:
        outside = set(self._tree.blocks_of(outer))
        loops = (ast.For, ast.While, ast.AsyncFor)
        return any(isinstance(block, loops) and block not in outside for block in self._tree.blocks_of(inner))

    def _position_in(self, value: ast.expr | None, name: str) -> Position | None:
        if value is None:
            return None
        if isinstance(value, ast.Tuple):
            texts = [self._tree.text(self._as_it_is(element)) for element in value.elts]
            return (texts.index(name),) if name in texts else None
        return () if self._tree.text(self._as_it_is(value)) == name else None

    def _as_it_is(self, value: ast.expr) -> ast.expr:
        """The argument that a call hands on as it is; else the value itself."""
        index = self._run.hands_on(value) if self._run is not None and isinstance(value, ast.Call) else None
        return value.args[index] if isinstance(value, ast.Call) and index is not None else value

    def _apart(self, one: ast.AST, other: ast.AST) -> bool:
        """Whether two statements stand in the two branches of an ``if``, so that only one of them runs."""
        ways = dict(self._branches(one))
        return any(ways.get(block, way) != way for block, way in self._branches(other))

    def _branches(self, node: ast.AST) -> Iterator[tuple[ast.If, bool]]:
        while (parent := self._tree.parents.get(node)) is not None:
            if isinstance(parent, ast.If):
                yield parent, node in parent.orelse
            node = parent

    def _has_run(self, statement: ast.stmt) -> bool:
        return self._run is not None and self._run.ran(statement)

    def _rebound(self, scope: ast.AST, name: str, after: ast.stmt, before: ast.stmt) -> bool:
        """Whether every way from `after` to `before` binds the name anew."""
        around = {*self._tree.blocks_of(before), *self._tree.blocks_of(after)}
        for node in self._tree.in_scope(scope):
            if isinstance(node, (ast.Assign, ast.AugAssign)) and _begins(after) < _begins(node) < _begins(before):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                always = around.issuperset(self._tree.blocks_of(node)) or self._has_run(node)
                if always and not self._apart(node, after) and any(self._tree.text(t) == name for t in targets):
                    return True
        return False


def _part(value: ast.expr, name: str, inside: Position) -> Position | None:
    """Where a result stands in ``name``, ``name[1]`` or ``name[1:]``, when it stands at `inside` in the whole."""
    if isinstance(value, ast.Name):
        return inside if value.id == name else None
    if not isinstance(value, ast.Subscript) or not isinstance(value.value, ast.Name) or value.value.id != name:
        return None
    first = inside[0] if inside else None
    if isinstance(value.slice, ast.Constant):
        return inside[1:] if inside and value.slice.value == first else None
    lower = value.slice.lower if isinstance(value.slice, ast.Slice) and value.slice.upper is None else None
    start = lower.value if isinstance(lower, ast.Constant) else None
    if isinstance(start, int) and isinstance(first, int) and 0 <= start <= first:
        return (first - start, *inside[1:])
    return None


def _element(elements: list[ast.expr], index: int) -> ast.expr | None:
    for place, element in enumerate(elements):
        if isinstance(element, ast.Starred):
            return None
        if place == index:
            return element
    return None


def _begins(statement: ast.stmt) -> tuple[int, int]:
    return statement.lineno, statement.col_offset
