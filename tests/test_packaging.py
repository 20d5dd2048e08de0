"""The project around the code: metadata, what the wheel holds, and that README says what is true."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any, get_args

import pytest
import torch  # noqa: F401 - some of the modules below need it, and it is slow to import inside a test

import gradmagic
from gradmagic.magic import GradtraceMagics
from gradmagic.records import Reason
from gradmagic.report import Report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def table(name: str) -> list[list[str]]:
    """The body of a table in README: a list of columns for each row."""
    found = re.search(rf"<!-- table: {name} -->\n((?:\|.*\n)+)", README)
    assert found is not None
    rows = [re.split(r"(?<!\\)\|", line.strip("| \n")) for line in found.group(1).splitlines()]
    return [[column.strip() for column in row] for row in rows[2:]]


def command(name: str) -> str:
    found = re.search(rf"<!-- command: {name} -->\n```sh\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found.group(1).rstrip("\n")


def test_the_version_is_the_same_everywhere() -> None:
    """In pyproject, in the installed package, and at the top of the changelog."""
    assert gradmagic.__version__ == version("gradmagic") == PROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d.*?)\]", changelog, re.MULTILINE)
    assert releases[0] == gradmagic.__version__


def test_the_package_brings_its_types_templates_and_schema() -> None:
    """Files that are no Python travel with the installed package."""
    package = Path(gradmagic.__file__).parent
    assert (package / "py.typed").exists()
    assert (package / "report.schema.json").exists()
    assert list((package / "render" / "templates").glob("*.j2"))


def test_the_metadata_name_the_license_and_the_least_python() -> None:
    """What an index shows of the package."""
    data = metadata("gradmagic")
    assert data["License-Expression"] == "MIT"
    assert data["Requires-Python"] == ">=3.11"
    assert "MIT License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_only_five_packages_are_needed_to_run() -> None:
    """Everything else is an extra; rich and IPython bring Pygments anyhow."""
    needed = {re.split(r"[>=<~]", each)[0] for each in PROJECT["project"]["dependencies"]}
    assert needed == {"torch", "ipython", "rich", "jinja2", "pygments"}


@pytest.mark.parametrize("name", ["quickstart", "tests"])
def test_readmes_command_is_one_line_that_the_shell_can_read(name: str) -> None:
    """It makes its environment itself, and asks for the build of PyTorch the tests are made with."""
    line = command(name)
    assert "\n" not in line
    assert line.startswith("python3 -m venv ")
    assert "torch==2.13.0" in line
    subprocess.run(["bash", "-n", "-c", line], check=True)


@pytest.mark.parametrize("name", ["quickstart", "tests"])
def test_readmes_command_asks_for_extras_that_exist(name: str) -> None:
    """pip only warns about an unknown extra."""
    asked = re.findall(r"\.\[([a-z,]+)\]", command(name))
    assert asked
    assert set(asked[0].split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_readmes_options_are_the_magics_options() -> None:
    """None is missing, none is made up; a value is wanted where README shows one, and need not be where both stand."""
    parser: Any = GradtraceMagics.gradtrace.parser
    real = {
        (frozenset(action.option_strings), action.nargs != 0, action.nargs is None)
        for action in parser._actions
        if action.option_strings and action.dest != "help"
    }
    told = set()
    for row in table("options"):
        forms = re.findall(r"`(-[^`]*)`", row[0])
        valued = [" " in form for form in forms]
        told.add((frozenset(form.split()[0] for form in forms), any(valued), all(valued)))
    assert told == real


def test_readmes_reasons_are_the_records_reasons() -> None:
    """The closed list, in its order, each with its meaning and what to write."""
    rows = table("reasons")
    assert [row[0].strip("`") for row in rows] == list(get_args(Reason))
    assert all(len(row) == 3 and all(row) for row in rows)


@pytest.mark.parametrize("form", ["rows", "long"])
def test_readmes_columns_are_those_of_pandas_and_its_docstring_has_them_too(form: str) -> None:
    """Each once, with what it holds; none is made up."""
    real = Report().to_csv(long=form == "long").strip().split(",")
    told = [name for row in table("columns") if row[1] in (form, "both") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(told) == sorted(real)
    assert all(len(row) == 3 and row[2] and row[1] in ("both", "rows", "long") for row in table("columns"))
    of_rows, of_long = (Report.to_pandas.__doc__ or "").split("Args:")
    assert set(re.findall(r"``(\w+)``", of_rows if form == "rows" else of_long)) == set(real)


def test_every_file_readme_points_to_is_there() -> None:
    """Pictures and links within the repository."""
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_readmes_picture_is_small() -> None:
    """Below 150 kB."""
    assert (ROOT / "examples" / "report.png").stat().st_size < 150_000
