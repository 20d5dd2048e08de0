"""Why a backward pass stopped: the node that failed, what it had saved, and who changed that since."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .births import Owner, saved_tensors
from .changes import Change, memory_of
from .places import Path, Place
from .raised import told
from .recorder import Recorder
from .walk import Step, nodes_below

_VERSIONS = re.compile(r"is at version (\d+); expected version (\d+)")
_OWN_RESULT = frozenset({"result", "result0", "result1", "output", "values", "Q", "R", "U", "S", "Vh", "L", "inverse"})
"""What PyTorch calls a saved tensor that the operation itself made (tools/autograd/derivatives.yaml)."""


@dataclass(frozen=True, slots=True)
class PassFailure:
    """By places; see `diagnosis.facts.Failure`."""

    place: int | None
    occurrence: int
    grad_fn: str
    victim: int | None = None
    change: Change | None = None
    times: int = 0


@dataclass(frozen=True, slots=True)
class UnseenChange:
    """By places; see `diagnosis.facts.SilentChange`."""

    victim: int
    consumer: int
    path: Path


def failure_of(recorder: Recorder, roots: Sequence[Tensor], node_id: int | None, error: BaseException) -> PassFailure:
    """What can be told of a pass that raised `error` while the node with this ``id`` ran."""
    steps, _ = nodes_below(roots)
    step = steps.get(node_id) if node_id is not None else None
    if step is None:
        return PassFailure(None, 0, "")
    owner = _owner(recorder, step, steps)
    grad_fn = str(step.node.name())
    if owner is None:
        return PassFailure(None, 0, grad_fn)
    versions = _VERSIONS.search(told(error))
    if versions is None:
        return PassFailure(*owner, grad_fn)
    now, expected = map(int, versions.groups())
    victim, change, times = _victim(recorder, recorder.places[owner[0]], step.node, (expected, now))
    return PassFailure(*owner, grad_fn, victim, change, times)


def _owner(recorder: Recorder, step: Step, steps: Mapping[int, Step]) -> Owner | None:
    """The place a node belongs to; an unseen node belongs to that of the nodes it is reached from."""
    current: Step | None = step
    while current is not None:
        marks = recorder.marks(current.node)
        if marks:
            return next(iter(marks.values()))
        current = steps.get(current.consumer) if current.consumer is not None else None
    return None


def _victim(
    recorder: Recorder, consumer: Place, node: Any, versions: tuple[int, int]
) -> tuple[int | None, Change | None, int]:
    """The tensor that was changed since the node saved it, the first change, and how many there were."""
    expected, now = versions
    found: list[tuple[Change, int]] = []
    for candidate in _candidates(recorder, consumer, _stale_names(node)):
        changes = [c for c in _changes_of(recorder, candidate) if expected < c.version <= now and not c.unseen]
        found += [(change, candidate.index) for change in changes]
    if not found:
        return None, None, max(now - expected, 1)
    change, victim = min(found, key=lambda pair: (pair[0].version, pair[0].clock))
    return victim, change, now - expected


def _candidates(recorder: Recorder, consumer: Place, stale: Sequence[str]) -> list[Place]:
    own = [consumer, *_versions(consumer)]
    inputs = [recorder.places[index] for index in sorted(consumer.parents)]
    inputs = [place for place in inputs if place not in own]
    if stale and all(name in _OWN_RESULT for name in stale):
        return own
    return [*inputs, *own] if not stale else inputs or own


def _versions(place: Place) -> Iterator[Place]:
    """Earlier versions of the same tensor. Of two lines of a loop that change it, each inherits from the other."""
    seen = {place}
    while place.inherits is not None and place.inherits not in seen:
        place = place.inherits
        seen.add(place)
        yield place


def _changes_of(recorder: Recorder, place: Place) -> Iterator[Change]:
    tensor = place.tensor()
    memory = memory_of(tensor) if tensor is not None else None
    later = {place.index}
    while place.successor is not None and place.successor.index not in later:
        place = place.successor
        later.add(place.index)
    for where, change in recorder.changes:
        if where == memory or (memory is None and (change.place in later or change.base in later)):
            yield change


def _stale_names(node: Any) -> list[str]:
    """Names of the saved tensors that PyTorch refuses to hand out, because they were changed."""
    names = []
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            try:
                getattr(node, name)
            except RuntimeError as error:
                if "modified by an inplace" in str(error):
                    names.append(name.removeprefix("_saved_"))
    return names


def is_freed(node: Any) -> bool:
    """Whether PyTorch has let go of what the node had saved for backward."""
    for name in dir(node):
        if name.startswith("_saved_"):
            try:
                getattr(node, name)
            except RuntimeError as error:
                if "a second time" in str(error):
                    return True
    return False


def unseen_changes(recorder: Recorder, steps: Mapping[int, Step]) -> list[UnseenChange]:
    """Tensors that nodes of this graph had saved before somebody changed them through ``.data``."""
    if not recorder.changes.any_unseen:
        return []
    changed = {memory: change for memory, change in recorder.changes if change.unseen}
    found = []
    for step in steps.values():
        for index, occurrence in (recorder.marks(step.node) or {}).values():
            place = recorder.places[index]
            later = {memory for memory, change in changed.items() if change.clock > place.last_clock}
            if later and occurrence == place.count - 1:
                memories = set(map(memory_of, saved_tensors(step.node)))
                found += [_unseen(recorder, index, changed[memory]) for memory in later if memory in memories]
    return found


def _unseen(recorder: Recorder, consumer: int, change: Change) -> UnseenChange:
    parents = recorder.places[change.place].parents
    return UnseenChange(min(parents) if parents else change.place, consumer, change.path)
