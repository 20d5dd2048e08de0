"""The sentence on top of a report: where backward started, who ran it, how many gradients came of it."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import BackwardPass, LedgerEntry, Location
from ..report import Report, Summary
from .markup import Line, Span, clean, marked_up
from .numbers import duration, plural, short

PASSES_NAMED = 4
CANDIDATES_NAMED = 5


def header(report: Report) -> tuple[Line, ...]:
    """The parts of one sentence: backward, its root and value, the counts, the time."""
    parts = [_backward(report), *_counts(report.summary())]
    if report.seconds > 0:
        parts.append((Span(duration(report.seconds), "dim"),))
    return tuple(parts)


def _counts(counts: Summary) -> list[Line]:
    if not counts.tensors:
        return []
    parts: list[Line] = [
        (Span(plural(counts.tensors, "tensor")),),
        (Span(plural(counts.gradients, "gradient")),),
    ]
    if counts.without:
        parts.append((Span(f"{counts.without} without", "warning" if counts.surprises else "plain"),))
    return parts


def _backward(report: Report) -> Line:
    if not report.passes:
        return (Span("no backward ran"),)
    if len(report.passes) == 1:
        return _single_pass(report, report.passes[0])
    return (Span(f"{report.pass_count:,} backward passes: "), *_several(report.losses))


def _several(losses: Sequence[LedgerEntry]) -> Line:
    """Root, value and place of each; passes that a loop repeats are counted instead."""
    line: list[Span] = []
    for loss in losses[:PASSES_NAMED]:
        last = loss.values.last
        value = last.value if loss.count == 1 and last is not None else None
        times = f" ×{loss.count}" if loss.count > 1 else ""
        line += [
            Span(", " if line else ""),
            Span(clean(loss.name), "name"),
            Span(_equals(value)),
            Span(f" ({_place_in_words(loss)}){times}", "dim"),
        ]
    if len(losses) > PASSES_NAMED:
        line.append(Span(f" and {len(losses) - PASSES_NAMED} more"))
    return tuple(line)


def _equals(value: float | None) -> str:
    return "" if value is None else f" = {short(value, digits=4)}"


def _place_in_words(loss: LedgerEntry) -> str:
    words = [str(loss.location) if loss.location is not None else f"run by {loss.run_by}"]
    if loss.kind != "backward":
        words.append(loss.kind)
    if loss.error is not None:
        words.append("failed")
    return clean(", ".join(words))


def _single_pass(report: Report, run: BackwardPass) -> Line:
    value = run.value if run.value is not None else report.root_value
    where = run.location or (_root_location(report) if run.run_by == "gradtrace" else None)
    by = f"run by {f'the {report.called}' if run.run_by == 'cell' else 'gradtrace'}"
    verb = "backward" if run.function == "backward" else "autograd.grad"
    failed = (Span(" "), Span("failed", "error")) if run.error is not None else ()
    return (
        Span(f"{verb} from "),
        Span(clean(run.root), "name"),
        Span(_equals(value)),
        *failed,
        Span(f" ({clean(str(where))}, {by})" if where is not None else f" ({by})", "dim"),
    )


def _root_location(report: Report) -> Location | None:
    if report.root is None:
        return None
    location = report.root.location
    if location.own or report.root.cell_line is None:
        return location
    return Location(file="", line=report.root.cell_line, own=True)


def aside(report: Report) -> tuple[Line, ...]:
    """What else to know: other scalars that could have been the root, and whose ``.grad`` this is."""
    parts = ["still running"] if report.running else []
    if report.candidates:
        named = ", ".join(f"`{clean(name)}`" for name in report.candidates[:CANDIDATES_NAMED])
        more = len(report.candidates) - CANDIDATES_NAMED
        parts.append(f"other candidates: {named}" + (f" and {more} more" if more > 0 else ""))
    if report.guest and report.called != "script":  # which is over
        parts.append("`.grad` is a guest: your next backward replaces it")
    return tuple(marked_up(part, "dim") for part in parts)
