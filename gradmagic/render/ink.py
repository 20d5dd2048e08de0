"""What a terminal can show: colour or none, Unicode or ASCII. Turns styled spans into rich text."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from ..records import Severity
from .marks import SIGNS, SPARKS
from .markup import Line, Style

STYLES: dict[Style, str] = {
    "plain": "",
    "strong": "bold",
    "name": "bold",
    "code": "cyan",
    "dim": "dim",
    "error": "bold red",
    "warning": "yellow",
}
ASCII_SIGNS: dict[Severity, str] = {"error": "error:", "warning": "warning:", "info": "note:"}

BLOCKS = " ▏▎▍▌▋▊▉█"
ASCII_SPARKS = "_.:-=+*#"
IN_ASCII = str.maketrans(
    {
        "×": "x",
        "·": "-",
        "−": "-",
        "–": "-",
        "…": "~",
        "‖": "|",
        "µ": "u",
        "└": "`",
        "▸": "+",
        "→": "->",
        "↓": "min ",
        "↑": "max ",
        "∂": "d",
        "Δ": "d",
    }
)


@dataclass(frozen=True, slots=True)
class Ink:
    """How to write: with colour, and in ASCII only."""

    color: bool = False
    ascii_only: bool = False

    def letters(self, text: str) -> str:
        """`text` itself, or its nearest ASCII; what has none is spelled out."""
        if not self.ascii_only or text.isascii():
            return text
        return text.translate(IN_ASCII).encode("ascii", "backslashreplace").decode("ascii")

    def text(self, text: str, style: Style = "plain") -> Text:
        """One run of text; markup in it means nothing."""
        return Text(self.letters(text), style=STYLES[style])

    def line(self, line: Line) -> Text:
        """Several runs; without colour, code stands between backticks."""
        written = Text()
        for span in line:
            ticked = span.style == "code" and not self.color
            written.append(self.letters(f"`{span.text}`" if ticked else span.text), STYLES[span.style])
        return written

    def shortened(self, text: str, style: Style, width: int, keep_end: bool = False) -> Text:
        """At most `width` cells, with an ellipsis where something is left out."""
        written = self.text(text, style)
        if written.cell_len <= width:
            return written
        if not keep_end:
            written.truncate(width, overflow="ellipsis")
            return self.text(written.plain, style)
        return self.text(f"…{_tail(written.plain, width - 1)}", style)

    def plain_ellipsis(self, text: Text) -> Text:
        """A text that rich may have shortened: in ASCII with a mark of its own in place of the ellipsis."""
        if not self.ascii_only or text.plain.isascii():
            return text
        text.plain = self.letters(text.plain)
        return text

    def bar(self, share: float | None, width: int) -> Text:
        """A bar of `share` times `width` cells, never empty."""
        if share is None:
            return Text()
        if self.ascii_only:
            return Text("#" * max(1, round(share * width)))
        eighths = max(1, round(share * width * 8))
        return Text(("█" * (eighths // 8) + BLOCKS[eighths % 8]).rstrip(), "blue")

    def spark(self, levels: tuple[int | None, ...]) -> Text:
        """One character per height; ``!`` for what is not finite."""
        glyphs = ASCII_SPARKS if self.ascii_only else SPARKS
        return Text("".join("!" if level is None else glyphs[level] for level in levels), "blue")

    def sign(self, severity: Severity) -> Text:
        """The mark of a finding, which tells its severity without colour too."""
        signs = ASCII_SIGNS if self.ascii_only else SIGNS
        styles: dict[Severity, Style] = {"error": "error", "warning": "warning", "info": "strong"}
        return Text(signs[severity], STYLES[styles[severity]])

    def mark(self, severity: Severity) -> Text:
        """The mark of a finding, one cell wide."""
        return Text("!", self.sign(severity).style) if self.ascii_only else self.sign(severity)


def _tail(text: str, width: int) -> str:
    """The end of a text, at most `width` cells."""
    start = len(text)
    while start and cell_len(text[start - 1 :]) <= width:
        start -= 1
    return text[start:]
