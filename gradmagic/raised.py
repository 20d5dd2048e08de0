"""An exception in words, whatever it is: one of the person's own may refuse to be put into any."""

from __future__ import annotations

_BRIEF = 300


def told(error: BaseException) -> str:
    """``ValueError: text``; only the class where its ``__str__`` fails."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception:  # noqa: BLE001 - the person's own __str__
        return f"{kind} (its text cannot be shown)"


def told_briefly(error: BaseException) -> str:
    """Like `told`, fit for a terminal: one line of at most 300 characters, what cannot be printed spelled out."""
    text = told(error)
    text = text if len(text) <= _BRIEF else f"{text[: _BRIEF - 1]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
