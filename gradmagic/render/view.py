"""The intermediate form: everything a report shows, in words and short numbers, before it is text or HTML."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Severity
from .markup import Line, Span, Style


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingView:
    """A finding in words; `code` is a hint that is Python, `advice` a sentence, `anchor` that of its row."""

    severity: Severity
    message: Line
    advice: Line = ()
    code: str = ""
    detail: str = ""
    anchor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerView:
    """One inner step of a row."""

    name: str
    shape: str
    norm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GradView:
    """The numbers of one gradient, or ``None`` in their place.

    Attributes:
        norm, style: the norm, or ``None``; in the style of an error where it is a surprise.
        bar: length of the bar, 0.0 to 1.0, or None for no bar.
        values: the elements when they are few, else empty.
        low, high, zeros: minimum, maximum and share of zeros; empty where there are none.
        norms: the norm of each loss' gradient, where there are several losses; empty for one that gave none.
    """

    norm: str = "None"
    style: Style = "dim"
    bar: float | None = None
    values: str = ""
    low: str = ""
    high: str = ""
    zeros: str = ""
    norms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spark:
    """What happened again and again: heights 0 to 7 (None: not finite), and in words what they span.

    Attributes:
        levels: the heights.
        title: for a tooltip.
        label: the loss, where there are several; else empty.
        words: index and value of the first and the last, and of the extremes.
    """

    levels: tuple[int | None, ...]
    title: str
    label: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class ColumnView:
    """A column of norms, of the gradients of one loss: its index, what it is called, and which line runs it."""

    loss: int
    name: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """One line of the ledger.

    Attributes:
        where: the line, in words.
        what: the root, or the code that ran.
        does: ``backward``, ``step``, ``clips``...
        times: ``×500``, or empty.
        spark: heights of its values; empty for fewer than two.
        numbers: its values in words.
        seconds: wall time of passes, or empty.
    """

    where: str
    what: Span
    does: str
    times: str
    spark: tuple[int | None, ...]
    numbers: str
    seconds: str


@dataclass(frozen=True, slots=True)
class SourcePiece:
    """Part of a line of source: underlined where a finding of this severity blames it, with a sentence that says so."""

    span: Span
    severity: Severity | None = None
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLine:
    """One line of the annotated source.

    Attributes:
        number: its number.
        pieces: its text.
        grad: norm and bar of the gradient of what it makes; an empty norm where nothing is to be said.
        title: its tensors in words, for a tooltip.
        severity: of the worst that it is blamed for, or None.
        label: what it is blamed for, in a few words.
    """

    number: str
    pieces: tuple[SourcePiece, ...]
    grad: GradView
    title: str = ""
    severity: Severity | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class FoldedView:
    """A row inside a fold: what it is called there, its norm and bar, and the rest for a tooltip."""

    name: str
    grad: GradView
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """One line of the table.

    Attributes:
        line, place: the traced cell's line, and where the code stands when that is elsewhere.
        label, beside: what the tensor is called, and where in the model (or from what expression) it comes.
        path: the label is a dotted name, whose end tells more than its beginning.
        times: ``×50`` for a row that occurred more than once, else empty.
        title: expression and class of the autograd node, for a tooltip.
        shape, extra: the shape, and dtype and device where they are worth a word.
        sparks: what its gradients were like over time, for each loss.
        update: ``||update|| / ||weight||`` of the last optimizer step, or empty.
        note: the remark; dim when nobody is surprised.
        severity: of the worst finding that names it, or None.
        anchor: what a link to it leads to, or empty.
        folded: the rows of a module, where the line stands for all of them.
        more: how many of those are left out.
    """

    line: str
    place: str
    label: Span
    beside: str
    path: bool
    times: str
    title: str
    op: str
    shape: str
    extra: str
    grad: GradView
    sparks: tuple[Spark, ...] = ()
    update: str = ""
    note: Line = ()
    inner: tuple[InnerView, ...] = ()
    severity: Severity | None = None
    anchor: str = ""
    folded: tuple[FoldedView, ...] = ()
    more: int = 0

    @property
    def bare(self) -> bool:
        """Whether it has no number but the norm, if that."""
        grad = self.grad
        numbers = (grad.norms, grad.values, grad.low, grad.high, grad.zeros, self.update)
        return grad.bar is None and not any(numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportView:
    """What both renderers lower.

    Attributes:
        header: parts of one sentence: root, passes, counts, time.
        aside: what else to know about the run, in parts; may be empty.
        findings: in words, the most severe first.
        ledger: what ran backward, stepped, cleared and clipped; empty where the header says it all.
        columns: the losses, where there are several; each has a column of norms in place of the only one.
        rows: the table; empty when there is none to draw.
        rows_more, findings_more: how many of them are left out because they would be too large to draw.
        closing: lines below the table.
        source: the annotated source; empty where it is unknown.
        source_more: lines of it that are left out.
        source_asked: whether it was asked for.
        inner_steps: draw the inner steps of the rows as well.
    """

    header: tuple[Line, ...]
    aside: tuple[Line, ...]
    findings: tuple[FindingView, ...]
    ledger: tuple[LedgerView, ...]
    columns: tuple[ColumnView, ...]
    rows: tuple[RowView, ...]
    closing: tuple[Line, ...]
    source: tuple[SourceLine, ...]
    source_more: int
    source_asked: bool
    inner_steps: bool
    rows_more: int = 0
    findings_more: int = 0
