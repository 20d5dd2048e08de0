"""Where running code is: the way from a frame outwards to the person's code. Equal ways are one object."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.nn.utils.clip_grad import clip_grad_norm_, clip_grad_value_

from .calls import CALL_NAME, caller_outside
from .modules import ModuleMark, ModuleRegistry
from .places import Path
from .sites import Site

MODULE_CALL: CodeType = torch.nn.Module._call_impl.__code__
_FUNCTION_APPLY: CodeType | None = getattr(
    getattr(torch.autograd.Function.__dict__["apply"], "__func__", None), "__code__", None
)
"""``autograd.Function.apply``; None from PyTorch 2.14 on, where it is no Python function any more."""
_CLIPPING = frozenset(
    inspect.unwrap(function).__code__
    for function in (clip_grad_norm_, clip_grad_value_)  # both wear a decorator
)
_TORCH = str(PurePath(torch.__file__).parent)
_REMEMBERED = 8_192
"""So many ways through frames, and so many applications of custom Functions, are remembered at most."""

_Key = tuple[int, ...]


def is_torchs(code: CodeType) -> bool:
    """Whether code is PyTorch's own."""
    return code.co_filename.startswith(_TORCH)


def _forwards_of(function: type) -> Iterator[CodeType]:
    """The code of ``forward`` of all classes derived from a custom Function."""
    derived: type
    for derived in function.__subclasses__():
        code = getattr(getattr(derived, "forward", None), "__code__", None)
        if code is not None:
            yield code
        yield from _forwards_of(derived)


def _is_applied(frame: FrameType) -> bool:
    """Whether the frame of a ``forward`` was called by PyTorch: it gives a context, and turns gradients off."""
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    context = frame.f_locals.get(names[0]) if names else None
    return isinstance(context, BackwardCFunction) or not torch.is_grad_enabled()


def is_returned_input(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a call is what PyTorch makes of an input that a custom Function returns.

    Up to PyTorch 2.13 ``Function.apply`` makes it, which is a frame of its own.
    """
    if _FUNCTION_APPLY is not None or name != "view_as" or torch.is_grad_enabled():
        return False
    return len(args) == 2 and args[0] is args[1] and bool(args[0].requires_grad)


class _Code:
    """What is known of the code of frames on the way.

    Attributes:
        code: the code object.
        is_clip: it clips gradients.
        may_apply: it may be the innermost that Python has of a custom Function's application.
        watcher: see `Paths.watched`.
        is_plain: nothing of all that, nor what runs a module.
        sites: its sites, by the offset of the instruction.
    """

    __slots__ = ("_by_span", "code", "is_clip", "is_plain", "may_apply", "sites", "watcher")

    def __init__(self, code: CodeType, watcher: Callable[[FrameType], None] | None) -> None:
        self.code = code
        self.is_clip = code in _CLIPPING
        self.may_apply = (
            code is _FUNCTION_APPLY if _FUNCTION_APPLY is not None else code in _forwards_of(torch.autograd.Function)
        )
        self.watcher = watcher
        self.is_plain = not (code is MODULE_CALL or self.is_clip or self.may_apply or watcher is not None)
        self.sites: dict[int, Site] = {}
        self._by_span: dict[Any, Site] = {}

    def site(self, lasti: int) -> Site:
        """A site; one for all instructions of the same piece of source.

        Python 3.11 reports one call at two offsets (PRECALL and CALL), before and after it has specialised the code.
        """
        found = Site(self.code, lasti)
        found = self.sites[lasti] = self._by_span.setdefault(found.span if None not in found.span else lasti, found)
        return found


class Paths:
    """The paths of one trace. Frames are looked at, never kept, but for the boundary until `release`."""

    def __init__(self, boundary: FrameType | None, modules: ModuleRegistry) -> None:
        """Prepare.

        Args:
            boundary: frames from this one outwards are not the cell's.
            modules: takes note of the ``nn.Module`` objects that run.
        """
        self._boundary = boundary
        self._modules = modules
        self._known: dict[_Key, Path] = {}
        self._through: dict[int, tuple[weakref.ref[Any], list[_Key]]] = {}
        """By the ``id`` of each module that ran: what is known through it, which ends with the module."""
        self._codes: dict[int, _Code] = {}
        """By ``id``: to hash code takes 1 us, and a way has twenty."""
        self._kept_codes: list[CodeType] = []
        """Those, or an ``id`` could become another's."""
        self._equal_codes: dict[CodeType, _Code] = {}
        self._interned: dict[tuple[tuple[Site, ...], ModuleMark | None], Path] = {}
        self._applies: dict[int, Path] = {}
        self.watched: dict[int, Callable[[FrameType], None]] = {}
        """Who wants to know when code, by its ``id``, runs for the first time on some path; gets its frame."""

    def release(self) -> None:
        """Let go of the boundary frame and of everything known."""
        self._boundary = None
        self._known.clear()
        self._through.clear()
        self._interned.clear()
        self._codes.clear()
        self._kept_codes.clear()
        self._equal_codes.clear()
        self._applies.clear()
        self.watched.clear()

    def here(self, depth: int) -> Path:
        """The path to the code that is running, `depth` frames above the caller."""
        return self.of(sys._getframe(depth + 1))

    def of(self, frame: FrameType | None) -> Path:
        """The path from a frame outwards."""
        if frame is not None and frame.f_code.co_name == CALL_NAME:
            frame = caller_outside(frame)
        start = frame
        boundary = self._boundary
        steps: list[int] = []
        running: list[Any] = []
        while frame is not None and frame is not boundary:
            code = frame.f_code
            # A code object is larger than its bytecode, so this sum is unique among code objects that are alive.
            steps.append(id(code) + frame.f_lasti)
            if code is MODULE_CALL:
                running.append(frame.f_locals["self"])
                steps.append(id(running[-1]))
            frame = frame.f_back
        path = self._known.get(tuple(steps))
        if path is None:
            path = self._recursive(start, tuple(dict.fromkeys(steps)), running)
        return path

    def _recursive(self, start: FrameType | None, key: _Key, running: list[Any]) -> Path:
        """Recursion is one path, not one per depth: each step counts once. To ask for that first takes 0.3 us."""
        path = self._known.get(key)
        if path is None:
            if max(len(self._known), len(self._codes)) > _REMEMBERED:
                self._known.clear()
                self._through.clear()
                self._codes.clear()
                self._kept_codes.clear()
            path = self._known[key] = self._new(start, key, iter(running))
        return path

    def _ends_with(self, module: Any, key: _Key) -> None:
        """What is known by a module's ``id`` is forgotten with the module: the next one may have the same."""
        through = self._through.get(id(module))
        if through is None:
            through = self._through[id(module)] = weakref.ref(module, partial(self._forget, id(module))), []
        through[1].append(key)

    def _forget(self, module: int, _: object) -> None:
        for key in self._through.pop(module, (None, ()))[1]:
            self._known.pop(key, None)

    def _new(self, frame: FrameType | None, key: _Key, running: Iterator[Any]) -> Path:
        sites: list[Site] = []
        modules: list[tuple[Any, int]] = []
        function_apply = clip = None
        while frame is not None and frame is not self._boundary:
            known = self._codes.get(id(frame.f_code)) or self._learn(frame.f_code)
            if not known.is_plain:
                if frame.f_code is MODULE_CALL:  # as in `of`: of code that is only equal, it gave no module
                    modules.append((next(running), len(sites)))
                if function_apply is None and known.may_apply and (_FUNCTION_APPLY is not None or _is_applied(frame)):
                    function_apply = len(sites)
                if known.is_clip:
                    clip = len(sites)
                if known.watcher is not None:
                    known.watcher(frame)
            lasti = frame.f_lasti
            sites.append(known.sites.get(lasti) or known.site(lasti))
            frame = frame.f_back
        for module, _ in modules:
            self._ends_with(module, key)
        found = tuple(sites)
        path = self._path(found, self._modules.see(modules, found))
        path.function_apply, path.clip = function_apply, clip
        if function_apply is not None:
            outside = [(module, call) for module, call in modules if call > function_apply]
            path.outer_module = self._modules.see(outside, found)
        return path

    def _path(self, sites: tuple[Site, ...], module: ModuleMark | None) -> Path:
        """The one path through these sites, in this module."""
        path = self._interned.get((sites, module))
        if path is None:
            path = self._interned[sites, module] = Path(sites, module)
            if sites:
                path.statement = (sites[1:], *self._line(sites[0]))
                path.line = self._line(next((site for site in sites if not is_torchs(site.code)), sites[0]))
        return path

    def _line(self, site: Site) -> tuple[CodeType, int | None]:
        return site.code, site.span[0]

    def _learn(self, code: CodeType) -> _Code:
        """What is known of code; equal code, as of a cell that is compiled anew each round of a loop, is the same."""
        self._kept_codes.append(code)
        known = self._equal_codes.get(code)
        if known is None:
            known = self._equal_codes[code] = _Code(code, self.watched.get(id(code)))
        self._codes[id(code)] = known
        return known

    def outside_function(self, path: Path) -> Path:
        """Remember where a custom Function was applied: its node has the sequence number before ours."""
        inside = path.function_apply
        outer = self._path(path.sites[inside + 1 :], path.outer_module) if inside is not None else path
        if len(self._applies) > _REMEMBERED:
            self._applies.clear()
        self._applies[torch._C._autograd._get_sequence_nr() - 1] = outer
        return outer

    def outside_clipping(self, path: Path) -> Path:
        """Where a function that clips gradients was called."""
        return self._path(path.sites[(path.clip or 0) + 1 :], path.module)

    def outside_module(self, call: FrameType) -> Path:
        """Where a module was called, by the frame of its `Module._call_impl`; in that module."""
        path = self.of(call)
        return self._path(path.sites[2:], path.module)

    def inside(self, path: Path, outer: Path) -> Path:
        """A path that began in a thread of autograd's, as part of a pass that was called on another one."""
        return self._path(path.sites + outer.sites, path.module)

    def applied(self, node: Any) -> Path | None:
        """Where the custom Function behind an autograd node was applied, as far as that was seen."""
        return self._applies.get(node._sequence_nr())
