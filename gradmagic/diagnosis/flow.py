"""How values went from row to row: who used what, and where the way to the root is cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from .facts import RowFacts

_ON_THE_WAY_OUT = frozenset({"detach", "cpu", "to", "float", "double", "contiguous", "squeeze", "flatten", "clone"})


class Flow:
    """The rows as a graph of values, with or without a gradient."""

    def __init__(self, rows: Sequence[RowFacts]) -> None:
        self.rows = rows
        self.consumers: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            for parent in row.parents:
                self.consumers.setdefault(parent, []).append(index)
        self._upstream: dict[int, set[int]] = {}

    def upstream(self, root: int) -> set[int]:
        """Every row whose values went into a row, and that row itself."""
        if root not in self._upstream:
            self._upstream[root] = upstream_of(self.rows, root)
        return self._upstream[root]

    def downstream(self, start: int) -> Iterator[int]:
        """Every row that a row's values went into, the nearest first."""
        return _spread(start, lambda row: self.consumers.get(row, ()))

    def cut_between(self, start: int, root: int) -> int | None:
        """The first row after `start`, on the way of its values to the root, that lets no gradient through."""
        upstream = self.upstream(root)
        open_ways = _spread(
            start, lambda row: () if self.rows[row].severed and row != start else self.consumers.get(row, ())
        )
        cut = next((row for row in open_ways if row in upstream and self.rows[row].severed), None)
        return self._way_out(cut) if cut is not None else None

    def cut_above(self, root: int) -> int | None:
        """The cut that is nearest to a root without a graph."""
        if self.rows[root].severed:
            return root
        above = _spread(root, lambda row: self.rows[row].parents)
        cut = next((row for row in above if self.rows[row].severed), None)
        return self._way_out(cut) if cut is not None else None

    def _way_out(self, cut: int) -> int:
        """``x.detach().cpu().numpy()`` is one way out of torch: its end is to blame, not the ``detach`` that it takes."""
        current = cut
        while self.rows[current].op in _ON_THE_WAY_OUT:
            users = self.consumers.get(current, ())
            if len(users) != 1:
                return cut
            current = users[0]
        return current if self.rows[current].leaves_torch else cut

    def last_with_graph(self, cut: int) -> int | None:
        """The tensor that brought a graph to a cut: the last that has a name, if any has. A leaf has no graph."""
        start = cut
        while self.rows[start].leaves_torch and len(self.rows[start].parents) == 1:
            parent = self.rows[start].parents[0]
            if self.rows[parent].kind != "constant":
                break
            start = parent
        above = [row for row in self.rows[start].parents if self.rows[row].kind == "non-leaf"]
        named = [row for row in above if self.rows[row].name]
        return max(named or above, default=None)


def upstream_of(rows: Sequence[RowFacts], root: int) -> set[int]:
    """Every row whose values went into a row, and that row itself."""
    return {root, *_spread(root, lambda row: rows[row].parents)}


def _spread(start: int, step: Callable[[int], Sequence[int]]) -> Iterator[int]:
    """All that can be reached from a row, breadth first, without the row itself."""
    seen = {start}
    pending = deque(sorted(step(start)))
    while pending:
        row = pending.popleft()
        if row in seen:
            continue
        seen.add(row)
        yield row
        pending.extend(sorted(step(row)))
