"""What is known of a row when its reason is sought: plain data, in execution order."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Kind, Location


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """One row, as the diagnosis sees it.

    Attributes:
        label: the name or expression.
        name: the name, or None.
        op: what made it.
        kind: ``parameter``, ``leaf``, ``non-leaf`` or ``constant``.
        dtype: name of the dtype.
        location: where it was made.
        parents: indices of the rows it was made from.
        is_floating: whether the dtype can have a gradient at all.
        is_parameter: an ``nn.Parameter``, also with requires_grad off.
        adopted: it was there before the cell, or unseen code made it.
        grad_enabled: False when it was made under ``torch.no_grad()``.
        inference: made under ``torch.inference_mode()``.
        transformed: inside a torch.func transform.
        input_requires_grad: one of the operation's inputs asked for a gradient.
        constant_use: where it was used while it did not ask for a gradient, or None.
        changed: where it was changed in place afterwards, or None.
        successor: index of the row of the version that this change made, or None.
        has_gradient: a gradient reached it.
        reached: a backward pass went through it.
        excluded: ``backward(inputs=...)`` left it out.
        made_after: no pass ran after it was made, though one ran before.
        cleared: where its ``.grad`` was set to None after the last pass, or None.
        only_returned: its gradient came from ``autograd.grad`` alone, which stores nothing.
    """

    label: str
    name: str | None
    op: str
    kind: Kind
    dtype: str
    location: Location
    parents: tuple[int, ...] = ()
    is_floating: bool = True
    is_parameter: bool = False
    adopted: bool = False
    grad_enabled: bool = True
    inference: bool = False
    transformed: bool = False
    input_requires_grad: bool = False
    constant_use: Location | None = None
    changed: Location | None = None
    successor: int | None = None
    has_gradient: bool = False
    reached: bool = False
    excluded: bool = False
    made_after: bool = False
    cleared: Location | None = None
    only_returned: bool = False


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The run as the diagnosis sees it.

    Attributes:
        rows: every row, in execution order.
        roots: rows that backward started from.
        passes: how many passes ran.
        failed: the error text of the pass that failed, or None.
        complete: whether every graph was followed to its ends.
    """

    rows: tuple[RowFacts, ...]
    roots: tuple[int, ...]
    passes: int
    failed: str | None
    complete: bool = True
