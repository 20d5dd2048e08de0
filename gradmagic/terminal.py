"""What a stream of text can show."""

from __future__ import annotations

import os
from typing import TextIO

_WIDTH = 100
"""Where there is no terminal."""


def allows_color() -> bool:
    """Whether the environment leaves colours on; see https://no-color.org."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_ascii_only(stream: TextIO) -> bool:
    """Whether it cannot show Unicode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return not encoding.lower().replace("_", "-").startswith("utf")


def width_of(stream: TextIO) -> int:
    """Columns of the terminal behind it; ``COLUMNS`` decides where it is set, and without a terminal it is 100."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _WIDTH
    except (OSError, ValueError):  # no terminal, or no file at all
        return _WIDTH
