"""The diagnosis on whole cells, in a shell: each finding where it belongs, silence elsewhere, and hints that cure."""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Iterator

import pytest
import torch
from corpus.cases import Case, Healthy
from corpus.flow import FLOW
from corpus.healthy import HEALTHY
from corpus.sick import NEAR_MISSES, SICK
from corpus.training import TRAINING_HEALTHY, TRAINING_NOTED, TRAINING_SICK
from shells import Session

from gradmagic.records import Finding
from gradmagic.report import Report

CASES = (*FLOW, *SICK, *TRAINING_SICK)
SILENT = (*HEALTHY, *NEAR_MISSES, *TRAINING_HEALTHY)


@pytest.fixture
def shell(shell: Session) -> Iterator[Session]:
    """A fresh shell; whatever a cell switches off is on again afterwards."""
    try:
        with warnings.catch_warnings(action="ignore"):  # some cells are sick enough for PyTorch to warn
            yield shell
    finally:
        torch.set_grad_enabled(True)


def traced(shell: Session, case: Case | Healthy, options: str = "", raises: str = "") -> Report:
    """The report of the case's cell, after the cells before it."""
    for cell in case.before:
        assert shell.run(cell).error == ""
    ran = shell.run(f"%%gradtrace -q -o report {options}\n{case.cell}")
    assert ran.error.partition(":")[0] == raises
    assert "gradmagic" not in ran.stderr, ran.stderr
    report = shell["report"]
    assert isinstance(report, Report)
    return report


def cures_by(shell: Session, before: tuple[str, ...], cell: str, wanted: str) -> None:
    """The cell runs in plain PyTorch, backward from its loss, and what is wanted holds."""
    shell.fresh()
    for source in (*before, cell):
        assert shell.run(source).error == "", source
    by_hand = ".backward(" in cell or (".grad(" in cell and "create_graph" not in cell)
    if not by_hand and "loss" in shell.shell.user_ns:
        assert shell.run("loss.backward()").error == "", cell
    assert shell.run(f"__holds = bool({wanted})").error == "", cell
    assert shell["__holds"], f"not cured: {wanted}\n{cell}"


def pasted(case: Case, finding: Finding) -> tuple[tuple[str, ...], str]:
    """The cells before and the cell itself, with the finding's hint where it belongs."""
    if case.paste == "manual":
        return case.before, case.cure
    earlier = finding.location is not None and finding.location.cell is not None and not finding.location.own
    if earlier and finding.location is not None and finding.location.cell is not None and case.paste == "replace":
        which = finding.location.cell - 1
        cells = list(case.before)
        cells[which] = put(cells[which], finding.location.line, finding.hint, "replace")
        return tuple(cells), case.cell
    line = finding.line if case.paste != "above last" else None
    return case.before, put(case.cell, line - 1 if line is not None else None, finding.hint, case.paste)


def put(source: str, line: int | None, hint: str, where: str) -> str:
    """Source with a hint in place of the statement at a line, above or below it; or above the last line."""
    lines = source.splitlines()
    line = len(lines) if line is None else line
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    around = [node for node in statements if node.lineno <= line <= (node.end_lineno or 0)]
    found = min(around, key=lambda node: (node.end_lineno or 0) - node.lineno)
    first, last = found.lineno - 1, found.end_lineno or found.lineno
    hint = textwrap.indent(hint, lines[first][: len(lines[first]) - len(lines[first].lstrip())])
    start = last if where == "below" else first
    return "\n".join([*lines[:start], hint, *lines[last if where == "replace" else start :]]) + "\n"


@pytest.mark.parametrize("case", CASES, ids=[case.situation for case in CASES])
def test_a_sick_cell_is_explained_and_the_hint_cures_it(shell: Session, case: Case) -> None:
    """The finding is there, on the right line, in the person's names; reasons too; pasted in, the hint cures."""
    report = traced(shell, case, case.options, case.raises)
    for name, reason in case.rows.items():
        assert (report[name].reason, name) == (reason, name)
    for name, line in case.culprits.items():
        culprit = report[name].culprit
        assert (culprit.line if culprit is not None else None, name) == (line, name)
    if not case.kind:
        assert not [finding for finding in report.findings if finding.severity != "info"]
        return
    found = [finding for finding in report.findings if finding.kind == case.kind]
    assert found, f"only {report.findings}"
    finding = next((each for each in found if case.line in (None, each.line)), found[0])
    assert case.line in (None, finding.line), finding
    for word in case.mentions:
        assert word in finding.message + finding.hint, finding
    assert finding.hint, finding
    if case.paste == "option":
        assert finding.hint.startswith(("--", "%%gradtrace --"))
    elif case.cured:
        before, cell = pasted(case, finding)
        cures_by(shell, before, cell, case.cured)


@pytest.mark.parametrize("case", SILENT, ids=[case.situation for case in SILENT])
def test_a_healthy_cell_has_no_finding(shell: Session, case: Healthy) -> None:
    """A wrong finding is worse than none."""
    assert [finding.kind for finding in traced(shell, case).findings] == list(case.disclosed)


@pytest.mark.parametrize("case", TRAINING_NOTED, ids=[case.situation for case in TRAINING_NOTED])
def test_a_right_training_loop_with_a_note_has_no_finding_about_training(shell: Session, case: Healthy) -> None:
    """What is said of it is said of something else: a scaled loss, no root."""
    about_training = {case.kind for case in TRAINING_SICK}
    assert not about_training & {finding.kind for finding in traced(shell, case).findings}
