"""A report that is drawn over itself in the terminal while the cell runs, by rich."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..report import Report
from .text import render_text


class TerminalLive:
    """One place in the terminal. What the cell prints meanwhile goes above it."""

    def __init__(self, width: int, color: bool, ascii_only: bool) -> None:
        """Prepare; see `render_text` for the arguments."""
        self._width = width
        self._color = color
        self._ascii_only = ascii_only
        self._live: Live | None = None

    def show(self, report: Report) -> None:
        """Draw the report in place of the one before."""
        text = render_text(report, self._width, self._color, self._ascii_only)
        if self._live is None:
            console = Console(file=sys.stdout, width=self._width, no_color=not self._color, highlight=False)
            self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
            self._live.start()
        self._live.update(Text.from_ansi(text), refresh=True)

    def close(self) -> None:
        """Take it off the screen; stdout is as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
