"""A script or module, found and made ``__main__`` as Python itself does it. Neither torch nor IPython here."""

from __future__ import annotations

import builtins
import linecache
import os
import pkgutil
import runpy
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, cast


class CannotRunError(Exception):
    """There is nothing to run, said as Python says it.

    Attributes:
        code: the exit code that Python ends with.
    """

    def __init__(self, message: str, code: int) -> None:
        """Take Python's words, without the name of the interpreter, and its exit code."""
        super().__init__(message)
        self.code = code


class _NotFoundError(Exception):
    """What runpy shall raise where it finds no module."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be run.

    Attributes:
        name: a path, or the name of a module.
        arguments: what follows it on the command line.
        is_module: it is a module (``-m``).
    """

    name: str
    arguments: Sequence[str] = ()
    is_module: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """Code that is ready to run.

    Attributes:
        code: the compiled code.
        main: the module it runs in; it is ``sys.modules["__main__"]``.
    """

    code: CodeType
    main: ModuleType


def prepare(target: Target) -> Program:
    """Find and compile a program, and put ``__main__``, ``sys.argv`` and ``sys.path[0]`` in place for it.

    Raises:
        CannotRunError: it is not there.
        SyntaxError: it is no Python.
        BaseException: whatever the packages around a module raise when they are imported.
    """
    sys.argv[:] = ["-m" if target.is_module else target.name, *target.arguments]
    if target.is_module:
        return _module(target.name)
    path = os.path.join(os.getcwd(), target.name)  # as Python, which leaves "./" in it
    if os.path.isdir(path) or zipfile.is_zipfile(path):
        return _container(path)
    return _file(path)


def _file(path: str) -> Program:
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        raise CannotRunError(f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}", 2) from None
    _search_first(os.path.dirname(os.path.realpath(path)))
    code = compile(source, path, "exec", dont_inherit=True)
    loader = SourceFileLoader("__main__", path)
    return _as_main(code, {"__file__": path, "__cached__": None, "__loader__": loader, "__package__": None})


def _container(path: str) -> Program:
    """A folder or zip file with a ``__main__.py``."""
    path = os.path.normpath(path)
    importer = pkgutil.get_importer(path)
    spec = importer.find_spec("__main__") if importer is not None else None
    if spec is None or spec.loader is None:
        raise CannotRunError(f"can't find '__main__' module in {path!r}", 1)
    sys.path.insert(0, path)  # also where the current folder is not searched (-P)
    if not sys.flags.safe_path:
        del sys.path[1]
    return _of_spec(spec, cast(InspectLoader, spec.loader).get_code("__main__"))


def _module(name: str) -> Program:
    _search_first(os.getcwd())
    details: Any = vars(runpy)["_get_module_details"]  # pdb and trace take it, too: nothing public finds `__main__.py`
    try:
        _, spec, code = details(name, _NotFoundError)
    except _NotFoundError as error:
        raise CannotRunError(str(error), 1) from None
    sys.argv[0] = spec.origin
    return _of_spec(spec, code)


def _of_spec(spec: ModuleSpec, code: CodeType | None) -> Program:
    if code is None:
        raise CannotRunError(f"No code object available for {spec.name}", 1)
    return _as_main(
        code,
        {
            "__file__": spec.origin,
            "__cached__": spec.cached,
            "__loader__": spec.loader,
            "__package__": spec.parent,
            "__spec__": spec,
        },
    )


def _search_first(folder: str) -> None:
    """Where Python has put the folder of what it was told to run, which is us, goes the folder of the script."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _as_main(code: CodeType, attributes: dict[str, Any]) -> Program:
    main = ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __annotations__={}, **attributes)
    sys.modules["__main__"] = main
    linecache.lazycache(code.co_filename, vars(main))  # the source of what lies in a zip file
    return Program(code, main)
