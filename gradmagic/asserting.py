"""What a test asks of a traced call: that gradients reach what they should, and that there is nothing to find."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from .decorating import traced
from .records import Severity, TensorRow
from .render.failing import findings_text, sentence
from .report import Report

Wanted = str | Tensor | tuple[str, Tensor]
MOST_TOLD = 10


@dataclass(frozen=True, kw_only=True)
class TracedCall:
    """A call that was traced: what it returned, its report, and what can be asserted of it.

    Attributes:
        value: what the function returned.
        report: what the trace found.
    """

    value: Any
    report: Report = field(repr=False)

    def assert_reaches(self, *wanted: Wanted | nn.Module | Iterable[Wanted]) -> TracedCall:
        """Fails unless a gradient that is not zero reached all of these.

        Args:
            wanted: tensors, names of them, modules (all of their parameters that require grad), or iterables of these,
                such as ``model.parameters()`` and ``model.named_parameters()``.

        Raises:
            AssertionError: one has no gradient, or only zeros; with the finding that says why.
            TypeError: this is no tensor and no name, or there is none at all.
        """
        __tracebackhide__ = True
        asked = [each for item in wanted for each in _flat(item)]
        if not asked:
            raise TypeError("assert_reaches() takes tensors, names or modules, and was given none")
        _fail([text for each in asked if (text := self._missed(each))])
        return self

    def assert_finite(self) -> TracedCall:
        """Fails if any gradient, of whatever pass, holds NaN or infinity.

        Raises:
            AssertionError: one does.
        """
        __tracebackhide__ = True
        bad = [row for row in self.report.rows if not all(map(math.isfinite, row.grads.norm)) and _is_known(row)]
        _fail([self._why(bad)] if bad else [])
        return self

    def assert_no_findings(self, severity: Severity = "warning", ignore: Iterable[str] = ()) -> TracedCall:
        """Fails if there is something to say of the run; see `Report.raise_for_findings`.

        Raises:
            FindingsError: (an AssertionError) there is.
        """
        __tracebackhide__ = True
        self.report.raise_for_findings(severity, ignore)
        return self

    def _missed(self, wanted: Wanted) -> str:
        """Why a tensor was not reached; empty where it was."""
        name, tensor = wanted if isinstance(wanted, tuple) else (None, wanted)
        row = self._row(tensor)
        if row is None:
            told = name or (tensor if isinstance(tensor, str) else f"a tensor of shape {tuple(tensor.shape)}")
            return f"{told} was not used in the call"
        if row.grad is None:
            return self._why([row])
        if row.grad.norm == 0:
            return f"the gradient of {row.label} is zero everywhere. {row.note}".strip()
        return ""

    def _row(self, tensor: str | Tensor) -> TensorRow | None:
        if isinstance(tensor, str):
            return self.report[tensor]
        return next((row for row in self.report.rows if row.tensor is tensor), None)

    def _why(self, rows: list[TensorRow]) -> str:
        """The findings that name one of the rows, or else what its note says."""
        places = {index for index, row in enumerate(self.report.rows) if any(row is each for each in rows)}
        found = [finding for finding in self.report.findings if places.intersection(finding.rows)]
        if found:
            return findings_text(found)
        row = rows[0]
        return f"no finite gradient for {row.label} ({row.location}): {row.note or row.reason or 'NaN or infinity'}"


def call_traced(
    function: Callable[..., Any], /, *args: Any, backward: str = "auto", zero_grad: bool = False, **kwargs: Any
) -> TracedCall:
    """Calls a function under a trace; backward runs from what it returns, unless it ran it itself.

    Args:
        function: anything that can be called: a function, a module, a `partial`.
        *args: what it is called with.
        backward: as in `gradmagic.traced`.
        zero_grad: likewise.
        **kwargs: what it is called with by name.

    Raises:
        RuntimeError: gradmagic itself failed. What the function raises goes on as it is.
    """
    __tracebackhide__ = True
    plain = function if isinstance(function, FunctionType | MethodType) else _as_function(function)
    watched = traced(backward=backward, zero_grad=zero_grad)(plain)
    value = watched(*args, **kwargs)
    report = watched.report
    if report is None:
        raise RuntimeError("gradmagic could not make the report of this call; the warning above says why")
    return TracedCall(value=value, report=report)


def _as_function(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return called


def _flat(wanted: Any) -> Iterator[Wanted]:
    if isinstance(wanted, nn.Module):
        yield from ((name, each) for name, each in wanted.named_parameters() if each.requires_grad)
    elif isinstance(wanted, str | Tensor) or (
        isinstance(wanted, tuple) and len(wanted) == 2 and isinstance(wanted[0], str) and isinstance(wanted[1], Tensor)
    ):
        yield wanted
    elif isinstance(wanted, Iterable):
        for each in wanted:
            yield from _flat(each)
    else:
        raise TypeError(
            f"assert_reaches() takes tensors, names, modules or iterables of them, not {type(wanted).__name__}"
        )


def _is_known(row: TensorRow) -> bool:
    return row.grad is None or row.grad.is_known


def _fail(told: list[str]) -> None:
    """Raises with the texts, each once: one finding often names several tensors."""
    __tracebackhide__ = True
    different = list(dict.fromkeys(told))
    if different:
        more = [f"and {len(different) - MOST_TOLD} more"] if len(different) > MOST_TOLD else []
        raise AssertionError("\n".join([*map(_shown, different[:MOST_TOLD]), *more]))


def _shown(text: str) -> str:
    return "\n".join(map(sentence, text.split("\n")))
