"""The few characters that stand for something."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import Severity

SIGNS: dict[Severity, str] = {"error": "✖", "warning": "▲", "info": "●"}
"""The mark of a finding, which tells its severity without colour too."""

FOLD = "▸ "
"""Before what stands for several rows."""

SPARKS = "▁▂▃▄▅▆▇█"
"""Heights of a sparkline, lowest first."""


def spark_text(levels: Sequence[int | None]) -> str:
    """A sparkline; what is not finite is an exclamation mark."""
    return "".join("!" if level is None else SPARKS[level] for level in levels)
