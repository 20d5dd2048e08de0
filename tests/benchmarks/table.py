"""What a section of the benchmark found, as Markdown and as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .turns import Spread


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what was measured.
        columns: their heads.
        rows: their cells, as text.
        data: the same as numbers, in SI units.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    data: list[dict[str, object]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table as README has tables."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def times(spread: Spread) -> str:
    """A ratio: ``1.52x (1.40 to 1.61)``."""
    return f"{spread.median:.2f}x ({spread.least:.2f} to {spread.largest:.2f})"


def milliseconds(spread: Spread) -> str:
    """A duration in ms: ``12.3 ms (11.9 to 14.0)``."""
    median, least, largest = (f"{number * 1e3:.3g}" for number in (spread.median, spread.least, spread.largest))
    return f"{median} ms ({least} to {largest})"


def megabytes(spread: Spread | None) -> str:
    """A difference in memory: ``+12 MB (+9 to +15)``."""
    if spread is None:
        return "–"
    median, least, largest = (f"{number / 1e6:+.0f}" for number in (spread.median, spread.least, spread.largest))
    return f"{median} MB ({least} to {largest})"
