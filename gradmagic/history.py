"""The cells that ran before this one: where a name was bound, and from what. No torch here."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .records import Location
from .source_tree import SourceTree, walk_scope

_LOOKED_AT = 500
"""So many cells are looked at, the newest first."""


@dataclass(frozen=True, slots=True)
class EarlierCell:
    """A cell that has run: its execution count and its source."""

    number: int
    source: str


@dataclass(frozen=True, slots=True)
class EarlierBinding:
    """Where an earlier cell bound a name last, and the names that went into the value."""

    location: Location
    number: int
    uses: frozenset[str]

    @property
    def order(self) -> tuple[int, int]:
        """Bindings in the order in which they ran."""
        return self.number, self.location.line


class History:
    """The earlier cells; they are only read and parsed when somebody asks."""

    def __init__(self, cells: Callable[[], Sequence[EarlierCell]]) -> None:
        """Prepare; `cells` gives the earlier cells, the oldest first."""
        self._cells = cells
        self._bindings: dict[str, EarlierBinding] | None = None

    def binding(self, name: str) -> EarlierBinding | None:
        """The last binding of a name at the top level of an earlier cell, or None."""
        if self._bindings is None:
            self._bindings = {}
            for cell in self._cells()[-_LOOKED_AT:]:
                for bound, binding in _bindings_of(cell):
                    self._bindings[bound] = binding
        return self._bindings.get(name)


def _bindings_of(cell: EarlierCell) -> Iterator[tuple[str, EarlierBinding]]:
    tree = SourceTree.parse(cell.source.splitlines(keepends=True))
    if tree is None:
        return
    statements = [node for node in walk_scope(tree.tree) if isinstance(node, (ast.Assign, ast.AnnAssign))]
    for node in sorted(statements, key=lambda node: node.lineno):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None:
            continue
        text = tree.text(node)
        location = Location(f"In [{cell.number}]", tree.line_of(node), cell=cell.number, text=text, statement=text)
        uses = frozenset(found.id for found in ast.walk(node.value) if isinstance(found, ast.Name))
        for target in targets:
            names = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
            for name in names:
                if isinstance(name, ast.Name):
                    yield name.id, EarlierBinding(location, cell.number, uses)
