"""The few characters that stand for something."""

from __future__ import annotations

from ..records import Severity

SIGNS: dict[Severity, str] = {"error": "✖", "warning": "▲", "info": "●"}
"""The mark of a finding, which tells its severity without colour too."""

FOLD = "▸ "
"""Before what stands for several rows."""

SPARKS = "▁▂▃▄▅▆▇█"
"""Heights of a sparkline, lowest first."""
