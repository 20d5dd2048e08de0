"""What a test, or a notebook in CI, asks of a report."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from plain import run_traced
from sample_reports import at, rnn
from shells import session
from torch import nn

from gradmagic.asserting import TracedCall
from gradmagic.records import Finding
from gradmagic.report import FindingsError, Report

CUT = "w = torch.ones(3, requires_grad=True)\ni = (w * 2).argmax()\nloss = torch.ones(3, requires_grad=True)[i] * 2\n"
Call = Callable[..., TracedCall]


def found(*kinds: str) -> Report:
    severities = {"e": "error", "w": "warning", "i": "info"}
    findings = [
        Finding(
            kind=kind, severity=severities[kind[0]], message=f"the message of `{kind}`", hint="w = 1", location=at(2)
        )  # type: ignore[arg-type]
        for kind in kinds
    ]
    return Report(findings=findings)


class TestRaising:
    @pytest.mark.parametrize(
        ("severity", "kinds"), [("error", ["e1"]), ("warning", ["e1", "w1"]), ("info", ["e1", "w1", "i1"])]
    )
    def test_a_severity_takes_the_worse_ones_along(self, severity: str, kinds: list[str]) -> None:
        """What did not pass is in the error, too."""
        with pytest.raises(FindingsError) as caught:
            found("e1", "w1", "i1").raise_for_findings(severity)  # type: ignore[arg-type]  # parametrized
        assert [finding.kind for finding in caught.value.findings] == kinds

    def test_the_text_is_the_findings(self) -> None:
        """Sentence, kind and what to write."""
        with pytest.raises(FindingsError) as caught:
            found("e1", "w1").raise_for_findings("warning")
        assert str(caught.value) == ("✖ the message of e1 [e1]\n  → w = 1\n▲ the message of w1 [w1]\n  → w = 1")

    def test_nothing_to_say_raises_nothing(self) -> None:
        """Healthy, or of no account, or ignored."""
        Report().raise_for_findings("info")
        found("w1").raise_for_findings()
        found("e1", "e2").raise_for_findings(ignore=["e1", "e2"])
        found("e1").raise_for_findings(ignore="e1")

    def test_a_severity_that_is_none_is_refused(self) -> None:
        """Rather than let everything pass."""
        with pytest.raises(ValueError, match="'error', 'warning' or 'info', not 'errors'"):
            found("e1").raise_for_findings("errors")  # type: ignore[arg-type]  # what is tested

    def test_what_cannot_be_printed_is_spelled_out(self) -> None:
        """In a terminal or a log of CI."""
        report = Report(findings=[Finding(kind="k", severity="error", message="\x1b[2Jgone", hint="\x07")])
        with pytest.raises(FindingsError) as caught:
            report.raise_for_findings()
        assert "\x1b" not in str(caught.value)
        assert "\x07" not in str(caught.value)


class TestStrict:
    def test_the_cell_fails_below_its_report(self) -> None:
        """The report is shown, the names are bound, the finding is the error, and none of our frames is seen."""
        with session() as here:
            here.run("import torch")
            ran = here.run(f"%%gradtrace --strict -o report\n{CUT}")
            report = here["report"]
        assert ran.error.startswith("FindingsError: ✖")
        assert "backward from loss" in ran.stdout
        assert "asserting.py" not in ran.stdout + ran.stderr
        assert "report.py" not in ran.stdout + ran.stderr
        assert report.findings

    def test_a_healthy_cell_gives_its_value(self) -> None:
        """As without the option."""
        with session() as here:
            here.run("import torch")
            ran = here.run("%%gradtrace --strict -q\nw = torch.ones(2, requires_grad=True)\n(w * 2).sum().item()")
        assert (ran.error, ran.result) == ("", "4.0")

    def test_the_cells_own_error_comes_first(self) -> None:
        """It is raised once, and no finding in its place."""
        with session() as here:
            here.run("import torch")
            ran = here.run("%%gradtrace --strict\nw = torch.ones(2, requires_grad=True)\n1 / 0")
        assert ran.error.startswith("ZeroDivisionError")

    def test_a_cell_that_awaits_too(self) -> None:
        """Once it has come to its end."""
        with session() as here:
            here.run("import torch, asyncio")
            ran = here.run(f"%%gradtrace --strict\nawait asyncio.sleep(0)\n{CUT}")
        assert ran.error.startswith("FindingsError")

    @pytest.mark.real
    def test_a_notebook_in_ci_stops(self) -> None:
        """In a real kernel, by nbclient: what comes after does not run."""
        sources = ["import torch\n%load_ext gradmagic", f"%%gradtrace --strict\n{CUT}", "never = 1"]
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        with pytest.raises(CellExecutionError, match="not differentiable"):
            NotebookClient(book, timeout=120).execute()
        assert book.cells[2].execution_count is None


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).pow(2).mean()


class Forked(nn.Module):
    """One of its two layers is used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


class Cut(Forked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(self.idle(x).detach())


class TestFixture:
    def test_a_model_that_learns_passes(self, gradtrace: Call) -> None:
        """Parameters, named parameters, modules, tensors and names; asserts can follow one another."""
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(4, 2, requires_grad=True)
        call = gradtrace(loss_of, model, x)
        call.assert_reaches(model.parameters()).assert_reaches(model, x, "x").assert_finite().assert_no_findings()
        call.assert_reaches(model.named_parameters(), [x, [model[0].weight]])
        gradient = model[0].weight.grad
        assert torch.equal(call.value, loss_of(model, x))
        assert torch.equal(gradient, torch.autograd.grad(loss_of(model, x), model[0].weight)[0])

    def test_what_is_not_used_fails_by_its_name(self, gradtrace: Call) -> None:
        """With its own name where one is known."""
        model = Forked()
        with pytest.raises(AssertionError, match=r"idle\.weight"):
            gradtrace(loss_of, model, torch.ones(1, 2)).assert_reaches(model)

    def test_a_cut_fails_with_the_finding(self, gradtrace: Call) -> None:
        """Once, though it names two parameters."""
        model = Cut()
        with pytest.raises(AssertionError) as caught:
            gradtrace(loss_of, model, torch.ones(1, 2)).assert_reaches(model.parameters())
        assert str(caught.value).count("detach()") == 1
        assert "idle.weight" in str(caught.value)

    def test_zeros_do_not_reach(self, gradtrace: Call) -> None:
        """A dead unit is no path."""
        w = torch.ones(2, requires_grad=True)
        with pytest.raises(AssertionError, match="zero"):
            gradtrace(lambda: (w - 5).relu().sum()).assert_reaches(w)

    def test_nan_is_not_finite(self, gradtrace: Call) -> None:
        """The gradient of the square root of zero times zero."""
        w = torch.zeros(2, requires_grad=True)
        call = gradtrace(root_times_zero, w)
        with pytest.raises(AssertionError, match=r"not finite|NaN"):
            call.assert_finite()

    def test_modules_and_partials_can_be_called(self, gradtrace: Call) -> None:
        """Whatever can be called."""
        layer = nn.Linear(2, 1)
        gradtrace(layer, torch.ones(1, 2)).assert_reaches(layer)
        gradtrace(partial(loss_of, layer), torch.ones(1, 2)).assert_reaches(layer.weight)

    def test_an_error_of_the_function_goes_on(self, gradtrace: Call) -> None:
        """As it is."""
        with pytest.raises(ZeroDivisionError):
            gradtrace(divided, 0)

    @pytest.mark.parametrize(
        ("wanted", "message"), [((), "given none"), ((3,), "not int"), (([None],), "not NoneType")]
    )
    def test_asking_for_nothing_is_refused(self, gradtrace: Call, wanted: tuple[object, ...], message: str) -> None:
        """A check that cannot fail is no check."""
        call = gradtrace(lambda: torch.ones(1, requires_grad=True).sum())
        with pytest.raises(TypeError, match=message):
            call.assert_reaches(*wanted)  # type: ignore[arg-type]  # what is tested

    def test_a_name_that_is_none_has_near_misses(self, gradtrace: Call) -> None:
        """As in `report["..."]`."""
        with pytest.raises(KeyError, match="did you mean 'hidden'"):
            gradtrace(hidden_sum, torch.ones(2, requires_grad=True)).assert_reaches("hiden")


def root_times_zero(w: torch.Tensor) -> torch.Tensor:
    return (w.sqrt() * 0).sum()


def divided(x: int) -> float:
    return 1 / x


def hidden_sum(w: torch.Tensor) -> torch.Tensor:
    hidden = w * 2
    return hidden.sum()


@pytest.mark.real
class TestPlugin:
    def test_pytest_knows_the_fixture_and_pays_nothing_for_it(self, tmp_path: Path) -> None:
        """In a run that does not use it, PyTorch is not imported."""
        (tmp_path / "test_it.py").write_text(
            textwrap.dedent(
                """
                import sys

                def test_light():
                    assert "gradmagic.pytest_plugin" in sys.modules
                    assert "torch" not in sys.modules

                def test_used(gradtrace):
                    import torch
                    w = torch.ones(2, requires_grad=True)
                    gradtrace(lambda: w.detach().sum() + torch.ones(1, requires_grad=True).sum()).assert_reaches(w)
                """
            )
        )
        options = ["-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "test_it.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "1 failed, 1 passed" in done.stdout
        assert "detach()" in done.stdout
        assert "asserting.py" not in done.stdout.replace("gradmagic/asserting.py:", "")


def test_a_report_of_a_whole_cell_can_be_asked_too() -> None:
    """`raise_for_findings` on what `trace` found."""
    report, _ = run_traced(CUT)
    with pytest.raises(FindingsError, match="not differentiable"):
        report.raise_for_findings()
    with pytest.raises(FindingsError):
        rnn().raise_for_findings("warning")
