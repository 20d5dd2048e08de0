"""A cell whose setup has run, as in a notebook."""

from __future__ import annotations

import linecache
from types import CodeType
from typing import Any

import torch

from gradmagic.tracing import CellSource

from .loads import Load
from .resnet import ResNet18

_SEED = 0


class Prepared:
    """A load's variables, and the code of its cell."""

    def __init__(self, load: Load) -> None:
        torch.manual_seed(_SEED)
        self.file = f"<{load.key}>"
        names = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "ResNet18": ResNet18}
        self.namespace: dict[str, Any] = {**names, "device": load.device, "dtype": getattr(torch, load.dtype)}
        self.namespace.update(load.sizes)
        exec(_known(load.setup, f"<before {load.key}>"), self.namespace)
        self._code = _known(load.cell, self.file)

    def run(self) -> None:
        """Run the cell."""
        exec(self._code, self.namespace)

    def source(self) -> CellSource:
        """The cell, as a shell tells of it."""
        return CellSource(self.file, lambda name: 1 if name == self.file else None)


def _known(source: str, file: str) -> CodeType:
    """Compiled source that can be looked up, as a shell compiles it."""
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    return compile(source, file, "exec")
