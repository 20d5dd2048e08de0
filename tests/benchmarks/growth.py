"""How cost grows: with operations, with rows, with the depth of the graph."""

from __future__ import annotations

from collections.abc import Sequence

from .loads import Load
from .table import Table, milliseconds, times
from .turns import How, Spread, ratio, seconds

_ONE = "x, w = torch.ones(64, requires_grad=True), torch.ones(64, requires_grad=True)\n"
_CHAINS = """
ends = []
for _ in range(chains):
    h = x
    for _ in range(length):
        h = h * w
    ends.append(h)
loss = torch.stack(ends).sum()
loss.backward()
"""
_DEEP = """
h = x
for _ in range(nodes):
    h = h * w
loss = h.sum()
loss.backward()
"""

_FEWEST = 2
"""A loop that runs once makes a row of another kind, without a series."""


def operations(counts: Sequence[int], how: How) -> Table:
    """Microseconds that tracing adds to an operation.

    Chains of at most 100 operations side by side, so that only their number grows. What it costs to trace a loop of
    two is subtracted: that is paid once.
    """
    table = Table(
        "Growth with operations", ("operations", "plain, µs an operation", "added by tracing, µs an operation")
    )
    empty = _added(_chains(_FEWEST), how)[1]
    for count in counts:
        plain, added = _added(_chains(count), how)
        table.rows.append(
            [f"{count:,}", f"{plain / count * 1e6:.1f}", f"{(added - empty) / (count - _FEWEST) * 1e6:.1f}"]
        )
        table.data.append({"operations": count, "plain seconds": plain, "added seconds": added, "empty": empty})
    table.rows.append(["paid once", "", f"{empty * 1e3:.2f} ms"])
    return table


def _chains(count: int) -> Load:
    length = min(count, 100)
    return Load(f"{count} operations", "", _ONE, _CHAINS, {"chains": count // length, "length": length})


def _added(load: Load, how: How) -> tuple[float, float]:
    few = max(load.sizes.values()) < 100
    found = seconds(load, ("plain", "gradtrace"), How(20 * how.rounds if few else how.rounds, how.clock))
    plain, traced = Spread.of(found["plain"]).median, Spread.of(found["gradtrace"]).median
    return plain, traced - plain


def straight(rows: int, loops: int = 1, key: str = "") -> Load:
    """A cell with so many rows, each of which occurs so often; it ends with backward."""
    body = "".join(f"    h{row} = h{row - 1} * w\n" for row in range(1, rows))
    cell = f"ends = []\nfor _ in range(loops):\n    h0 = x * w\n{body}    ends.append(h{rows - 1}.sum())\n"
    cell += "loss = torch.stack(ends).sum()\nloss.backward()\n"
    return Load(key or f"{rows:,} rows, {loops:,} times", "", _ONE, cell, {"loops": loops})


def reports(shapes: Sequence[tuple[int, int]], how: How) -> Table:
    """What the report itself costs, after the cell: by rows and by occurrences."""
    table = Table("The report alone", ("rows", "occurrences of each", "seconds after the cell"))
    for rows, loops in shapes:
        found = seconds(straight(rows, loops), ("report",), how)["report"]
        table.rows.append([f"{rows:,}", f"{loops:,}", milliseconds(Spread.of(found))])
        table.data.append({"rows": rows, "occurrences": loops, "seconds": found})
    return table


def extremes(nodes: int, rows: int, how: How) -> Table:
    """A deep graph and a wide cell."""
    table = Table("A deep graph and a wide cell", ("cell", "plain", "gradtrace", "ratio to plain"))
    deep = Load(f"one chain of {nodes:,} nodes", "", _ONE, _DEEP, {"nodes": nodes})
    for load in (deep, straight(rows, key=f"{rows:,} rows")):
        found = seconds(load, ("plain", "gradtrace"), how)
        spreads = [milliseconds(Spread.of(found[name])) for name in ("plain", "gradtrace")]
        table.rows.append([load.key, *spreads, times(ratio(found, "gradtrace"))])
        table.data.append({"cell": load.key, "seconds": found})
    return table


def rendering(loads: Sequence[Load], how: How) -> Table:
    """The report as HTML and as text; the first time in a process, which imports what draws, is left out."""
    table = Table("Rendering", ("cell", "HTML", "text"))
    for load in loads:
        found = seconds(load, ("HTML", "text"), how)
        table.rows.append([load.key, *(milliseconds(Spread.of(found[name])) for name in ("HTML", "text"))])
        table.data.append({"cell": load.key, "seconds": found})
    return table
