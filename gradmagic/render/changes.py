"""A comparison of two reports -> text and HTML."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..comparison import Comparison, GradChange, RootChange
from .html import filled
from .ink import Ink
from .markup import Line, Span, Style, clean, marked_up
from .numbers import plural, short
from .text import drawn, fitting

MOST = 20
"""So many changed gradients are listed; the rest is counted."""
NAMED = 5
UNNOTICED = 1.01
"""Changes by a smaller factor are counted only."""
NOTHING_YET = "there is no earlier run of this cell to compare with"
WORDS = {"vanished": "vanished", "appeared": "appeared", "finite": "finite again"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeView:
    """One line: what the tensor is called (and was, where that is another name), both norms, and what changed."""

    label: Span
    was: str
    before: str
    after: str
    change: str
    style: Style


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonView:
    """What both renderers lower."""

    header: Line
    rows: tuple[ChangeView, ...]
    closing: tuple[Line, ...]


def render_text(comparison: Comparison, width: int | None = None, color: bool = False, ascii_only: bool = False) -> str:
    """The comparison as text; the arguments are those of `text.render_text`."""
    wide = fitting(width)
    return drawn(_content(view_of(comparison), wide, Ink(color, ascii_only)), wide, color)


def render_html(comparison: Comparison) -> str:
    """The comparison as an HTML fragment for a notebook's output."""
    return filled("changes.html.j2", view=view_of(comparison))


def render_bundle(comparison: Comparison) -> dict[str, str]:
    """Both, by their MIME types."""
    return {"text/plain": render_text(comparison, width=100), "text/html": render_html(comparison)}


def view_of(comparison: Comparison) -> ComparisonView:
    """The comparison in words and short numbers."""
    noticed = [change for change in comparison.changes if _is_noticed(change)]
    return ComparisonView(
        header=_header(comparison, len(noticed)),
        rows=tuple(map(_row, noticed[:MOST])),
        closing=tuple(marked_up(line, "dim") for line in _closing(comparison, len(noticed))),
    )


def _is_noticed(change: GradChange) -> bool:
    if change.kind == "same":
        return False
    return change.factor is None or abs(math.log(change.factor)) > math.log(UNNOTICED)


def _header(comparison: Comparison, noticed: int) -> Line:
    total = len(comparison.changes)
    count = (
        f"{noticed} of {plural(total, 'gradient')} changed" if noticed else f"{plural(total, 'gradient')}, none changed"
    )
    return (*_since(comparison.than), Span("  "), *_root(comparison), Span(count))


def _since(than: str | None) -> Line:
    if than is None:
        return (Span("compared with the earlier report", "strong"),)
    return (
        (Span("compared with ", "strong"), Span(clean(than), "name"))
        if than
        else (Span("since the last run", "strong"),)
    )


def _root(comparison: Comparison) -> Line:
    """The root and its value, before and after; nothing where neither report has one."""
    before, after = comparison.root_before, comparison.root
    if before.name is None and after.name is None:
        return ()
    if before.name == after.name:
        return (*_named(after), Span(f" {_value(before)} → {_value(after)}"), Span(" · ", "dim"))
    return (
        *_named(before),
        Span(f" {_value(before)} → "),
        *_named(after),
        Span(f" {_value(after)}"),
        Span(" · ", "dim"),
    )


def _named(root: RootChange) -> Line:
    return (Span(clean(root.name), "name"),) if root.name is not None else (Span("no backward", "dim"),)


def _value(root: RootChange) -> str:
    return short(root.value, digits=4) if root.value is not None else ""


def _row(change: GradChange) -> ChangeView:
    renamed = change.label_before != change.label
    return ChangeView(
        label=Span(clean(change.label), "name"),
        was=f"was {clean(change.label_before)}" if renamed else "",
        before=_norm(change.before),
        after=_norm(change.after),
        change=_words(change),
        style="error" if change.kind in ("not_finite", "vanished") else "plain",
    )


def _norm(norm: float | None) -> str:
    return short(norm) if norm is not None else "None"


def _words(change: GradChange) -> str:
    if change.kind == "not_finite":
        return "not finite"
    if change.factor is None:
        return WORDS.get(change.kind, change.kind)
    return f"×{short(change.factor)}"


def _closing(comparison: Comparison, noticed: int) -> list[str]:
    lines = []
    if noticed > MOST:
        lines.append(f"{noticed - MOST} more changed less (`report.compare(other).changes` has all)")
    small = sum(change.kind != "same" for change in comparison.changes) - noticed
    if small:
        lines.append(f"{plural(small, 'gradient')} changed by less than 1 %")
    for labels, what in ((comparison.labels_added, "new"), (comparison.labels_removed, "gone")):
        if labels:
            named = ", ".join(f"`{clean(label)}`" for label in labels[:NAMED])
            more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
            lines.append(f"{what}: {named}{more}")
    return lines


def _content(view: ComparisonView, width: int, ink: Ink) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, max_width=width // 2)
    for _ in range(3):
        grid.add_column(justify="right", no_wrap=True)
    for row in view.rows:
        before, after = ink.text(row.before, "dim"), ink.text(f"→ {row.after}")
        grid.add_row(_label(row, width // 2, ink), before, after, ink.text(row.change, row.style))
    return Group(ink.line(view.header), *([grid] if view.rows else []), *map(ink.line, view.closing))


def _label(row: ChangeView, width: int, ink: Ink) -> Text:
    label = ink.shortened(row.label.text, row.label.style, width, keep_end=True)
    spare = width - label.cell_len - 2
    return label.append("  ").append_text(ink.shortened(row.was, "dim", spare)) if row.was and spare > 8 else label
