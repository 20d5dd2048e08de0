"""Records as plain data: what JSON can hold, and one flat line for each row or for each gradient."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from .records import LedgerEntry, Location, TensorRow

COLUMNS = (
    "line", "place", "name", "expression", "module", "module_type", "op", "grad_fn", "kind", "shape", "dtype",
    "device", "count", "norm", "rms", "mean", "min", "max", "zero_fraction", "nan_count", "inf_count",
    "numel", "reason", "culprit", "note", "value_norm", "value_min", "value_max", "value_nan_count", "value_inf_count",
)  # fmt: skip
_WHICH = ("line", "place", "name", "expression", "module", "op", "kind")
_SERIES = {
    "pass": "passes",
    "step": "steps",
    "occurrence": "occurrences",
    "time": "times",
    "norm": "norm",
    "min": "min",
    "max": "max",
    "zero_fraction": "zero_fraction",
    "nan_count": "nan_count",
}
"""Columns of the long form, and the arrays of `GradSeries` they come from."""
LONG_COLUMNS = (*_WHICH, "loss", "loss_place", *_SERIES)
_STATISTICS = ("norm", "rms", "mean", "min", "max", "zero_fraction", "nan_count", "inf_count", "numel")


def lines_of(rows: Sequence[TensorRow], losses: Sequence[LedgerEntry], long: bool) -> Iterator[dict[str, Any]]:
    """One line for each row, with the keys of `COLUMNS`; or for each gradient, with those of `LONG_COLUMNS`."""
    for row in rows:
        yield from _long(row, losses) if long else (_flat(row),)


def csv_of(columns: Sequence[str], lines: Iterator[dict[str, Any]]) -> str:
    """The lines as RFC 4180 has them, with a head; see `Report.to_csv`."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(columns))
    writer.writeheader()
    writer.writerows({key: _inert(value) for key, value in line.items()} for line in lines)
    return out.getvalue()


def _flat(row: TensorRow) -> dict[str, Any]:
    """One row as a flat dict with the keys of `COLUMNS`."""
    flat = {column: getattr(row, column, None) for column in COLUMNS}
    flat["line"] = row.line if row.location.own else row.cell_line
    flat["place"] = str(row.location)
    flat["shape"] = str(row.shape)
    flat["culprit"] = str(row.culprit) if row.culprit is not None else None
    for name in _STATISTICS:
        flat[name] = getattr(row.grad, name, None)
    for name in ("norm", "min", "max", "nan_count", "inf_count"):
        flat[f"value_{name}"] = getattr(row.forward, name, None)
    return flat


def _long(row: TensorRow, losses: Sequence[LedgerEntry]) -> Iterator[dict[str, Any]]:
    """One line for each gradient of a row, with the keys of `LONG_COLUMNS`."""
    flat = _flat(row)
    which = {column: flat[column] for column in _WHICH}
    grads = row.grads
    for index in range(len(grads)):
        loss = grads.losses[index]
        yield {
            **which,
            "loss": losses[loss].name if loss < len(losses) else None,
            "loss_place": str(losses[loss].location or losses[loss].run_by) if loss < len(losses) else None,
            **{column: getattr(grads, array_name)[index] for column, array_name in _SERIES.items()},
        }


_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def _inert(value: object) -> object:
    """Keeps a spreadsheet from running text as a formula (OWASP, "CSV Injection"), and a terminal from obeying it."""
    if not isinstance(value, str):
        return value
    text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), value)
    return f"'{text}" if _FORMULA.match(text) else text


def plain(value: Any) -> Any:
    """Records, tuples and numbers as strict JSON has them; see `Report.to_dict`."""
    if isinstance(value, float):
        return value if math.isfinite(value) else _non_finite(value)
    if isinstance(value, complex):
        return [plain(value.real), plain(value.imag)]
    if value is None or isinstance(value, str | int):
        return value
    if is_dataclass(value):
        return _plain_record(value)
    return [plain(item) for item in value]


def _non_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _plain_record(record: Any) -> dict[str, Any]:
    data = {f.name: plain(getattr(record, f.name)) for f in fields(record) if f.name != "find_tensor"}
    if isinstance(record, Location):
        data["place"] = str(record)
    return data
