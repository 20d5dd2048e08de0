"""Which optimizers step while a cell runs, where, with what gradients, and how far each step goes."""

from __future__ import annotations

import math
import statistics
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from .accumulation import Account, GradientBook
from .curves import GrowingCurve
from .numbering import numbered_apart
from .places import Path, Place
from .recorder import Recorder
from .statistics import Waiting, stacked
from .stored import out_of_sight, values_of

_KEPT = 256
MEASURED = 2**28
"""How many elements of weights are copied at most to measure a step: 1 GiB of float32, for as long as it runs."""


@dataclass(slots=True, eq=False)
class StepLine:
    """The steps of one optimizer at one line.

    Attributes:
        optimizer: ``id`` of the optimizer; of the last one, where a loop makes it anew each round.
        ref: the optimizer, weakly.
        type_name: its class.
        path: where it steps.
        count: how often it stepped.
        without: how often no parameter had a gradient at all.
        again: how often there were only gradients that the step before had used already.
        emptied: how often the gradients of the last pass had been cleared before the step.
        clearing: where, and the loss of that pass.
        values: median over the parameters of ``||update|| / ||weight||``, each time.
    """

    optimizer: int
    ref: weakref.ref[Any]
    type_name: str
    path: Path
    count: int = 0
    without: int = 0
    again: int = 0
    emptied: int = 0
    clearing: tuple[Path, int] | None = None
    values: GrowingCurve = field(default_factory=GrowingCurve)


Finds = Literal["fresh", "used", "emptied", "nothing"]
"""The gradients that a step finds: new ones, those of the step before, just cleared ones, or none at all."""


@dataclass(slots=True)
class _Held:
    """A parameter that an optimizer is about to update, with its place and a copy of its value."""

    parameter: Tensor
    place: Place | None
    before: Tensor | None = None


@dataclass(slots=True)
class _Running:
    """A step that is running."""

    line: StepLine
    held: list[_Held]
    finds: Finds
    turn: int


class OptimizerWatch:
    """Notes the steps of every optimizer between `start` and `stop`. Holds no optimizer, and no tensor between steps.

    Attributes:
        lines: where optimizers step, in the order of their first step.
        updates: ``||update|| / ||weight||`` of each step, by the index of the parameter's place.
    """

    def __init__(self, recorder: Recorder, book: GradientBook) -> None:
        self.lines: list[StepLine] = []
        self.updates: dict[int, GrowingCurve] = {}
        self._recorder = recorder
        self._book = book
        self._by_path: dict[int, list[StepLine]] = {}
        self._running: dict[int, _Running] = {}
        self._by_hand: dict[int, int] = {}
        self._evaluating: set[int] = set()

    @numbered_apart()
    def start(self) -> None:
        """Begin to watch."""
        register_optimizer_step_pre_hook(self._about_to_step)
        register_optimizer_step_post_hook(self._has_stepped)

    def stop(self) -> None:
        """Stop watching. Once more does no harm, and finishes what an interrupt kept from being done.

        The hooks are looked for: an interrupt can come between setting one and getting its handle.
        """
        for hooks, ours in (
            (_global_optimizer_pre_hooks, self._about_to_step),
            (_global_optimizer_post_hooks, self._has_stepped),
        ):
            for key in [key for key, hook in hooks.items() if hook == ours]:
                del hooks[key]
        self._running.clear()

    def stepped(self, optimizer: object) -> Path | None:
        """Where an optimizer that still exists stepped last, or None."""
        return next((line.path for line in reversed(self.lines) if line.optimizer == id(optimizer)), None)

    def in_eval_mode(self, module: object) -> bool:
        """Whether a module that still exists was in eval mode when an optimizer stepped."""
        return id(module) in self._evaluating

    # ---- before a step

    def _about_to_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recorder.is_elsewhere():
            return
        path = self._recorder.path_here(1)
        try:
            with out_of_sight(), torch.no_grad():
                self._before(optimizer, path, has_closure=len(args) > 1 or bool(kwargs))
        except Exception as fault:  # noqa: BLE001 - a fault of ours must not keep the optimizer from stepping
            self._recorder.fault("optimizer step", fault)

    def _before(self, optimizer: Any, path: Path, has_closure: bool) -> None:
        self._evaluating.update(self._recorder.modules.in_eval_mode())
        line = self._line(optimizer, path)
        if line is None:
            return
        held = [_Held(parameter, self._recorder.place_of(parameter)) for parameter in _parameters(optimizer)]
        self._copy([each for each in held if has_closure or each.parameter.grad is not None])
        line.count += 1
        self._running[id(optimizer)] = _Running(line, held, self._finds(line, held), self._book.turn)
        if not has_closure and _is_opaque(optimizer):
            self._recorder.rest()

    def _line(self, optimizer: Any, path: Path) -> StepLine | None:
        lines = self._by_path.setdefault(id(path), [])
        line = next((each for each in lines if each.ref() is optimizer), None)
        if line is None:
            line = next((each for each in lines if each.ref() is None), None)
            if line is not None:
                line.optimizer, line.ref = id(optimizer), weakref.ref(optimizer)
        if line is None and len(self.lines) < _KEPT:
            line = StepLine(id(optimizer), weakref.ref(optimizer), type(optimizer).__name__, path)
            lines.append(line)
            self.lines.append(line)
        return line

    def _copy(self, held: Sequence[_Held]) -> None:
        room = MEASURED
        for each in held:
            if each.place is None or each.parameter.layout is not torch.strided or each.parameter.numel() > room:
                continue
            data = values_of(each.parameter)
            if data is None:
                continue
            room -= data.numel()
            each.before = _precise(data, copy=True)

    def _finds(self, line: StepLine, held: Sequence[_Held]) -> Finds:
        by_hand = self._by_hand.get(line.optimizer)
        self._by_hand[line.optimizer] = self._book.by_hand
        accounts = [account for each in held if (account := self._account(each)) is not None]
        if any(account.is_due for account in accounts) or by_hand not in (None, self._book.by_hand):
            return "fresh"
        thrown = (account.thrown_away for account in accounts if not account.sums)
        just_now = next((each for each in thrown if each is not None and each[1] == self._book.turn), None)
        if just_now is not None:
            line.clearing = (just_now[0], just_now[2])
            return "emptied"
        if all(each.parameter.grad is None for each in held):
            return "nothing"
        seen_before = any(account.is_stepped for account in accounts) or by_hand is not None
        return "used" if seen_before else "fresh"

    def _account(self, held: _Held) -> Account | None:
        return self._book.accounts.get(held.place.index) if held.place is not None else None

    # ---- after it

    def _has_stepped(self, optimizer: Any, *_: object) -> None:
        self._recorder.wake()
        running = self._running.pop(id(optimizer), None)
        if running is None:
            return
        try:
            with out_of_sight(), torch.no_grad():
                self._after(running)
        except Exception as fault:  # noqa: BLE001 - as above
            self._recorder.fault("optimizer step", fault)

    def _after(self, running: _Running) -> None:
        line = running.line
        if self._book.turn == running.turn:  # else a closure has run backward within the step
            line.without += running.finds == "nothing"
            line.again += running.finds == "used"
            line.emptied += running.finds == "emptied"
        with_gradient = [each for each in running.held if each.parameter.grad is not None]
        for each in with_gradient:
            if each.place is not None:
                self._recorder.changed(each.parameter, line.path, "step")
            if (account := self._account(each)) is not None:
                account.is_due, account.is_stepped = False, True
        self._measure(line, [each for each in with_gradient if each.before is not None])

    def _measure(self, line: StepLine, held: Sequence[_Held]) -> None:
        by_device: dict[torch.device, list[_Held]] = {}
        for each in held:
            by_device.setdefault(each.parameter.device, []).append(each)
        for group in by_device.values():
            before = [each.before for each in group if each.before is not None]
            after = [_precise(now, copy=False) for each in group if (now := values_of(each.parameter)) is not None]
            changes = torch._foreach_norm(torch._foreach_sub(after, before))
            waiting = Waiting(stacked([*torch._foreach_norm(before), *changes]))
            places = [each.place.index for each in group if each.place is not None]
            self._recorder.backlog.when_known(waiting, partial(self._arrived, line, places, waiting, line.count - 1))

    def _arrived(self, line: StepLine, places: Sequence[int], waiting: Waiting, step: int) -> None:
        numbers = waiting.numbers()
        weights, changes = numbers[: len(places)], numbers[len(places) :]
        ratios = [_ratio(change, weight) for change, weight in zip(changes, weights, strict=True)]
        for place, ratio in zip(places, ratios, strict=True):
            self.updates.setdefault(place, GrowingCurve()).add(ratio, step)
        known = [ratio for ratio in ratios if not math.isnan(ratio)]
        if known:
            line.values.add(statistics.median(known), step)


def _parameters(optimizer: Any) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_opaque(optimizer: Any) -> bool:
    """Whether it is PyTorch's own, and nobody differentiates through its steps."""
    differentiable = any(group.get("differentiable") for group in optimizer.param_groups)
    return type(optimizer).__module__.startswith("torch.optim") and not differentiable


def _precise(data: Tensor, copy: bool) -> Tensor:
    """At least float32: norms of half precision overflow."""
    wanted = torch.promote_types(data.dtype, torch.float32)
    return data.to(wanted, copy=copy)


def _ratio(change: float, weight: float) -> float:
    if weight:
        return change / weight
    return math.inf if change else math.nan
