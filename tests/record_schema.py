"""The JSON Schema (draft 2020-12) that the records' own types and docstrings give."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from inspect import cleandoc
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gradmagic.records import Location, TensorRow
from gradmagic.report import SCHEMA_VERSION, Report

_Number = TypeVar("_Number")
PLAIN = {int: {"type": "integer"}, str: {"type": "string"}, bool: {"type": "boolean"}, type(None): {"type": "null"}}
NUMBERS = {
    "number": {
        "description": "A number; those that JSON does not have are words.",
        "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}],
    },
    "complex": {
        "description": "A complex number: its real and its imaginary part.",
        "type": "array",
        "items": {"$ref": "#/$defs/number"},
        "minItems": 2,
        "maxItems": 2,
    },
}
REFERENCES = {float: "number", complex: "complex"}
OTHERWISE = {
    (Report, "root"): {
        "description": "index into `rows` of the one that backward started from, or null.",
        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}],
    },
}
"""What is something else in JSON."""


class Array(Generic[_Number]):
    """Stands for `array.array`, which takes no type in brackets before Python 3.12."""


class RecordSchema:
    """Builds the schema of a report, with a definition for each record in it."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        """The schema of what `Report.to_dict` gives."""
        report = self._object(Report)
        version = {
            "description": "version of this format: it grows when a key changes its meaning or goes away.",
            "const": SCHEMA_VERSION,
        }
        report["properties"] = {"schema_version": version, **report["properties"]}
        report["required"] = list(report["properties"])
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"A report of gradmagic, version {SCHEMA_VERSION}",
            **report,
            "$defs": {**NUMBERS, **dict(sorted(self.definitions.items()))},
        }

    def _object(self, record: type) -> dict[str, Any]:
        hints = get_type_hints(record, localns={"array": Array})
        told = attributes(record)
        left_out = {TensorRow: {"find_tensor"}, Report: {"options"}}.get(record, set())
        properties = {
            each.name: {
                "description": told[each.name],
                **(OTHERWISE.get((record, each.name)) or self._type(hints[each.name])),
            }
            for each in fields(record)
            if each.name not in left_out
        }
        if record is Location:
            properties["place"] = {"description": "The place in a few words, as the table has it.", "type": "string"}
        return {
            "description": first_sentence(record),
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def _type(self, hint: Any) -> dict[str, Any]:
        if hint in PLAIN:
            return PLAIN[hint]
        if hint in REFERENCES:
            return {"$ref": f"#/$defs/{REFERENCES[hint]}"}
        kind, inner = get_origin(hint), get_args(hint)
        if kind in (Union, UnionType):
            return {"anyOf": [self._type(each) for each in inner]}
        if kind is Literal:
            return {"enum": list(inner)}
        if is_dataclass(hint):
            if hint.__name__ not in self.definitions:
                self.definitions[hint.__name__] = self._object(hint)
            return {"$ref": f"#/$defs/{hint.__name__}"}
        assert kind in (list, tuple, Array), hint
        length = {"minItems": len(inner), "maxItems": len(inner)} if kind is tuple and inner[1] is not Ellipsis else {}
        return {"type": "array", "items": self._type(inner[0]), **length}


def first_sentence(record: type) -> str:
    return plain(cleandoc(record.__doc__ or "").split("\n\n")[0])


def attributes(record: type) -> dict[str, str]:
    """What the docstring says of each attribute; several may share a line: ``mean, min, max: over all elements``."""
    text = cleandoc(record.__doc__ or "").split("Attributes:\n")[1]
    found: dict[str, str] = {}
    for names, told in re.findall(r"^ {4}(\w[\w, ]*): ((?:.+\n?(?: {5,}.*\n?)*))", text, re.MULTILINE):
        found.update(dict.fromkeys(re.split(", *", names), plain(told)))
    return found


def plain(text: str) -> str:
    """In the words of JSON."""
    return re.sub(r"\bNone\b", "null", " ".join(text.replace("``", "`").split()))
