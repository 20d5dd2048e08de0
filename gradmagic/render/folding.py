"""Rows inside modules, folded by the path of the module, so that a deep model reads at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..records import TensorRow

FLAT = 40
"""Up to so many rows stand one by one, and so many lines at most are what a depth is chosen for: a screen or two."""
MOST_FLAGGED = 12
"""So many rows stay outside of the folds because something is to be said of them."""


@dataclass(frozen=True, slots=True)
class Fold:
    """What one module made, and its parameters: a line of the table.

    Attributes:
        path: the module's path.
        type_name: its class, where one of the rows tells it.
        rows: its rows, in order of execution.
    """

    path: str
    type_name: str | None
    rows: tuple[TensorRow, ...]


Item = TensorRow | Fold


def rows_of(item: Item) -> Sequence[TensorRow]:
    """The rows of a fold; a row by itself."""
    return item.rows if isinstance(item, Fold) else (item,)


_Parts = tuple[str, ...]
"""The path of a module, part by part."""


def folded(rows: Sequence[TensorRow], depth: int | None, flagged: Collection[int]) -> list[Item]:
    """The rows, those of a module as one `Fold` where its first stands.

    Args:
        rows: those to show, in order of execution.
        depth: how far modules are opened: 0 folds each model, 1 the modules in it... None folds nothing of a short
            table, and opens the others as far as `FLAT` lines allow, modules side by side all or none.
        flagged: ``id`` of the rows that stay outside, if they are few.
    """
    if depth is None and len(rows) <= FLAT:
        return list(rows)
    outside = flagged if len(flagged) <= MOST_FLAGGED else ()
    every = [_parts(row) for row in rows]
    inside = Counter(path[:end] for path in every for end in range(1, len(path) + 1))
    paths = [path if id(row) not in outside else () for path, row in zip(every, rows, strict=True)]
    if depth is not None:
        return _items(rows, paths, frozenset(path for path in inside if len(path) <= depth))
    return _opened(rows, paths, inside)


def _opened(rows: Sequence[TensorRow], paths: Sequence[_Parts], inside: Mapping[_Parts, int]) -> list[Item]:
    """Opens what has room, level by level, and on each level first what holds most rows."""
    opened: frozenset[_Parts] = frozenset()
    pending: list[frozenset[_Parts]] = [frozenset({path}) for path in inside if len(path) == 1]
    items = _items(rows, paths, opened)
    while pending:
        siblings = min(pending, key=lambda group: (len(min(group)), -sum(map(inside.__getitem__, group)), min(group)))
        pending.remove(siblings)
        further = _items(rows, paths, opened | siblings)
        if len(further) <= FLAT:
            opened, items = opened | siblings, further
            children = (frozenset(each for each in inside if each[:-1] == path) for path in siblings)
            pending += [group for group in children if group]
    return items


def _items(rows: Sequence[TensorRow], paths: Sequence[_Parts], opened: Collection[_Parts]) -> list[Item]:
    """The rows; those of one module that is not opened are one item. Rows without a path stay by themselves."""
    heads = [_head(path, opened) for path in paths]
    groups: dict[_Parts, list[TensorRow]] = {}
    for head, row in zip(heads, rows, strict=True):
        groups.setdefault(head, []).append(row)
    items: list[Item] = []
    for head, row in zip(heads, rows, strict=True):
        group = groups.get(head, [])
        if not head or len(group) == 1:
            items.append(row)
        elif group:
            items.append(Fold(".".join(head), _type_of(head, group), tuple(group)))
            groups[head] = []
    return items


def _parts(row: TensorRow) -> _Parts:
    """The path of a row's module; that of a parameter nobody used is in its name."""
    path = row.module or (row.name.rpartition(".")[0] if row.kind == "parameter" and row.name else "")
    return tuple(path.split(".")) if path else ()


def _head(parts: _Parts, opened: Collection[_Parts]) -> _Parts:
    """The path that a module is folded under: the outermost that is not opened; empty where all are."""
    return next((parts[:end] for end in range(1, len(parts) + 1) if parts[:end] not in opened), ())


def _type_of(path: _Parts, rows: Sequence[TensorRow]) -> str | None:
    return next((row.module_type for row in rows if _parts(row) == path), None)
