"""From places to rows: statistics, the facts that the diagnosis judges, and its verdicts. Runs once, after the cell."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .answers import KeptAnswer
from .backward import Ledger
from .curves import NO_CURVE, Curve, GrowingSeries, joined
from .dataflow import DataFlow
from .diagnosis.facts import Activity, LossFacts, RowFacts, RunFacts
from .diagnosis.flow import upstream_of
from .diagnosis.judge import diagnose
from .diagnosis.reasons import Verdict
from .ending import Ending
from .history import History
from .ledger import ledger_of
from .namespace import Namespace
from .naming import Draft, Naming, kind_of, stands_apart
from .observed import Observer, weight_sizes
from .optimizers import OptimizerWatch
from .passes import Loss, Pass
from .places import Gradients, InnerNode, Place
from .recorder import Recorder
from .records import BackwardPass, Finding, GradStats, InnerStep, Kind, LedgerEntry, Location, TensorRow
from .sources import Sources
from .statistics import measure
from .stored import values_of


@dataclass(frozen=True, slots=True)
class Assembly:
    """What the report is made of.

    Attributes:
        rows: the rows, in order of first execution.
        passes: the passes; of very many only some.
        ledger: what ran backward, stepped, cleared and clipped, a line each.
        root: index of the row of the last pass' root, or None.
        findings: what the diagnosis found.
        scale: the constant that the loss was multiplied by for mixed precision; 1.0 for none.
    """

    rows: list[TensorRow]
    passes: list[BackwardPass]
    ledger: list[LedgerEntry]
    root: int | None
    findings: list[Finding]
    scale: float


class Assembler:
    """Turns what the recorder and the ledger hold into records."""

    def __init__(
        self,
        recorder: Recorder,
        ledger: Ledger,
        watch: OptimizerWatch,
        sources: Sources,
        namespace: Namespace,
        history: History,
    ) -> None:
        self._recorder = recorder
        self._ledger = ledger
        self._sources = sources
        self._naming = Naming(recorder, sources, namespace)
        self._drafts = self._naming.drafts()
        self._row_of = {place.index: row for row, draft in enumerate(self._drafts) for place in draft.places}
        self._observer = Observer(recorder, ledger, sources, self._naming, history, self._row_of)
        self._watch = watch

    def assemble(self, ending: Ending) -> Assembly:
        """Build every row and pass, and judge them."""
        link_plain_values(self._recorder.places, self._naming, DataFlow(self._sources))
        facts = self._facts(ending)
        diagnosis = diagnose(facts)
        drafts = [draft for draft in self._drafts if not draft.first.leaves_torch]
        inputs = self._inputs(facts, len(drafts))
        judged = zip(drafts, facts.rows, diagnosis.verdicts, inputs, strict=False)
        rows = [self._row(draft, fact, verdict, facts, made_from) for draft, fact, verdict, made_from in judged]
        passes = [self._pass(done, facts) for done in self._ledger.log.kept]
        ledger = ledger_of(self._ledger, ending.optimizers, self._naming, facts.losses)
        root = facts.roots[-1] if facts.roots else None
        return Assembly(rows, passes, ledger, root, diagnosis.findings, facts.scale)

    # ---- facts for the diagnosis

    def _facts(self, ending: Ending) -> RunFacts:
        observer = self._observer
        weights = self._weights()
        drafts = enumerate(self._drafts)
        rows = tuple([self._with_account(self._fact(draft, weights.get(row)), draft.last) for row, draft in drafts])
        rows = self._with_frames(self._with_values(rows))
        labels = [row.label for row in rows]
        passes = observer.passes(labels)
        scale, scaler = observer.loss_scale()
        why = ending.no_root
        if why is not None and ending.cut_root is not None:
            why = replace(why, row=self._row_of.get(ending.cut_root))
        return RunFacts(
            rows=rows,
            roots=tuple(root for done in passes for root in done.roots),
            passes=passes,
            losses=observer.losses(labels),
            steps=observer.steps(ending.optimizers),
            complete=self._ledger.log.complete,
            hidden=observer.hidden(),
            faults=self._recorder.faults,
            optimizers=observer.optimizers(ending.optimizers),
            modules=observer.modules(ending.optimizers),
            error=observer.cell_error(ending.error, ending.traceback),
            stale=observer.stale(rows, lambda row: upstream_of(rows, row)),
            grad_mode=ending.grad_mode,
            scale=scale,
            scaler=scaler,
            unscaled=bool(scaler) and observer.is_unscaled(),
            with_values=self._recorder.with_values,
            made_in=observer.made_in(rows),
            no_root=why,
            thresholds=ending.thresholds,
        )

    def _fact(self, draft: Draft, weight: float | None) -> RowFacts:
        last = draft.last
        tensor = last.tensor()
        site = last.path.sites[0] if last.path.sites else None
        own = {place.index for place in draft.places}
        losses = self._ledger.log.losses
        newest = self._ledger.log.last
        naming = self._naming
        return RowFacts(
            label=draft.name or naming.expression(draft),
            weight_rms=weight,
            name=draft.name,
            op=last.op,
            kind=_kind(last),
            dtype=last.dtype,
            location=naming.location(draft),
            shape=last.shape,
            grad_fn=last.grad_fn,
            module=naming.module(last.path.module) if last.adopted is None or last.is_parameter else None,
            parents=self._parents(draft),
            clock=last.last_clock,
            count=sum(place.count for place in draft.places),
            is_floating=last.is_floating,
            is_parameter=last.is_parameter,
            is_leaf=last.is_leaf,
            alive=tensor is not None,
            bound_now=naming.is_bound(last),
            adopted=last.adopted is not None,
            made_unseen=last.made_unseen and bool(last.inner),
            leaves_torch=last.leaves_torch,
            by_library=site is not None and self._sources.is_library(site.code),
            grad_enabled=last.grad_enabled,
            inference=last.inference,
            transformed=last.transformed,
            input_requires_grad=last.input_requires_grad,
            constant_use=naming.place_location(last.constant_use),
            switched_off=last.is_leaf and last.asked and not last.requires_grad,
            changed=naming.place_location(last.changed),
            successor=self._row_of.get(last.successor.index) if last.successor is not None else None,
            heir=self._row_of.get(last.heir.index) if last.heir is not None else None,
            has_gradient=any(place.gradients for place in draft.places),
            reached=any(own & loss.reached_freely for loss in losses),
            excluded=_excluded(own, losses),
            made_after=newest is not None and not last.is_leaf and last.last_clock > newest.clock,
            cleared=self._cleared(last),
            only_returned=_only_returned(draft, losses),
            taken=_is_taken(last),
            grad=_last_gradient(draft.places),
            grads=joined(_parts(draft.places)),
            forward=last.forward.result() if last.forward is not None else None,
            activity=_activity(last),
            given=last.given,
            read=last.read,
        )

    def _with_account(self, row: RowFacts, last: Place) -> RowFacts:
        """What the passes and the updates have made of a leaf's ``.grad``."""
        account = self._ledger.book.accounts.get(last.index)
        if account is None or account.is_uneventful:
            return row
        grown, mixed, thrown = account.grown, account.mixed, account.thrown_away
        where = self._naming.place_location
        return replace(
            row,
            held=account.held.result().norm if account.held is not None else None,
            holds=_norm_of_grad(last) if account.held is not None else None,
            stepped_on_old=where(grown.path) if grown is not None else None,
            added_by=grown.loss if grown is not None else None,
            passes_added=grown.passes if grown is not None else 0,
            mixed=where(mixed.path) if mixed is not None else None,
            mixed_losses=(mixed.foreign, mixed.own) if mixed is not None else (0, 0),
            strays=frozenset(account.strays),
            own=frozenset(account.own),
            thrown=account.thrown,
            thrown_at=where(thrown[0]) if thrown is not None else None,
            updates=account.updates,
            read=last.read or account.is_read,
        )

    def _with_frames(self, rows: tuple[RowFacts, ...]) -> tuple[RowFacts, ...]:
        """Where gradients stray to other weights, it is told at which line their way meets that of the others."""
        if not any(row.strays - row.own for row in rows):
            return rows
        drafts = zip(rows, self._drafts, strict=True)
        return tuple(replace(row, frames=self._naming.frames(draft.first.path)) for row, draft in drafts)

    def _parents(self, draft: Draft) -> tuple[int, ...]:
        row_of, own = self._row_of, self._row_of[draft.first.index]
        parents = {row_of.get(parent, own) for place in draft.places for parent in place.parents}
        parents.discard(own)
        return tuple(sorted(parents))

    def _cleared(self, last: Place) -> Location | None:
        if last.cleared is None or not last.received or last.cleared[0] < last.received:
            return None
        return self._naming.place_location(last.cleared[1])

    def _with_values(self, rows: tuple[RowFacts, ...]) -> tuple[RowFacts, ...]:
        """When the loss is not finite, the values of the tensors that are still there say how far it went wrong."""
        values = [done.value for done in self._ledger.log.kept if done.value is not None]
        if self._recorder.with_values or all(map(math.isfinite, values)):
            return rows
        found = []
        for row, draft in zip(rows, self._drafts, strict=True):
            tensor = _alive(draft.last) if draft.last.is_floating else None
            found.append(replace(row, forward=measure(tensor).result()) if tensor is not None else row)
        return tuple(found)

    def _weights(self) -> dict[int, float]:
        """Sizes of the leaves that got a gradient, by row.

        Where one of them is a matrix, nobody asks for those of vectors: of most models those are two thirds.
        """
        leaves: dict[int, Tensor] = {}
        vectors = set()
        for index, draft in enumerate(self._drafts):
            if _kind(draft.last) not in ("leaf", "parameter") or not any(place.gradients for place in draft.places):
                continue
            tensor = _alive(draft.last)
            if tensor is not None and not tensor.is_complex():
                leaves[index] = tensor
                vectors.update([index] if len(draft.last.shape_found) < 2 else [])
        if any(index not in vectors and _is_finite(self._drafts[index]) for index in leaves):
            leaves = {index: leaf for index, leaf in leaves.items() if index not in vectors}
        return dict(zip(leaves, weight_sizes(list(leaves.values())), strict=True))

    # ---- rows

    def _row(self, draft: Draft, fact: RowFacts, verdict: Verdict, run: RunFacts, inputs: tuple[int, ...]) -> TensorRow:
        last = draft.last
        # A plain tensor from outside does not belong to the module that happens to use it first.
        mark = draft.first.path.module if draft.first.adopted is None or last.is_parameter else None
        blamed = run.rows[verdict.culprit].location if verdict.culprit is not None else None
        own_line = self._sources.own_line(draft.first.path.sites)
        return TensorRow(
            name=draft.name,
            aliases=draft.aliases,
            expression=self._naming.expression(draft),
            op=last.op or (draft.origin.callee if draft.origin else "") or _op_of(last),
            grad_fn=last.grad_fn,
            location=fact.location,
            cell_line=fact.location.line if fact.location.own else own_line,
            module=self._naming.module(mark),
            module_type=mark.type_name if mark is not None else None,
            kind=kind_of(last),
            shape=last.shape,
            dtype=last.dtype,
            device=last.device,
            count=fact.count,
            grad=fact.grad,
            grads=fact.grads,
            reason=verdict.reason,
            culprit=verdict.place or blamed,
            note=verdict.note,
            inner=_inner_steps(draft.places),
            inputs=inputs,
            forward=fact.forward if run.with_values else None,
            updates=self._updates(draft),
            find_tensor=last.ref if last.ref is not None else _nothing,
        )

    def _inputs(self, facts: RunFacts, count: int) -> Iterator[tuple[int, ...]]:
        """What each of the first `count` rows was made from; the others are numbers, and no rows of the report."""
        above: dict[int, frozenset[int]] = {}
        for index, draft in enumerate(self._drafts[:count]):
            parents = facts.rows[index].parents
            tensors = {parent for parent in parents if parent < count}
            # Whatever a number went into is linked to it, also what was only made from the tensor that it went into.
            known = frozenset().union(*[above.get(parent, frozenset()) for parent in tensors])
            numbers = {parent for parent in parents if parent >= count}
            above[index] = known | numbers
            own = {place.index for place in draft.places}
            again = {index} if any(not own.isdisjoint(place.parents) for place in draft.places) else set()
            yield tuple(sorted(tensors | set(_rows_behind(numbers - known, facts, count)) | again))

    def _updates(self, draft: Draft) -> Curve:
        found = (self._watch.updates.get(place.index) for place in draft.places)
        return next((curve.frozen() for curve in found if curve is not None), NO_CURVE)

    @staticmethod
    def _pass(done: Pass, facts: RunFacts) -> BackwardPass:
        loss = facts.losses[done.loss.index] if done.loss is not None else LossFacts(root="?")
        return BackwardPass(
            root=loss.root,
            value=done.value,
            location=loss.location,
            run_by="cell" if done.path is not None else "gradtrace",
            function=done.function,
            seconds=done.seconds,
            error=done.error,
            number=done.number,
            loss=done.loss.index if done.loss is not None else 0,
            step=done.step,
        )


def _rows_behind(numbers: Iterable[int], facts: RunFacts, count: int) -> Iterator[int]:
    """The rows that numbers came from."""
    pending, seen = list(numbers), set(numbers)
    while pending:
        parent = pending.pop()
        if parent < count:
            yield parent
            continue
        further = [each for each in facts.rows[parent].parents if each not in seen]
        seen.update(further)
        pending += further


def link_plain_values(places: Sequence[Place], naming: Naming, flow: DataFlow) -> None:
    """Make what left torch a parent of what was made from it, and what a new leaf was made from its parent.

    No tensor connects the two: ``.item()`` gives a number, and ``nn.Parameter(t)`` calls no operation.
    """
    left = [place for place in places if place.leaves_torch]
    for place in places:
        if place.leaves_torch:
            continue
        if place.adopted is not None:
            _link_adopted(place, places, naming, flow)
            continue
        for source in left:
            earlier = source.last_clock < place.last_clock and source.index not in place.parents
            through = flow.feeds(source.path.sites, place.path.sites) if earlier else None
            # A function that takes a number out on the side and returns a tensor hands on the tensor.
            if through is not None and not any(through in places[parent].path.sites for parent in place.parents):
                place.parents.add(source.index)


def _link_adopted(place: Place, places: Sequence[Place], naming: Naming, flow: DataFlow) -> None:
    origin = naming.origin_of(place)
    if origin is None or not origin.callee.rpartition(".")[2].endswith(("Parameter", "Tensor", "Buffer")):
        return
    ranges = list(flow.behind(origin.tree, origin.node, origin.location.file))
    for source in places:
        made_before = source is not place and source.last_clock <= place.last_clock
        if made_before and source.adopted is None and flow.feeds_range(source.path.sites, ranges):
            place.parents.add(source.index)
            place.input_requires_grad = place.input_requires_grad or source.requires_grad


def _kind(place: Place) -> Kind:
    """As the diagnosis sees it: a parameter that does not require a gradient is a constant as well."""
    return kind_of(place) if place.requires_grad and not stands_apart(place) else "constant"


def _is_finite(draft: Draft) -> bool:
    grad = _last_gradient(draft.places)
    return grad is not None and bool(grad.numel) and math.isfinite(grad.norm)


def _alive(place: Place) -> Tensor | None:
    """A tensor that still exists and has values to look at."""
    tensor = place.tensor() if not place.transformed else None
    if tensor is None or tensor.layout is not torch.strided or values_of(tensor) is None or not tensor.numel():
        return None
    return tensor


def _norm_of_grad(place: Place) -> float | None:
    tensor = place.tensor()
    return measure(tensor.grad).result().norm if tensor is not None and tensor.grad is not None else None


def _activity(place: Place) -> Activity | None:
    pending = place.activity.counted() if isinstance(place.activity, KeptAnswer) else place.activity
    if pending is None:
        return None
    idle, off, counted = pending.result()
    share = off / counted if counted else 0.0
    return Activity(idle=idle, units=pending.units, samples=pending.samples, share=share)


def _nothing() -> None:
    return None


def _op_of(place: Place) -> str:
    """For a tensor that unseen code made: the operation its autograd node tells of (``MulBackward0`` -> mul)."""
    if place.grad_fn is None:
        return kind_of(place)
    words = re.sub(r"Backward\d*$", "", place.grad_fn)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower()


def _excluded(own: set[int], losses: Sequence[Loss]) -> bool:
    """Whether ``backward(inputs=...)`` left it out; of ``autograd.grad`` only where nothing else ran."""
    stored = [loss for loss in losses if loss.function == "backward"]
    return any(own & loss.reached_limited for loss in stored or losses)


def _only_returned(draft: Draft, losses: Sequence[Loss]) -> bool:
    used = {loss for place in draft.places for loss in place.gradients.series}
    return bool(used) and all(losses[loss].function == "autograd.grad" for loss in used)


def _last_gradient(places: Sequence[Place]) -> GradStats | None:
    """Statistics of the last gradient of the last occurrence over all places."""
    if len(places) == 1:
        last = places[0].gradients.last
        return last[2].result() if last is not None else None
    found = []
    for offset, place in _counted_on(places):
        if place.gradients.last is not None:
            occurrence, number, pending = place.gradients.last
            found.append((offset + occurrence, number, pending))
    return max(found, key=lambda last: last[:2])[2].result() if found else None


def _is_taken(place: Place) -> bool:
    """Whether nothing is left in the ``.grad`` of a leaf that has a hook of the person's after accumulation."""
    tensor = place.tensor() if place.is_leaf and place.received else None
    return tensor is not None and tensor.grad is None and bool(tensor._post_accumulate_grad_hooks)


def _parts(places: Sequence[Place]) -> Iterator[tuple[int, GrowingSeries]]:
    """The series of a row, each with what its occurrences are counted from."""
    return ((offset, series) for offset, place in _counted_on(places) for series in place.gradients.series.values())


def _counted_on(places: Sequence[Place]) -> Iterator[tuple[int, Place]]:
    """The places of a row, each with the number of occurrences of those before it."""
    offset = 0
    for place in places:
        yield offset, place
        offset += place.count


def _inner_steps(places: Sequence[Place]) -> tuple[InnerStep, ...]:
    found = []
    for offset, place in _counted_on(places):
        for inner in (*place.inner, *([place.unclaimed] if place.unclaimed is not None else [])):
            outputs = sorted(inner.gradients) or [0]
            found += [_inner_step(inner, output, offset) for output in outputs]
    return tuple(found)


def _inner_step(inner: InnerNode, output: int, offset: int) -> InnerStep:
    found = inner.gradients.get(output, Gradients())
    grads = joined((offset, series) for series in found.series.values())
    grad = found.last[2].result() if found.last is not None else None
    return InnerStep(inner.grad_fn, inner.shapes.get(output), grad, grads)
