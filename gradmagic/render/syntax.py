"""Python source in pieces of one style each, by Pygments, which rich brings along."""

from __future__ import annotations

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
                lines[-1].append((part, _style(kind)))
    return lines


def _style(kind: _TokenType) -> Style:
    if Comment in kind.split():
        return "dim"
    return "strong" if Keyword in kind.split() or Operator.Word in kind.split() else "plain"
