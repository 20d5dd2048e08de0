"""The options of ``%%gradtrace``: the words on the magic line, read and checked. `magic` declares them, for ``?``."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from IPython.core.error import UsageError

if TYPE_CHECKING:
    from .report import ReportOptions

_WORD = re.compile(r"""\s*((?:[^\s"']|"[^"]*"|'[^']*'|["'])+)""")
_OPTION = re.compile(r"-[A-Za-z]+(=.*)?|--[A-Za-z][\w-]*(=.*)?", re.DOTALL)
_ALIASES = ("-b/--backward", "-o/--output", "-q/--quiet", "-a/--all", "-z/--zero-grad")
_TAKES_VALUE = re.compile(r"-[qaz]*[bo]|--(backward|output|sort|rows|filter|depth)")


@dataclass(frozen=True, slots=True)
class Options:
    """What the person asked for on the magic line.

    Attributes:
        backward: ``auto``, ``none`` or an expression.
        output: name to bind the report to, or None.
        quiet: display nothing.
        zero_grad: clear ``.grad`` of the leaves first.
        values: take statistics of every tensor's own values too.
        all: show also constants and every unnamed row.
        sort: order of the rows, or None for the default.
        rows: most rows to show, or None for no limit.
        filter: what a row's name, op or module must hold, or None.
        depth: how far modules are opened, or None for as far as fits.
        source: show the cell's code too, each line with its gradient.
        live: show the report while the cell runs.
        diff: show what changed since the last run of the cell.
        plot: draw how gradients flow.
        graph: draw the graph of the tensors.
    """

    backward: str = "auto"
    output: str | None = None
    quiet: bool = False
    zero_grad: bool = False
    values: bool = False
    all: bool = False
    sort: Literal["line", "norm", "name"] | None = None
    rows: int | None = None
    filter: str | None = None
    depth: int | None = None
    source: bool = False
    live: bool = False
    diff: bool = False
    plot: bool = False
    graph: bool = False


def split(line: str) -> tuple[list[str], str]:
    """The options as words, and what comes after them, verbatim. Quotes may stand anywhere in a word."""
    words: list[str] = []
    position, value_is_due = 0, False
    while word := _WORD.match(line, position):
        text = word.group(1)
        if text == "--" and not value_is_due:
            position = word.end()
            break
        if not value_is_due and not _OPTION.fullmatch(text):
            break
        words.append(text)
        value_is_due = not value_is_due and _TAKES_VALUE.fullmatch(text) is not None
        position = word.end()
    rest = line[position:].strip()
    return words, "" if rest.startswith("#") else rest


def options_from(parser: Any, words: list[str]) -> Options:
    """The options that the words stand for.

    Raises:
        UsageError: they are no options, or cannot be what they are, or not together.
    """
    # A value that starts with a dash (-b "-loss") would pass for an option unless it hangs on its own.
    attached = _with_values_attached(words)
    _check_repeated(attached)  # a short option's value hangs on without a sign between
    parser.allow_abbrev = False  # `--back loss` would leave its value behind
    arguments = vars(parser.parse_args(attached))
    arguments.pop("statement")
    options = Options(**{name: _unquoted(value) for name, value in arguments.items()})
    _check_backward(options.backward)
    if options.output is not None and (not options.output.isidentifier() or keyword.iskeyword(options.output)):
        raise UsageError(f"-o/--output: {options.output!r} is no name a variable can have")
    if options.rows is not None and options.rows < 1:
        raise UsageError(f"--rows must be at least 1, not {options.rows}")
    if options.depth is not None and options.depth < 0:
        raise UsageError(f"--depth must be at least 0, not {options.depth}")
    _check_quiet(options)
    if options.plot and find_spec("matplotlib") is None:
        raise UsageError('--plot needs matplotlib: pip install "gradmagic[plot]"')
    return options


def _with_values_attached(words: list[str]) -> list[str]:
    attached: list[str] = []
    for word in words:
        if attached and _TAKES_VALUE.fullmatch(attached[-1]):
            attached[-1] += f"={word}" if attached[-1].startswith("--") else word
        else:
            attached.append(word)
    return attached


def _check_repeated(words: list[str]) -> None:
    names = [word.partition("=")[0] if word.startswith("--") else word[:2] for word in words]
    names = [next((both for both in _ALIASES if name in both.split("/")), name) for name in names]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given more than once")


def _unquoted(value: Any) -> Any:
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def _check_backward(expression: str) -> None:
    try:
        compile(expression.strip(), "<--backward>", "eval")
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"-b/--backward: {expression!r} is not an expression ({error})") from None


def _check_quiet(options: Options) -> None:
    given = {
        "--all": options.all,
        "--sort": options.sort,
        "--rows": options.rows,
        "--filter": options.filter,
        "--depth": options.depth is not None,
        "--source": options.source,
        "--live": options.live,
        "--diff": options.diff,
        "--plot": options.plot,
        "--graph": options.graph,
    }
    shown = [name for name, value in given.items() if value]
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


def report_options(options: Options) -> ReportOptions:
    """Those of them that say how the report is shown."""
    from .report import ReportOptions  # not needed for loading the extension

    return ReportOptions(
        all=options.all,
        sort=options.sort or "line",
        rows=options.rows,
        filter=options.filter,
        source=options.source,
        depth=options.depth,
    )
