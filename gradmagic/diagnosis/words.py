"""How findings speak of rows and lines: in the person's own names and source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..records import Location
from .facts import RowFacts

_SHORT = 72
_NAMED = 4
_ASSIGNS = re.compile(r"[\w.\[\]'\", :]+?\s*([-+*/@%&|^]|//|\*\*|<<|>>)?=[^=]")


def source_of(row: RowFacts) -> str:
    """The statement that bound the row to its name, when it is short; else the expression that made it."""
    if _inside_a_module(row):
        return row.module or ""
    return source_at(row.location, bound=row.name is not None) or row.label


def source_at(location: Location, bound: bool = True) -> str:
    """The statement at a place, when it is short and assigns something; else the expression there."""
    statement = location.statement
    if bound and 0 < len(statement) <= _SHORT and _ASSIGNS.match(statement):
        return statement
    text = location.text
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _inside_a_module(row: RowFacts) -> bool:
    """Whether the row has no name, and its line says less than the path of the module: ``net.1`` for ``net(x)``."""
    called = row.location.text.startswith(f"{row.module}(")
    return row.name is None and row.module is not None and row.by_library and not called


def quoted(row: RowFacts) -> str:
    r"""``\\`codes = z.argmax(-1)\\` (line 7)``."""
    return f"`{source_of(row)}` ({row.location})"


def named(row: RowFacts) -> str:
    r"""``\\`z\\` (line 6)``; a row that was there before the cell has no line worth naming."""
    label = row.module or "" if _inside_a_module(row) else row.label
    label = label if len(label) <= _SHORT else label[: _SHORT - 1] + "…"
    return f"`{label}`" if row.adopted or not row.location.line else f"`{label}` ({row.location})"


def listed(labels: Iterable[str], most: int = _NAMED) -> str:
    r"""``\\`a\\`, \\`b\\` and \\`c\\```; what is too much is counted."""
    words = [f"`{label}`" for label in dict.fromkeys(labels)]
    if len(words) > most + 1:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return joined(words)


def joined(words: Sequence[str]) -> str:
    """``a, b and c``."""
    *first, last = words or [""]
    return f"{', '.join(first)} and {last}" if first else last


def by_module(rows: Sequence[RowFacts]) -> str:
    r"""All names where they are few; else parameters listed together, by module: ``\\`head\\` (weight, bias)``."""
    if len(rows) <= _NAMED:
        return listed(row.label for row in rows)
    groups: dict[str, list[str]] = {}
    loose = []
    for row in rows:
        module, _, last = row.label.rpartition(".")
        if row.kind == "parameter" and module:
            groups.setdefault(module, []).append(last)
        else:
            loose.append(row.label)
    words = [f"`{module}` ({', '.join(names)})" for module, names in groups.items()]
    words = [listed(loose), *words] if loose else words
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED + 1 else ""
    return ", ".join(words[:_NAMED] if more else words) + more


def number(value: float) -> str:
    """Two significant digits: ``0.21``, ``3.4e-09``."""
    return f"{value:.2g}"


def times(factor: float) -> str:
    """``2,500 times``; a power of ten from a million on."""
    return f"{factor:,.0f} times" if factor < 1e6 else f"{factor:.0e} times".replace("e+0", "e").replace("e+", "e")


def shape_text(shape: tuple[int, ...]) -> str:
    """``8×64``, or ``scalar``."""
    return "×".join(map(str, shape)) if shape else "scalar"
