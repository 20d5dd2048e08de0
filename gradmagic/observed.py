"""Facts about a run that are no row: its passes, how the cell ended, optimizers, modules, what earlier cells left."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .backward import Ledger
from .births import BirthPoint
from .diagnosis.facts import (
    Birth,
    CellError,
    Failure,
    LossFacts,
    ModuleFacts,
    Operand,
    OptimizerFacts,
    PassFacts,
    RowFacts,
    SilentChange,
    Stale,
    StepFacts,
)
from .failures import PassFailure
from .history import EarlierBinding, History
from .modules import named
from .naming import Naming
from .optimizers import OptimizerWatch
from .passes import Pass
from .places import FailedCall, Path, Place
from .raised import told
from .recorder import Recorder
from .records import Location
from .sites import Site
from .sources import Sources
from .stored import values_of

_SMALLEST_SCALE = 16.0
"""A loss times a power of two from here on is taken for loss scaling (a GradScaler starts at 65536)."""


class Observer:
    """Facts about one run, once its rows are known."""

    def __init__(
        self,
        recorder: Recorder,
        ledger: Ledger,
        sources: Sources,
        naming: Naming,
        history: History,
        row_of: dict[int, int],
    ) -> None:
        """Prepare; `row_of` gives the row of each place, by their indices."""
        self._recorder = recorder
        self._ledger = ledger
        self._sources = sources
        self._naming = naming
        self._namespace = naming.namespace
        self._history = history
        self._row_of = row_of

    def _row(self, place: Place | int | None) -> int | None:
        index = place.index if isinstance(place, Place) else place
        return self._row_of.get(index) if index is not None else None

    def _rows(self, places: Sequence[Place | int] | set[int]) -> tuple[int, ...]:
        rows = (self._row(place) for place in places)
        return tuple(dict.fromkeys(row for row in rows if row is not None))

    # ---- passes

    def hidden(self) -> dict[int, tuple[int, ...]]:
        """Rows whose gradient comes out of a graph inside the backward of another row, by that row."""
        found = {self._row(owner): self._rows(leaves) for owner, leaves in self._ledger.log.hidden.items()}
        return {owner: rows for owner, rows in found.items() if owner is not None}

    def losses(self, labels: Sequence[str]) -> tuple[LossFacts, ...]:
        """What the passes started from; `labels` are those of the rows."""
        return tuple(
            LossFacts(
                root=", ".join(labels[row] for row in self._rows(loss.roots)) or "?",
                roots=self._rows(loss.roots),
                location=self._naming.place_location(loss.path),
                function=loss.function,
                count=loss.count,
                clock=loss.freed_at,
                reached=frozenset(self._rows(loss.reached)),
            )
            for loss in self._ledger.log.losses
        )

    def steps(self, watch: OptimizerWatch) -> tuple[StepFacts, ...]:
        """Where optimizers stepped."""
        found = []
        for line in watch.lines:
            where = self._naming.place_location(line.path)
            if where is None:
                continue
            clearing = line.clearing or (None, 0)
            found.append(
                StepFacts(
                    optimizer=self._optimizer_names.get(line.optimizer, line.type_name),
                    location=where,
                    count=line.count,
                    without=line.without,
                    again=line.again,
                    emptied=line.emptied,
                    cleared=self._naming.place_location(clearing[0]),
                    loss=clearing[1],
                )
            )
        return tuple(found)

    def passes(self, labels: Sequence[str]) -> tuple[PassFacts, ...]:
        """Every pass; `labels` are those of the rows."""
        return tuple(self._pass(done, labels) for done in self._ledger.log.kept)

    def _pass(self, done: Pass, labels: Sequence[str]) -> PassFacts:
        roots = self._rows(done.roots)
        births = (self._birth(birth) for birth in done.births)
        silent = (
            SilentChange(victim=victim, consumer=consumer, culprit=where)
            for change in done.unseen
            if (victim := self._row(change.victim)) is not None
            and (consumer := self._row(change.consumer)) is not None
            and (where := self._naming.place_location(change.path)) is not None
        )
        return PassFacts(
            root=", ".join(labels[row] for row in roots) or "?",
            roots=roots,
            shape=done.shape,
            value=done.value,
            location=self._naming.place_location(done.path),
            function=done.function,
            clock=done.clock,
            error=done.error,
            failure=self._failure(done.failure, done) if done.failure is not None else None,
            births=tuple(birth for birth in births if birth is not None),
            silent=tuple(silent),
            asked=self._rows(done.asked),
            reached=frozenset(self._rows(done.reached)),
        )

    def _birth(self, birth: BirthPoint) -> Birth | None:
        row = self._row(birth.owner[0])
        if row is None:
            return None
        return Birth(
            kind=birth.kind,
            row=row,
            consumer=self._row(birth.consumer[0]) if birth.consumer is not None else None,
            grad_fn=birth.grad_fn,
            nan_count=birth.nan_count,
            inf_count=birth.inf_count,
            numel=birth.numel,
            saved=birth.saved,
            upstream=birth.upstream,
        )

    def _failure(self, failure: PassFailure, done: Pass) -> Failure:
        place = self._recorder.places[failure.place] if failure.place is not None else None
        change = failure.change
        return Failure(
            row=self._row(failure.place),
            grad_fn=failure.grad_fn.removeprefix("torch::autograd::"),
            earlier_round=place is not None and failure.occurrence < place.count - 1,
            victim=self._row(failure.victim),
            culprit=self._naming.place_location(change.path) if change is not None else None,
            culprit_op=change.op if change is not None else "",
            culprit_module=self._in_place_module(change.path) if change is not None else "",
            times=max(failure.times, 1),
            freed_by=done.freed_by.index if done.freed_by is not None else None,
        )

    def _in_place_module(self, path: Path) -> str:
        """Path of the module of PyTorch's own (``nn.ReLU(inplace=True)``) that changed its input; empty for none."""
        if path.module is None or not path.sites or not self._sources.is_library(path.sites[0].code):
            return ""
        return self._naming.module(path.module) or ""

    def loss_scale(self) -> tuple[float, str]:
        """What the last root's loss was multiplied by for mixed precision, and the name of the scaler that did it."""
        done = next((done for done in reversed(self._ledger.log.kept) if done.function == "backward"), None)
        root = done.roots[0] if done is not None and len(done.roots) == 1 else None
        if root is None or root.op != "mul":
            return 1.0, ""
        scaled_by = any(site.code.co_qualname.startswith("GradScaler.scale") for site in root.path.sites)
        factor = self._arrived_at_loss(root) if scaled_by else root.number or 1.0
        power_of_two = factor > 0 and math.frexp(factor)[0] == 0.5
        if not (scaled_by or power_of_two) or factor < _SMALLEST_SCALE:
            return 1.0, ""
        names = [name for name, value in self._namespace.others if type(value).__name__ == "GradScaler"]
        return factor, (names[0] if names else "GradScaler") if scaled_by else ""

    def is_unscaled(self) -> bool:
        """Whether the cell itself has called ``scaler.unscale_``: ``scaler.step`` alone does so too late to look."""
        return any(
            inner.code.co_qualname == "GradScaler.unscale_" and not self._sources.is_library(outer.code)
            for place in self._recorder.places
            for inner, outer in itertools.pairwise(place.path.sites)
        )

    def _arrived_at_loss(self, root: Place) -> float:
        """The gradient that arrived at what the scaler was given: as the root's is 1, it is the scale."""
        for index in root.parents:
            last = self._recorder.places[index].gradients.last
            if last is not None:
                return last[2].result().norm
        return 1.0

    # ---- how the cell ended

    def cell_error(self, error: BaseException | None, traceback: TracebackType | None) -> CellError | None:
        """The exception that ended the cell, with what the torch operation behind it had been given."""
        if error is None:
            return None
        call = self._recorder.failed_call
        if call is not None and call.error == id(error):
            return CellError(
                text=told(error),
                location=self._naming.place_location(call.path),
                op=call.op,
                operands=tuple(self._operands(call)),
            )
        return CellError(text=told(error), location=self._raised_at(traceback))

    def _operands(self, call: FailedCall) -> Iterator[Operand]:
        places = self._recorder.places
        for given in call.given:
            text = self._sources.argument(call.path.sites, *given.argument)
            place = places[given.place] if given.place is not None else None
            label = text
            if not label or self._sources.is_library(call.path.sites[0].code):
                label = self._name(place) or label
            yield Operand(
                label=label,
                row=self._row(place),
                dtype=given.dtype,
                device=given.device,
                shape=given.shape,
                requires_grad=given.requires_grad,
            )

    def _name(self, place: Place | None) -> str:
        tensor = place.tensor() if place is not None else None
        return self._namespace.name_of(tensor) or "" if tensor is not None else ""

    def _raised_at(self, traceback: TracebackType | None) -> Location | None:
        found = None
        while traceback is not None:
            site = Site(traceback.tb_frame.f_code, traceback.tb_lasti)
            if not self._sources.is_library(site.code):
                found = site
            traceback = traceback.tb_next
        return self._sources.location(found) if found is not None else None

    # ---- optimizers and modules

    def optimizers(self, watch: OptimizerWatch) -> tuple[OptimizerFacts, ...]:
        """Those that variables of the person hold."""
        return tuple(
            self._optimizer(name, value, watch)
            for name, value in self._namespace.others
            if isinstance(value, torch.optim.Optimizer)
        )

    def _optimizer(self, name: str, optimizer: Any, watch: OptimizerWatch) -> OptimizerFacts:
        row_of = self._rows_of_leaves
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        strangers = [parameter for parameter in held if id(parameter) not in row_of]
        rates = [_rate(group.get("lr")) for group in optimizer.param_groups]
        return OptimizerFacts(
            name=name,
            type_name=type(optimizer).__name__,
            rate=max(rates, default=0.0),
            rows=tuple(row_of[id(parameter)] for parameter in held if id(parameter) in row_of),
            strangers=len(strangers),
            orphans=sum(id(parameter) not in self._owned for parameter in held),
            shapes=tuple(tuple(parameter.shape) for parameter in strangers),
            stepped=self._naming.place_location(watch.stepped(optimizer)),
            made=self._made(name),
        )

    @cached_property
    def _optimizer_names(self) -> dict[int, str]:
        """Names of the optimizers that variables hold, by ``id``."""
        return {
            id(value): name
            for name, value in reversed(self._namespace.others)
            if isinstance(value, torch.optim.Optimizer)
        }

    def _made(self, name: str) -> Location | None:
        origin = self._sources.origin_in_cell(name) if name.isidentifier() else None
        if origin is not None:
            return origin.location
        earlier = self._history.binding(name)
        return earlier.location if earlier is not None else None

    @cached_property
    def _rows_of_leaves(self) -> dict[int, int]:
        return {
            id(tensor): self._row_of[entry.place.index]
            for tensor, entry in self._recorder.alive()
            if tensor.is_leaf and entry.place is not None and entry.place.index in self._row_of
        }

    @cached_property
    def _owned(self) -> set[int]:
        """Every parameter and tensor that a variable of the person, or a module that ran, leads to."""
        running = [module for _, module, _ in self._recorder.modules.outermost(self._naming.module_names)]
        modules = [*self._namespace.module_objects, *running]
        owned = {id(parameter) for module in modules for _, parameter in named(module, "named_parameters")}
        return owned | set(self._namespace.tensors)

    def modules(self, watch: OptimizerWatch) -> tuple[ModuleFacts, ...]:
        """The outermost modules that ran."""
        row_of = self._rows_of_leaves
        found = []
        for name, module, call in self._recorder.modules.outermost(self._naming.module_names):
            parameters = [row_of[id(p)] for _, p in named(module, "named_parameters") if id(p) in row_of]
            site = self._sources.person_site(call)
            found.append(
                ModuleFacts(
                    name=name,
                    training=not watch.in_eval_mode(module),
                    affected=tuple(_affected_by_eval(name, module)),
                    parameters=tuple(dict.fromkeys(parameters)),
                    call=self._sources.location(site) if site is not None else None,
                )
            )
        return tuple(found)

    # ---- earlier cells

    def made_in(self, rows: Sequence[RowFacts]) -> dict[int, Location]:
        """Where tensors that were there before the cell were made, by row."""
        found = {}
        for index, row in enumerate(rows):
            binding = self._binding(row)
            if binding is not None:
                found[index] = binding.location
        return found

    def _binding(self, row: RowFacts) -> EarlierBinding | None:
        if not row.adopted or row.name is None:
            return None
        if row.name.isidentifier() and self._sources.origin_in_cell(row.name) is not None:
            return None
        root_name = row.name.partition(".")[0].partition("[")[0]
        return self._history.binding(root_name) if root_name.isidentifier() else None

    def stale(self, rows: Sequence[RowFacts], upstream: Callable[[int], set[int]]) -> tuple[Stale, ...]:
        """Tensors of earlier cells whose graph ends in leaves that no variable holds any more."""
        unheld = {row for tensor, row in self._rows_of_leaves.items() if tensor not in self._owned}
        orphans = {index for index in unheld if rows[index].adopted and rows[index].has_gradient}
        found = []
        for index, row in enumerate(rows):
            binding = self._binding(row) if row.kind == "non-leaf" and row.reached else None
            leaves = sorted(upstream(index) & orphans) if binding is not None else []
            rebound = self._rebound(binding) if binding is not None and leaves else None
            if binding is not None and rebound is not None:
                name, where = rebound
                found.append(Stale(row=index, made=binding.location, name=name, rebound=where, leaf=leaves[0]))
        return tuple(found)

    def _rebound(self, binding: EarlierBinding) -> tuple[str, Location] | None:
        """A variable that went into an earlier cell's value and has been bound anew since."""
        for name in sorted(binding.uses):
            own = self._sources.origin_in_cell(name)
            if own is not None:
                return name, own.location
            later = self._history.binding(name)
            if later is not None and later.order > binding.order:
                return name, later.location
        return None


def _affected_by_eval(name: str, module: Any) -> Iterator[tuple[str, str]]:
    for path, layer in named(module, "named_modules"):
        kind = type(layer).__name__
        dropout = "Dropout" in kind and getattr(layer, "p", 0) > 0
        batch_norm = "BatchNorm" in kind and getattr(layer, "track_running_stats", False)
        if dropout or batch_norm:
            yield f"{name}.{path}" if path else name, kind


def _rate(value: Any) -> float:
    """A learning rate as a number; 0 for what is none."""
    return float(value) if isinstance(value, (int, float, Tensor)) else 0.0


def weight_sizes(tensors: Sequence[Tensor]) -> list[float]:
    """Root mean square of each tensor's values; one transfer for each device."""
    values = [values_of(tensor) for tensor in tensors]
    plain = [part if part is not None else torch.zeros(()) for part in values]
    norms = [torch.linalg.vector_norm(part.to(torch.promote_types(part.dtype, torch.float32))) for part in plain]
    by_device: dict[torch.device, list[int]] = {}
    for index, norm in enumerate(norms):
        by_device.setdefault(norm.device, []).append(index)
    found = [0.0] * len(tensors)
    for indices in by_device.values():
        numbers = torch.stack([norms[index].float() for index in indices]).tolist()
        for index, number in zip(indices, numbers, strict=True):
            found[index] = number / math.sqrt(max(plain[index].numel(), 1))
    return found
