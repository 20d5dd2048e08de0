"""The report of one traced run: rows, look-up by name, findings, export. What it looks like is render's."""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from .exports import COLUMNS, LONG_COLUMNS, csv_of, lines_of, plain
from .pairing import PATTERNS, checked_patterns
from .records import RANK, BackwardPass, Called, Coverage, Finding, LedgerEntry, Severity, Source, TensorRow

if TYPE_CHECKING:
    from .checks import GradientChecks
    from .comparison import Comparison
    from .render.graph import TensorGraph
    from .scalars import ScalarWriter

SCHEMA_VERSION = 1
"""Version of what `Report.to_dict` gives; it grows when a key changes its meaning or goes away."""

ORDINARY_REASONS = frozenset(
    {
        "requires_grad_false",
        "integer_dtype",
        "no_grad",
        "inference_mode",
        "after_backward",
        "inside_transform",
    }
)
"""Reasons nobody is surprised by as long as the tensor is a constant."""

QUIET_REASONS = frozenset({"frozen", "no_backward", "backward_inputs"})
"""Reasons nobody is surprised by: the person asked for it, or the header says it of the whole run."""

Sort = Literal["line", "norm", "name"]
Picture = Literal["flow", "steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """How a report is shown; its data, its look-up and its exports are the same under all options.

    Attributes:
        all: show also the constants without a name, and every inner step.
        sort: ``line`` is the order of execution, ``norm`` has the largest first, ``name`` has h2 before h10.
        rows: show at most so many rows; None for 1,000, or under `all` for no limit.
        filter: show only rows whose name, op or module holds this text, in any case (a glob when it
            holds ``*`` or ``?``).
        source: show the traced code too, each line with its gradient.
        depth: how far modules are opened: 0 has a line for each model, 1 for each module in it, and so on; None is as
            far as fits on a screen or two. `all`, `filter`, `rows` and another order than ``line`` show every row by
            itself.

    Raises:
        ValueError: `rows` is less than 1, `depth` less than 0, or `sort` is none of the three.
    """

    all: bool = False
    sort: Sort = "line"
    rows: int | None = None
    filter: str | None = None
    source: bool = False
    depth: int | None = None

    def __post_init__(self) -> None:
        if self.depth is not None and self.depth < 0:
            raise ValueError(f"depth must be at least 0, not {self.depth}")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows must be at least 1, not {self.rows}")
        if self.sort not in ("line", "norm", "name"):
            raise ValueError(f"sort must be 'line', 'norm' or 'name', not {self.sort!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The numbers of a report's header.

    Attributes:
        tensors: rows, constants included.
        gradients: rows that a gradient reached.
        without: rows that none reached.
        surprises: those of them a person would not expect; see `is_surprise`.
    """

    tensors: int
    gradients: int
    without: int
    surprises: int


class TensorNotFoundError(KeyError):
    """No row has the name that was asked for. Its text is a sentence, which a plain KeyError's is not."""

    def __str__(self) -> str:
        return str(self.args[0])


class FindingsError(AssertionError):
    """A report has findings that a test or a notebook in CI does not let pass.

    Attributes:
        findings: those that did not pass.
    """

    def __init__(self, text: str, findings: Sequence[Finding]) -> None:
        """Keep what was found.

        Args:
            text: the findings in words.
            findings: themselves.
        """
        super().__init__(text)
        self.findings = tuple(findings)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback, whose lines would all be gradmagic's own."""
        return [f"FindingsError: {self}"]


def raise_for(findings: Sequence[Finding]) -> None:
    """Raises if there is any.

    Raises:
        FindingsError: its text is that of the findings.
    """
    from .render.failing import findings_text  # only a failure is drawn

    __tracebackhide__ = True
    if findings:
        raise FindingsError(findings_text(findings), findings)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Report:
    """What one traced run found.

    Attributes:
        rows: every tensor, in order of first execution; a leaf stands before its first use.
        root: the row backward started from, or None.
        root_value: the root's value when it is a scalar.
        passes: every run of backward, in order; from 512 on only every second, fourth... of them, with the first, the
            last and those that failed.
        pass_count: how many there were.
        ledger: every line that ran backward, stepped, cleared or clipped gradients, in the order of the source; passes
            in that of their first run.
        findings: what is worth saying about the run, the most severe first.
        coverage: how many autograd nodes lay between the roots and the leaves, and how many of them are in the rows.
        candidates: names of further scalars that could have been the root.
        seconds: wall time of the whole traced run.
        guest: gradtrace ran backward itself; the person's next backward replaces the ``.grad`` it left.
        scale: what the loss was multiplied by for mixed precision, 1.0 for nothing. The rows hold the gradients as they
            flowed, with this factor in them; the table shows them divided by it.
        default_dtype: the dtype that goes without saying.
        source: the traced code as the person wrote it, or None where it is unknown.
        running: the cell still runs: this is what was recorded so far.
        called: a word for what was traced: ``cell``, ``script``, ``function``.
        options: how the report is shown.
    """

    rows: list[TensorRow] = field(default_factory=list)
    root: TensorRow | None = None
    root_value: float | None = None
    passes: list[BackwardPass] = field(default_factory=list)
    pass_count: int = 0
    ledger: list[LedgerEntry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)
    candidates: tuple[str, ...] = ()
    seconds: float = 0.0
    guest: bool = False
    scale: float = 1.0
    default_dtype: str = "float32"
    source: Source | None = None
    running: bool = False
    called: Called = "cell"
    options: ReportOptions = field(default_factory=ReportOptions)

    def __getitem__(self, name: str) -> TensorRow:
        """The last row bound to `name`, in order of execution; then the last one known by it as an alias.

        Raises:
            TensorNotFoundError: (a KeyError) no row has that name; the message names near misses.
            TypeError: `name` is no string.
        """
        row = self._find(name)
        if row is None:
            raise TensorNotFoundError(self.not_found(name))
        return row

    def __contains__(self, name: object) -> bool:
        return self._find(name) is not None

    def not_found(self, name: str) -> str:
        """Says that no row has a name, and which names come near: the text of a `TensorNotFoundError`.

        Raises:
            TypeError: `name` is no string.
        """
        if not isinstance(name, str):
            raise TypeError(f"a row is looked up by its name; by position it is report.rows[{name!r}]")
        names = list(dict.fromkeys(n for row in self.rows for n in (row.name, *row.aliases) if n))
        asked = _quoted(name)
        if not names:
            return f"no tensor named {asked}: the report has no named tensor"
        alike = [known for known in names if len(known) <= _LONGEST_NAME]  # comparing takes the square of the length
        near = difflib.get_close_matches(name[:_LONGEST_NAME], alike, n=3)
        if near:
            return f"no tensor named {asked}; did you mean {' or '.join(map(_quoted, near))}?"
        more = f", and {len(names) - 8} more" if len(names) > 8 else ""
        return f"no tensor named {asked}; there are {', '.join(map(_quoted, names[:8]))}{more}"

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[TensorRow]:
        return iter(self.rows)

    def __bool__(self) -> bool:
        """True, also without rows: a report that found nothing is still a report."""
        return True

    @property
    def losses(self) -> list[LedgerEntry]:
        """What the passes started from, and where: the entries of the ledger that ran backward."""
        return [entry for entry in self.ledger if entry.is_pass]

    def with_options(self, options: ReportOptions) -> Report:
        """The same report, shown differently."""
        return replace(self, options=options)

    def summary(self) -> Summary:
        """Counts the rows, those with a gradient, those without, and the surprises among them."""
        gradients = sum(row.grad is not None for row in self.rows)
        return Summary(
            tensors=len(self.rows),
            gradients=gradients,
            without=len(self.rows) - gradients,
            surprises=sum(map(is_surprise, self.rows)),
        )

    def to_dict(self) -> dict[str, Any]:
        """The whole report as dicts, lists, strings and numbers that strict JSON can hold.

        NaN and infinities are the strings ``NaN``, ``Infinity`` and ``-Infinity``, a complex number is
        ``[re, im]``, and `root` is an index into `rows`. The display options are not part of it.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "root": _index(self.rows, self.root),
            "root_value": plain(self.root_value),
            "passes": plain(self.passes),
            "pass_count": self.pass_count,
            "ledger": plain(self.ledger),
            "findings": plain(self.findings),
            "coverage": plain(self.coverage),
            "candidates": list(self.candidates),
            "seconds": plain(self.seconds),
            "guest": self.guest,
            "scale": plain(self.scale),
            "default_dtype": self.default_dtype,
            "source": plain(self.source),
            "running": self.running,
            "called": self.called,
            "rows": plain(self.rows),
        }

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict` as strictly valid JSON text (ASCII)."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The report that `to_json` has written, by this or an older gradmagic; torch is not needed.

        All of it comes back but what is no data: no row finds its live tensor, and `options` are the usual ones.

        Args:
            text: what `to_json` gave, as text or as UTF-8. Keys that this gradmagic does not know are left out.

        Raises:
            ReportFormatError: (a ValueError) `text` is no such JSON, breaks off, holds something else at the place that
                the message names, or comes from a newer gradmagic that writes it differently.
            TypeError: `text` is neither text nor bytes.
        """
        from .reading import report_from  # only those who read need it

        return report_from(text, cls)

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of what `to_dict` and `to_json` give; it is the file ``report.schema.json``.

        It knows every key and allows no other, so it tells what this version writes; `from_json` is more lenient.
        """
        schema = Path(__file__).with_name("report.schema.json").read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(schema)
        return found

    def to_csv(self, long: bool = False) -> str:
        """The table of `to_pandas` as text (RFC 4180); what a spreadsheet would run gets a leading apostrophe.

        Args:
            long: one line per gradient, as in `to_pandas`.
        """
        return csv_of(*self._table(long))

    def to_pandas(self, long: bool = False) -> Any:
        """One line per row, as a `pandas.DataFrame`; what is not there is None, or NaN among numbers.

        * Where: ``line`` of the traced cell; ``place`` as the table has it; ``name``, ``expression``; ``module`` (its
          path) and ``module_type`` (its class).
        * What: ``op``, ``grad_fn``, ``kind``; ``shape`` as text, ``dtype``, ``device``; ``count`` of occurrences.
        * The gradient of the last occurrence, see `GradStats`: ``norm``, ``rms``, ``mean``, ``min``, ``max``,
          ``zero_fraction``, ``nan_count``, ``inf_count``, ``numel``.
        * Where there is none: ``reason``, and ``culprit``, the place to blame. ``note``: the remark of the row.
        * The tensor's own values, under ``--values``: ``value_norm``, ``value_min``, ``value_max``,
          ``value_nan_count``, ``value_inf_count``.

        Args:
            long: one line per gradient instead: of each row, pass and occurrence that is kept (see `GradSeries`). Which
                row: ``line``, ``place``, ``name``, ``expression``, ``module``, ``op``, ``kind``. Which gradient:
                ``loss`` and ``loss_place``, what backward started from and where; ``pass`` among all passes, ``step``
                among those of the loss, ``occurrence`` of the row, ``time`` within the pass, each from 0. Its numbers:
                ``norm``, ``min``, ``max``, ``zero_fraction``, ``nan_count``.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError('to_pandas() needs pandas: pip install "gradmagic[pandas]"') from error
        columns, lines = self._table(long)
        return pandas.DataFrame(lines, columns=list(columns))

    def _table(self, long: bool) -> tuple[Sequence[str], Iterator[dict[str, Any]]]:
        return LONG_COLUMNS if long else COLUMNS, lines_of(self.rows, self.losses, long)

    def compare(self, other: Report) -> Comparison:
        """What changed since an earlier report: of the same cell, of an edited one, or of another kernel's.

        Rows are matched by name, code and occurrence; lines may have been inserted, and variables renamed where the
        code shows it.

        Args:
            other: the earlier report.

        Raises:
            TypeError: `other` is no report.
        """
        from .comparison import compared  # only those who compare need it

        if not isinstance(other, Report):
            raise TypeError(f"a report is compared with a report, not with {type(other).__name__}")
        return compared(other, self)

    def check(
        self,
        pairs: Mapping[str, str] | None = None,
        *,
        namespace: Mapping[str, Any] | None = None,
        patterns: Iterable[str] = PATTERNS,
    ) -> GradientChecks:
        """Compares gradients that you derived by hand with those of this run.

        Variables are found by their names: ``dh``, ``grad_h``, ``h_grad``, ``d_h``, ``dL_dh``, ``dloss_dh`` for ``h``.
        Each is ``exact`` (equal in every element), ``close`` (equal but for rounding) or ``wrong``; then the cause is
        told where it can be confirmed by computing it: a sum over a broadcast dimension is missing, transposed, off by
        a factor, of the wrong sign, a second use of the tensor is missing, or it only follows from another mistake.

        The tensors have to be alive, and ``.grad`` as the run has left it. More causes are found where gradtrace ran
        backward, since the graph is there then.

        Args:
            pairs: variables (or expressions) by the tensors they belong to, beside those found by name:
                ``{"mine": "h"}``.
            namespace: where variables are looked up; by default those of the caller.
            patterns: how your gradients are called, with ``{}`` for the tensor's name.

        Raises:
            ValueError: a pattern does not hold ``{}`` once.
        """
        from .checking import checked  # only those who check need it, and it needs torch

        if namespace is None:
            frame = sys._getframe(1)
            namespace = {**frame.f_globals, **frame.f_locals}
        return checked(self, namespace, pairs or {}, checked_patterns(patterns))

    def plot(self, kind: Picture = "flow", *, by: Literal["execution", "depth"] = "execution", ax: Any = None) -> Any:
        """Draws how gradients flow, with matplotlib.

        ``flow``: norms on a log axis, activations (non-leaves) and parameters (leaves) apart; a band from the smallest
        to the largest norm where a row occurs several times, and a dash at the largest magnitude of an element. What
        vanishes or explodes is a slope; NaN, zeros and missing gradients have signs at the edge. ``steps``: a heat map
        of norms, with a line for each row that got several gradients, over the passes or else the time steps.

        Args:
            kind: ``flow`` or ``steps``.
            by: order of a flow: as the cell ran, or by depth: how many tensors lie between here and the root.
            ax: the matplotlib Axes to draw on; by default those of a new figure.

        Returns:
            The Axes.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: `kind` or `by` is none of the two.
        """
        from .render.plot import plot  # matplotlib is an extra

        return plot(self, kind, by, ax)

    def graph(self, *, depth: int | None = None, all: bool = False) -> TensorGraph:
        """The graph of the tensors: by their own names, with what made them, in the boxes of their modules.

        Edges are as dark and as thick as the gradient that came back along them is large (log scale), and dashed where
        none came. What a loop makes is one node. A notebook draws it; `TensorGraph.dot` and `.mermaid` are text.

        Args:
            depth: how far modules are opened, as in `ReportOptions`.
            all: draw constants without a name too, and open every module.

        Raises:
            ValueError: `depth` is less than 0.
        """
        from .render.graph import TensorGraph
        from .render.network import graph_view

        return TensorGraph(graph_view(self.with_options(ReportOptions(depth=depth, all=all))))

    def raise_for_findings(self, severity: Severity = "error", ignore: Iterable[str] = ()) -> None:
        """Raises if there is a finding of this severity or a worse one, for a test or a notebook that runs in CI.

        Args:
            severity: ``error``, ``warning`` (those too) or ``info`` (all).
            ignore: kinds of findings that may be there, such as ``"unused"``.

        Raises:
            FindingsError: (an AssertionError) there is one; its text is that of the findings.
            ValueError: `severity` is none of the three.
        """
        __tracebackhide__ = True
        if severity not in RANK:
            raise ValueError(f"severity must be 'error', 'warning' or 'info', not {severity!r}")
        ignored = {ignore} if isinstance(ignore, str) else set(ignore)
        raise_for([f for f in self.findings if RANK[f.severity] <= RANK[severity] and f.kind not in ignored])

    def to_html(self) -> str:
        """A complete HTML page of its own, for light and dark."""
        from .render.html import render_page

        return render_page(self)

    def to_markdown(self) -> str:
        """GitHub-flavoured Markdown of at most 100 rows, to paste into an issue or a forum post."""
        from .render.markdown import render_markdown

        return render_markdown(self)

    def to_tensorboard(self, writer: ScalarWriter, step: int) -> None:
        """Writes norms to TensorBoard, or to anything else that has its ``add_scalar(tag, value, step)``.

        Tags, with the path of the module that holds or made the tensor, and a number behind a name that comes again:

        * ``root/loss``: last value of what each loss started from, where that is a single number;
        * ``grad_norm/model.fc/weight``: norm of the last gradient of each row that has one, and a name; without the
          factor that a loss was scaled by for mixed precision;
        * ``update_ratio/model.fc/weight``: ``||update|| / ||weight||`` at the last step of an optimizer.

        Args:
            writer: such as ``torch.utils.tensorboard.SummaryWriter()``. It is neither flushed nor closed.
            step: where on the horizontal axis; the number of the training step.

        Raises:
            TypeError: `writer` has no ``add_scalar``.
        """
        from .scalars import write  # only those who log need it

        write(self, writer, step)

    def __str__(self) -> str:
        """The table as plain text, 100 columns wide."""
        from .render.text import render_text

        return render_text(self, width=100)

    def __repr__(self) -> str:
        counts = self.summary()
        return f"<Report: {counts.tensors} tensors, {counts.gradients} gradients, {len(self.findings)} findings>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:  # noqa: ARG002, Jupyter passes them
        from .render.bundle import render_bundle

        return render_bundle(self)

    def _find(self, name: object) -> TensorRow | None:
        if not isinstance(name, str):
            return None
        for row in reversed(self.rows):
            if row.name == name:
                return row
        for row in reversed(self.rows):
            if name in row.aliases:
                return row
        return None


def is_surprise(row: TensorRow) -> bool:
    """True when there is no gradient and a person would expect one: no plain constant, not switched off."""
    if row.grad is not None or row.reason in QUIET_REASONS:
        return False
    if row.kind != "constant":
        return row.reason != "after_backward"
    return row.reason is not None and row.reason not in ORDINARY_REASONS


_LONGEST_NAME = 200


def _quoted(name: str) -> str:
    """A name as Python writes it, shortened where it is very long."""
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…")


def _index(rows: Sequence[TensorRow], wanted: TensorRow | None) -> int | None:
    return next((index for index, row in enumerate(rows) if row is wanted), None)
