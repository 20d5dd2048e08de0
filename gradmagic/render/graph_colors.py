"""The colours of a graph, on the white that a drawing brings along: lines have a contrast of at least 3:1."""

from __future__ import annotations

from types import MappingProxyType

FILLS = MappingProxyType(
    {
        "parameter": "#fff3e0",
        "leaf": "#fff8ee",
        "non-leaf": "#eef5fd",
        "constant": "#f6f8fa",
        "module": "#e6eefc",
    }
)
STROKES = MappingProxyType(
    {"flows": "#57606a", "zero": "#9a6700", "not finite": "#b3261e", "none": "#b3261e", "quiet": "#818b95"}
)
ALARM = "#b3261e"
NO_GRADIENT = "#818b95"
_WEAK, _STRONG = (90, 150, 215), (5, 60, 130)


def edge_color(share: float | None, norm: str) -> str:
    """From a light blue for the smallest norm to a dark one for the largest; red for one that is not finite."""
    if share is None:
        return NO_GRADIENT
    if norm in ("NaN", "inf"):
        return ALARM
    return "#" + "".join(
        f"{round(weak + (strong - weak) * share):02x}" for weak, strong in zip(_WEAK, _STRONG, strict=True)
    )
