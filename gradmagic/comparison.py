"""What changed from an earlier report to a later one: whose gradients grew, shrank, appeared or vanished."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .loss_scale import unscaled
from .matching import matched
from .records import TensorRow
from .report import Report

Change = Literal["not_finite", "finite", "vanished", "appeared", "grew", "shrank", "same"]
ORDER: tuple[Change, ...] = ("not_finite", "vanished", "finite", "appeared", "grew", "shrank", "same")


@dataclass(frozen=True, slots=True, kw_only=True)
class GradChange:
    """How the gradient of one row changed.

    Attributes:
        kind: ``grew`` and ``shrank`` are norms; ``appeared`` and ``vanished``: there was none before, or is none now
            (a norm of exactly zero is none); ``not_finite`` became NaN or infinite, ``finite`` is so no more; ``same``.
        label: what the row is called now.
        label_before: what it was called.
        row: its index in the later report.
        row_before: its index in the earlier one.
        before, after: norm of the last occurrence's gradient, without the factor that a loss was scaled by for mixed
            precision; None for no gradient.
        factor: ``after / before``, where both are finite and not zero; else None.
    """

    kind: Change
    label: str
    label_before: str
    row: int
    row_before: int
    before: float | None
    after: float | None
    factor: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RootChange:
    """What backward started from, and its value, in one report; None for no backward or no single number."""

    name: str | None
    value: float | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """What changed from an earlier report to a later one. `str()` and a notebook show it.

    Attributes:
        changes: rows that both reports have, and that have or had a gradient: those that became NaN or infinite, lost
            their gradient or got one come first, then the others, those that changed by the largest factor first.
        added: indices of rows that only the later report has.
        removed: indices of rows that only the earlier one has.
        labels_added, labels_removed: what those of them are called that have a gradient.
        root, root_before: what backward started from.
        than: name of the earlier report; empty for that of the last run of the cell; None where neither is known.
    """

    changes: tuple[GradChange, ...]
    added: tuple[int, ...]
    removed: tuple[int, ...]
    labels_added: tuple[str, ...]
    labels_removed: tuple[str, ...]
    root: RootChange
    root_before: RootChange
    than: str | None = None

    def __str__(self) -> str:
        """As plain text, 100 columns wide."""
        from .render.changes import render_text

        return render_text(self, width=100)

    def __repr__(self) -> str:
        moved = sum(change.kind != "same" for change in self.changes)
        return f"<Comparison: {moved} of {len(self.changes)} gradients changed>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:  # noqa: ARG002, Jupyter passes them
        from .render.changes import render_bundle

        return render_bundle(self)


def compared(before: Report, after: Report) -> Comparison:
    """Match the rows of two reports, and compare the norms of their gradients, without the loss scale."""
    olds, news = unscaled(before).rows, unscaled(after).rows
    pairs = matched(olds, news)
    changes = [_change(olds[old], news[new], old, new) for new, old in pairs.items()]
    told = [change for change in changes if change.before is not None or change.after is not None]
    added = tuple(index for index in range(len(news)) if index not in pairs)
    kept = set(pairs.values())
    removed = tuple(index for index in range(len(olds)) if index not in kept)
    return Comparison(
        changes=tuple(sorted(told, key=_most_changed_first)),
        added=added,
        removed=removed,
        labels_added=tuple(label_of(news[index]) for index in added if news[index].grad is not None),
        labels_removed=tuple(label_of(olds[index]) for index in removed if olds[index].grad is not None),
        root=_root(after),
        root_before=_root(before),
    )


def _root(report: Report) -> RootChange:
    last = report.passes[-1] if report.passes else None
    value = last.value if last is not None and last.value is not None else report.root_value
    return RootChange(name=last.root if last is not None else None, value=value)


def _change(before: TensorRow, after: TensorRow, old: int, new: int) -> GradChange:
    was, now = _norm(before), _norm(after)
    comparable = bool(was and now and math.isfinite(was) and math.isfinite(now))
    return GradChange(
        kind=_kind(was, now),
        label=label_of(after),
        label_before=label_of(before),
        row=new,
        row_before=old,
        before=was,
        after=now,
        factor=now / was if comparable and was and now else None,
    )


def _norm(row: TensorRow) -> float | None:
    return row.grad.norm if row.grad is not None and row.grad.is_known else None


def label_of(row: TensorRow) -> str:
    """The name; else the module that made it, since the expression may only say that a model was called."""
    return row.name or row.module or row.label


def _kind(was: float | None, now: float | None) -> Change:
    if not math.isfinite(now or 0.0):
        return "not_finite" if math.isfinite(was or 0.0) else "same"
    if not math.isfinite(was or 0.0):
        return "finite"
    if bool(was) != bool(now):
        return "appeared" if now else "vanished"
    if (was or 0.0) == (now or 0.0):
        return "same"
    return "grew" if (now or 0.0) > (was or 0.0) else "shrank"


def _most_changed_first(change: GradChange) -> tuple[int, float, int]:
    """Grown and shrunk ones are one group, by the logarithm of the factor."""
    rank = ORDER.index("grew") if change.kind == "shrank" else ORDER.index(change.kind)
    factor = change.factor if change.factor is not None else 1.0
    return rank, -abs(math.log(factor)), change.row
