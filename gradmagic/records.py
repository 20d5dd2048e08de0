"""What a trace leaves behind: plain, frozen data. Nothing here holds a tensor, frame or module, or needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Literal

from .curves import Curve, GradSeries

Kind = Literal["parameter", "leaf", "non-leaf", "constant"]
Called = Literal["cell", "script", "function"]
"""A word for what was traced."""
Severity = Literal["error", "warning", "info"]
RANK: Mapping[Severity, int] = MappingProxyType({"error": 0, "warning": 1, "info": 2})
"""The most severe first."""
Reason = Literal[
    "requires_grad_false",
    "frozen",
    "requires_grad_too_late",
    "integer_dtype",
    "no_grad",
    "inference_mode",
    "detached",
    "not_differentiable",
    "unused",
    "cut_upstream",
    "custom_backward_none",
    "backward_inputs",
    "after_backward",
    "no_backward",
    "backward_failed",
    "replaced_in_place",
    "inside_transform",
]


@dataclass(frozen=True, slots=True)
class Location:
    """A place in the person's code.

    Attributes:
        file: file name as Python knows it (for a notebook cell, the name the shell compiled it under).
        line: first line, counted as the notebook's margin does.
        function: the enclosing function, or None at the top level.
        cell: execution count of the notebook cell that holds the code, or None for a file.
        own: True when the code stands in the traced cell itself.
        text: source of the statement or expression, on one line.
        statement: source of the whole statement, on one line; empty for the head of a block.
        span: where the expression begins and ends in the traced cell: line, column, last line, and the column behind
            its end, in characters from 0; None elsewhere, and on lines that the shell has transformed.
    """

    file: str
    line: int
    function: str | None = None
    cell: int | None = None
    own: bool = False
    text: str = ""
    statement: str = ""
    span: tuple[int, int, int, int] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """``line 5`` in the traced cell, ``In [3]:5`` in another cell, ``resnet.py:92`` in a file, ``--backward``."""
        if self.file.startswith("--"):
            return self.file
        if self.own:
            return f"line {self.line}"
        if self.cell is not None:
            return f"In [{self.cell}]:{self.line}"
        return f"{PurePath(self.file).name}:{self.line}"


@dataclass(frozen=True, slots=True)
class Source:
    """The traced code as the person wrote it.

    Attributes:
        text: the cell with its magic line, or the ``with`` block.
        line: number of its first line.
    """

    text: str
    line: int = 1

    @property
    def lines(self) -> list[str]:
        """Its lines, without their ends."""
        return self.text.split("\n")


@dataclass(frozen=True, slots=True)
class GradStats:
    """Statistics of one gradient.

    Attributes:
        norm: Euclidean norm over all elements (of the magnitudes, for complex gradients).
        rms: ``norm / sqrt(numel)``; 0.0 without elements.
        mean, min, max: over all elements; NaN without elements; of the magnitudes for complex gradients.
        zero_fraction: share of elements that are exactly zero, 0.0 to 1.0.
        nan_count, inf_count: number of NaN and infinite elements.
        numel: number of elements (of stored values, for a sparse gradient).
        values: the elements in row-major order when there are at most 6, else None.
    """

    norm: float
    rms: float
    mean: float
    min: float
    max: float
    zero_fraction: float
    nan_count: int
    inf_count: int
    numel: int
    values: tuple[float | complex, ...] | None = None

    @property
    def is_known(self) -> bool:
        """False where the gradient has no numbers that can be seen (on the meta device, fake...); then all are NaN."""
        return self.norm == self.norm or bool(self.nan_count)


@dataclass(frozen=True, slots=True)
class InnerStep:
    """An autograd node no Python code ever saw, inside a composite or fused operation.

    Attributes:
        grad_fn: name of the node, such as ``SoftmaxBackward0``.
        shape: shape of the tensor the node made, or None where PyTorch does not tell.
        grad: statistics of the gradient that reached it at the row's last occurrence, or None.
        grads: every gradient that reached it, by pass and occurrence of the row.
    """

    grad_fn: str
    shape: tuple[int, ...] | None
    grad: GradStats | None
    grads: GradSeries = field(default_factory=GradSeries, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From where on a run is worth a finding.

    Attributes:
        spread: a gradient that shrinks or grows by more than this factor on its way vanishes or explodes. One of size 1
            at the one end then lies below the smallest normal number of float16 (2**-14) at the other, the underflow
            that loss scaling was made for (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2).
        dead_share: share of dead units from which a ReLU layer is worth a finding; its row counts them from a tenth on.
            On an input of one or two dimensions a random unit is off everywhere with a probability of up to one half,
            so that of 16 units of a healthy new layer three quarters or more are dead in 4 % of cases at the most
            (binomial distribution).
        saturated_share: more than this share of the elements pass less than 2 % of the gradient.
        dominates: one norm is this many times the next largest: after clipping by the total norm, all others are below
            1 % of the limit.

    Raises:
        ValueError: a factor is not larger than 1, or a share not between 0 and 1.
    """

    spread: float = 2.0**14
    dead_share: float = 0.75
    saturated_share: float = 0.5
    dominates: float = 100.0

    def __post_init__(self) -> None:
        for name in ("spread", "dominates"):
            if not getattr(self, name) > 1:
                raise ValueError(f"{name} must be larger than 1, not {getattr(self, name)}")
        for name in ("dead_share", "saturated_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")


USUAL = Thresholds()


def _gone() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """One place in the code that makes one tensor; it may have occurred many times.

    Attributes:
        name: the name the tensor is bound to (``y``, ``self.h``, ``hs[t]``), or None.
        aliases: further names it is known by (inside the function that made it, or in the namespace afterwards).
        expression: source text that made it.
        op: what made it, in PyTorch's words (``matmul``, ``linear``).
        grad_fn: name of the autograd node, or None.
        location: where the person's code made it (for a leaf from an earlier cell, where it was first used).
        cell_line: the traced cell's own line that was running then, or None.
        module: path of the ``nn.Module`` that was running, with the variable's name in front, or None.
        module_type: class name of that module, or None.
        kind: ``parameter``, ``leaf``, ``non-leaf`` or ``constant``.
        shape, dtype, device: of the last occurrence.
        count: occurrences.
        grad: statistics of the last occurrence's gradient, or None.
        grads: every gradient that reached the row, by pass and occurrence.
        reason: why there is no gradient; None when there is one.
        culprit: where the code to blame stands, or None.
        note: one plain remark, with what to write where something can be done; may be empty.
        inner: the inner steps that belong to the row.
        inputs: indices into ``Report.rows`` of the tensors that what made it was given, in ascending order; its own
            where an occurrence was made from the one before, as in ``h = f(h)``.
        forward: statistics of the last occurrence's own values, when they were asked for (``--values``), else None.
        updates: for a leaf that an optimizer updated: ``||update|| / ||weight||`` of each of its steps, with the weight
            as it was before the step (0/0, as of a bias that starts at zero and stays there, is NaN).
    """

    name: str | None
    expression: str
    op: str
    grad_fn: str | None
    location: Location
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    device: str
    aliases: tuple[str, ...] = ()
    cell_line: int | None = None
    module: str | None = None
    module_type: str | None = None
    count: int = 1
    grad: GradStats | None = None
    grads: GradSeries = field(default_factory=GradSeries, repr=False)
    reason: Reason | None = None
    culprit: Location | None = None
    note: str = ""
    inner: tuple[InnerStep, ...] = ()
    inputs: tuple[int, ...] = ()
    forward: GradStats | None = None
    updates: Curve = field(default_factory=Curve, repr=False)
    find_tensor: Callable[[], Any] = field(default=_gone, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The name, or else the expression."""
        return self.name or self.expression

    @property
    def file(self) -> str:
        """File (or cell) of the code that made the tensor."""
        return self.location.file

    @property
    def line(self) -> int:
        """Line of the code that made the tensor, within `file`."""
        return self.location.line

    @property
    def function(self) -> str | None:
        """Function that made the tensor, or None at the top level."""
        return self.location.function

    @property
    def tensor(self) -> Any:
        """The live tensor of the last occurrence, or None when it is gone (a weak look-up).

        Where nothing but the graph holds it, since it was saved for backward, it has no ``.grad``; see `trace`.
        """
        return self.find_tensor()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardPass:
    """One run of backward.

    Attributes:
        root: name or expression of the tensor it started from.
        value: the root's value when it is a scalar, else None.
        location: where backward was called; None when gradtrace ran it.
        run_by: ``cell`` or ``gradtrace``.
        function: what ran: ``backward`` or ``autograd.grad``.
        seconds: wall time of the pass, without gradtrace's own preparation.
        error: text of the error it raised, or None.
        number: its number among all passes of the run, from 0.
        loss: index into ``Report.losses``.
        step: its number among the passes of that loss, from 0.
    """

    root: str
    value: float | None = None
    location: Location | None = None
    run_by: Literal["cell", "gradtrace"] = "cell"
    function: Literal["backward", "autograd.grad"] = "backward"
    seconds: float = 0.0
    error: str | None = None
    number: int = 0
    loss: int = 0
    step: int = 0

    @property
    def line(self) -> int | None:
        """The traced cell's line that called backward, or None."""
        return self.location.line if self.location is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How many autograd nodes lay between the roots and the leaves, and where the report has their gradients.

    The graph is walked just before each pass; a node that several passes go through counts once for each of them.

    Attributes:
        seen: nodes found.
        named: those that made a tensor of the person's code, and the leaves: rows.
        inner: those that no Python code ever saw: inner steps of a row.
        complete: whether every graph was followed to its ends; one of more than 15,000 operations in a row is not.
    """

    seen: int = 0
    named: int = 0
    inner: int = 0
    complete: bool = True

    @property
    def missed(self) -> int:
        """Nodes found that are neither; a finding of the kind ``not_traced`` says why."""
        return self.seen - self.named - self.inner


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What one line of the cell did to gradients and weights, however often it ran.

    Attributes:
        kind: ``backward`` and ``autograd.grad`` are passes; ``step`` is an optimizer's, ``zero_grad`` clears ``.grad``
            (by an optimizer, a module or by hand), ``clip`` is ``clip_grad_norm_`` or ``clip_grad_value_``.
        name: what backward started from; else the code that did it, such as ``optimizer.step()``.
        location: where; None when gradtrace itself ran it.
        run_by: ``cell`` or ``gradtrace``.
        count: how often; of clearing, how often there was something to clear; of several optimizers that step at one
            place, the steps of all.
        values: for a pass the value of its root; for a step the median over the parameters of
            ``||update|| / ||weight||``; for ``clip_grad_norm_`` the total norm that it returned, before clipping.
        max_norm: the largest norm that ``clip_grad_norm_`` was told to let through, the last time, or None.
        clipped: how often the norm was larger than that.
        seconds: wall time of the passes, without gradtrace's own preparation.
        error: text of the last error it raised, or None.
    """

    kind: Literal["backward", "autograd.grad", "step", "zero_grad", "clip"]
    name: str
    location: Location | None = None
    run_by: Literal["cell", "gradtrace"] = "cell"
    count: int = 1
    values: Curve = field(default_factory=Curve, repr=False)
    max_norm: float | None = None
    clipped: int = 0
    seconds: float = 0.0
    error: str | None = None

    @property
    def is_pass(self) -> bool:
        """Whether it ran backward."""
        return self.kind in ("backward", "autograd.grad")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something worth saying about the run.

    Attributes:
        kind: a stable identifier, such as ``no_scalar`` or ``backward_failed``.
        severity: ``error``, ``warning`` or ``info``.
        message: one or two plain sentences with the person's names and lines.
        hint: the code to write instead, or what to do; may be empty.
        location: the line to blame, or None.
        rows: indices into ``Report.rows``.
        detail: PyTorch's own words, unabridged; may be empty.
    """

    kind: str
    severity: Severity
    message: str
    hint: str = ""
    location: Location | None = None
    rows: tuple[int, ...] = ()
    detail: str = ""

    @property
    def line(self) -> int | None:
        """The line to blame, or None."""
        return self.location.line if self.location is not None else None
