"""Which row of a report is which of an earlier one: by name, code and occurrence, also where the code was edited."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from itertools import pairwise

from .records import TensorRow

_IDENTIFIER = re.compile(r"(?<![\w.])[^\W\d]\w*")
"""A name that is no attribute."""
_ROUNDS = 8
"""So many times, names that were found to have changed lead to further ones."""
_Key = Callable[[TensorRow], Hashable]


def matched(before: Sequence[TensorRow], after: Sequence[TensorRow]) -> dict[int, int]:
    """Index into `before` for each index into `after` that has a counterpart there.

    What is certain goes first: the same name made by the same code; then the same name; then the same code under
    another name, and what else the renamed variables make alike; at last, what stands between two that match and was
    made by an operation of which there are as many in both. Of several that are alike, the first is matched with the
    first, and so on.
    """
    found = _Matches(before, after)
    for key in (_name_and_statement, _name_and_code, _name_and_module):
        found.pair(key)
    for _ in range(_ROUNDS):
        if not found.pair_renamed():
            break
    found.pair_between()
    return found.pairs


class _Matches:
    """The pairs found so far."""

    def __init__(self, before: Sequence[TensorRow], after: Sequence[TensorRow]) -> None:
        self._before = before
        self._after = after
        self.pairs: dict[int, int] = {}
        self._taken: set[int] = set()

    def pair(self, key: _Key, old_key: _Key | None = None, *, evident: bool = False) -> int:
        """Pair those with the same key, in order; returns how many.

        `evident` pairs only what neither report has more of than the other. `old_key` is the key of the earlier rows.
        """
        olds = _grouped(self._before, range(len(self._before)), self._taken, old_key or key)
        news = _grouped(self._after, range(len(self._after)), self.pairs, key)
        count = len(self.pairs)
        for value, indices in news.items():
            others = olds.get(value, [])
            if not evident or len(others) == len(indices):
                self._take(zip(indices, others, strict=False))
        return len(self.pairs) - count

    def pair_renamed(self) -> int:
        """Pair what is the same code once the variables have their new names."""
        names = self._renamed()

        def renamed(row: TensorRow) -> Hashable:
            expression = _with_names(row.expression, names)
            return expression, row.op, row.kind, _with_names(row.module or "", names)

        def as_is(row: TensorRow) -> Hashable:
            return row.expression, row.op, row.kind, row.module or ""

        return self.pair(as_is, renamed, evident=True) + self.pair(_path_in_model, evident=True)

    def _renamed(self) -> dict[str, str]:
        """New names of variables by their old ones, from the rows that are matched."""
        names: dict[str, str] = {}
        for new, old in self.pairs.items():
            after, before = self._after[new].name, self._before[old].name
            if after and before and after != before:
                names[before.partition(".")[0]] = after.partition(".")[0]
        return names

    def pair_between(self) -> None:
        """Pair what stands between two that match, where neither report has more of its operation there."""
        if not self.pairs:  # two cells that have nothing in common
            return
        ends = sorted([(-1, -1), *self.pairs.items(), (len(self._after), len(self._before))])
        for (new, old), (next_new, next_old) in pairwise(ends):
            news = _grouped(self._after, range(new + 1, next_new), self.pairs, _operation)
            olds = _grouped(self._before, range(old + 1, next_old), self._taken, _operation)
            for made, indices in news.items():
                if len(others := olds.get(made, [])) == len(indices):
                    self._take(zip(indices, others, strict=True))

    def _take(self, pairs: Iterable[tuple[int, int]]) -> None:
        for new, old in pairs:
            self.pairs[new] = old
            self._taken.add(old)


def _grouped(rows: Sequence[TensorRow], span: range, taken: Collection[int], key: _Key) -> dict[Hashable, list[int]]:
    """Those within a span that are not taken, by their key; None is no key."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index in span:
        if index not in taken and (value := key(rows[index])) is not None:
            groups[value].append(index)
    return groups


def _name_and_statement(row: TensorRow) -> Hashable:
    return row.name, row.expression, row.location.statement, row.op, row.module, row.kind


def _name_and_code(row: TensorRow) -> Hashable:
    return row.name, row.expression, row.op, row.module


def _name_and_module(row: TensorRow) -> Hashable:
    return (row.name, row.module) if row.name is not None else None


def _path_in_model(row: TensorRow) -> Hashable:
    """For a parameter: where it is in its model, whatever the model's variable is called."""
    if row.kind != "parameter" or row.name is None or "." not in row.name:
        return None
    return row.name.partition(".")[2], row.module_type, row.shape


def _operation(row: TensorRow) -> Hashable:
    return row.op, row.kind, row.module_type


def _with_names(text: str, names: dict[str, str]) -> str:
    return _IDENTIFIER.sub(lambda found: names.get(found[0], found[0]), text)
