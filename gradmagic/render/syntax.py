"""Python source in pieces of one style each, by Pygments, which rich brings along."""

from __future__ import annotations

from functools import cache

from pygments import lex
from pygments.lexers.python import PythonLexer
from pygments.token import Comment, Keyword, Operator, _TokenType

from .markup import Style

Token = tuple[str, Style]


def tokens(source: str) -> list[list[Token]]:
    """The lines of a source, each in pieces; together they are the source, character by character.

    Keywords are strong and comments dim, without a colour: none is readable on white and on black alike.
    """
    lines: list[list[Token]] = [[]]
    for kind, text in lex(source, PythonLexer(stripnl=False, ensurenl=False)):
        for number, part in enumerate(text.split("\n")):
            if number:
                lines.append([])
            if part:
                _add(lines[-1], part, _style(kind))
    return lines


def _add(line: list[Token], text: str, style: Style) -> None:
    """Add a piece; what has the style of the one before is one with it: most of a line is one piece to draw."""
    if line and line[-1][1] == style:
        line[-1] = (line[-1][0] + text, style)
    else:
        line.append((text, style))


@cache
def _style(kind: _TokenType) -> Style:
    if Comment in kind.split():
        return "dim"
    return "strong" if Keyword in kind.split() or Operator.Word in kind.split() else "plain"
