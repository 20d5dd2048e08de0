"""From places to rows in the making: which places are one row, what they are called, where they stand."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Any

from .bindings import SOME
from .modules import ModuleMark, named
from .namespace import Namespace
from .places import Path, Place
from .recorder import Recorder
from .records import Kind, Location
from .sites import Site
from .sources import BoundName, Origin, Sources

_HANDLER = "handle_torch_function"
"""Where a function of PyTorch that is written in Python hands its call over to a mode: the caller's own call."""
_HOOKED_CALL = "Module._call_impl.<locals>.inner"
"""The code of PyTorch that calls a module which has hooks."""
_INDEX = re.compile(r"""\[(\d+|'([^'\\]|\\.)*'|"([^"\\]|\\.)*")\]$""")


@dataclass(slots=True)
class Draft:
    """A row in the making: the places that belong to it, and what they are called."""

    places: list[Place]
    name: str | None
    aliases: tuple[str, ...]
    origin: Origin | None
    expression: str | None = None
    """Once it was asked for."""
    first: Place = field(init=False)
    """The place that was made first."""
    last: Place = field(init=False)
    """The place that was made last."""

    def __post_init__(self) -> None:
        """Begin with one place."""
        self.first = self.last = self.places[0]

    def add(self, place: Place) -> None:
        """One more place."""
        self.places.append(place)
        if place.last_clock > self.last.last_clock:
            self.last = place


class Naming:
    """Names every place, and groups places into rows.

    Attributes:
        namespace: the person's variables.
        module_names: what the outermost modules that ran are called.
    """

    def __init__(self, recorder: Recorder, sources: Sources, namespace: Namespace) -> None:
        self._recorder = recorder
        self._sources = sources
        self.namespace = namespace
        self.module_names = recorder.modules.names(namespace.modules, sources)
        self._parameters = self._take_in_parameters()
        self._held_parameters = self._name_held_parameters()
        self._names: dict[int, list[str]] = {}
        self._behind = self._behind_modules()
        self._hooked = {recorder.places[index].path.sites[hook:] for index, hook in self._behind.items()}
        """Calls of modules whose results a hook of the person's has replaced."""
        sources.recorded_on(place.path.sites for place in recorder.places)
        self._bound = [self._all_bound(place) for place in recorder.places]
        self._contests = self._settle_contests()

    # ---- modules and their parameters

    def _take_in_parameters(self) -> dict[int, list[str]]:
        """All names of the parameters of the modules that ran; those no operation used get a row as well."""
        names: dict[int, list[str]] = {}
        for name, parameter, call, mark in self._recorder.modules.parameters(self.module_names):
            if id(parameter) not in names and not self._is_swapped_out(call):
                self._recorder.used(parameter, Path(call, mark))
            names.setdefault(id(parameter), []).append(name)
        return names

    def _name_held_parameters(self) -> dict[int, str]:
        """Names for the parameters of modules that variables hold and that did not run: averaged, copied, stacked."""
        names: dict[int, str] = {}
        below: set[int] = set()
        for module in self.namespace.module_objects:
            if id(module) in below:
                continue
            below.update(id(child) for _, child in named(module, "named_modules"))
            name = self.namespace.modules[id(module)]
            for path, parameter in named(module, "named_parameters"):
                names.setdefault(id(parameter), f"{name}.{path}")
        return names

    def _is_swapped_out(self, call: tuple[Site, ...]) -> bool:
        """Whether the module ran through ``torch.func.functional_call``, with other parameters."""
        return any(site.code.co_name == "_functional_call" and self._sources.is_library(site.code) for site in call)

    def module(self, mark: ModuleMark | None) -> str | None:
        """Full path of the module that ran, with its variable in front."""
        if mark is None:
            return None
        outer = self.module_names[mark.outer]
        return f"{outer}.{mark.inner_path}" if mark.inner_path else outer

    # ---- names

    def drafts(self) -> list[Draft]:
        """Group places into rows: the same code path, module, operation and name make one row.

        What left torch (see `Place.leaves_torch`) stands at the end: it is judged, but no row of the report.
        """
        drafts: dict[Any, Draft] = {}
        for place in self._recorder.places:
            if self._is_storage(place):
                continue
            origin = self.origin_of(place)
            names = self._place_names(place, origin)
            self._names[place.index] = names
            name = names[0] if names else None
            key = self._key(place, name)
            if key in drafts:
                drafts[key].add(place)
            else:
                drafts[key] = Draft([place], name, tuple(names[1:]), origin)
        for draft in drafts.values():
            self._fold_indices(draft)
        return sorted(drafts.values(), key=lambda draft: (draft.first.leaves_torch, draft.first.order))

    def _is_storage(self, place: Place) -> bool:
        """Memory that torch's own code allocates for parameters, or a parameter that it put others in place of.

        So ``copy.deepcopy`` does with those of a template layer, and ``weight_norm`` with the weight.
        """
        sites = place.path.sites
        if not sites or not self._sources.is_library(sites[0].code) or sites[0].code.co_name == _HANDLER:
            return False
        names = [site.code.co_name for site in sites]
        if place.requires_grad:
            replaced = place.adopted is not None and place.is_leaf and place.path.module is None and not place.received
            return replaced and place.tensor() is None
        return names[0] in ("__init__", "__new__", "__deepcopy__") or "_infer_parameters" in names

    def _key(self, place: Place, name: str | None) -> Any:
        if place.adopted is not None and place.is_leaf and place.tensor() is not None:
            return place.index
        if (place.beside or place).crowded:
            name = None
        inherited = place.inherits is not None
        path = self._sources.canonical(place.path.sites)
        return (path, self.module(place.path.module), place.op, name or place.position, place.adopted, inherited)

    def _fold_indices(self, draft: Draft) -> None:
        """A row that occurred many times and whose last tensor a variable holds as ``hs[49]`` is ``hs[…]``."""
        count = sum(place.count for place in draft.places)
        said = {bound.name for place in draft.places for bound in self._bound[place.index]}
        if count > 1 and draft.name not in said and draft.name is not None and _INDEX.search(draft.name):
            name = _INDEX.sub(SOME, draft.name)
            draft.aliases = (*(alias for alias in draft.aliases if alias != name), draft.name)
            draft.name = name

    def origin_of(self, place: Place) -> Origin | None:
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
        tensor = place.tensor() if place.successor is None else None
        return self.namespace.tensors.get(id(tensor), []) if tensor is not None else []

    def is_bound(self, place: Place) -> bool:
        """Whether a variable of the person leads to the tensor."""
        tensor = place.tensor()
        return tensor is not None and (id(tensor) in self.namespace.tensors or id(tensor) in self._parameters)

    def _place_names(self, place: Place, origin: Origin | None) -> list[str]:
        """All names of a place, the one to show first."""
        tensor, held = place.tensor(), self._held_by(place)
        names = list(self._parameters.get(id(tensor), ()))
        if place.adopted is not None:
            parameter = [self._held_parameters[id(tensor)]] if id(tensor) in self._held_parameters else []
            names += [*held, *parameter, *(origin.names if origin is not None else ())]
        else:
            # Inside a loop or comprehension a statement says nothing of the list the tensor ends up in.
            names += [*self._bound_names(place), *held]
            if not names and place.inherits is not None:
                names = list(self._names.get(place.inherits.index, ()))
        # What a method calls `self.loss` is `model.loss` where the person can write it.
        return sorted(dict.fromkeys(names), key=lambda name: (SOME in name, _is_hidden(name, held)))

    def _bound_names(self, place: Place) -> list[str]:
        """What statements bind the place to, the outermost (the caller's) name first."""
        found = [bound.name for bound in self._bound[place.index] if self._wins(bound, place)]
        return list(reversed(found))

    def _wins(self, bound: BoundName, place: Place) -> bool:
        """Whether a name that several results of a loop could carry belongs to this place: the last made has it."""
        if bound.contested is None:
            return bound.unfinished is None or place.count > 1
        return self._contests.get((bound.contested, bound.name)) is place

    def _settle_contests(self) -> dict[tuple[Site, str], Place]:
        groups: dict[tuple[Site, str], list[Place]] = {}
        unfinished: set[tuple[Site, str]] = set()
        for place in self._recorder.places:
            for bound in self._bound[place.index]:
                if bound.contested is None:
                    continue
                key = (bound.contested, bound.name)
                groups.setdefault(key, []).append(place)
                if bound.unfinished is not None:
                    unfinished.add(key)
        for key in unfinished:
            # What the round that an exception ended had made was bound to nothing; the rounds before went further.
            rounds = max(place.count for place in groups[key])
            groups[key] = [place for place in groups[key] if place.count < rounds]
        return {key: max(group, key=_last_made) for key, group in groups.items() if group}

    def _all_bound(self, place: Place) -> list[BoundName]:
        if place.through_view or (place.op == "getitem" and self._sources.is_target(place.path.sites)):
            return []  # ``x[0] += 1`` first reads ``x[0]``, then changes it, and with it ``x``
        ways = (
            (self._up_to_hook(place), place.position),
            *((path.sites, position) for path, position in place.aliases),
        )
        return [bound for sites, position in ways for bound in self._sources.names(sites, position)]

    def _up_to_hook(self, place: Place) -> tuple[Site, ...]:
        """The way on which a place's value is handed on: a hook on a module puts another tensor in its place."""
        sites = place.path.sites[self._behind.get(place.index, 0) :]
        ends = (index for index in range(1, len(sites)) if sites[index:] in self._hooked) if self._hooked else ()
        return sites[: next(iter(ends), len(sites))]

    def _behind_modules(self) -> dict[int, int]:
        """Each place that took over a module's result, and where on its path that was called; the last wins."""
        last: dict[object, tuple[Place, int]] = {}
        calls: dict[int, int] = {}
        """By the ``id`` of each path: several places have it."""
        for place in self._recorder.places:
            call = calls.get(id(place.path))
            if call is None:
                call = calls[id(place.path)] = _hooked_call(place.path)
            hook = self._behind_module(place, call) if call else 0
            key = (place.path.sites[hook:], place.position) if hook else None
            if hook and (key not in last or _last_made(place) >= _last_made(last[key][0])):
                last[key] = place, hook
        return {place.index: hook for place, hook in last.values()}

    def _behind_module(self, place: Place, call: int) -> int:
        """Where on its path a module is called whose result the place took over; 0 for none.

        So does what a forward hook returns, and what PyTorch puts behind a module that has a full backward hook. `call`
        is where a module with hooks is called.
        """
        sites = place.path.sites
        if not place.requires_grad:
            return 0
        if place.op == "BackwardHookFunction":
            return call + 1 if sites[call - 1].code.co_name == "setup_output_hook" else 0
        returned = self._sources.location(sites[call]).statement.startswith("hook_result = ")
        return call + 1 if returned and self._sources.is_handed_to(sites, call) else 0

    # ---- where, and what it says there

    def place_location(self, path: Path | None) -> Location | None:
        """Where the person's code stands on a path."""
        site = self._sources.person_site(path.sites) if path is not None else None
        return self._sources.location(site) if site is not None else None

    def order(self, path: Path | None) -> tuple[int, ...]:
        """Where a path stands in the source: lines and columns, outermost first; behind all others without one."""
        if path is None:
            return (sys.maxsize,)
        spans = (site.span for site in reversed(path.sites))
        return tuple(number for line, _, column, _ in spans for number in (line or 0, column or 0))

    def frames(self, path: Path) -> tuple[Location, ...]:
        """Every place of the person's code on a path, innermost first."""
        return tuple(self._sources.location(site) for site in path.sites if not self._sources.is_library(site.code))

    def location(self, draft: Draft) -> Location:
        """Where the person's code made the row."""
        if draft.origin is not None:
            return draft.origin.location
        found = self.place_location(draft.first.path)
        return found or Location(file="", line=0)

    def expression(self, draft: Draft) -> str:
        """The source that made the row."""
        if draft.expression is None:
            draft.expression = self._expression(draft)
        return draft.expression

    def _expression(self, draft: Draft) -> str:
        if draft.origin is not None:
            return draft.origin.expression
        if draft.first.adopted is not None:
            given = draft.name or self._argument(draft.first)
            if given or not draft.first.path.sites:
                return given or draft.first.op or kind_of(draft.first)
        site = self._sources.person_site(draft.first.path.sites)
        return self._sources.expression(site) if site is not None else draft.first.op

    def _argument(self, place: Place) -> str:
        """What a module's own code calls a tensor, seen from outside: ``Linear.weight`` for its ``self.weight``."""
        text = self._sources.argument(place.path.sites, *(place.adopted or (-1, 0)))
        module = self.module(place.path.module)
        if module and text.startswith("self."):
            return f"{module}{text[4:]}"
        sites = place.path.sites
        return "" if sites and self._sources.is_library(sites[0].code) else text


def _hooked_call(path: Path) -> int:
    """Where on a path PyTorch calls a module that has hooks; 0 for nowhere."""
    return next((index for index, site in enumerate(path.sites) if site.code.co_qualname == _HOOKED_CALL), 0)


def _last_made(place: Place) -> tuple[int, float]:
    return place.last_clock, place.order


def kind_of(place: Place) -> Kind:
    """``parameter``, ``leaf``, ``non-leaf`` or ``constant``."""
    if place.is_parameter:
        return "parameter"
    if not place.requires_grad or stands_apart(place):
        return "constant"
    return "leaf" if place.is_leaf else "non-leaf"


def stands_apart(place: Place) -> bool:
    """Whether it has no part in the graph, whatever its requires_grad says.

    So it is inside a torch.func transform, and for a view of a leaf made under ``no_grad``.
    """
    return place.transformed or place.leaf_view


def _is_hidden(name: str, held: list[str]) -> bool:
    """Whether only a method knows the tensor by this name, and a variable of the person leads to it."""
    return bool(held) and name.startswith("self.") and name not in held
