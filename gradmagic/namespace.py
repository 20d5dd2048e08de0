"""What the person's variables hold after the cell: names of tensors and modules, by identity."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MemberDescriptorType
from typing import Any

_DEPTH = 3
_ITEMS = 2_000
"""Containers are looked into this far; a list of a million numbers is not worth a wait."""
_PLAIN = (int, float, complex, str, bytes, bool, type(None))
_BUDGET = 50_000
"""So many values are looked at in all."""

_SHELL_NAMES = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})


@dataclass(slots=True)
class Namespace:
    """Names by ``id``. The first name found for an object is the shortest way to it.

    Attributes:
        tensors: names of each tensor: ``y``, ``hs[3]``, ``state['w']``, ``layer.out``.
        modules: the name of each module.
        found: the named tensors themselves, while the trace is being finished.
        module_objects: the named modules themselves, likewise.
        others: optimizers and whatever else was asked for, with their names, likewise.
    """

    tensors: dict[int, list[str]] = field(default_factory=dict)
    modules: dict[int, str] = field(default_factory=dict)
    found: list[Any] = field(default_factory=list)
    module_objects: list[Any] = field(default_factory=list)
    others: list[tuple[str, Any]] = field(default_factory=list)

    def name_of(self, tensor: object) -> str | None:
        """The first name of a tensor, or None."""
        names = self.tensors.get(id(tensor))
        return names[0] if names else None


def look_through(
    variables: Mapping[str, Any],
    is_tensor: _Test,
    is_module: _Test,
    is_wanted: _Test = lambda _: False,
    passing: Collection[str] = (),
) -> Namespace:
    """Collect names level by level: plain variables first, then what lies in containers and attributes.

    The name that a loop gave to a module in passing counts where the module has no other.
    """
    namespace = Namespace()
    visited: set[int] = set()
    level = [(name, value) for name, value in variables.items() if _is_persons(name)]
    late = [(name, value) for name, value in level if name in passing and is_module(value)]
    level = [(name, value) for name, value in level if name not in dict(late)]
    for depth in range(_DEPTH + 1):
        level += late if depth == _DEPTH else []
        below: list[tuple[str, Any]] = []
        for name, value in level:
            if is_tensor(value):
                _note_tensor(namespace, name, value)
            elif is_module(value):
                if id(value) not in namespace.modules:
                    namespace.module_objects.append(value)
                namespace.modules.setdefault(id(value), name)
            elif id(value) not in visited and is_wanted(value):
                namespace.others.append((name, value))
                visited.add(id(value))  # its own state, a dict for each parameter, gives no names
            if depth < _DEPTH and not is_tensor(value) and id(value) not in visited:
                visited.add(id(value))
                below.extend(_inside(name, value, is_module(value)))
        level = below[: max(0, _BUDGET - len(visited))]
    return namespace


_Test = Callable[[Any], bool]


def _is_persons(name: str) -> bool:
    return not name.startswith("_") and name not in _SHELL_NAMES


def _note_tensor(namespace: Namespace, name: str, tensor: Any) -> None:
    names = namespace.tensors.setdefault(id(tensor), [])
    if not names:
        namespace.found.append(tensor)
    if name not in names and len(names) < 4:
        names.append(name)


def _inside(name: str, value: Any, is_module: bool) -> Iterator[tuple[str, Any]]:
    """Items of a plain container, attributes of a plain object; nothing of the person's is called."""
    fields = _fields_of(value)
    if fields is not None:
        yield from ((f"{name}.{field}", item) for field, item in zip(fields, tuple(value), strict=False))
    elif type(value) in (list, tuple) and len(value) <= _ITEMS:
        yield from ((f"{name}[{index}]", item) for index, item in enumerate(value) if type(item) not in _PLAIN)
    elif type(value) is dict and len(value) <= _ITEMS:
        yield from ((f"{name}[{_plain_repr(key)}]", item) for key, item in value.items() if _is_key(key, item))
    elif _has_plain_attributes(value):
        yield from ((f"{name}.{key}", item) for key, item in _public_attributes(value))
        if is_module:
            # Kept by nn.Module apart from its other attributes; parameters are named through named_parameters.
            children = object.__getattribute__(value, "__dict__").get("_modules") or {}
            yield from ((f"{name}.{key}", item) for key, item in children.items())
    elif not isinstance(value, type):
        yield from ((f"{name}.{slot}", item) for slot, item in _slots_of(value) if slot[:1] != "_")


def contents(value: Any) -> Iterable[Any]:
    """What lies in a plain container or object, without names: items, values, or public attributes."""
    if type(value) in (list, tuple):
        return value[:_ITEMS]  # type: ignore[no-any-return]  # a list or a tuple
    if type(value) is dict:
        return itertools.islice(list(value.values()), _ITEMS)
    if type(value).__dictoffset__ and _has_plain_attributes(value):
        return [item for _, item in _public_attributes(value)]
    return ()


def _public_attributes(value: Any) -> list[tuple[str, Any]]:
    attributes = object.__getattribute__(value, "__dict__")
    return [(key, item) for key, item in list(attributes.items())[:_ITEMS] if key[:1] != "_"]


def _fields_of(value: Any) -> tuple[str, ...] | None:
    """The names of a named tuple's items, one of torch's own (``torch.return_types``) included."""
    kind = type(value)
    if not issubclass(kind, tuple) or kind is tuple or kind.__iter__ is not tuple.__iter__:
        return None
    fields = kind.__dict__.get("_fields") or kind.__dict__.get("__match_args__")
    return fields if type(fields) is tuple else None


def _slots_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes that a dataclass keeps in slots."""
    members = vars(type(value))
    for slot in members.get("__dataclass_fields__", ()):
        member = members.get(slot)
        if type(member) is MemberDescriptorType:
            with suppress(AttributeError):  # nothing in it yet
                yield slot, member.__get__(value)


def _is_key(key: Any, item: Any) -> bool:
    return issubclass(type(key), (str, int)) and type(item) not in _PLAIN


def _plain_repr(key: str | int) -> str:
    return str.__repr__(key) if isinstance(key, str) else int.__repr__(key)


def _has_plain_attributes(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, type) or (callable(value) and kind.__module__ == "builtins"):
        return False
    try:
        return type(object.__getattribute__(value, "__dict__")) is dict and kind.__name__ != "module"
    except AttributeError:
        return False
