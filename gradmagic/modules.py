"""Which ``nn.Module`` was running, and what it is called from the outside: ``model.layer1.0.conv1``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .sites import Site
from .sources import Sources


@dataclass(frozen=True, slots=True)
class ModuleMark:
    """A module that ran: which outermost module it belongs to, its path inside that one, and its class."""

    outer: int
    inner_path: str
    type_name: str


class _Outer:
    """An outermost module, with the call that ran it first."""

    __slots__ = ("call", "key", "paths", "ref", "type_name")

    def __init__(self, module: Any, call: tuple[Site, ...]) -> None:
        self.call = call
        self.type_name = type(module).__name__
        self.become(module)

    def become(self, module: Any) -> None:
        """The module that was here is gone, and this one is called in its place."""
        self.ref = weakref.ref(module)
        self.key = id(module)
        self.paths: dict[int, str] = {}

    def path_of(self, module: Any) -> str | None:
        """Path of a module inside this one; None when it is not inside."""
        outer = self.ref()
        if module is outer:
            return ""
        if id(module) not in self.paths and outer is not None:
            # Of a module that stands in two places the first counts, as for its parameters.
            self.paths = {id(child): path for path, child in reversed(named(outer, "named_modules"))}
        return self.paths.get(id(module))


def named(module: Any, method: str) -> list[tuple[str, Any]]:
    """What ``module.named_modules()`` or the like gives; nothing where an override of the person's fails, or lies."""
    try:
        found = list(getattr(module, method)(remove_duplicate=False))
        return [(name, each) for name, each in found if isinstance(name, str) and each is not None]
    except Exception:  # noqa: BLE001 - the person's own override; without names the class name is shown
        return []


class ModuleRegistry:
    """Every module that ran in the trace. Holds weak references only."""

    def __init__(self) -> None:
        self._outers: list[_Outer] = []
        self._index: dict[int, int] = {}
        self._called: dict[tuple[str, tuple[Site, ...]], list[int]] = {}
        self.on_new: Callable[[Any], None] | None = None
        """Is given each outermost module, the first time it runs."""

    def see(self, running: list[tuple[Any, int]], sites: tuple[Site, ...]) -> ModuleMark | None:
        """Note the running modules, innermost first, each with the index of its call in `sites`."""
        if not running:
            return None
        module, site = running[-1]
        outer = self._outer(module, sites[site + 1 :])
        inner = running[0][0]
        path = self._outers[outer].path_of(inner)
        if path is None:
            outer, path = self._outer(inner, sites[running[0][1] + 1 :]), ""
        return ModuleMark(outer, path, type(inner).__name__)

    def _outer(self, module: Any, call: tuple[Site, ...]) -> int:
        index = self._index.get(id(module))
        if index is None or self._outers[index].ref() is not module:
            if self.on_new is not None:
                self.on_new(module)
            index = self._index[id(module)] = self._take_place(module, call)
        return index

    def _take_place(self, module: Any, call: tuple[Site, ...]) -> int:
        """A module that a loop makes anew each round (``nn.MSELoss()(out, y)``) is that of the round before."""
        called = self._called.setdefault((type(module).__name__, call), [])
        gone = next((index for index in called if self._outers[index].ref() is None), None)
        if gone is None:
            called.append(len(self._outers))
            self._outers.append(_Outer(module, call))
            return called[-1]
        if self._index.get(self._outers[gone].key) == gone:  # its ``id`` may be another's by now
            del self._index[self._outers[gone].key]
        self._outers[gone].become(module)
        return gone

    def in_eval_mode(self) -> list[int]:
        """``id`` of each outermost module that is in eval mode now."""
        modules = [outer.ref() for outer in self._outers]
        return [id(module) for module in modules if module is not None and not getattr(module, "training", True)]

    def names(self, known: Mapping[int, str], sources: Sources) -> list[str]:
        """A name for each outermost module: from the namespace, else as it was called, else its class."""
        return [self._name(outer, known, sources) for outer in self._outers]

    @staticmethod
    def _name(outer: _Outer, known: Mapping[int, str], sources: Sources) -> str:
        module = outer.ref()
        if module is not None and id(module) in known:
            return known[id(module)]
        site = sources.person_site(outer.call)
        return (sources.callee(site) if site is not None else None) or outer.type_name

    def outermost(self, names: list[str]) -> Iterator[tuple[str, Any, tuple[Site, ...]]]:
        """Every outermost module that still exists: its name, itself, and the call that ran it first."""
        for outer, name in zip(self._outers, names, strict=True):
            module = outer.ref()
            if module is not None:
                yield name, module, outer.call

    def parameters(self, names: list[str]) -> Iterator[tuple[str, Any, tuple[Site, ...], ModuleMark]]:
        """Every parameter of the modules that ran and still exist: full name, parameter, call path, owner."""
        for index, (outer, name) in enumerate(zip(self._outers, names, strict=True)):
            module = outer.ref()
            for path, parameter in named(module, "named_parameters") if module is not None else ():
                mark = ModuleMark(index, path.rpartition(".")[0], outer.type_name)
                yield f"{name}.{path}", parameter, outer.call, mark
