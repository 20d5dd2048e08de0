"""JSON text -> report, the way back from `Report.to_json`: every value is checked against the type of its record."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib.metadata import version
from reprlib import Repr
from types import MappingProxyType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .curves import Curve, GradSeries
from .records import TensorRow
from .report import SCHEMA_VERSION, Report

_Report = TypeVar("_Report", bound=Report)
_Number = TypeVar("_Number", int, float)
_IN_WORDS = MappingProxyType({"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf})
_NOT_IN_JSON: Mapping[type, frozenset[str]] = MappingProxyType(
    {Report: frozenset({"root", "options"}), TensorRow: frozenset({"find_tensor"})}
)
"""The root is an index there; a live tensor and the options of the display are no data."""


class _Array(Generic[_Number]):
    """Stands for `array.array`, which takes no type in brackets before Python 3.12."""


class ReportFormatError(ValueError):
    """A text is no report, or one that this gradmagic cannot read. Its text is a sentence that says where and why."""


class _MisfitError(Exception):
    """A value that its record cannot hold, and the way to it, from the inside out."""

    def __init__(self, wanted: str, value: object, *way: str) -> None:
        self.wanted, self.value, self.way = wanted, value, list(way)

    def inside(self, step: str) -> _MisfitError:
        self.way.append(step)
        return self

    def __str__(self) -> str:
        place = "".join(reversed(self.way)).removeprefix(".")
        if self.value is MISSING:
            return f"{place} is missing"
        return f"{place} holds {_brief(self.value)} where {self.wanted} belongs"


def report_from(text: str | bytes | bytearray, kind: type[_Report]) -> _Report:
    """The report that a text from `Report.to_json` holds; see `Report.from_json`."""
    data = _parsed(text)
    _check_version(data)
    try:
        return _report(data, kind)
    except _MisfitError as misfit:
        raise ReportFormatError(
            f"this is no report as to_json() writes it: {misfit}. If it was changed by hand, change that place back; "
            "otherwise write the report again"
        ) from None


# ---- the text


def _parsed(text: str | bytes | bytearray) -> dict[str, Any]:
    if not isinstance(text, str | bytes | bytearray):
        raise TypeError(
            f"from_json takes the text that to_json() gave, not {type(text).__name__}: "
            "Report.from_json(Path('report.json').read_text()) reads a file"
        )
    try:
        source = text.removeprefix("\ufeff") if isinstance(text, str) else text.decode("utf-8-sig", "surrogatepass")
        data = json.loads(source, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ReportFormatError(_no_json(error)) from None
    except RecursionError:
        raise ReportFormatError("this is no report: its brackets are nested too deeply") from None
    except ValueError as error:  # no UTF-8, a bare NaN, or a number with thousands of digits
        raise ReportFormatError(f"this is no JSON as to_json() writes it: {error}") from None
    if not isinstance(data, dict):
        raise ReportFormatError(f"this JSON is {_brief(data)}, not a report: to_json() writes an object")
    return data


def _refuse(constant: str) -> float:
    raise ValueError(f'a bare {constant}, which strict JSON does not have; it is written "{constant}"')


def _no_json(error: json.JSONDecodeError) -> str:
    place = f"line {error.lineno}, column {error.colno}"
    if not error.doc.strip():
        return "this is no report: the text is empty"
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
        return f"this JSON breaks off at {place}: the file was not written, or not copied, to its end"
    return f"this is no JSON: {error.msg} at {place}"


def _check_version(data: Mapping[str, Any]) -> None:
    found = data.get("schema_version")
    if found is None:
        raise ReportFormatError("this JSON is no report: it has no schema_version, which to_json() writes")
    if type(found) is not int or found < 1:
        raise ReportFormatError(f"schema_version is {_brief(found)}, which no gradmagic has written")
    if found > SCHEMA_VERSION:
        raise ReportFormatError(
            f"this report has schema_version {found}, and gradmagic {version('gradmagic')} reads {SCHEMA_VERSION}: "
            "a newer gradmagic wrote it; read it with that one"
        )


# ---- the records


def _report(data: dict[str, Any], kind: type[_Report]) -> _Report:
    if "rows" not in data:
        raise _MisfitError("", MISSING, "rows")
    given = _arguments(Report, data)
    count = len(given["rows"])
    for name in ("rows", "findings"):
        for index, record in enumerate(given.get(name, ())):
            where = "inputs" if name == "rows" else "rows"
            for position, number in enumerate(getattr(record, where)):
                _check_row(number, count, f"[{position}]", f".{where}", f"[{index}]", name)
    root = data.get("root")
    if root is not None:
        _check_row(root, count, "root")
    return kind(**given, root=given["rows"][root] if root is not None else None)


def _check_row(number: object, count: int, *way: str) -> None:
    if type(number) is not int or not 0 <= number < count:
        raise _MisfitError(f"the number of one of the {count} rows, counted from 0,", number, *way)


def _arguments(record: type, data: object) -> dict[str, Any]:
    """What a record is made from; keys that it does not know are of no concern."""
    if not isinstance(data, dict):
        raise _MisfitError("an object", data)
    given = {}
    for name, hint, needed in _fields(record):
        if name in data:
            try:
                given[name] = _value(hint, data[name])
            except _MisfitError as misfit:
                raise misfit.inside(f".{name}") from None
        elif needed:
            raise _MisfitError("", MISSING, f".{name}")
    return given


@cache
def _fields(record: type) -> tuple[tuple[str, Any, bool], ...]:
    """Name and type of each field that JSON has, and whether it must be there: later fields have defaults."""
    hints = get_type_hints(record, localns={"array": _Array})
    held = [each for each in fields(record) if each.name not in _NOT_IN_JSON.get(record, ())]
    return tuple((f.name, hints[f.name], f.default is MISSING and f.default_factory is MISSING) for f in held)


def _value(hint: Any, value: Any) -> Any:
    """A value of JSON as the type asks for it; raises `_MisfitError` where it cannot be that."""
    if hint in _PLAIN:
        return _PLAIN[hint](value)
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return _one_of(inner, value)
    if kind is Literal:
        return _word(inner, value)
    if is_dataclass(hint):
        return _record(hint, value)  # type: ignore[arg-type]  # a dataclass, not an instance of one
    items = _items(inner, value)
    return array("d" if inner[0] is float else "q", items) if kind is _Array else kind(items)


def _record(kind: type, value: object) -> Any:
    record = kind(**_arguments(kind, value))
    if isinstance(record, Curve | GradSeries):
        _check_lengths(record)
    return record


def _check_lengths(record: Curve | GradSeries) -> None:
    """One that is thinned has fewer numbers than there were, but as many of each kind."""
    for each in fields(record):
        numbers = getattr(record, each.name)
        if isinstance(numbers, array) and len(numbers) != len(record):
            raise _MisfitError(f"a list of {len(record)}, as beside it,", numbers.tolist(), f".{each.name}")
    if record.total < len(record):
        raise _MisfitError(f"at least the {len(record)} that are there", record.total, ".total")


def _one_of(hints: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in hints:
        return None
    if complex in hints and isinstance(value, list):
        return complex(*_items((float, float), value))
    return _value(hints[0], value)


def _word(words: tuple[Any, ...], value: object) -> str:
    if isinstance(value, str) and value in words:
        return value
    raise _MisfitError(f"one of {', '.join(words)}", value)


def _items(hints: tuple[Any, ...], value: object) -> list[Any]:
    """Items of one type, as many as there are; or of these types, one each."""
    if not isinstance(value, list):
        raise _MisfitError("a list", value)
    if len(hints) > 1 and hints[1] is not Ellipsis and len(value) != len(hints):
        raise _MisfitError(f"a list of {len(hints)}", value)
    found: list[Any] = []
    try:
        for item in value:
            found.append(_value(hints[0], item))
    except _MisfitError as misfit:
        raise misfit.inside(f"[{len(found)}]") from None
    return found


# ---- numbers and strings


def _integer(value: object) -> int:
    if type(value) is int and abs(value) < 1 << 63:
        return value
    raise _MisfitError("a whole number", value)


def _number(value: object) -> float:
    """A whole number stays one, so that it is written as it was read."""
    if type(value) is float or (type(value) is int and abs(value) < 1 << 63):
        return value
    if isinstance(value, str) and value in _IN_WORDS:
        return _IN_WORDS[value]
    raise _MisfitError('a number, "NaN", "Infinity" or "-Infinity"', value)


def _string(value: object) -> str:
    if isinstance(value, str):
        return value
    raise _MisfitError("a string", value)


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _MisfitError("true or false", value)


_PLAIN: Mapping[Any, Callable[[object], Any]] = MappingProxyType(
    {int: _integer, float: _number, str: _string, bool: _truth}
)


def _brief(value: object) -> str:
    """A value as JSON has it, cut short."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = 40
    short.maxlevel = 2
    return short.repr(value)
