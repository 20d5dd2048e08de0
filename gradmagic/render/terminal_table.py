"""The table of a report for the terminal."""

from __future__ import annotations

from rich import box
from rich.cells import cell_len
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .ink import Ink
from .layout import COLUMNS, GAP, Widths, fit, natural
from .marks import FOLD
from .view import InnerView, ReportView, RowView, Spark

RULE = box.Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
ASCII_RULE = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)

RIGHT = frozenset({"line", "norm"})
HEADERS = {
    "line": "line",
    "place": "",
    "tensor": "tensor",
    "op": "made by",
    "shape": "shape",
    "norm": "‖grad‖",
    "bar": "",
    "update": "‖Δw‖/‖w‖",
}


def table(view: ReportView, width: int, ink: Ink) -> Table:
    """The rows as a rich table, at most `width` wide.

    For rich it has two columns, the note, which wraps, and all the others in one: a third of the time.
    """
    widths = fit(natural(view.rows, view.inner_steps, view.columns), width)
    columns = [name for name in COLUMNS if getattr(widths, name) and name != "note"]
    drawn = Table(box=ASCII_RULE if ink.ascii_only else RULE, padding=0, pad_edge=False, show_edge=False)
    drawn.add_column(_joined(columns, [_header(name, view, widths, ink) for name in columns], widths), no_wrap=True)
    if widths.note:
        drawn.add_column(ink.text(" note", "strong"), width=widths.note + 1, overflow="fold")
    for row in view.rows:
        body = _joined(columns, [_cell(name, row, widths, ink) for name in columns], widths)
        drawn.add_row(body, *([Padding(_note(row, ink), (0, 0, 0, GAP - 1))] if widths.note else []))
        for step in row.inner if view.inner_steps else ():
            drawn.add_row(_joined(columns, [_inner_cell(name, step, widths, ink) for name in columns], widths))
    return drawn


def _header(name: str, view: ReportView, widths: Widths, ink: Ink) -> Text:
    if name == "norm" and view.columns:
        heads = zip(view.columns, widths.norms, strict=True)
        cells = [(ink.shortened(column.name, "strong", width), width) for column, width in heads]
        return Text(" " * GAP).join(Text(" " * (width - cell.cell_len)) + cell for cell, width in cells)
    return ink.text(_figures_header(widths) if name == "figures" else HEADERS[name], "strong")


def _joined(columns: list[str], cells: list[Text], widths: Widths) -> Text:
    """The cells side by side, each as wide as its column."""
    joined = Text()
    for name, cell in zip(columns, cells, strict=True):
        space = " " * (getattr(widths, name) - cell.cell_len)
        parts = (space, cell) if name in RIGHT else (cell, space)
        joined.append(" " * GAP if joined else "")
        for part in parts:
            joined.append(part)
    return joined


def _norm(row: RowView, widths: Widths, ink: Ink) -> Text:
    if row.grad.norms:
        return ink.text(_side_by_side([norm or "–" for norm in row.grad.norms], widths))
    return ink.text(row.grad.norm, row.grad.style)


def _side_by_side(norms: list[str], widths: Widths) -> str:
    """The norms of several losses, each below the name of its loss."""
    return (" " * GAP).join(norm.rjust(width) for norm, width in zip(norms, widths.norms, strict=True))


def _figures_header(widths: Widths) -> str:
    return _figures(widths, "min", "max", "zeros") if widths.low else "values".rjust(widths.figures)


def _figures(widths: Widths, low: str, high: str, zeros: str) -> str:
    parts = [low.rjust(widths.low), high.rjust(widths.high)]
    if widths.zeros:
        parts.append(zeros.rjust(widths.zeros))
    return (" " * GAP).join(parts).rjust(widths.figures)


def _cell(name: str, row: RowView, widths: Widths, ink: Ink) -> Text:  # noqa: PLR0911 - one for each column
    if name == "line":
        return ink.shortened(row.line or row.place, "dim", widths.line)
    if name == "place":
        return ink.shortened(row.place if row.line else "", "dim", widths.place)
    if name == "tensor":
        return _tensor(row, widths.tensor, ink)
    if name == "op":
        return ink.shortened(row.op, "plain", widths.op)
    if name == "shape":
        return _shape(row, widths.shape, ink)
    if name == "norm":
        return _norm(row, widths, ink)
    if name == "update":
        return ink.text(row.update.rjust(widths.update))
    if name == "bar":
        return ink.bar(row.grad.bar, widths.bar)
    return _figures_cell(row, widths, ink)


def _tensor(row: RowView, width: int, ink: Ink) -> Text:
    times = f" {row.times}" if row.times else ""
    sign = ink.mark(row.severity).append(" ") if row.severity is not None else Text()
    label = f"{FOLD if row.folded else ''}{row.label.text}"
    cell = Text().append_text(sign)
    cell.append_text(ink.shortened(label, row.label.style, width - len(times) - sign.cell_len, keep_end=row.path))
    cell.append(ink.letters(times), "dim")
    spare = width - cell.cell_len - GAP
    if row.beside and spare >= min(12, cell_len(row.beside)):
        cell.append(" " * GAP)
        cell.append_text(ink.shortened(row.beside, "dim", spare))
    return cell


def _shape(row: RowView, width: int, ink: Ink) -> Text:
    cell = ink.shortened(row.shape, "plain", width)
    spare = width - cell.cell_len - 1
    if row.extra and spare >= 3:
        cell.append(" ")
        cell.append_text(ink.shortened(row.extra, "dim", spare))
    return cell


def _figures_cell(row: RowView, widths: Widths, ink: Ink) -> Text:
    """The elements when they fit, ending where the maximum does: none shall look like a share of zeros."""
    grad = row.grad
    before_zeros = widths.figures - (GAP + widths.zeros if widths.zeros else 0)
    if grad.values and len(grad.values) <= widths.figures:
        fits = len(grad.values) <= before_zeros
        return ink.text(grad.values.rjust(before_zeros if fits else widths.figures))
    return ink.text(_figures(widths, grad.low, grad.high, grad.zeros)) if widths.low else Text()


def _note(row: RowView, ink: Ink) -> Text:
    parts = [_spark(spark, ink) for spark in row.sparks]
    if row.note:
        parts.append(ink.line(row.note))
    return Text("\n").join(parts)


def _spark(spark: Spark, ink: Ink) -> Text:
    drawn = ink.text(f"{spark.label} ") if spark.label else Text()
    if spark.levels:
        drawn.append_text(ink.spark(spark.levels)).append(" ")
    return drawn.append_text(ink.text(spark.words, "dim"))


def _inner_cell(name: str, step: InnerView, widths: Widths, ink: Ink) -> Text:
    if name == "tensor":
        return ink.shortened(f"  └ {step.name}", "dim", widths.tensor)
    if name == "shape":
        return ink.shortened(step.shape, "dim", widths.shape)
    return ink.text(step.norm, "dim") if name == "norm" else Text()
