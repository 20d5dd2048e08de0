"""What `torch.autograd.gradcheck` says of the custom Functions of a cell: plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .records import Finding
from .report import raise_for

Verdict = Literal["passed", "failed", "not_checked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionCheck:
    """One custom Function.

    Attributes:
        name: of the class.
        line: line of the cell from which it was called first, or None.
        calls: how often it was applied.
        verdict: ``passed``, ``failed``, or ``not_checked``, and `message` says why.
        input: name of the input whose gradient is wrong, as in ``forward``; None where that is not known.
        output: position of the output of ``forward`` whose derivative is wrong, or None.
        analytical: what ``backward`` gives for the element that is wrong by most, for a sum of the output.
        numerical: what central differences give for it.
        message: one or two sentences on what is wrong; empty where nothing is. Of one that has passed: in what way
            `gradcheck` itself could not pass it.
        hint: what to write instead, where that is known.
    """

    name: str
    line: int | None
    calls: int
    verdict: Verdict
    input: str | None = None
    output: int | None = None
    analytical: float | None = None
    numerical: float | None = None
    message: str = ""
    hint: str = ""

    @property
    def max_difference(self) -> float | None:
        """How far apart the two are."""
        if self.analytical is None or self.numerical is None:
            return None
        return abs(self.analytical - self.numerical)


@dataclass(frozen=True, kw_only=True, repr=False)
class FunctionChecks:
    """All of them, in the order of their first calls. `str()` and a notebook show them.

    Attributes:
        checks: each of them.
        disturbed: why none, or not all, were seen; empty otherwise.
    """

    checks: tuple[FunctionCheck, ...]
    disturbed: str = ""

    def findings(self) -> list[Finding]:
        """What is wrong, and what could not be checked, in the words of a report.

        Their kinds are ``wrong_backward``, ``unchecked_backward``, and ``remarked_backward`` for one that has passed.
        """
        told = [_finding(check) for check in self.checks if check.message]
        return sorted(told, key=lambda finding: finding.severity != "error")

    def __iter__(self) -> Iterator[FunctionCheck]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def raise_for_wrong(self) -> None:
        """Raises where one has failed, for a notebook that runs in CI.

        Raises:
            FindingsError: (an AssertionError) its text says what is wrong with each.
        """
        __tracebackhide__ = True
        raise_for([finding for finding in self.findings() if finding.severity == "error"])

    def __str__(self) -> str:
        """As plain text, 100 columns wide."""
        from .render.function_checks import render_text

        return render_text(self, width=100)

    def __repr__(self) -> str:
        failed = sum(check.verdict == "failed" for check in self.checks)
        return f"<FunctionChecks: {failed} of {len(self.checks)} Functions failed>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:  # noqa: ARG002, Jupyter passes them
        from .render.function_checks import render_bundle

        return render_bundle(self)


def _finding(check: FunctionCheck) -> Finding:
    kinds = {"passed": "remarked_backward", "failed": "wrong_backward", "not_checked": "unchecked_backward"}
    return Finding(
        kind=kinds[check.verdict],
        severity="error" if check.verdict == "failed" else "info",
        message=check.message,
        hint=check.hint,
    )
