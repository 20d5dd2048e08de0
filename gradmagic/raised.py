"""An exception in words, whatever it is: one of the person's own may refuse to be put into any."""

from __future__ import annotations


def told(error: BaseException) -> str:
    """``ValueError: text``; only the class where its ``__str__`` fails."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception:  # noqa: BLE001 - the person's own __str__
        return f"{kind} (its text cannot be shown)"
