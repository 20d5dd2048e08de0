"""How a traced block ended, and under what circumstances it had begun."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from .diagnosis.facts import NoRoot
from .optimizers import OptimizerWatch
from .records import Thresholds


@dataclass(frozen=True, slots=True)
class Ending:
    """What the report says beside the rows.

    Attributes:
        error: the exception that ended the block, or None.
        traceback: where it came from.
        grad_mode: False when gradients were switched off before the block began.
        optimizers: which optimizers stepped, and where.
        no_root: why gradtrace ran no backward, or None.
        thresholds: from where on something is worth a finding.
        cut_root: index of the place of a number that would be the loss, had its way not been cut; or None.
    """

    error: BaseException | None
    traceback: TracebackType | None
    grad_mode: bool
    optimizers: OptimizerWatch
    thresholds: Thresholds
    no_root: NoRoot | None = None
    cut_root: int | None = None
