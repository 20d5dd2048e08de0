"""Report -> GitHub-flavoured Markdown (https://github.github.com/gfm/), for an issue, a forum post, or nbconvert."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..report import Report
from .build import build_view
from .marks import SIGNS, spark_text
from .markup import Line, Span
from .view import FindingView, GradView, LedgerView, ReportView, RowView, Spark

MOST_ROWS = 100
"""So many rows are written: a post is for reading."""
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>&~$]")
_LINKED = re.compile(r"(?<=(?<!\w)[@#])(?=\w)|(?<=:)(?=//)|(?<=www)(?=\.)", re.IGNORECASE)
"""Where GitHub would see a person, an issue or an address, though everything is escaped."""
PIPE = "&#124;"
BETWEEN = "<!-- -->"
"""Nothing, and it keeps what is before it from what is behind it."""


def render_markdown(report: Report) -> str:
    """The report as Markdown; what a person's strings hold is text in it."""
    return markdown_of(build_view(report, report.options.source))


def markdown_of(view: ReportView) -> str:
    """The same of a report that is in words already."""
    blocks = [
        "**gradtrace** " + " · ".join(map(_line, (*view.header, *view.aside))),
        "\n".join(map(_finding, view.findings)),
        "\n".join(map(_entry, view.ledger)),
        "\n".join(_table(view)) if view.rows else "",
        _rest(view),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _rest(view: ReportView) -> str:
    more = len(view.rows) + view.rows_more - MOST_ROWS
    left_out = [f"{more} more {'row' if more == 1 else 'rows'} left out"] if more > 0 else []
    return "  \n".join([*left_out, *map(_line, view.closing)])


def _finding(finding: FindingView) -> str:
    """An item of a list; PyTorch's own words stand in a block of code below it."""
    item = f"- {SIGNS[finding.severity]} {_line(finding.message)}"
    if finding.advice:
        item += f" {_line(finding.advice)}"
    if finding.code:
        item += f" → {_code(finding.code)}" if "\n" not in finding.code else _block(finding.code)
    return item + (_block(finding.detail) if finding.detail else "")


def _block(text: str) -> str:
    fence = "`" * max(3, _longest_run(text) + 1)
    body = "\n".join(f"  {line}".rstrip() for line in text.split("\n"))
    return f"\n\n  {fence}\n{body}\n  {fence}"


def _entry(entry: LedgerView) -> str:
    parts = (_text(entry.where), _text(entry.does), _span(entry.what), entry.times, _text(entry.numbers), entry.seconds)
    return "- " + " ".join(part for part in parts if part)


def _table(view: ReportView) -> Iterator[str]:
    norms = [f"‖grad‖ of {_code(column.name)}" for column in view.columns] or ["‖grad‖"]
    update = any(row.update for row in view.rows)
    heads = [
        "line",
        "tensor",
        "made by",
        "shape",
        *norms,
        "min, max or values",
        *(["‖Δw‖/‖w‖"] if update else []),
        "note",
    ]
    aligned = ["--:", "---", "---", "---", *("--:" for _ in norms), "---", *(["--:"] if update else []), "---"]
    yield _cells(heads)
    yield _cells(aligned)
    for row in view.rows[:MOST_ROWS]:
        updates = [row.update] if update else []
        yield _cells([*_which(row), *_norms(row.grad, len(norms)), _range(row.grad), *updates, _note(row)])


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _which(row: RowView) -> list[str]:
    sign = f"{SIGNS[row.severity]} " if row.severity is not None else ""
    tensor = " ".join(part for part in (f"{sign}{_span(row.label)}", row.times, _text(row.beside)) if part)
    place = " ".join(part for part in (row.line, _text(row.place)) if part)
    return [place, tensor, _text(row.op), _text(" ".join(part for part in (row.shape, row.extra) if part))]


def _norms(grad: GradView, columns: int) -> list[str]:
    if grad.norms:
        return [norm or "–" for norm in grad.norms]
    told = f"**{grad.norm}**" if grad.style == "error" else grad.norm
    return [told, *[""] * (columns - 1)]


def _range(grad: GradView) -> str:
    if grad.values:
        return _text(grad.values)
    return f"{grad.low}, {grad.high}" if grad.low else ""


def _note(row: RowView) -> str:
    return "; ".join(part for part in (*map(_spark, row.sparks), _line(row.note)) if part)


def _spark(spark: Spark) -> str:
    return " ".join(part for part in (_text(spark.label), spark_text(spark.levels), _text(spark.words)) if part)


def _line(line: Line) -> str:
    return "".join(map(_span, line)).strip()


def _span(span: Span) -> str:
    if span.style in ("code", "name"):
        return _code(span.text)
    text = _text(span.text)
    if span.style in ("strong", "error", "warning") and (inner := text.strip()):
        return text.replace(inner, f"**{inner}**", 1)
    return text


def _code(text: str) -> str:
    """A span of code. A pipe would end the cell of a table, also in code, where it cannot be escaped for certain."""
    if not text.strip():
        return ""
    if "|" in text:
        return f"<code>{_text(text)}</code>"
    fence = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _text(text: str) -> str:
    return _LINKED.sub(BETWEEN, _SPECIAL.sub(r"\\\g<0>", text)).replace("|", PIPE)
