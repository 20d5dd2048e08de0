"""The annotated source for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from ..records import Severity
from .ink import STYLES, Ink
from .markup import Style
from .view import SourceLine

BAR, BAR_FROM = 6, 80
"""Width of the bars, and the least width of the terminal that has room for them."""
INDENT = 4
UNDERLINED: dict[Severity, Style] = {"error": "error", "warning": "warning", "info": "strong"}


def source_text(lines: Sequence[SourceLine], width: int, ink: Ink) -> list[Text]:
    """The lines, each behind its number, norm and bar; below a line that is blamed, what for."""
    number = max(len(line.number) for line in lines)
    norm = max(6, *(cell_len(line.grad.norm) for line in lines))
    bar = BAR if width >= BAR_FROM else 0
    margin = [_margin(line, (number, norm, bar), ink) for line in lines]
    return [part for line, left in zip(lines, margin, strict=True) for part in _drawn(line, left, width, ink)]


def _margin(line: SourceLine, widths: tuple[int, int, int], ink: Ink) -> Text:
    number, norm, bar = widths
    left = Text().append_text(ink.text(line.number.rjust(number), "dim")).append("  ")
    left.append(" " * (norm - cell_len(line.grad.norm))).append_text(ink.text(line.grad.norm, line.grad.style))
    if bar:
        drawn = ink.bar(line.grad.bar, bar)
        left.append(" ").append_text(drawn).append(" " * (bar - drawn.cell_len))
    return left.append_text(ink.text(" | " if ink.ascii_only else " │ ", "dim"))


def _drawn(line: SourceLine, left: Text, width: int, ink: Ink) -> Iterator[Text]:
    code = Text()
    for piece in line.pieces:
        code.append_text(_piece(piece.span.text, piece.span.style, piece.severity, ink))
    code.truncate(width - left.cell_len, overflow="ellipsis")
    yield left + ink.plain_ellipsis(code)
    if line.severity is not None:
        yield from _blame(line, left.cell_len, width, ink)


def _piece(text: str, style: Style, severity: Severity | None, ink: Ink) -> Text:
    if severity is None:
        return ink.text(text, style)
    return Text(ink.letters(text), style=f"{STYLES[style]} underline {STYLES[UNDERLINED[severity]]}".strip())


def _blame(line: SourceLine, margin: int, width: int, ink: Ink) -> Iterator[Text]:
    """The sign in the margin, carets below what is blamed, and what for: behind them, or below where that is narrow."""
    severity = line.severity or "info"
    sign, carets = ink.sign(severity), _carets(line, ink)
    pointed = (
        Text(" " * max(margin - sign.cell_len - 1, 0)) + sign + Text(" ") + Text(carets, STYLES[UNDERLINED[severity]])
    )
    label = ink.text(line.label, "dim")
    if pointed.cell_len + 1 + label.cell_len <= width:
        yield pointed + Text(" " if carets else "") + label
        return
    pointed.truncate(width)
    yield pointed
    yield Text(" " * (margin + INDENT)) + ink.shortened(line.label, "dim", width - margin - INDENT)


def _carets(line: SourceLine, ink: Ink) -> str:
    """A caret below each character that is underlined."""
    drawn = "".join(
        ("^" if piece.severity is not None else " ") * cell_len(ink.letters(piece.span.text)) for piece in line.pieces
    )
    return drawn.rstrip()
