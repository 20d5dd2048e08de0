"""Styled text that both renderers understand, and the cleaning every string of the person's goes through."""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings
from dataclasses import dataclass
from typing import Literal

Style = Literal["plain", "strong", "name", "code", "dim", "error", "warning"]

LONGEST, LONGEST_NOTE, LONGEST_LINE, LONGEST_BLOCK, MOST_LINES = 300, 600, 2_000, 10_000, 200
"""How much is drawn of a name or expression, a note, a sentence, an error's own words (and lines); data keep all."""

MARKS_IN_A_ROW = 4
"""Most combining characters on one letter; no script needs more, and a pile of them covers the lines around."""

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff"  # control characters, unpaired surrogates
    "\u2028\u2029\ufff9-\ufffb"  # line breaks, annotations
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # invisible
    "\ufdd0-\ufdef" + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17)) + "]"
    "|(?<![^\x00-\x7f])[\u200c\u200d]|(?<![^\x00-\x7f]|[0-9])[\ufe00-\ufe0f]"
)
"""What moves the cursor, reorders the text around it (CVE-2021-42574), or cannot be seen at all: Unicode's property
Default_Ignorable_Code_Point; joiners and variation selectors only where they join or vary nothing, as in ASCII. Neither
HTML nor UTF-8 has a place for surrogates and noncharacters."""


@dataclass(frozen=True, slots=True)
class Span:
    """Text in one style."""

    text: str
    style: Style = "plain"


Line = tuple[Span, ...]


def clean(text: str, most: int = LONGEST) -> str:
    r"""`text` on one line of `most` characters, with what cannot or must not be shown spelled out (``\\x1b``)."""
    if len(text) > most:
        text = f"{text[: most * 2 // 3]}…{text[len(text) - most // 3 + 1 :]}"
    if text.isascii() and text.isprintable():
        return text
    return _spelled_out(text.replace("\r\n", " ").replace("\n", " ").replace("\t", " "))


def clean_block(text: str) -> str:
    """Like `clean`, and keeps the line breaks."""
    more = len(text) - LONGEST_BLOCK
    text = text if more <= 0 else f"{text[:LONGEST_BLOCK]}…\n({more:,} more characters)"
    lines = text.expandtabs(4).replace("\r\n", "\n").split("\n")
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [f"({len(lines) - MOST_LINES + 1:,} more lines)"]
    return "\n".join(clean(line.rstrip(), LONGEST_BLOCK) for line in lines).strip("\n")


def marked_up(text: str, style: Style = "plain", most: int = LONGEST_LINE) -> Line:
    """Splits at backticks: what stands between two of them is code."""
    parts = clean(text, most).split("`")
    if len(parts) % 2 == 0:
        parts[-2:] = ["`".join(parts[-2:])]
    return tuple(Span(part, "code" if i % 2 else style) for i, part in enumerate(parts) if part)


def is_code(text: str) -> bool:
    """True when `text` is Python and no sentence: it parses, and holds a call, ``=`` or ``.``."""
    if "`" in text or not re.search(r"[=(.]", text):
        return False
    try:
        with warnings.catch_warnings(action="ignore"):  # an odd escape in a string is the person's, and told already
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deep
        return False
    return True


def plain(line: Line) -> str:
    """The line without its styles."""
    return "".join(span.text for span in line)


def _spelled_out(text: str) -> str:
    text = _UNPRINTABLE.sub(lambda found: _escape(found[0]), text)
    return text if text.isascii() else _marks_spelled_out(text)


def _marks_spelled_out(text: str) -> str:
    """Combining characters where they have nothing to combine with (in HTML that would be a tag), and piles of them."""
    written, before, marks = [], " ", 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character)[0] == "M" else 0
        alone = marks == 1 and not before.isalnum() and (before.isascii() or before.isspace())
        written.append(_escape(character) if alone or marks > MARKS_IN_A_ROW else character)
        before = character
    return "".join(written)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
