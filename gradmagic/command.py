"""``python -m gradmagic script.py`` and ``gradtrace script.py``: a program runs as always, and its report is shown."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from types import MappingProxyType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from .delivery import FORMATS, Delivery
from .late import LateTrace
from .script import CannotRunError, Program, Target, prepare
from .settings import (
    DECLARED,
    Declared,
    Options,
    check_values,
    report_options,
    takes_value,
    unquoted,
    with_values_attached,
)
from .tracebacks import is_ours, linked, links, relink

if TYPE_CHECKING:
    from .tracing import trace

_QUIET = Declared(("-q", "--quiet"), "print no report; files are written all the same")
_FILES = tuple(
    Declared((f"--{kind}",), f"write the report to this file as {kind.upper()}", MappingProxyType({"metavar": "FILE"}))
    for kind in FORMATS
)
DECLARED_HERE = (*(each for each in DECLARED if each.in_scripts), _QUIET, *_FILES)
"""The options that stand before the script."""
_TAKES_VALUE = takes_value(DECLARED_HERE)
_USAGE = "%(prog)s [options] script.py [arguments]\n       %(prog)s [options] -m module [arguments]"
_ABOUT = """Run a PyTorch script as python does, and show the gradient of every tensor it makes.
The report comes on stderr, once the script has ended, also when it failed.
Options of this command stand before the script; what follows the script is its own."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for.

    Attributes:
        target: the program.
        options: how it is traced and shown.
        files: format and path of each file to write.
        words: the options as they were written.
    """

    target: Target
    options: Options
    files: Sequence[tuple[str, str]]
    words: Sequence[str]


def main() -> None:
    """Run what the command line names, traced.

    Raises:
        SystemExit: the program's own; or the command line cannot be understood (2), or there is nothing to run.
        BaseException: the program's own, as Python shows it without a trace.
    """
    request = requested(sys.argv[1:])
    delivery = Delivery(sys.stderr, request.files, report_options(request.options), request.options.quiet)
    entry = sys.modules["__main__"]
    for refusal in delivery.refused():
        _parser().error(refusal)
    try:
        _run(request, delivery)
    except CannotRunError as error:
        print(f"{sys.orig_argv[0]}: {error}", file=sys.stderr)
        sys.exit(error.code)
    except SystemExit:
        raise
    except BaseException:  # goes on to Python itself, which shows it, or ends by the signal that Ctrl-C is
        sys.excepthook = _without_us(sys.excepthook, entry)
        raise


def _run(request: Request, delivery: Delivery) -> None:
    late = LateTrace(prepare(request.target), lambda program: _trace(program, request))
    try:
        late.run()
    finally:
        _flush_output()
        delivery.deliver(late)


def _trace(program: Program, request: Request) -> trace:
    from .sources import CellSource  # with the next, what needs PyTorch; by now the program has imported it
    from .tracing import trace

    options = request.options
    file = program.code.co_filename
    source = CellSource(file, lambda _: None, called="script", again=lambda words: _again(words, request))
    return trace(
        options.backward,
        zero_grad=options.zero_grad,
        values=options.values,
        namespace=vars(program.main),
        cell=source,
    )


def _again(words: str, request: Request) -> str:
    """The command with an option that a hint writes as for the magic."""
    option, _, value = words.partition(" ")
    target = request.target
    command = [
        "gradtrace",
        option,
        *([unquoted(value)] if value else []),
        *(["-m"] if target.is_module else []),
        target.name,
    ]
    return shlex.join(command)


def _flush_output() -> None:
    """What the program has printed stands before the report. If that fails, Python tells of it at the very end."""
    with suppress(Exception):  # the stream may be the program's own
        sys.stdout.flush()


def _without_us(hook: Callable[..., Any], entry: ModuleType) -> Callable[..., Any]:
    """Shows an exception as `hook` does, without what stands between Python and the program.

    Args:
        hook: what shows it.
        entry: the ``__main__`` that called us.
    """

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        main = sys.modules["__main__"]
        steps = list(links(traceback))
        begun = [step for step in steps if step.tb_frame.f_globals is vars(main)] if main is not entry else []
        ours = [step.tb_next for step in steps if is_ours(step.tb_frame)]
        # Where nothing has begun, its syntax is wrong, or the packages around a module have failed.
        first = begun[0] if begun else ours[-1] if ours else traceback
        BaseException.with_traceback(error, first)
        for each in linked(error):
            relink(each)
        hook(kind, error, error.__traceback__)

    return show


# ---- the command line


def requested(words: Sequence[str]) -> Request:
    """What the words of a command line ask for.

    Raises:
        SystemExit: they ask for help or for the version (0), or cannot be understood (2).
    """
    parser = _parser()
    ours, target = _parted(words)
    arguments = vars(parser.parse_args(with_values_attached(ours, _TAKES_VALUE)))
    if arguments["version"]:
        from importlib.metadata import version  # slow to import, and seldom asked for

        print(f"gradmagic {version('gradmagic')}")
        parser.exit()
    if target is None:
        parser.error("which script? For example: gradtrace train.py, or gradtrace -m package.module")
    if target.name == "-" and not target.is_module:
        parser.error("a script cannot come from stdin here; save it in a file")
    known = {field.name for field in fields(Options)}
    options = Options(**{name: value for name, value in arguments.items() if name in known})
    try:
        check_values(options)
    except ValueError as error:
        parser.error(str(error))
    files = [(kind, arguments[kind]) for kind in FORMATS if arguments[kind] is not None]
    return Request(target, options, files, ours)


def _parted(words: Sequence[str]) -> tuple[list[str], Target | None]:
    """Our own options, and the program with its arguments."""
    position, value_is_due = 0, False
    while position < len(words):
        word, rest = words[position], words[position + 1 :]
        if value_is_due:
            value_is_due = False
        elif word in ("-m", "--"):
            target = Target(rest[0], rest[1:], is_module=word == "-m") if rest else None
            return list(words[:position]), target
        elif not word.startswith("-") or word == "-":
            return list(words[:position]), Target(word, rest)
        else:
            value_is_due = _TAKES_VALUE.fullmatch(word) is not None
        position += 1
    return list(words), None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "gradtrace",
        usage=_USAGE,
        description=_ABOUT,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for each in DECLARED_HERE:
        parser.add_argument(*each.flags, **each.arguments("script"))
    parser.add_argument("-m", metavar="MODULE", help="run a module, as python -m does; it ends the options")
    parser.add_argument("--version", action="store_true", help="print the version, and run nothing")
    return parser
