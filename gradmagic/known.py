"""The tensors of a run whose gradients are there, and what comes back to each of them from which others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .records import Location, TensorRow
from .report import Report, TensorNotFoundError
from .uses import Use, reached, uses_of
from .verdicts import as_tensor

ROUNDING = 16
"""So many units of rounding a summand may have gathered where the sum of all of them is zero in exact arithmetic."""


@dataclass(frozen=True, slots=True)
class Known:
    """A tensor whose gradient is there.

    Attributes:
        row: its row.
        tensor: itself.
        gradient: its gradient, dense and without a graph.
        name: the variable that holds what was derived, or None.
        wrong: what was derived, where that is wrong and of the right shape.
        misshapen: what was derived has another shape, so that nothing can be said of what follows from it.
    """

    row: TensorRow
    tensor: Tensor
    gradient: Tensor
    name: str | None = None
    wrong: Tensor | None = None
    misshapen: bool = False

    @property
    def derived(self) -> Tensor:
        """What somebody has derived for it; PyTorch's gradient, where that is right, or nobody has."""
        return self.gradient if self.wrong is None else self.wrong.to(self.gradient.dtype)


@dataclass(frozen=True, slots=True)
class Run:
    """The run that derived gradients are compared with.

    Attributes:
        report: its report.
        rows: those of the report, and one for each variable that shares its row with others.
        names: by the name of a row its index.
        users: by a row's index those of the rows that were made from it.
        known: by a row's index its tensor, where that is alive and has its gradient.
    """

    report: Report
    rows: list[TensorRow]
    names: Mapping[str, int]
    users: Mapping[int, list[int]]
    known: Mapping[int, Known]

    def find(self, name: str) -> int:
        """Index of a row.

        Raises:
            TensorNotFoundError: no row has that name; the message names near misses.
            TypeError: `name` is no string.
        """
        if name not in self.names:
            raise TensorNotFoundError(self.report.not_found(name))
        return self.names[name]

    def nearest(self, index: int, *, derived: bool) -> list[int]:
        """The rows from which a gradient is to be had: the nearest made of the tensor whose gradient is there.

        Args:
            index: of the tensor's row.
            derived: only those whose gradient the person has derived, and the root.
        """
        found: list[int] = []
        seen, pending = {index}, [index]
        while pending:
            above = [each for each in self.users.get(pending.pop(), ()) if each not in seen]
            seen.update(above)
            for each in above:
                known = self.known.get(each)
                wanted = known is not None and (not derived or known.name is not None or each not in self.users)
                (found if wanted else pending).append(each)
        return found

    def uses(self, index: int, *, derived: bool) -> list[Use]:
        """Every use of a tensor, with its part of the gradient; none where there is no such graph.

        Args:
            index: of the tensor's row.
            derived: take what the person derived in place of PyTorch's gradients, and nothing else but the root's.
        """
        keys = self.nearest(index, derived=derived) or [key for key in self.known if key != index]
        others = {key: self.known[key] for key in keys}
        above = {key: (each.tensor, each.derived if derived else each.gradient) for key, each in others.items()}
        try:
            return uses_of(self.known[index].tensor, above)
        except Exception:  # noqa: BLE001 - a tensor subclass or transform without such a graph: no cause is named then
            return []

    def rounding(self, index: int) -> float:
        """What rounding may leave of a gradient where the sum of its parts is zero in exact arithmetic.

        Args:
            index: of the tensor's row.
        """
        gradient = self.known[index].gradient
        if not (gradient.is_floating_point() or gradient.is_complex()):
            return 0.0
        summed = max((use.summed for use in self.uses(index, derived=False)), default=0.0)
        return ROUNDING * torch.finfo(gradient.dtype).eps * summed if math.isfinite(summed) else 0.0


def run_of(report: Report, namespace: Mapping[str, Any]) -> Run:
    """What is known of a run.

    Args:
        report: its report.
        namespace: the person's variables.
    """
    rows, names = list(report.rows), _names(report.rows)
    known = {index: found for index, row in enumerate(rows) if (found := _known(row)) is not None}
    for name, tensor in _without_a_row(namespace, names, known):
        found = _known(_row(name, tensor))
        if found is not None:
            known[len(rows)] = found
            names[name] = len(rows)
            rows.append(found.row)
    users: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        for used in row.inputs:
            users.setdefault(used, []).append(index)
    return Run(report, rows, names, users, known)


def _names(rows: list[TensorRow]) -> dict[str, int]:
    """As `Report` looks a row up: of several with one name the last, and aliases where no row has that name."""
    aliases = {alias: index for index, row in enumerate(rows) for alias in row.aliases}
    return aliases | {row.name: index for index, row in enumerate(rows) if row.name is not None}


def _without_a_row(
    namespace: Mapping[str, Any], names: Mapping[str, int], known: Mapping[int, Known]
) -> list[tuple[str, Tensor]]:
    """Variables that this run depends on: several tensors can be one row, as in ``q, k = (f(x) for f in fs)``."""
    tensors = {id(each.tensor) for each in known.values()}
    named = [(name, value) for name, value in namespace.items() if issubclass(type(value), Tensor)]
    open_ones = [(name, each) for name, each in named if name not in names and id(each) not in tensors]
    asking = [(name, each) for name, each in open_ones if each.requires_grad]
    found = reached([each.tensor for each in known.values()], [each for _, each in asking]) if asking else []
    ours = set(map(id, found))
    return [(name, each) for name, each in asking if id(each) in ours]


def _row(name: str, tensor: Tensor) -> TensorRow:
    """A row for a tensor that has none of its own."""
    nowhere = Location("", 0)
    kind: Literal["leaf", "non-leaf"] = "leaf" if tensor.is_leaf else "non-leaf"
    shape, dtype, device = tuple(tensor.shape), str(tensor.dtype), str(tensor.device)
    return TensorRow(
        name=name,
        expression=name,
        op="",
        grad_fn=None,
        location=nowhere,
        kind=kind,
        shape=shape,
        dtype=dtype,
        device=device,
        find_tensor=lambda: tensor,
    )


def _known(row: TensorRow) -> Known | None:
    """The tensor of a row with its gradient, or None where one of them is not there."""
    tensor = row.tensor
    if tensor is None or not (tensor.is_leaf or tensor.retains_grad) or tensor.grad is None:
        return None
    try:
        return Known(row, tensor, as_tensor(tensor.grad, tensor.grad))
    except Exception:  # noqa: BLE001 - a tensor subclass without numbers that could be compared
        return None
