"""What a torch call is: its name as people say it, its tensors, and what it does to its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any

import torch
from torch import Tensor

from .bindings import Position

LEAVES_TORCH = frozenset({"item", "tolist", "numpy", "__array__", "__float__", "__int__", "__complex__", "__index__"})
"""Methods that hand a tensor's values to plain Python or NumPy, where no gradient can follow them."""

_GRADIENT_GETTERS = frozenset({"grad", "_grad"})
_OF_TORCH = (
    BuiltinFunctionType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
    torch._ops.OpOverload,
    torch._ops.OpOverloadPacket,
)


def tensors_in(value: Any, position: Position = (), depth: int = 3) -> Iterator[tuple[Position, Tensor]]:
    """Every tensor in an operation's result or arguments, with its position."""
    if isinstance(value, Tensor):
        yield position, value
    elif isinstance(value, (tuple, list)) and depth:
        for index, item in enumerate(value):
            yield from tensors_in(item, (*position, index), depth - 1)
    elif isinstance(value, dict) and depth:
        for key, item in value.items():
            yield from tensors_in(item, (*position, key), depth - 1)


def op_name(func: Callable[..., Any]) -> str:
    """What people call an operation: ``matmul`` for ``Tensor.__matmul__``, ``T`` for the getter of ``Tensor.T``.

    What PyTorch keeps behind a public function is called like that: ``weight_norm`` for ``torch._weight_norm``.
    """
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return str(name).partition(".")[0] if name.startswith("_foreach") else _plain_name(str(name))


def _plain_name(name: str) -> str:
    if not (name.startswith("__") and name.endswith("__")):
        return name.lstrip("_") or name
    bare = name[2:-2]
    operators = {"truediv": "div", "rtruediv": "div", "rdiv": "div", "lshift": "lshift", "invert": "bitwise_not"}
    reflected = ("radd", "rsub", "rmul", "rpow", "rmatmul", "rfloordiv", "rmod")
    return operators.get(bare) or (bare[1:] if bare in reflected else bare)


inside_transform: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether torch.func (grad, vmap...) is running: its tensors are wrappers that live for the transform only."""


class TorchFunction:
    """What is known of a torch function from its name alone.

    Looked up by the function: to ask its name these questions at each call takes 2 us.

    Attributes:
        name: see `op_name`.
        leaves_torch: see `LEAVES_TORCH`.
        in_place: it changes an input.
        sets: it is the setter of a property.
        reads_gradient: it is the getter of ``.grad``.
        initialises: it is one of ``torch.nn.init``.
        shape_only: see `takes_shape_only`.
        plain: it makes its result from its inputs, and nothing else needs to be known.
    """

    __slots__ = ("in_place", "initialises", "leaves_torch", "name", "plain", "reads_gradient", "sets", "shape_only")

    def __init__(self, func: Any) -> None:
        method = getattr(func, "__name__", "")
        self.name = op_name(func)
        self.leaves_torch = method in LEAVES_TORCH
        self.in_place = changes_in_place(func, {})
        self.sets = method == "__set__"
        self.reads_gradient = method == "__get__" and self.name in _GRADIENT_GETTERS
        self.initialises = getattr(func, "__module__", None) == "torch.nn.init"
        self.shape_only = takes_shape_only(self.name)
        odd = self.leaves_torch or self.in_place or self.sets or self.reads_gradient or self.initialises
        self.plain = not odd and not self.shape_only


def lasts(func: Any) -> bool:
    """Whether a function is there for good, so that it may be remembered: not one that closes over tensors."""
    if isinstance(func, FunctionType):
        return str(func.__module__).startswith("torch.")
    return isinstance(func, _OF_TORCH) and not isinstance(getattr(func, "__self__", None), Tensor)


def takes_shape_only(name: str) -> bool:
    """Whether an operation looks at its input's shape and type, and not at its values (``randn_like``)."""
    return name.endswith("_like") or name.startswith("new_")


def changes_in_place(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call changes an input in place, by its name or by what it was told."""
    name = getattr(func, "__name__", "")
    by_name = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    return by_name or "out" in kwargs or bool(kwargs.get("inplace"))


def argument_of(position: Position, args: tuple[Any, ...]) -> tuple[int, int]:
    """Which positional argument of how many a tensor is; -1 for one inside a list or given by keyword."""
    plain = len(position) == 1 and isinstance(position[0], int)
    return (int(position[0]) if plain else -1, len(args))


def factor_of(name: str, args: tuple[Any, ...]) -> float | None:
    """The number a tensor is multiplied by in ``loss * 1024`` or ``loss / 4``; None where there is none."""
    numbers = [float(argument) for argument in args[:2] if type(argument) in (int, float)]
    if len(numbers) != 1 or (name == "div" and type(args[0]) in (int, float)):
        return None
    if name == "mul":
        return numbers[0]
    return 1 / numbers[0] if numbers[0] else None
