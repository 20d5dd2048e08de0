"""Numbers as a person reads them: three significant digits, short enough for a column."""

from __future__ import annotations

import math

MINUTE = 60.0


def short(value: float, digits: int = 3) -> str:
    """``0``, ``1.0``, ``0.412``, ``-3.04e-5``: `digits` significant digits, fewer when they are the value."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if not -3 < power < 4:
        return f"{mantissa}e{power}"
    return _trimmed(f"{value:.{max(digits - 1 - power, 0)}f}", value)


def _trimmed(text: str, value: float) -> str:
    """Drops trailing zeros where the text is the value itself: 1.0 is one, and 1.00 is about one."""
    if float(text) != value:
        return text
    if "." not in text:
        return text if abs(value) >= 1000 else f"{text}.0"
    text = text.rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def short_complex(value: float | complex) -> str:
    """Like `short`, with ``+2.0j`` behind the real part of a complex number."""
    if not isinstance(value, complex):
        return short(value)
    imaginary = short(value.imag)
    sign = "" if imaginary.startswith("-") else "+"
    return f"{short(value.real)}{sign}{imaginary}j"


def values(elements: tuple[float | complex, ...], shape: tuple[int, ...]) -> str:
    """The elements of a small tensor: the bare number for a scalar, else a flat list."""
    if shape == () and len(elements) == 1:
        return short_complex(elements[0])
    return f"[{', '.join(map(short_complex, elements))}]"


def percent(fraction: float) -> str:
    """``0 %`` and ``100 %`` are exact; what only rounds to them is ``<1 %`` and ``>99 %``."""
    if math.isnan(fraction):
        return ""
    if 0 < fraction < 0.01:
        return "<1 %"
    if 0.99 < fraction < 1:
        return ">99 %"
    return f"{fraction * 100:.0f} %"


def duration(seconds: float) -> str:
    """``812 µs``, ``3.1 ms``, ``1.2 s`` or ``2 min 5 s``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.{1 if seconds < 0.0995 else 0}f} ms"
    if seconds < MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def shape_text(shape: tuple[int, ...]) -> str:
    """``50×8×32``, or ``scalar``."""
    return "×".join(map(str, shape)) if shape else "scalar"


def plural(count: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
