"""The options of ``%%gradtrace``: the words on the magic line, read and checked. `settings` declares them."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from IPython.core.error import UsageError

from .settings import DECLARED, Options, check_values, takes_value, unquoted, with_values_attached

_WORD = re.compile(r"""\s*((?:[^\s"']|"[^"]*"|'[^']*'|["'])+)""")
_OPTION = re.compile(r"-[A-Za-z]+(=.*)?|--[A-Za-z][\w-]*(=.*)?", re.DOTALL)
_NAME = r"""[^\W\d][\w.\[\]'"]*"""
_PAIRS = re.compile(rf"{_NAME}={_NAME}(,{_NAME}={_NAME})*,?")
_ALIASES = tuple("/".join(each.flags) for each in DECLARED)
_TAKES_VALUE = takes_value(DECLARED)
_QUIET_TOO = frozenset({"backward", "output", "quiet", "zero_grad", "values", "strict"})
"""What says nothing of the display."""


def split(line: str) -> tuple[list[str], str]:
    """The options as words, and what comes after them, verbatim. Quotes may stand anywhere in a word.

    The pairs behind ``--check`` need no quotes and no commas: ``--check dh=h dw=w``. Behind ``--diff`` a name is a name
    unless code follows it.
    """
    words: list[str] = []
    position, value_is_due = 0, False
    while word := _WORD.match(line, position):
        text = word.group(1)
        if text == "--" and not value_is_due:
            position = word.end()
            break
        if words and words[-1].partition("=")[0] == "--check" and _PAIRS.fullmatch(unquoted(text)):
            words[-1] += f"{',' if '=' in words[-1] else '='}{unquoted(text)}"
        elif words and words[-1] == "--diff" and text.isidentifier() and _is_followed_by_options(line[word.end() :]):
            words[-1] += f"={text}"
        elif not value_is_due and not _OPTION.fullmatch(text):
            break
        else:
            words.append(text)
            value_is_due = not value_is_due and _TAKES_VALUE.fullmatch(text) is not None
        position = word.end()
    rest = line[position:].strip()
    return words, "" if rest.startswith("#") else rest


def _is_followed_by_options(rest: str) -> bool:
    """Whether only options come, a comment, or nothing."""
    words, code = split(rest)
    return not code or bool(words)


def options_from(parser: Any, words: list[str], defaults: Mapping[str, Any] = MappingProxyType({})) -> Options:
    """The options that the words stand for; where they say nothing, the person's own defaults.

    Raises:
        UsageError: they are no options, or cannot be what they are, or not together.
    """
    attached = with_values_attached(words, _TAKES_VALUE)
    _check_repeated(attached)  # a short option's value hangs on without a sign between
    parser.allow_abbrev = False  # `--back loss` would leave its value behind
    arguments = vars(parser.parse_args(attached))
    arguments.pop("statement")
    asked = Options(**{name: unquoted(value) for name, value in arguments.items()})
    _check_quiet(asked)
    options = with_defaults(asked, defaults)
    try:
        check_values(options)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.output is not None and (not options.output.isidentifier() or keyword.iskeyword(options.output)):
        raise UsageError(f"-o/--output: {options.output!r} is no name a variable can have")
    if options.plot and find_spec("matplotlib") is None:
        raise UsageError('--plot needs matplotlib: pip install "gradmagic[plot]"')
    return options


def with_defaults(asked: Options, defaults: Mapping[str, Any]) -> Options:
    """What was asked for on the line, and the defaults of everything else; ``-q`` still displays nothing."""
    given = asked.given()
    options = replace(asked, **{name: value for name, value in defaults.items() if name not in given})
    return replace(options, live=False, plot=False, graph=False) if options.quiet else options


def _check_repeated(words: list[str]) -> None:
    names = [word.partition("=")[0] if word.startswith("--") else word[:2] for word in words]
    names = [next((both for both in _ALIASES if name in both.split("/")), name) for name in names]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given more than once")


def _check_quiet(options: Options) -> None:
    given = options.given()
    shown = [each.flags[-1] for each in DECLARED if each.name in given and each.name not in _QUIET_TOO]
    if options.quiet and shown:
        raise UsageError(f"-q/--quiet displays nothing, so {', '.join(shown)} cannot go with it")


def require_code(rest: str, cell: str | None) -> None:
    """See that there is code to run, behind the options of a line magic, or else below.

    Raises:
        UsageError: there is none, or something else stands in its place.
    """
    if cell is None and not rest:
        raise UsageError(
            "%gradtrace needs a statement on its line; to trace a whole cell, write %%gradtrace on top of it"
        )
    if cell is not None and rest:
        raise UsageError(
            f"%%gradtrace: {rest!r} is no option. The code stands below the magic line; "
            'a value with spaces needs quotes, as in -b "a + b"'
        )
    if cell is not None and not cell.strip():
        raise UsageError("%%gradtrace: the cell is empty; its code stands below the magic line")
