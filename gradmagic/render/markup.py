"""Styled text that both renderers understand, and the cleaning every string of the person's goes through."""

from __future__ import annotations

import ast
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Style = Literal["plain", "strong", "name", "code", "dim", "error", "warning"]

BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that reorder the text around them (CVE-2021-42574)."""

BREAKS = frozenset("\u2028\u2029")


@dataclass(frozen=True, slots=True)
class Span:
    """Text in one style."""

    text: str
    style: Style = "plain"


Line = tuple[Span, ...]


def clean(text: str) -> str:
    r"""`text` on one line, with control, bidi and unpaired surrogate characters spelled out (``\\x1b``)."""
    return _spelled_out(" ".join(text.split("\n")).replace("\t", " ")) if _suspect(text) else text


def clean_block(text: str) -> str:
    """Like `clean`, and keeps the line breaks."""
    lines = text.expandtabs(4).replace("\r\n", "\n").split("\n")
    return "\n".join(_spelled_out(line.rstrip()) if _suspect(line) else line.rstrip() for line in lines).strip("\n")


def marked_up(text: str, style: Style = "plain") -> Line:
    """Splits at backticks: what stands between two of them is code."""
    parts = clean(text).split("`")
    if len(parts) % 2 == 0:
        parts[-2:] = ["`".join(parts[-2:])]
    return tuple(Span(part, "code" if i % 2 else style) for i, part in enumerate(parts) if part)


def is_code(text: str) -> bool:
    """True when `text` is Python and no sentence: it parses, and holds a call, ``=`` or ``.``."""
    if "`" in text or not re.search(r"[=(.]", text):
        return False
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def plain(line: Line) -> str:
    """The line without its styles."""
    return "".join(span.text for span in line)


def _suspect(text: str) -> bool:
    return not (text.isascii() and text.isprintable()) and any(map(_unprintable, text))


def _unprintable(character: str) -> bool:
    return character in BIDI or character in BREAKS or unicodedata.category(character) in ("Cc", "Cs")


def _spelled_out(text: str) -> str:
    return "".join(_escape(c) if _unprintable(c) else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
