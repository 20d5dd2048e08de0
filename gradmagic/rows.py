"""From places to rows: names, modules, statistics, and the facts the diagnosis judges. Runs once, after the cell."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .backward import Ledger, Pass
from .diagnosis.facts import RowFacts, RunFacts
from .diagnosis.reasons import Verdict, explain
from .modules import ModuleMark
from .namespace import Namespace
from .places import Gradient, InnerNode, Path, Place
from .recorder import Recorder
from .records import BackwardPass, GradSeries, GradStats, InnerStep, Kind, Location, TensorRow
from .sources import BoundName, Origin, Site, Sources

_INDEX = re.compile(r"\[\d+\]$")


@dataclass(slots=True)
class _Draft:
    """A row in the making: the places that belong to it, and what they are called."""

    places: list[Place]
    name: str | None
    aliases: tuple[str, ...]
    origin: Origin | None

    @property
    def last(self) -> Place:
        return max(self.places, key=lambda place: place.last_clock)

    @property
    def first(self) -> Place:
        return self.places[0]


@dataclass(frozen=True, slots=True)
class Assembly:
    """What the report is made of.

    Attributes:
        rows: the rows, in order of first execution.
        passes: the ledger.
        root: index of the row of the last pass' root, or None.
    """

    rows: list[TensorRow]
    passes: list[BackwardPass]
    root: int | None


class Assembler:
    """Turns what the recorder and the ledger hold into records."""

    def __init__(self, recorder: Recorder, ledger: Ledger, sources: Sources, namespace: Namespace) -> None:
        self._recorder = recorder
        self._ledger = ledger
        self._sources = sources
        self._namespace = namespace
        self._modules = recorder.modules.names(namespace.modules, sources)
        self._parameters = self._take_in_parameters()
        self._names: dict[int, list[str]] = {}
        self._bound = [self._all_bound(place) for place in recorder.places]
        self._contests = self._settle_contests()

    def assemble(self) -> Assembly:
        """Build every row and pass."""
        drafts = self._drafts()
        row_of = {place.index: row for row, draft in enumerate(drafts) for place in draft.places}
        roots = [row_of[place.index] for done in self._ledger.passes for place in done.roots if place.index in row_of]
        facts = self._facts(drafts, row_of, tuple(roots))
        verdicts = explain(facts)
        judged = zip(drafts, facts.rows, verdicts, strict=True)
        rows = [self._row(draft, fact, verdict, facts) for draft, fact, verdict in judged]
        passes = [self._pass(done, rows, row_of) for done in self._ledger.passes]
        return Assembly(rows, passes, roots[-1] if roots else None)

    # ---- modules and their parameters

    def _take_in_parameters(self) -> dict[int, str]:
        """Names of all parameters of the modules that ran; those no operation used get a row as well."""
        names: dict[int, str] = {}
        for name, parameter, call, mark in self._recorder.modules.parameters(self._modules):
            if id(parameter) not in names:
                names[id(parameter)] = name
                self._recorder.used(parameter, Path(call, mark, None))
        return names

    def _module(self, mark: ModuleMark | None) -> str | None:
        if mark is None:
            return None
        outer = self._modules[mark.outer]
        return f"{outer}.{mark.inner_path}" if mark.inner_path else outer

    # ---- names

    def _drafts(self) -> list[_Draft]:
        """Group places into rows: the same code path, module, operation and name make one row."""
        drafts: dict[Any, _Draft] = {}
        for place in self._recorder.places:
            if self._is_storage(place):
                continue
            origin = self._origin(place)
            names = self._place_names(place, origin)
            self._names[place.index] = names
            name = names[0] if names else None
            key = self._key(place, name)
            if key in drafts:
                drafts[key].places.append(place)
            else:
                drafts[key] = _Draft([place], name, tuple(names[1:]), origin)
        for draft in drafts.values():
            self._fold_indices(draft)
        return sorted(drafts.values(), key=lambda draft: draft.first.order)

    def _is_storage(self, place: Place) -> bool:
        """Memory that the constructor of one of torch's own modules allocates for its parameters."""
        innermost = place.path.sites[0].code if place.path.sites else None
        if place.requires_grad or innermost is None or innermost.co_name != "__init__":
            return False
        return self._sources.is_library(innermost)

    def _key(self, place: Place, name: str | None) -> Any:
        alive = place.ref is not None and place.ref() is not None
        if place.adopted is not None and place.is_leaf and alive:
            return place.index
        inherited = place.inherits is not None
        path = self._sources.canonical(place.path.sites)
        return (path, self._module(place.path.module), place.op, name or place.position, inherited)

    def _fold_indices(self, draft: _Draft) -> None:
        """A row that occurred many times and whose last tensor a variable holds as ``hs[49]`` is ``hs[…]``."""
        count = sum(place.count for place in draft.places)
        said = {bound.name for place in draft.places for bound in self._bound[place.index]}
        if count > 1 and draft.name not in said and draft.name is not None and _INDEX.search(draft.name):
            draft.aliases = (*draft.aliases, draft.name)
            draft.name = _INDEX.sub("[…]", draft.name)

    def _origin(self, place: Place) -> Origin | None:
        """For a tensor not seen at its birth: what the source says of it."""
        if place.adopted is None:
            return None
        index, given = place.adopted
        for name in self._held_by(place):
            found = self._sources.origin_in_cell(name) if name.isidentifier() else None
            if found is not None:
                return found
        return self._sources.origin_of_argument(place.path.sites, index, given) if index >= 0 else None

    def _held_by(self, place: Place) -> list[str]:
        # A variable holds the newest version of a tensor that was changed in place.
        tensor = place.ref() if place.ref is not None and place.successor is None else None
        return self._namespace.tensors.get(id(tensor), []) if tensor is not None else []

    def _place_names(self, place: Place, origin: Origin | None) -> list[str]:
        """All names of a place, the one to show first."""
        tensor = place.ref() if place.ref is not None else None
        names = [self._parameters[id(tensor)]] if id(tensor) in self._parameters else []
        if place.adopted is not None:
            names += [*self._held_by(place), *(origin.names if origin is not None else ())]
        else:
            # Inside a loop or comprehension a statement says nothing of the list the tensor ends up in.
            names += [*self._bound_names(place), *self._held_by(place)]
            if not names and place.inherits is not None:
                names = list(self._names.get(place.inherits.index, ()))
        return list(dict.fromkeys(names))

    def _bound_names(self, place: Place) -> list[str]:
        """What statements bind the place to, the outermost (the caller's) name first."""
        found = [bound.name for bound in self._bound[place.index] if self._wins(bound, place)]
        return list(reversed(found))

    def _wins(self, bound: BoundName, place: Place) -> bool:
        """Whether a name that several results of a loop could carry belongs to this place: the last made has it."""
        return bound.contested is None or self._contests[bound.contested, bound.name] is place

    def _settle_contests(self) -> dict[tuple[Site, str], Place]:
        last: dict[tuple[Site, str], Place] = {}
        for place in self._recorder.places:
            for bound in self._bound[place.index]:
                if bound.contested is not None:
                    key = (bound.contested, bound.name)
                    last[key] = max(last.get(key, place), place, key=lambda found: found.last_clock)
        return last

    def _all_bound(self, place: Place) -> list[BoundName]:
        if place.through_view or (place.op == "getitem" and self._sources.is_target(place.path.sites)):
            return []  # ``x[0] += 1`` first reads ``x[0]``, then changes it, and with it ``x``
        ways = ((place.path, place.position), *place.aliases)
        return [bound for path, position in ways for bound in self._sources.names(path.sites, position)]

    # ---- facts for the diagnosis

    def _facts(self, drafts: Sequence[_Draft], row_of: dict[int, int], roots: tuple[int, ...]) -> RunFacts:
        failed = next((done.error for done in reversed(self._ledger.passes) if done.error), None)
        rows = tuple(self._fact(draft, row_of) for draft in drafts)
        complete = all(done.complete for done in self._ledger.passes)
        return RunFacts(rows, roots, len(self._ledger.passes), failed, complete)

    def _fact(self, draft: _Draft, row_of: dict[int, int]) -> RowFacts:
        last = draft.last
        own = {place.index for place in draft.places}
        location = self._location(draft)
        parents = {row_of[parent] for place in draft.places for parent in place.parents if parent in row_of}
        parents -= {row_of[place.index] for place in draft.places}
        passes = self._ledger.passes
        return RowFacts(
            label=draft.name or self._expression(draft),
            name=draft.name,
            op=last.op,
            kind=_kind(last) if last.requires_grad and not _stands_apart(last) else "constant",
            dtype=last.dtype,
            location=location,
            parents=tuple(sorted(parents)),
            is_floating=last.is_floating,
            is_parameter=last.is_parameter,
            adopted=last.adopted is not None,
            grad_enabled=last.grad_enabled,
            inference=last.inference,
            transformed=last.transformed,
            input_requires_grad=any(place.input_requires_grad for place in draft.places),
            constant_use=self._place_location(last.constant_use),
            changed=self._place_location(last.changed),
            successor=row_of.get(last.successor.index) if last.successor is not None else None,
            has_gradient=any(place.gradients for place in draft.places),
            reached=any(own & done.reached for done in passes),
            excluded=any(done.limited is not None and own & done.reached for done in passes),
            made_after=bool(passes) and not last.is_leaf and last.last_clock > passes[-1].clock,
            cleared=self._cleared(draft),
            only_returned=_only_returned(draft, passes),
        )

    def _cleared(self, draft: _Draft) -> Location | None:
        cleared = draft.last.cleared
        reached = [done.clock for done in self._ledger.passes if draft.last.index in done.received_by]
        if cleared is None or not reached or cleared[0] < reached[-1]:
            return None
        return self._place_location(cleared[1])

    def _place_location(self, path: Path | None) -> Location | None:
        site = self._sources.person_site(path.sites) if path is not None else None
        return self._sources.location(site) if site is not None else None

    # ---- rows

    def _location(self, draft: _Draft) -> Location:
        if draft.origin is not None:
            return draft.origin.location
        found = self._place_location(draft.first.path)
        return found or Location(file="", line=0)

    def _expression(self, draft: _Draft) -> str:
        if draft.origin is not None:
            return draft.origin.expression
        if draft.first.adopted is not None:
            return draft.name or self._argument(draft.first) or draft.first.op or _kind(draft.first)
        site = self._sources.person_site(draft.first.path.sites)
        return self._sources.expression(site) if site is not None else draft.first.op

    def _argument(self, place: Place) -> str:
        """What a module's own code calls a tensor, seen from outside: ``Linear.weight`` for its ``self.weight``."""
        text = self._sources.argument(place.path.sites, *(place.adopted or (-1, 0)))
        module = self._module(place.path.module)
        return f"{module}{text[4:]}" if module and text.startswith("self.") else text

    def _row(self, draft: _Draft, fact: RowFacts, verdict: Verdict, run: RunFacts) -> TensorRow:
        last = draft.last
        # A plain tensor from outside does not belong to the module that happens to use it first.
        mark = draft.first.path.module if draft.first.adopted is None or last.is_parameter else None
        gradients = _in_order(draft.places)
        blamed = run.rows[verdict.culprit].location if verdict.culprit is not None else None
        final = max(gradients, key=lambda pair: (pair[0], pair[1].pass_index)) if gradients else None
        return TensorRow(
            name=draft.name,
            aliases=draft.aliases,
            expression=self._expression(draft),
            op=last.op or (draft.origin.callee if draft.origin else "") or _op_of(last),
            grad_fn=last.grad_fn,
            location=fact.location,
            cell_line=fact.location.line if fact.location.own else self._sources.own_line(draft.first.path.sites),
            module=self._module(mark),
            module_type=mark.type_name if mark is not None else None,
            kind=_kind(last),
            shape=last.shape,
            dtype=last.dtype,
            device=last.device,
            count=sum(place.count for place in draft.places),
            grad=final[1].pending.result() if final is not None else None,
            grads=_series(gradients),
            reason=verdict.reason,
            culprit=verdict.place or blamed,
            note=verdict.note,
            inner=_inner_steps(draft.places),
            find_tensor=last.ref if last.ref is not None else _nothing,
        )

    def _pass(self, done: Pass, rows: Sequence[TensorRow], row_of: dict[int, int]) -> BackwardPass:
        labels = [rows[row_of[place.index]].label for place in done.roots]
        return BackwardPass(
            root=", ".join(labels) or "?",
            value=done.value,
            location=self._place_location(done.path),
            run_by="cell" if done.path is not None else "gradtrace",
            function=done.function,
            seconds=done.seconds,
            error=done.error,
        )


def _nothing() -> None:
    return None


def _kind(place: Place) -> Kind:
    if place.is_parameter:
        return "parameter"
    if not place.requires_grad or _stands_apart(place):
        return "constant"
    return "leaf" if place.is_leaf else "non-leaf"


def _stands_apart(place: Place) -> bool:
    """Whether it has no part in the graph, whatever its requires_grad says.

    So it is inside a torch.func transform, and for a view of a leaf made under ``no_grad``.
    """
    return place.transformed or place.leaf_view


def _op_of(place: Place) -> str:
    """For a tensor that unseen code made: the operation its autograd node tells of (``MulBackward0`` -> mul)."""
    if place.grad_fn is None:
        return _kind(place)
    words = re.sub(r"Backward\d*$", "", place.grad_fn)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower()


def _only_returned(draft: _Draft, passes: Sequence[Pass]) -> bool:
    used = {gradient.pass_index for place in draft.places for gradient in place.gradients}
    return bool(used) and all(passes[index].function == "autograd.grad" for index in used)


def _in_order(places: Sequence[Place]) -> list[tuple[int, Gradient]]:
    """Gradients of a row with the occurrence counted over all its places, in the order of arrival."""
    found = []
    offset = 0
    for place in places:
        found += [(offset + gradient.occurrence, gradient) for gradient in place.gradients]
        offset += place.count
    return sorted(found, key=lambda pair: pair[1].pass_index)


def _series(gradients: Sequence[tuple[int, Gradient]]) -> GradSeries:
    stats: list[GradStats] = [gradient.pending.result() for _, gradient in gradients]
    return GradSeries(
        passes=array("l", [gradient.pass_index for _, gradient in gradients]),
        occurrences=array("l", [occurrence for occurrence, _ in gradients]),
        norm=array("d", [found.norm for found in stats]),
        min=array("d", [found.min for found in stats]),
        max=array("d", [found.max for found in stats]),
        zero_fraction=array("d", [found.zero_fraction for found in stats]),
        nan_count=array("q", [found.nan_count for found in stats]),
    )


def _inner_steps(places: Sequence[Place]) -> tuple[InnerStep, ...]:
    found = []
    for place in places:
        for inner in (*place.inner, *([place.unclaimed] if place.unclaimed is not None else [])):
            outputs = sorted(inner.received) or [0]
            found += [_inner_step(inner, output) for output in outputs]
    return tuple(found)


def _inner_step(inner: InnerNode, output: int) -> InnerStep:
    received = inner.received.get(output)
    return InnerStep(inner.grad_fn, inner.shapes.get(output), received.result() if received is not None else None)
