"""The intermediate form: everything a report shows, in words and short numbers, before it is text or HTML."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Severity
from .markup import Line, Span, Style


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingView:
    """A finding in words; `code` is a hint that is Python, `advice` one that is a sentence."""

    severity: Severity
    message: Line
    advice: Line = ()
    code: str = ""
    detail: str = ""


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
    """

    norm: str = "None"
    style: Style = "dim"
    bar: float | None = None
    values: str = ""
    low: str = ""
    high: str = ""
    zeros: str = ""


@dataclass(frozen=True, slots=True)
class Spark:
    """The norms of a row's occurrences: heights 0 to 7 (None: not finite), and in words what they span."""

    levels: tuple[int | None, ...]
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
        note: the remark; dim when nobody is surprised.
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
    spark: Spark | None = None
    note: Line = ()
    inner: tuple[InnerView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportView:
    """What both renderers lower.

    Attributes:
        header: parts of one sentence: root, passes, counts, time.
        aside: what else to know about the run, in parts; may be empty.
        findings: in words, the most severe first.
        rows: the table; empty when there is none to draw.
        closing: lines below the table.
        inner_steps: draw the inner steps of the rows as well.
    """

    header: tuple[Line, ...]
    aside: tuple[Line, ...]
    findings: tuple[FindingView, ...]
    rows: tuple[RowView, ...]
    closing: tuple[Line, ...]
    inner_steps: bool
