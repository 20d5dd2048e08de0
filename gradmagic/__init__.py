"""Gradients of every tensor in a notebook cell: ``%load_ext gradmagic``, then ``%%gradtrace``."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from .asserting import TracedCall
    from .checks import GradientCheck, GradientChecks
    from .comparison import Comparison, GradChange, RootChange
    from .curves import Curve, CurvePoint, GradPoint, GradSeries, PassSummary
    from .decorating import traced
    from .records import (
        BackwardPass,
        Finding,
        GradStats,
        InnerStep,
        LedgerEntry,
        Location,
        Source,
        TensorRow,
        Thresholds,
    )
    from .render.graph import TensorGraph
    from .report import FindingsError, Report, ReportOptions
    from .tracing import trace

    __version__: str

__all__ = [
    "BackwardPass",
    "Comparison",
    "Curve",
    "CurvePoint",
    "Finding",
    "FindingsError",
    "GradChange",
    "GradPoint",
    "GradSeries",
    "GradStats",
    "GradientCheck",
    "GradientChecks",
    "InnerStep",
    "LedgerEntry",
    "Location",
    "PassSummary",
    "Report",
    "ReportOptions",
    "RootChange",
    "Source",
    "TensorGraph",
    "TensorRow",
    "Thresholds",
    "TracedCall",
    "__version__",
    "load_ipython_extension",
    "trace",
    "traced",
    "unload_ipython_extension",
]

_HOMES = MappingProxyType(
    {"trace": "tracing", "traced": "decorating", "Report": "report", "ReportOptions": "report"}
    | {"FindingsError": "report", "TensorGraph": "render.graph", "TracedCall": "asserting"}
    | dict.fromkeys(
        (
            "BackwardPass",
            "Finding",
            "GradStats",
            "InnerStep",
            "LedgerEntry",
            "Location",
            "Source",
            "TensorRow",
            "Thresholds",
        ),
        "records",
    )
    | dict.fromkeys(("GradientCheck", "GradientChecks"), "checks")
    | dict.fromkeys(("Comparison", "GradChange", "RootChange"), "comparison")
    | dict.fromkeys(("Curve", "CurvePoint", "GradPoint", "GradSeries", "PassSummary"), "curves")
)
"""Where each public name lives. They are imported on first use, so that loading the extension stays light."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import, and seldom asked for

        return version("gradmagic")
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Registers ``%%gradtrace`` and ``%gradtrace``; called by ``%load_ext gradmagic``."""
    from .magic import register  # a plain `import gradmagic` needs no IPython

    register(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Takes the magics out again; called by ``%unload_ext gradmagic``."""
    from .magic import unregister  # a plain `import gradmagic` needs no IPython

    unregister(shell)
