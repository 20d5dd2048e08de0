"""The published JSON Schema: it is what the records are, and every report keeps to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from plain import run_traced
from record_schema import RecordSchema
from sample_reports import SAMPLES, gan
from test_hostile import PAYLOADS, poisoned, whole_report
from test_reading import TRACED

import gradmagic
from gradmagic.report import Report

PUBLISHED = Path(gradmagic.__file__).parent / "report.schema.json"
VALIDATOR = Draft202012Validator(json.loads(PUBLISHED.read_text(encoding="utf-8")))


def complaints(data: Any) -> list[str]:
    """What the schema has against some data: where, and what."""
    return [f"{error.json_path}: {error.message[:200]}" for error in VALIDATOR.iter_errors(data)]


def test_the_published_schema_is_what_the_records_are(request: pytest.FixtureRequest) -> None:
    """Every field, its type and what its docstring says; ``--refresh-golden`` publishes it anew."""
    text = json.dumps(RecordSchema().whole(), indent=2, ensure_ascii=False)
    if request.config.getoption("--refresh-golden"):
        PUBLISHED.write_text(f"{text}\n", encoding="utf-8", newline="\n")
    assert PUBLISHED.read_text(encoding="utf-8") == f"{text}\n"


def test_the_schema_is_a_schema_and_the_report_hands_it_out() -> None:
    """By the meta-schema of the draft."""
    schema = Report.json_schema()
    Draft202012Validator.check_schema(schema)
    assert schema == VALIDATOR.schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["schema_version"]["const"] == gan().to_dict()["schema_version"]


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object that the schema describes."""
    for item in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from objects(item)
    if isinstance(schema, dict) and schema.get("type") == "object":
        yield schema


def test_every_key_is_described_required_and_the_only_one() -> None:
    """Nothing may be missing, and nothing else may be there."""
    found = list(objects(Report.json_schema()))
    assert len(found) == 12
    for each in found:
        assert each["additionalProperties"] is False
        assert each["required"] == list(each["properties"])
        assert all(len(held["description"]) > 10 for held in each["properties"].values())


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_keeps_to_the_schema(name: str) -> None:
    """NaN, complex numbers and unpaired surrogates included."""
    assert complaints(json.loads(SAMPLES[name]().to_json())) == []


@pytest.mark.parametrize("source", TRACED.values(), ids=TRACED)
def test_what_was_really_traced_keeps_to_the_schema(source: str) -> None:
    """Loops, optimizers, modules, errors, and what is not finite."""
    report, _ = run_traced(source)
    assert complaints(json.loads(report.to_json())) == []


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_any_text_keeps_to_the_schema(payload: str) -> None:
    """Strings are free."""
    assert complaints(json.loads(poisoned(whole_report(), payload).to_json())) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data.update(extra=1), "$: Additional properties are not allowed ('extra' was unexpected)"),
        (lambda data: data.pop("ledger"), "$: 'ledger' is a required property"),
        (lambda data: data.update(schema_version=2), "$.schema_version: 1 was expected"),
        (lambda data: data["rows"][0].update(kind="thing"), "$.rows[0].kind: 'thing' is not one of ['parameter', "),
        (lambda data: data["rows"][2]["grads"]["norm"].append("nan"), "$.rows[2].grads.norm[6]: 'nan' is not valid"),
        (lambda data: data["rows"][0].update(shape=[1.5]), "$.rows[0].shape[0]: 1.5 is not of type 'integer'"),
        (lambda data: data["ledger"][1]["location"].update(span=[1, 2]), "$.ledger[1].location: {"),
        (lambda data: data.update(root="loss"), "$.root: 'loss' is not valid under any of the given schemas"),
    ],
)
def test_what_is_no_report_does_not_keep_to_it(change: Callable[[dict[str, Any]], object], told: str) -> None:
    """The validator says where."""
    data = json.loads(gan().to_json())
    change(data)
    assert [line for line in complaints(data) if line.startswith(told)] != []
