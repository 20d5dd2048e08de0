"""The person's own defaults, and the thresholds of the findings."""

from __future__ import annotations

from pathlib import Path

import pexpect
import pytest
import torch
from plain import run_traced
from shells import Session, session
from traitlets import TraitError
from traitlets.config import Config

import gradmagic
from gradmagic.defaults import GradTrace
from gradmagic.records import Thresholds
from gradmagic.settings import Options

OPTIONS = ("all", "depth", "filter", "graph", "live", "plot", "rows", "sort", "source", "strict", "values", "zero_grad")
CELL = "w = torch.ones(2, requires_grad=True)\nh = w * 2\nloss = h.sum()"


@pytest.fixture
def here() -> object:
    with session() as shell:
        shell.run("import torch")
        yield shell


def test_a_default_holds_until_the_line_says_otherwise(here: Session) -> None:
    """`rows=1` for every cell, `--rows 2` for one."""
    assert here.run("%gradtrace_config rows=1 source=True").stdout == "rows=1 source=True\n"
    assert "2 more left out" in here.run(f"%%gradtrace\n{CELL}").stdout
    assert "1 more left out" in here.run(f"%%gradtrace --rows 2\n{CELL}").stdout
    assert "│ h = w * 2" in here.run(f"%%gradtrace\n{CELL}").stdout


def test_reset_brings_back_the_usual_ones(here: Session) -> None:
    """And alone the magic shows what is different."""
    assert here.run("%gradtrace_config").stdout == "the usual defaults\n"
    here.run("%gradtrace_config rows=1 spread=100 sort=name")
    assert here.run("%gradtrace_config").stdout == "rows=1 sort=name spread=100.0\n"
    assert here.run("%gradtrace_config rows=None").stdout == "sort=name spread=100.0\n"
    assert here.run("%gradtrace_config reset").stdout == "the usual defaults\n"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("rows=0", "rows must be at least 1, not 0"),
        ("rows=many", "rows=many"),
        ("depth=-1", "depth must be at least 0, not -1"),
        ("row=5", "there is no default 'row'; there are all, dead_share, depth"),
        ("rows", "'rows' is no NAME=VALUE, such as rows=50"),
        ("sort=size", "sort=size"),
        ("dead_share=1.5", "dead_share must be between 0 and 1, not 1.5"),
        ("spread=1", "spread must be larger than 1, not 1.0"),
        ("backward=none", "there is no default 'backward'"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(here: Session, written: str, told: str) -> None:
    """In one sentence, without a traceback."""
    ran = here.run(f"%gradtrace_config {written}")
    assert ran.error.startswith("UsageError: %gradtrace_config: ")
    assert told in ran.error
    assert here.run("%gradtrace_config").stdout == "the usual defaults\n"


def test_ipythons_own_config_knows_them(here: Session) -> None:
    """`%config GradTrace.rows = 1`, and its list of all."""
    here.run("%config GradTrace.rows = 1")
    assert "2 more left out" in here.run(f"%%gradtrace\n{CELL}").stdout
    assert "GradTrace.dead_share=<Float>" in here.run("%config GradTrace").stdout.replace(" ", "")


@pytest.mark.real
def test_a_configuration_file_sets_them_for_every_session(tmp_path: Path) -> None:
    """`c.GradTrace.rows = 1` in ipython_config.py, in a real shell."""
    profile = tmp_path / "profile_default"
    profile.mkdir()
    (profile / "ipython_config.py").write_text(
        "c.GradTrace.rows = 1\nc.InteractiveShellApp.extensions = ['gradmagic']\n"
    )
    (tmp_path / "s.ipy").write_text(f"import torch\nget_ipython().run_cell('''%%gradtrace\n{CELL}\n''')\n")
    shown = pexpect.run(
        f"ipython --simple-prompt {tmp_path / 's.ipy'}", env={**_environment(), "IPYTHONDIR": str(tmp_path)}
    )
    assert b"2 more left out" in shown


def _environment() -> dict[str, str]:
    import os
    import sys

    root = str(Path(gradmagic.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_quiet_stays_quiet(here: Session) -> None:
    """A default that shows something is no conflict with `-q`; what shows is off."""
    here.run("%gradtrace_config source=True graph=True rows=3")
    ran = here.run(f"%%gradtrace -q -o report\n{CELL}")
    assert (ran.stdout, ran.stderr, ran.error) == ("", "", "")
    assert here["report"]["h"].grad is not None


def test_loading_again_starts_anew_and_unloading_takes_them_along(here: Session) -> None:
    """No second `GradTrace` in `%config`."""
    here.run("%gradtrace_config rows=1")
    here.run("%reload_ext gradmagic")
    assert [type(each).__name__ for each in here.shell.configurables].count("GradTrace") == 1
    here.run("%unload_ext gradmagic")
    assert "GradTrace" not in [type(each).__name__ for each in here.shell.configurables]


def test_every_default_is_an_option_or_a_threshold() -> None:
    """Or how derived gradients are called; and starts from its usual value."""
    ours = GradTrace()
    assert {*OPTIONS, "patterns", *Thresholds.__dataclass_fields__} == set(ours.traits(config=True))
    assert ours.thresholds() == Thresholds()
    assert ours.options() == {}
    assert all(getattr(ours, name) == getattr(Options(), name) for name in OPTIONS)


def test_a_configuration_that_cannot_be_is_refused() -> None:
    """As traitlets does it."""
    with pytest.raises(TraitError, match="at least 1"):
        GradTrace(config=Config({"GradTrace": {"rows": 0}}))


class TestThresholds:
    LOOP = (
        "x = torch.ones(1, requires_grad=True)\nw = torch.tensor(0.5)\nh = x * 1\n"
        "for t in range(12):\n    h = h * w\nloss = h.sum()\n"
    )

    def kinds(self, thresholds: Thresholds) -> set[str]:
        with gradmagic.trace(thresholds=thresholds) as run:
            h = torch.ones(1, requires_grad=True)
            for _ in range(12):
                h = h * 0.5
            loss = h.sum()
        assert loss is not None
        assert run.report is not None
        return {finding.kind for finding in run.report.findings}

    def test_a_lower_spread_finds_more(self) -> None:
        """Twelve halvings are a factor of 2048: nothing usually, and vanishing beyond 1000."""
        assert self.kinds(Thresholds()) == set()
        assert self.kinds(Thresholds(spread=1000.0)) == {"vanishing"}

    def test_in_a_notebook(self) -> None:
        """`%gradtrace_config spread=1000`."""
        with session() as shell:
            shell.run("import torch")
            assert "vanishing" not in shell.run(f"%%gradtrace\n{self.LOOP}").stdout
            shell.run("%gradtrace_config spread=1000")
            assert "factor of" in shell.run(f"%%gradtrace\n{self.LOOP}").stdout

    def test_the_usual_ones_are_those_of_a_plain_trace(self) -> None:
        """No finding in a healthy loop."""
        report, _ = run_traced(self.LOOP)
        assert report.findings == []
