"""Report -> numbers with tags, as TensorBoard and its kin draw them over the steps of a training."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from .loss_scale import unscaled
from .records import TensorRow
from .report import Report

_NO_TAG = re.compile(r"[^\w.-]+")
"""Letters of any script, digits and these: a slash would open a group, and half a surrogate pair cannot be stored."""


class ScalarWriter(Protocol):
    """What takes numbers: ``torch.utils.tensorboard.SummaryWriter``, that of tensorboardX, or one of your own."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> object:
        """Take one number."""


def write(report: Report, writer: ScalarWriter, step: int) -> None:
    """Hand every number to the writer; see `Report.to_tensorboard`."""
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(
            f"a {type(writer).__name__} has no add_scalar(tag, value, step); "
            "torch.utils.tensorboard.SummaryWriter() makes a writer that has"
        )
    for tag, value in scalars_of(report):
        writer.add_scalar(tag, value, step)


def scalars_of(report: Report) -> Iterator[tuple[str, float]]:
    """The value of each root, the norm of each gradient that has a name, and each update ratio; no tag comes twice."""
    used: set[str] = set()
    for name, value in _roots(report):
        yield _unused(f"root/{_part(name)}", used), value
    for row in unscaled(report).rows:
        if not row.name:
            continue
        tag = _tag(row, row.name)
        if row.grad is not None and row.grad.is_known:
            yield _unused(f"grad_norm/{tag}", used), row.grad.norm
        if row.updates.last is not None:
            yield _unused(f"update_ratio/{tag}", used), row.updates.last.value


def _roots(report: Report) -> Iterator[tuple[str, float]]:
    """What the passes started from, with its last value; where no pass ran, what one would have started from."""
    for loss in report.losses:
        if loss.values.last is not None:
            yield loss.name, loss.values.last.value
    if not report.losses and report.root is not None and report.root_value is not None:
        yield report.root.label, report.root_value


def _tag(row: TensorRow, name: str) -> str:
    """``model.fc/weight`` for what a module holds or makes."""
    if row.module is None:
        return _part(name)
    return f"{_part(row.module)}/{_part(name.removeprefix(f'{row.module}.'))}"


def _part(text: str) -> str:
    return _NO_TAG.sub("_", text)


def _unused(tag: str, used: set[str]) -> str:
    """The tag, with a number where it is taken: ``h``, ``h_2``, ``h_3``."""
    number, found = 1, tag
    while found in used:
        number += 1
        found = f"{tag}_{number}"
    used.add(found)
    return found
