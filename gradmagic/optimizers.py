"""Which optimizers step while a cell runs, and where."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from .modules import ModuleRegistry
from .paths import Paths
from .places import Path

_KEPT = 256


class OptimizerWatch:
    """Notes every optimizer's last step between `start` and `stop`. Holds no optimizer."""

    def __init__(self, paths: Paths, modules: ModuleRegistry) -> None:
        self._paths = paths
        self._modules = modules
        self._handle: Any = None
        self._steps: dict[int, Path] = {}
        self._evaluating: set[int] = set()

    def start(self) -> None:
        """Begin to watch."""
        self._handle = register_optimizer_step_pre_hook(self._about_to_step)

    def stop(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def stepped(self, optimizer: object) -> Path | None:
        """Where an optimizer that still exists stepped last, or None."""
        return self._steps.get(id(optimizer))

    def in_eval_mode(self, module: object) -> bool:
        """Whether a module that still exists was in eval mode when an optimizer stepped."""
        return id(module) in self._evaluating

    def _about_to_step(self, optimizer: object, *_: object) -> None:
        self._evaluating.update(self._modules.in_eval_mode())
        if len(self._steps) < _KEPT or id(optimizer) in self._steps:
            self._steps[id(optimizer)] = self._paths.here(1)
