"""What is known of a run when it is judged: plain data, in execution order. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..curves import GradSeries
from ..records import USUAL, GradStats, Kind, Location, Thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """How an activation function answered, over one call.

    Attributes:
        idle: units that were zero in every sample (for relu: channels of an image, else positions of the last
            dimension), or saturated (for tanh and sigmoid: elements; for softmax: distributions).
        units: how many there are.
        samples: over how many values each unit was looked at.
        share: share of single elements (distributions, for softmax) that were zero or saturated, 0.0 to 1.0.
    """

    idle: int
    units: int
    samples: int
    share: float


@dataclass(slots=True, kw_only=True)  # frozen, its 57 fields would take three times as long to set
class RowFacts:
    """One row, as the diagnosis sees it.

    Attributes:
        label: the name or expression.
        name: the name, or None.
        op: what made it.
        kind: ``parameter``, ``leaf``, ``non-leaf`` or ``constant``.
        dtype: name of the dtype.
        shape: its shape.
        location: where it was made.
        grad_fn: name of its autograd node, or None.
        module: path of the module that made it or owns it, or None.
        parents: indices of the rows it was made from.
        clock: when it was last made.
        count: how often it was made.
        is_floating: whether the dtype can have a gradient at all.
        is_parameter: an ``nn.Parameter``, also with requires_grad off.
        is_leaf: it has no history, whether it requires a gradient or not.
        alive: the tensor still exists.
        bound_now: a variable of the person leads to it at the end.
        adopted: it was there before the cell, or unseen code made it.
        made_unseen: unseen code made it while the cell ran, by steps that have no rows.
        leaves_torch: no tensor but a number, list or array: what ``.item()`` and the like gave. It is no row.
        by_library: code of a library, not of the person's, called the operation.
        grad_enabled: False when it was made under ``torch.no_grad()``.
        inference: made under ``torch.inference_mode()``.
        transformed: inside a torch.func transform.
        input_requires_grad: one of the operation's inputs asked for a gradient.
        constant_use: where it was used while it did not ask for a gradient, or None.
        switched_off: it is a leaf that has asked for a gradient before, and does no longer.
        changed: where it was changed in place afterwards, or None.
        successor: index of the row of the version that this change made, or None.
        heir: index of the row that took over its history: the successor, or the new version of what it is a view of.
        has_gradient: a gradient reached it.
        reached: a backward pass went through it.
        excluded: ``backward(inputs=...)`` left it out.
        made_after: no pass ran after it was made, though one ran before.
        cleared: where its ``.grad`` was set to None after the last pass, or None.
        only_returned: its gradient came from ``autograd.grad`` alone, which stores nothing.
        taken: nothing is left in ``.grad``, which a hook of the person's after accumulation may have emptied.
        grad: statistics of the last gradient, or None.
        grads: every gradient.
        forward: statistics of its values, where they are known, or None.
        activity: for an activation function, how it answered.
        weight_rms: root mean square of a leaf's own values at the end, or None.
        held: norm of the ``.grad`` that it brought along from before the cell into the first pass, or None.
        holds: norm of its ``.grad`` at the end, where `held` is known.
        stepped_on_old: where it was updated with a gradient that an earlier update had used already, or None.
        added_by: the loss (index into `RunFacts.losses`) whose pass was added to the used gradients.
        passes_added: how many passes had added up then, at most.
        mixed: where it was updated with a gradient that was left over from another loss, whose turn was somebody else's
            (see `accumulation`), or None.
        mixed_losses: that other loss, and the one whose pass was added to it.
        strays: losses that gave it a gradient while only other weights were updated.
        own: losses after whose passes it was updated.
        thrown: how often a gradient of its was cleared before any update had used it.
        thrown_at: where, the last time.
        updates: how often it was updated.
        given: somebody put a gradient into its ``.grad`` by other means than backward.
        read: the person's own code looked at its ``.grad``.
        frames: where the person's code stood on the way to the operation, innermost first; only known where gradients
            stray.
    """

    label: str
    name: str | None
    op: str
    kind: Kind
    dtype: str
    location: Location
    shape: tuple[int, ...] = ()
    grad_fn: str | None = None
    module: str | None = None
    parents: tuple[int, ...] = ()
    clock: int = 0
    count: int = 1
    is_floating: bool = True
    is_parameter: bool = False
    is_leaf: bool = False
    alive: bool = True
    bound_now: bool = True
    adopted: bool = False
    made_unseen: bool = False
    leaves_torch: bool = False
    by_library: bool = False
    grad_enabled: bool = True
    inference: bool = False
    transformed: bool = False
    input_requires_grad: bool = False
    constant_use: Location | None = None
    switched_off: bool = False
    changed: Location | None = None
    successor: int | None = None
    heir: int | None = None
    has_gradient: bool = False
    reached: bool = False
    excluded: bool = False
    made_after: bool = False
    cleared: Location | None = None
    only_returned: bool = False
    taken: bool = False
    grad: GradStats | None = None
    grads: GradSeries = field(default_factory=GradSeries, repr=False)
    forward: GradStats | None = None
    activity: Activity | None = None
    weight_rms: float | None = None
    held: float | None = None
    holds: float | None = None
    stepped_on_old: Location | None = None
    added_by: int | None = None
    passes_added: int = 0
    mixed: Location | None = None
    mixed_losses: tuple[int, int] = (0, 0)
    strays: frozenset[int] = frozenset()
    own: frozenset[int] = frozenset()
    thrown: int = 0
    thrown_at: Location | None = None
    updates: int = 0
    given: bool = False
    read: bool = False
    frames: tuple[Location, ...] = ()

    @property
    def severed(self) -> bool:
        """Whether a gradient that reached it would go no further, though its inputs asked for one."""
        return self.input_requires_grad and (self.kind == "constant" or self.is_leaf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Where in the graph a pass stopped with an error.

    Attributes:
        row: the row whose backward failed, or None.
        grad_fn: name of the autograd node.
        earlier_round: the node belongs to an earlier occurrence of the row than the last.
        victim: the row that had been saved for backward and was changed in place, or None.
        culprit: where it was changed, or None.
        culprit_op: the operation that changed it.
        culprit_module: path of the module with ``inplace=True`` that did it, or empty.
        times: how many in-place changes there were since it was saved.
        freed_by: the loss whose earlier pass used the graph up; None when that was before the cell.
    """

    row: int | None = None
    grad_fn: str = ""
    earlier_round: bool = False
    victim: int | None = None
    culprit: Location | None = None
    culprit_op: str = ""
    culprit_module: str = ""
    times: int = 1
    freed_by: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """Where in a pass gradients first stopped being finite, or became exactly zero.

    Attributes:
        kind: ``not_finite`` or ``zero``.
        row: the row that received it first.
        consumer: the row whose backward made it, or None.
        grad_fn: name of the autograd node that made it.
        nan_count, inf_count, numel: of the gradient.
        saved: value that the operation had been given where it went wrong, or None.
        upstream: the gradient that came in was zero at that element.
    """

    kind: Literal["not_finite", "zero"]
    row: int
    consumer: int | None = None
    grad_fn: str = ""
    nan_count: int = 0
    inf_count: int = 0
    numel: int = 0
    saved: float | None = None
    upstream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentChange:
    """A tensor that was saved for backward, then changed where autograd does not look (``.data``)."""

    victim: int
    consumer: int
    culprit: Location


@dataclass(frozen=True, slots=True, kw_only=True)
class PassFacts:
    """One run of backward.

    Attributes:
        root: label of what it started from.
        roots: the rows it started from.
        shape: shape of the root.
        value: the root's value when it is one number, or None.
        location: where the cell called it; None when gradtrace ran it.
        function: ``backward`` or ``autograd.grad``.
        clock: when it ran.
        error: text of the error it raised, or None.
        failure: where in the graph it stopped, or None.
        births: where gradients went bad.
        silent: saved tensors that were changed unseen.
        asked: rows that ``autograd.grad`` was asked for, or that ``inputs=`` named.
        reached: rows on the way from the roots to the leaves.
    """

    root: str
    roots: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    value: float | None = None
    location: Location | None = None
    function: str = "backward"
    clock: int = 0
    error: str | None = None
    failure: Failure | None = None
    births: tuple[Birth, ...] = ()
    silent: tuple[SilentChange, ...] = ()
    asked: tuple[int, ...] = ()
    reached: frozenset[int] = frozenset()

    @property
    def where(self) -> str:
        """The line that ran it, in words."""
        return str(self.location) if self.location is not None else "run by gradtrace"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFacts:
    """The passes that one line runs from one place.

    Attributes:
        root: label of what they start from.
        roots: the rows they start from.
        location: where the cell calls them; None when gradtrace ran it.
        function: ``backward`` or ``autograd.grad``.
        count: how many there were.
        clock: when the last one ran that used its graph up.
        reached: rows on the way from the roots to the leaves, in any of them.
    """

    root: str
    roots: tuple[int, ...] = ()
    location: Location | None = None
    function: str = "backward"
    count: int = 1
    clock: int = 0
    reached: frozenset[int] = frozenset()

    @property
    def where(self) -> str:
        """The line that runs them, in words."""
        return str(self.location) if self.location is not None else "run by gradtrace"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """The steps of one optimizer at one line.

    Attributes:
        optimizer: its variable, or its class where no variable holds it.
        location: where it steps.
        count: how often.
        without: how often none of its parameters had a gradient.
        again: how often all of their gradients had been used by its step before.
        emptied: how often the gradients of the last pass had been cleared before the step.
        cleared: where.
        loss: the loss of that pass.
    """

    optimizer: str
    location: Location
    count: int
    without: int = 0
    again: int = 0
    emptied: int = 0
    cleared: Location | None = None
    loss: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One tensor that an operation was given when it failed."""

    label: str
    row: int | None
    dtype: str
    device: str
    shape: tuple[int, ...]
    requires_grad: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CellError:
    """The exception that ended the cell.

    Attributes:
        text: its class and message.
        location: the person's line it came from.
        op: the torch operation that raised it; empty when it was none.
        operands: the tensors that operation was given.
    """

    text: str
    location: Location | None
    op: str = ""
    operands: tuple[Operand, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFacts:
    """An optimizer that a variable of the person holds.

    Attributes:
        name: the variable.
        type_name: its class.
        rate: its largest learning rate.
        rows: rows of the parameters it holds.
        strangers: how many of its parameters were not used in the cell.
        orphans: how many of its parameters belong to no module or variable of the person any more.
        shapes: shapes of the strangers.
        stepped: where it stepped in the cell, or None.
        made: where the variable was bound, as far as the source tells.
    """

    name: str
    type_name: str
    rate: float
    rows: tuple[int, ...] = ()
    strangers: int = 0
    orphans: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    stepped: Location | None = None
    made: Location | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFacts:
    """An outermost module that ran.

    Attributes:
        name: what it is called.
        training: False when it was in eval mode while an optimizer stepped.
        affected: what eval mode changes in it: paths of its dropout and batch norm layers, with their class.
        parameters: rows of its parameters.
        call: where it was called.
    """

    name: str
    training: bool
    affected: tuple[tuple[str, str], ...] = ()
    parameters: tuple[int, ...] = ()
    call: Location | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """A tensor of an earlier cell whose graph leads to a leaf that no variable holds any more.

    Attributes:
        row: the tensor.
        made: where the earlier cell made it.
        name: the variable that has been bound anew since.
        rebound: where.
        leaf: row of the leaf that gets the gradient instead.
    """

    row: int
    made: Location
    name: str
    rebound: Location
    leaf: int


@dataclass(frozen=True, slots=True)
class NoRoot:
    """Why gradtrace ran no backward.

    Attributes:
        kind: ``nothing_differentiable``, ``no_scalar``, ``not_scalar``, ``not_found``, ``cell_failed``...
        subject: the name or expression in question.
        shape: its shape, where that is the matter.
        detail: the original error text, where there is one.
        near: names that look like it.
        where: the line in question.
        by: what ran there.
        row: the row of a number that would be the loss, had its way not been cut; or None.
    """

    kind: str
    subject: str = ""
    shape: tuple[int, ...] = ()
    detail: str = ""
    near: tuple[str, ...] = ()
    where: str = ""
    by: str = ""
    row: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """The run as the diagnosis sees it.

    Attributes:
        rows: every row, in execution order; behind them what left torch (see `RowFacts.leaves_torch`).
        roots: rows that backward started from.
        passes: the passes; of very many only some, with the first and the last.
        losses: what they started from, and where.
        steps: where optimizers stepped.
        complete: whether every graph was followed to its ends.
        hidden: rows that got their gradient from a graph of its own inside the backward of another row, by that.
        faults: what gradtrace itself could not record, with how often.
        optimizers, modules: those the person's variables hold, and those that ran.
        error: the exception that ended the cell, or None.
        stale: graphs of earlier cells that have gone stale.
        grad_mode: False when gradients were switched off before the cell began.
        scale: the constant that the loss was multiplied by for mixed precision; 1.0 for none.
        scaler: name of the ``GradScaler`` that did it, or empty.
        unscaled: the cell has called its ``unscale_``.
        with_values: forward statistics were asked for.
        made_in: where tensors of earlier cells were made, by row.
        no_root: why gradtrace ran no backward, or None.
        thresholds: from where on something is worth a finding.
    """

    rows: tuple[RowFacts, ...]
    roots: tuple[int, ...] = ()
    passes: tuple[PassFacts, ...] = ()
    losses: tuple[LossFacts, ...] = ()
    steps: tuple[StepFacts, ...] = ()
    complete: bool = True
    hidden: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)
    optimizers: tuple[OptimizerFacts, ...] = ()
    modules: tuple[ModuleFacts, ...] = ()
    error: CellError | None = None
    stale: tuple[Stale, ...] = ()
    grad_mode: bool = True
    scale: float = 1.0
    scaler: str = ""
    unscaled: bool = False
    with_values: bool = False
    made_in: Mapping[int, Location] = field(default_factory=dict)
    no_root: NoRoot | None = None
    thresholds: Thresholds = USUAL

    @property
    def failed(self) -> str | None:
        """Text of the last pass' error, or None."""
        return next((done.error for done in reversed(self.passes) if done.error), None)
