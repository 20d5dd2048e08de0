"""Real cells: every contender's time and memory, compared with the plain cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .loads import Load
from .memory import peak
from .table import Table, megabytes, milliseconds, times
from .turns import How, Spread, ratio, seconds

_CONTENDERS = ("plain", "floor", "by hand", "gradtrace")
_MEASURED = ("plain", "by hand", "gradtrace")
_COLUMNS = ("load", "plain", "floor: a mode that does nothing", "by hand", "gradtrace", *_MEASURED)
_BELOW = ("hooks", "reductions", "gradtrace")
_PEAKS = 5
"""So many processes: by chance the allocator takes twice the memory in some, for the plain cell of W1 and W5 too."""


def whole_cells(loads: Sequence[Load], how: How) -> Table:
    """The table of all loads."""
    table = Table(
        "Time as a ratio to the plain cell; peak memory beyond the least of it: median (least to largest)",
        _COLUMNS,
    )
    for load in loads:
        found, peaks = seconds(load, _CONTENDERS, how), _peaks(load)
        _add(table, load, found, peaks)
    return table


def _peaks(load: Load) -> dict[str, list[float]]:
    """Bytes beyond the least of the plain cell."""
    found = {}
    for name in _MEASURED:
        measured = [peak(load, name) for _ in range(_PEAKS)]
        found[name] = [number for number in measured if number is not None]
    base = min(found["plain"], default=0.0)
    return {name: [number - base for number in numbers] for name, numbers in found.items()}


def _add(table: Table, load: Load, found: dict[str, list[float]], peaks: Mapping[str, Sequence[float]]) -> None:
    extra = {name: Spread.of(numbers) if numbers else None for name, numbers in peaks.items()}
    table.rows.append(
        [
            f"{load.key} {load.title}",
            milliseconds(Spread.of(found["plain"])),
            *(times(ratio(found, name)) for name in _CONTENDERS[1:]),
            *(megabytes(extra[name]) for name in _MEASURED),
        ]
    )
    about = {"load": load.key, "sizes": dict(load.sizes), "device": load.device, "dtype": load.dtype}
    table.data.append({**about, "seconds": found, "bytes beyond plain": dict(peaks)})


def numbers_alone(loads: Sequence[Load], how: How) -> Table:
    """What lies below any tracer that is exact: to be told of each gradient, and then to take the table's five numbers.

    Neither names anything, nor explains anything.
    """
    columns = ("load", "a hook on each gradient", "the numbers alone", "gradtrace")
    table = Table("What lies below, as a ratio to the plain cell", columns)
    for load in loads:
        found = seconds(load, ("plain", *_BELOW), how)
        table.rows.append([load.key, *(times(ratio(found, name)) for name in _BELOW)])
        table.data.append({"load": load.key, "seconds": found})
    return table


def untraced(load: Load, how: How) -> Table:
    """What a cell without the magic costs once the extension is loaded: nothing, but for noise.

    It is compared with the same cell in a shell that has not loaded it, whose objects garbage collection goes through
    too.
    """
    table = Table("A cell without the magic, after %load_ext gradmagic and a traced cell", ("load", "ratio to plain"))
    found = seconds(load, ("in a shell", "untraced"), how)
    table.rows.append([load.key, times(ratio(found, "untraced", to="in a shell"))])
    table.data.append({"load": load.key, "seconds": found})
    return table
