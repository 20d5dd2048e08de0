"""What several files need: a shell, golden files.

Three switches: ``pytest --slow`` runs everything; ``--refresh-golden`` writes what the code gives now, and
``--screenshots FOLDER`` keeps what the browser saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shells import Session, session

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh-golden", action="store_true", help="write the golden files anew")
    parser.addoption("--screenshots", metavar="FOLDER", help="keep what the browser saw, as pictures")
    parser.addoption("--slow", action="store_true", help="run whole databases and thousands of programs too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes many minutes; run it with --slow"))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares text with tests/golden/NAME, or writes it there under --refresh-golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--refresh-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{text}\n", encoding="utf-8", newline="\n")
        assert path.read_text(encoding="utf-8") == f"{text}\n"

    return compare


@pytest.fixture(scope="module")
def opened() -> Iterator[Session]:
    """One shell for all tests of a file."""
    with session() as opened:
        yield opened


@pytest.fixture
def shell(opened: Session) -> Session:
    """The shell of the file, with nothing in its namespace; a file that needs more in it has a `shell` of its own."""
    return opened.fresh()
