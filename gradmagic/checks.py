"""What comparing somebody's own gradients with PyTorch's has found: plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .records import Finding
from .report import raise_for

Verdict = Literal["exact", "close", "wrong", "not_checked"]
Cause = Literal[
    "inherited",
    "unconfirmed",
    "shape",
    "sum",
    "expanded",
    "reshaped",
    "transposed",
    "sign",
    "factor",
    "other_gradient",
    "missing_use",
    "accumulated",
    "not_finite",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCheck:
    """One gradient that was derived by hand, beside the one that PyTorch computed.

    Attributes:
        name: the variable that holds the derived one: ``dh``.
        label: the tensor whose gradient it is meant to be: ``h``.
        row: index of that tensor's row in the report, or None.
        verdict: ``exact`` is equal in every element (NaN equals NaN); ``close`` differs by rounding, see
            `verdicts.tolerance_of`; ``wrong`` differs by more, or in shape; ``not_checked`` could not be compared, and
            `message` says why.
        max_difference: the largest absolute difference of two elements; None where shapes differ, or without elements.
        index: where that is; ``()`` in a scalar.
        given: the derived gradient there.
        gradient: PyTorch's gradient there.
        cause: why it is wrong, where that could be confirmed by computing it; ``unconfirmed`` where something that it
            may start from is wrong, and it cannot be told whether that is all; else None.
        message: one or two sentences on what is wrong; empty where nothing is.
        hint: what to write instead, where that is known.
    """

    name: str
    label: str
    row: int | None = None
    verdict: Verdict
    max_difference: float | None = None
    index: tuple[int, ...] | None = None
    given: float | complex | None = None
    gradient: float | complex | None = None
    cause: Cause | None = None
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True, repr=False)
class GradientChecks:
    """All of them, in the order in which the variables were first assigned. `str()` and a notebook show them.

    Attributes:
        checks: each of them.
    """

    checks: tuple[GradientCheck, ...]

    @property
    def wrong(self) -> tuple[GradientCheck, ...]:
        """Those that are wrong."""
        return tuple(check for check in self.checks if check.verdict == "wrong")

    def findings(self) -> list[Finding]:
        """What is wrong, and what could not be compared, in the words of a report: first what is no mere consequence.

        Their kinds are ``wrong_gradient`` and ``unchecked_gradient``.
        """
        told = sorted((check for check in self.checks if check.message), key=_rank)
        return list(dict.fromkeys(map(_finding, told)))

    def __iter__(self) -> Iterator[GradientCheck]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __bool__(self) -> bool:
        """True, also without any; `raise_for_wrong` is what fails."""
        return True

    def __getitem__(self, name: str) -> GradientCheck:
        """The one that a variable holds.

        Raises:
            KeyError: there is none of that name.
        """
        return {check.name: check for check in self.checks}[name]

    def raise_for_wrong(self) -> None:
        """Raises where one is wrong, for a test or a notebook that runs in CI.

        Raises:
            FindingsError: (an AssertionError) its text says what is wrong with each, and what to write instead.
        """
        __tracebackhide__ = True
        raise_for([finding for finding in self.findings() if finding.severity == "error"])

    def __str__(self) -> str:
        """As plain text, 100 columns wide."""
        from .render.checks import render_text

        return render_text(self, width=100)

    def __repr__(self) -> str:
        return f"<GradientChecks: {len(self.wrong)} of {len(self.checks)} gradients wrong>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:  # noqa: ARG002, Jupyter passes them
        from .render.checks import render_bundle

        return render_bundle(self)


def _rank(check: GradientCheck) -> int:
    return 2 if check.verdict == "not_checked" else 1 if check.cause in ("inherited", "unconfirmed") else 0


def _finding(check: GradientCheck) -> Finding:
    is_wrong = check.verdict == "wrong"
    return Finding(
        kind="wrong_gradient" if is_wrong else "unchecked_gradient",
        severity="error" if is_wrong else "info",
        message=check.message,
        hint=check.hint,
        rows=() if check.row is None else (check.row,),
    )
