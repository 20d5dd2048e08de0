"""What can be asked for, declared once: for ``%%gradtrace``, and for scripts, which shall not load IPython."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from .pairing import parsed_pairs

if TYPE_CHECKING:
    from .report import ReportOptions

_SWITCH: Mapping[str, Any] = MappingProxyType({"action": "store_true"})


@dataclass(frozen=True, slots=True)
class Declared:
    """One option.

    Attributes:
        flags: how it is written, the short form first.
        help: what it does, in a sentence; ``{code}`` stands for what is traced: the cell, the script.
        details: what `argparse` has to know besides.
        in_scripts: whether it means something outside of a notebook.
    """

    flags: tuple[str, ...]
    help: str
    details: Mapping[str, Any] = field(default_factory=lambda: _SWITCH)
    in_scripts: bool = True

    @property
    def name(self) -> str:
        """What it is called in `Options`."""
        return self.flags[-1].removeprefix("--").replace("-", "_")

    @property
    def takes_value(self) -> bool:
        """Whether a value must follow it."""
        return "action" not in self.details and "nargs" not in self.details

    def arguments(self, code: str) -> dict[str, Any]:
        """What ``add_argument`` takes besides the flags; `code` is a word for what is traced."""
        return {**self.details, "help": self.help.format(code=code)}


DECLARED: tuple[Declared, ...] = (
    Declared(
        ("-b", "--backward"),
        'where backward starts: an expression (quoted when it holds spaces: -b "a + b"), or none for no '
        "backward. By default the {code}'s own backward counts, else the last scalar of the {code} is taken.",
        {"metavar": "EXPR", "default": "auto"},
    ),
    Declared(("-o", "--output"), "bind the report to this name", {"metavar": "NAME"}, in_scripts=False),
    Declared(("-q", "--quiet"), "display nothing; .grad is there, and -o still binds", in_scripts=False),
    Declared(("-a", "--all"), "show also constants and every unnamed row"),
    Declared(("-z", "--zero-grad"), "first clear the .grad of the leaves that are used"),
    Declared(
        ("--values",),
        "show each tensor's own values too (norm, min, max), and find the first NaN or infinity among them",
    ),
    Declared(
        ("--sort",),
        "order of the rows (default: line, the order of execution)",
        {"choices": ("line", "norm", "name")},
    ),
    Declared(("--rows",), "show at most N rows", {"type": int, "metavar": "N"}),
    Declared(("--filter",), "show only rows whose name, op or module holds this", {"metavar": "PATTERN"}),
    Declared(
        ("--live",),
        "show the report while the cell runs, refreshed in place after a backward, at most twice a second",
        in_scripts=False,
    ),
    Declared(("--depth",), "how far modules are opened (0: a line for each model)", {"type": int, "metavar": "N"}),
    Declared(("--source",), "show the {code}'s code too, each line with its gradient"),
    Declared(
        ("--diff",),
        "show what changed since the last traced run of this cell, or since the report of that name",
        {"nargs": "?", "const": "", "metavar": "NAME"},
        in_scripts=False,
    ),
    Declared(
        ("--check",),
        "compare the gradients that you derived by hand (dh, grad_h, h_grad, dL_dh for h) with PyTorch's; "
        "--check mine=h,yours=z pairs any two",
        {"nargs": "?", "const": "", "metavar": "NAME=NAME"},
        in_scripts=False,
    ),
    Declared(
        ("--gradcheck",),
        "check the backward of every custom autograd.Function that the cell applies, with what it was given",
        in_scripts=False,
    ),
    Declared(
        ("--strict",),
        "fail when there is a finding of the severity error, so that a notebook that runs in CI stops there",
        in_scripts=False,
    ),
    Declared(("--plot",), "draw how gradients flow, and over steps (needs matplotlib)", in_scripts=False),
    Declared(("--graph",), "draw the graph of the tensors, with the gradients on its edges", in_scripts=False),
)
"""Every option of the magic, in the order of its help."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the person asked for.

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
        diff: name of the report that this one is compared with; empty for that of the last run of the cell; None for no
            comparison.
        check: pairs of names, as ``dh=h,dw=w``; empty to go by the names alone; None for no check.
        gradcheck: check the backward of custom Functions.
        strict: fail when there is a finding of the severity error.
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
    diff: str | None = None
    check: str | None = None
    gradcheck: bool = False
    strict: bool = False
    plot: bool = False
    graph: bool = False

    def given(self) -> dict[str, Any]:
        """Those that are not the usual ones."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}


def takes_value(declared: Sequence[Declared]) -> re.Pattern[str]:
    """Matches a word that a value must follow: ``--rows``, ``-b``, also behind switches in one word (``-qb``)."""
    flags = [(flag, each.takes_value) for each in declared for flag in each.flags]
    short = {
        wanted: "".join(flag[1] for flag, takes in flags if len(flag) == 2 and takes is wanted)
        for wanted in (True, False)
    }
    long = "|".join(flag[2:] for flag, takes in flags if len(flag) > 2 and takes)
    return re.compile(rf"-[{short[False]}]*[{short[True]}]|--({long})")


def with_values_attached(words: Sequence[str], takes_value: re.Pattern[str]) -> list[str]:
    """The words, each value on its option: one that starts with a dash (``-b "-loss"``) would pass for an option."""
    attached: list[str] = []
    for word in words:
        if attached and takes_value.fullmatch(attached[-1]):
            attached[-1] += f"={word}" if attached[-1].startswith("--") else word
        else:
            attached.append(word)
    return attached


def unquoted(value: Any) -> Any:
    """A value without the quotes that hold its spaces together."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def check_values(options: Options) -> None:
    """See that the values are what they have to be.

    Raises:
        ValueError: one is not, in a sentence that names the option.
    """
    try:
        compile(options.backward.strip(), "<--backward>", "eval")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"-b/--backward: {options.backward!r} is not an expression ({error})") from None
    try:
        pairs_to_check(options)
    except ValueError as error:
        raise ValueError(f"--check: {error}") from None
    if options.rows is not None and options.rows < 1:
        raise ValueError(f"--rows must be at least 1, not {options.rows}")
    if options.depth is not None and options.depth < 0:
        raise ValueError(f"--depth must be at least 0, not {options.depth}")


def pairs_to_check(options: Options) -> dict[str, str]:
    """Which variable belongs to which tensor, as ``--check`` says."""
    return parsed_pairs(options.check or "")


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
