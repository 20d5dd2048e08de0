"""``@gradmagic.traced``: every call of a function is traced, and the function keeps the last report."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import FunctionType, TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar, cast, overload

from torch import Tensor

from .raised import told_briefly
from .report import Report
from .sources import CellSource
from .tracing import trace

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_RETURNED = "returned"
_GENERATES = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)


class TracedMethod(Protocol[R_co]):
    """A traced function that is bound to an object."""

    @property
    def report(self) -> Report | None:
        """The report of the last call of the function, of whatever object."""

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Call it, traced."""


class TracedFunction(Protocol[P, R_co]):
    """A function whose calls are traced.

    Attributes:
        report: the report of the last call that was traced; None before the first, and where gradmagic itself failed.
    """

    report: Report | None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call it, traced."""

    @overload
    def __get__(self, instance: None, owner: type) -> TracedFunction[P, R_co]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> TracedMethod[R_co]: ...


@overload
def traced(function: Callable[P, R], /) -> TracedFunction[P, R]: ...


@overload
def traced(
    *, backward: str = "auto", zero_grad: bool = False, values: bool = False, show: bool = False
) -> Callable[[Callable[P, R]], TracedFunction[P, R]]: ...


def traced(
    function: Callable[..., Any] | None = None,
    /,
    *,
    backward: str = "auto",
    zero_grad: bool = False,
    values: bool = False,
    show: bool = False,
) -> Any:
    """Trace every call of a function; the report of the last one is ``function.report``.

    What the function returns and raises stays as it is. Backward runs when it returns, unless it ran it itself: from
    the returned value when that is a scalar, else as in `trace`. A call within a traced call of the same function is
    part of it. Coroutine functions are traced until they return.

    Example:
        >>> @gradmagic.traced
        ... def loss_of(w):
        ...     return (w * 3).sum()
        >>> loss = loss_of(torch.tensor([2.0], requires_grad=True))
        >>> loss_of.report["w"].grad.values
        (3.0,)

    Args:
        function: the function, or a method, when the decorator stands without parentheses.
        backward: as in `trace`; an expression sees the function's globals, its arguments, and what it returned by the
            name ``returned``: ``backward="returned['loss']"``.
        zero_grad: clear the ``.grad`` of the leaves used, first.
        values: take statistics of every tensor's own values too.
        show: print the report after each call.

    Raises:
        TypeError: this cannot be traced call by call: a generator, a class, a module, a built-in function.
    """
    settings = _Settings(backward, zero_grad, values, show)
    if function is None:
        return functools.partial(_wrapped, settings=settings)
    return _wrapped(function, settings)


@dataclass(frozen=True, slots=True)
class _Settings:
    backward: str
    zero_grad: bool
    values: bool
    show: bool


def _wrapped(function: object, settings: _Settings) -> TracedFunction[..., Any]:
    plain = _traceable(function)
    calls = _Calls(plain, settings)

    if inspect.iscoroutinefunction(plain):

        @functools.wraps(plain)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if calls.running.get():
                return await plain(*args, **kwargs)
            with _Call(calls, args, kwargs) as call:
                return call.returning(await plain(*args, **kwargs))
    else:

        @functools.wraps(plain)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if calls.running.get():
                return plain(*args, **kwargs)
            with _Call(calls, args, kwargs) as call:
                return call.returning(plain(*args, **kwargs))

    found = cast(TracedFunction[..., Any], wrapper)
    found.report = None
    calls.found = found
    return found


def _traceable(function: object) -> FunctionType:
    """The function, if its calls can be traced one by one.

    Raises:
        TypeError: they cannot; says what to do instead.
    """
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    if isinstance(function, (staticmethod, classmethod, property)):
        kind = type(function).__name__
        raise TypeError(f"write @{kind} above @gradmagic.traced: what is traced is the function inside of it")
    if isinstance(function, type):
        raise TypeError(f"`{name}` is a class; put @gradmagic.traced on the method that computes, such as `forward`")
    if not isinstance(function, FunctionType):
        raise TypeError(
            f"`{name}` is no function written in Python, so gradmagic.traced cannot wrap it; call it in a function of "
            "your own, or in `with gradmagic.trace() as run:`"
        )
    if any(generates(function) for generates in _GENERATES):
        raise TypeError(
            f"`{name}` is a generator: between its steps other code runs, which would be traced with it. "
            "Trace the code that takes its items: `with gradmagic.trace() as run:`"
        )
    return function


class _Calls:
    """What the calls of one function have in common."""

    def __init__(self, plain: FunctionType, settings: _Settings) -> None:
        self.plain = plain
        self.settings = settings
        self.found: TracedFunction[..., Any] | None = None
        self.running: ContextVar[bool] = ContextVar(f"gradmagic.traced {plain.__qualname__}", default=False)
        """A call is being traced, in this thread or task."""
        innermost: Any = inspect.unwrap(plain)
        self.variables: Mapping[str, Any] = innermost.__globals__
        file = innermost.__code__.co_filename
        self.source = CellSource(file, lambda _: None, lines=_lines_of(plain), called="function")

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by their names; none where they do not fit: the call will say so."""
        try:
            bound = inspect.signature(self.plain).bind(*args, **kwargs)
        except (TypeError, ValueError):
            return {}
        bound.apply_defaults()
        return dict(bound.arguments)


class _Call:
    """One traced call."""

    def __init__(self, calls: _Calls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        settings = calls.settings
        self._calls = calls
        self._names = calls.arguments(args, kwargs)
        self._gave_a_tensor = False
        self._trace = trace(
            settings.backward,
            zero_grad=settings.zero_grad,
            values=settings.values,
            namespace=_Names(self._names, calls.variables),
            cell=replace(calls.source, again=self._again),
        )

    def __enter__(self) -> Self:
        self._token = self._calls.running.set(True)
        try:
            self._trace.start(sys._getframe(1))  # the wrapper's: a coroutine's is traced as a task
        except BaseException:
            self._calls.running.reset(self._token)
            raise
        return self

    def returning(self, value: Any) -> Any:
        """Take note of what the function returned, and hand it on."""
        self._trace.offer(value)
        self._gave_a_tensor = issubclass(type(value), Tensor)
        if self._calls.settings.backward not in ("auto", "none"):
            self._names[_RETURNED] = value
        return value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._trace.__exit__(kind, error, traceback)
        finally:
            self._trace.close()
            self._calls.running.reset(self._token)
            self._deliver()

    def _again(self, words: str) -> str:
        """What to write, in place of an option of the magic; what the function calls its tensors is gone with it."""
        option = words.removeprefix("--").partition(" ")[0]
        if option != "backward":
            return f"@gradmagic.traced({option.replace('-', '_')}=True)"
        if self._gave_a_tensor:
            return f'@gradmagic.traced(backward="{_RETURNED}.sum()")'
        return f'Return the loss; from several values, `@gradmagic.traced(backward="{_RETURNED}[0]")` takes the first.'

    def _deliver(self) -> None:
        found, report, fault = self._calls.found, self._trace.report, self._trace.fault
        if found is not None:
            found.report = report
        if fault is not None:
            what = f"gradmagic could not make its report ({told_briefly(fault)}); the function itself ran as always"
            warnings.warn(what, RuntimeWarning, stacklevel=4)
        if self._calls.settings.show and report is not None:
            print(report)


class _Names(Mapping[str, Any]):
    """What a function sees: its arguments first, then its globals, as they are now."""

    def __init__(self, arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
        self._arguments = arguments
        self._variables = variables

    def __getitem__(self, name: str) -> Any:
        return self._arguments[name] if name in self._arguments else self._variables[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._arguments
        yield from (name for name in list(self._variables) if name not in self._arguments)

    def __len__(self) -> int:
        return len({*self._arguments, *self._variables})


def _lines_of(function: FunctionType) -> tuple[int, int] | None:
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):  # it came from no file
        return None
    first = max(first, 1)
    return first, first + len(lines) - 1
