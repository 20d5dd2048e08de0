"""Why a gradient that somebody derived is wrong: each cause is confirmed by computing it before it is named."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from .checks import Cause
from .diagnosis.words import joined, listed
from .known import Run
from .records import TensorRow
from .reshapings import permuted, reshapings
from .uses import Use
from .verdicts import constant_factor, is_close

MOST_USES = 6
"""So many uses are combined: 64 combinations at the most. Of more, one is left out, or all but one."""
SNAP = 1e-3
"""A factor this near to a simple one, relatively, is tried as that one."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """Why it is wrong, in a sentence or two, and what to write instead."""

    cause: Cause | None
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Case:
    """One gradient that somebody derived.

    Attributes:
        name: the variable that holds it.
        index: of the row it belongs to.
        given: what was derived.
        run: what is known besides.
        floor: see `verdicts.difference`.
        follows: it is judged by what follows from the derived gradients above, not by PyTorch's own.
    """

    name: str
    index: int
    given: Tensor
    run: Run
    floor: float = 0.0
    follows: bool = False

    @cached_property
    def uses(self) -> list[Use]:
        """Every use of the tensor, with its part of what should have been derived."""
        return self.run.uses(self.index, derived=self.follows)

    @cached_property
    def gradient(self) -> Tensor:
        """What should have been derived."""
        parts = [use.part for use in self.uses if use.part is not None] if self.follows else []
        return _sum(parts) if parts else self.run.known[self.index].gradient

    @property
    def row(self) -> TensorRow:
        """That of the tensor."""
        return self.run.rows[self.index]

    @property
    def label(self) -> str:
        """What the tensor is called."""
        return self.row.label

    def fits(self, given: Tensor, gradient: Tensor | None = None) -> bool:
        """Whether a changed version of what was derived would be right."""
        return is_close(given, self.gradient if gradient is None else gradient, self.floor)

    def made(self) -> list[TensorRow]:
        """The rows that were made from the tensor."""
        return [self.run.rows[user] for user in self.run.users.get(self.index, ())]

    def wrong_above(self) -> list[str]:
        """Names of derived gradients from which this one may have been derived, and that are wrong."""
        above = (self.run.known[index] for index in self.run.nearest(self.index, derived=True))
        return [each.name for each in above if each.name is not None and (each.wrong is not None or each.misshapen)]


def mistake_in(case: Case) -> Mistake | None:
    """The first cause that can be confirmed, or None. What follows from a mistake above counts as right."""
    followed = _followed(case)
    if followed is not None and followed.fits(case.given):
        return _inherited(followed)
    return _confirmed(case) or (_confirmed(followed) if followed is not None else None)


def _confirmed(case: Case) -> Mistake | None:
    if case.given.shape != case.gradient.shape:
        return _reshaped(case)
    causes: tuple[Callable[[Case], Mistake | None], ...] = (
        _not_finite,
        _missing_use,
        _next_ones,
        _sign,
        _factor,
        _scaled_part,
        _transposed,
        _accumulated,
        _another_ones,
    )
    return next((found for cause in causes if (found := cause(case)) is not None), None)


def at(row: TensorRow) -> str:
    """A row by its label and place."""
    return f"`{row.label}` ({row.location})" if row.line else f"`{row.label}`"


def _reshaped(case: Case) -> Mistake | None:
    told = shapes_in_words(case)
    for change in reshapings(case.given, tuple(case.gradient.shape)):
        hint = f"{case.name}{change.code}"
        if case.fits(change.changed):
            return Mistake(change.cause, f"{told}: {change.words}.", f"{case.name} = {hint}")
        if case.fits(-change.changed):
            return Mistake(change.cause, f"{told}: {change.words}. The sign is wrong too.", f"{case.name} = -{hint}")
    return None


def shapes_in_words(case: Case) -> str:
    """Both shapes, without a full stop."""
    return f"`{case.name}` has the shape {tuple(case.given.shape)}, and `{case.label}` has {tuple(case.gradient.shape)}"


# ---- the same shape


def _not_finite(case: Case) -> Mistake | None:
    bad = ~case.given.isfinite() & case.gradient.isfinite()
    if not bad.any():
        return None
    what = "NaN" if case.given.isnan().any() else "infinite"
    count = int(bad.sum())
    return Mistake("not_finite", f"`{case.name}` is {what} in {count} of {bad.numel()} elements; PyTorch's is finite.")


def _followed(case: Case) -> Case | None:
    """The same, judged by what follows from the derived gradients above; None where none is wrong, or is known."""
    known = case.run.known
    if all(each.wrong is None for index, each in known.items() if index != case.index):
        return None
    followed = replace(case, follows=True)
    is_known = all(use.part is not None for use in followed.uses)
    return followed if is_known and _wrong_sources(followed) else None


def _wrong_sources(case: Case) -> list[str]:
    """Names of the derived gradients that the parts were computed from, and that are wrong."""
    keys = sorted({key for use in case.uses for key in use.sources})
    return [each.name for each in (case.run.known[key] for key in keys) if each.name and each.wrong is not None]


def _inherited(case: Case) -> Mistake:
    """Right, given what comes from above, which is wrong."""
    sources = _wrong_sources(case)
    is_or_are = "is" if len(sources) == 1 else "are"
    return Mistake("inherited", f"`{case.name}` follows rightly from {listed(sources)}, which {is_or_are} wrong.")


def _missing_use(case: Case) -> Mistake | None:
    if len(case.uses) < 2 or (parts := _all_parts(case)) is None:
        return None
    for missing in _subsets(len(parts)):
        there = [part for each, part in enumerate(parts) if each not in missing]
        if case.fits(case.given, _sum(there)):
            return _lacking(case, missing)
    return None


def _subsets(count: int) -> Iterator[tuple[int, ...]]:
    """Which of several may be missing: the fewest first, and never all."""
    sizes = range(1, count) if count <= MOST_USES else (1, count - 1)
    for size in sizes:
        yield from itertools.combinations(range(count), size)


def _all_parts(case: Case) -> list[Tensor] | None:
    """Every part; the only one that cannot be computed any more is what the others leave of the gradient."""
    uses = case.uses
    known = [use.part for use in uses if use.part is not None]
    if len(known) == len(uses):
        return known if case.fits(_sum(known)) else None
    if len(known) < len(uses) - 1:
        return None
    rest = case.gradient - _sum(known)
    return [use.part if use.part is not None else rest for use in uses]


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _lacking(case: Case, missing: Sequence[int]) -> Mistake:
    uses, often = case.uses, "twice" if len(case.uses) == 2 else f"{len(case.uses)} times"
    ways = joined([*dict.fromkeys(_way(case, uses[each]) for each in missing)])
    if len({_way(case, use) for use in uses}) == 1:
        told = f"`{case.label}` is used {often} in {ways}, and its gradient is the sum over all of them"
        return Mistake("missing_use", f"`{case.name}` is not all of it: {told}.")
    parts = "the part that comes" if len(missing) == 1 else "the parts that come"
    above = {case.run.known[key].name for each in missing for key in uses[each].sources}
    names = sorted(name for name in above if name)
    return Mistake(
        "missing_use",
        f"`{case.name}` lacks {parts} back through {ways}: `{case.label}` is used {often}, "
        "and its gradient is the sum.",
        f"Add to `{case.name}` what {listed(names)} gives there." if names else "",
    )


def _way(case: Case, use: Use) -> str:
    """The use in the person's words: the row it made, or else the one above."""
    made = [row for row in case.made() if row.grad_fn == use.operation]
    if len(made) == 1:
        return at(made[0])
    above = [at(case.run.rows[key]) for key in sorted(use.sources)]
    return joined(above) or use.operation


def _next_ones(case: Case) -> Mistake | None:
    """The gradient of what was made from it: the derivative of that step is missing."""
    for index, each in case.run.known.items():
        if case.index in each.row.inputs and index != case.index and case.fits(case.given, each.gradient):
            step = each.row.location.statement or each.row.expression
            return Mistake(
                "other_gradient",
                f"`{case.name}` is the gradient of {at(each.row)}, not yet that of `{case.label}`: the derivative of "
                f"`{step}` is missing.",
            )
    return None


def _another_ones(case: Case) -> Mistake | None:
    if case.given.numel() < 2 or case.wrong_above():
        return None  # one number is easily equal to another, and one mistake can look like many a thing
    for index, each in case.run.known.items():
        if index != case.index and case.fits(case.given, each.gradient):
            return Mistake("other_gradient", f"`{case.name}` is the gradient of {at(each.row)}, not of `{case.label}`.")
    return None


def _sign(case: Case) -> Mistake | None:
    if not case.fits(-case.given):
        return None
    return Mistake("sign", f"`{case.name}` has the wrong sign.", f"{case.name} = -{case.name}")


def _transposed(case: Case) -> Mistake | None:
    for change in permuted(case.given, tuple(case.gradient.shape)):
        if case.fits(change.changed):
            hint = f"{case.name} = {case.name}{change.code}"
            return Mistake(change.cause, f"`{case.name}` has the right numbers, but {change.words}.", hint)
    return None


def _accumulated(case: Case) -> Mistake | None:
    """``.grad`` holds more than the last pass has brought: that is told by the pass's own statistics."""
    last = case.row.grad
    if last is None or not case.given.numel() or case.given.is_complex():
        return None
    given = case.given.double()
    pairs = ((given.norm(), last.norm), (given.min(), last.min), (given.max(), last.max), (given.mean(), last.mean))
    size = max(abs(last.min), abs(last.max))
    if not all(abs(float(one) - other) <= 1e-5 * max(abs(other), size) for one, other in pairs):
        return None
    return Mistake(
        "accumulated",
        f"`{case.name}` is the gradient of the last backward, but `{case.label}.grad` holds more: PyTorch adds to what "
        "was there before.",
        f"{case.label}.grad = None" if case.label.isidentifier() else "",
    )


def _scaled_part(case: Case) -> Mistake | None:
    """One of several uses is off by a factor, such as that of a variance: all others are right."""
    if not 2 <= len(case.uses) <= MOST_USES or case.given.numel() < 2:
        return None
    for position, part in enumerate(_all_parts(case) or ()):
        others = case.gradient - part
        for factor in _simple(case, constant_factor(case.given - others, part)):
            if case.fits(case.given, others + part * factor.value):
                way = _way(case, case.uses[position])
                told = f"In `{case.name}`, the part that comes back through {way} is {factor}"
                return Mistake("factor", f"{told}. What comes from the other uses is right.")
    return None


# ---- a constant factor


@dataclass(frozen=True, slots=True)
class _Factor:
    """A number that something is too large by, how it is spelled where it is above 1, and where it comes from."""

    value: float
    spelled: str = ""
    origin: str = ""

    @property
    def size(self) -> str:
        """The factor, or its inverse where that is above 1."""
        size = abs(self.value)
        return self.spelled or _number(size if size > 1 else 1 / size)

    def __str__(self) -> str:
        """``32 times too large; 32 is the size of dimension 0 of `x```."""
        if abs(self.value) == 1:
            return "of the wrong sign"
        told = f"{self.size} times too {'large' if abs(self.value) > 1 else 'small'}"
        return f"{told}{', with the wrong sign' if self.value < 0 else ''}{self.origin}"


def _factor(case: Case) -> Mistake | None:
    value = constant_factor(case.given, case.gradient)
    for simple in _simple(case, value):
        if case.fits(case.given, case.gradient * simple.value):
            return _off_by(case, simple)
    if value is not None and case.given.numel() > 1 and case.fits(case.given, case.gradient * value):
        return _off_by(case, _Factor(value))
    return None


def _off_by(case: Case, factor: _Factor) -> Mistake:
    size = f"({factor.size})" if "/" in factor.size else factor.size
    sign, operator = "-" if factor.value < 0 else "", "/" if abs(factor.value) > 1 else "*"
    return Mistake("factor", f"`{case.name}` is {factor}.", f"{case.name} = {sign}{case.name} {operator} {size}")


def _number(value: float) -> str:
    return str(round(value)) if abs(value - round(value)) < SNAP * value else f"{value:.6g}"


def _simple(case: Case, value: float | None) -> Iterator[_Factor]:
    """The simple numbers, of either sign, that a factor may be."""
    for factor in _simple_factors(case) if value is not None else ():
        for simple in (factor.value, 1 / factor.value):
            for signed in (simple, -simple):
                if value is not None and abs(value / signed - 1) < SNAP:
                    yield replace(factor, value=signed)


def _simple_factors(case: Case) -> Iterator[_Factor]:
    """Numbers that a derivation forgets; each stands for its inverse too."""
    for size, whose in _sizes(case):
        yield _Factor(size, str(size), f"; {size} is {whose}")
        bessel = f" (Bessel's correction: {size} is {whose})"
        yield _Factor(size / (size - 1), f"{size}/{size - 1}", bessel)
    scale = case.run.report.scale
    if scale != 1.0:
        origin = "; the loss was multiplied by that for mixed precision, and so is PyTorch's gradient"
        yield _Factor(scale, f"{scale:.6g}", origin)
    yield from map(_Factor, (1.0, 2.0, 3.0, 4.0))


def _sizes(case: Case) -> Iterator[tuple[int, str]]:
    """Sizes of dimensions, and numbers of elements: the tensor's own first, then those of the others with a name."""
    rows = [case.row, *(row for row in case.run.rows if row is not case.row and row.name)]
    seen = {0, 1, 2}  # two is a square's as well
    for row in rows:
        for dimension, size in enumerate(row.shape):
            if size not in seen:
                seen.add(size)
                yield size, f"the size of dimension {dimension} of `{row.label}`"
    for row in rows:
        if math.prod(row.shape) not in seen:
            seen.add(math.prod(row.shape))
            yield math.prod(row.shape), f"the number of elements of `{row.label}`"
