"""Hooks of ours get numbers of their own, so that those of the person's are the ones they have without us.

A module shows the numbers: ``OrderedDict([(0, <torch.nn.utils.prune...>)])`` for ``module._forward_pre_hooks``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns

from torch.utils.hooks import RemovableHandle

_LOWEST = -(2**62)
"""The person's numbers count up from 0."""


@contextmanager
def numbered_apart() -> Iterator[None]:
    """Around setting hooks: their numbers are used up for nobody else."""
    theirs = RemovableHandle.next_id
    # No two hooks of ours may share a number, and no hook is set within a nanosecond.
    RemovableHandle.next_id = _LOWEST + perf_counter_ns()
    try:
        yield
    finally:
        RemovableHandle.next_id = theirs
