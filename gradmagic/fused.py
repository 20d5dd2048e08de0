"""Attention modules that PyTorch fuses into one kernel: they run as without the trace, with the recorder aside.

`nn.MultiheadAttention`, `nn.TransformerEncoderLayer` and `nn.TransformerEncoder` take a fused path in eval mode where
no gradient is wanted. Its results differ in the last bits, and PyTorch leaves it as soon as any `TorchFunctionMode` is
active. So for such a call the recorder leaves the mode stack, and the call's result becomes one row. PyTorch's own
global module hooks do it; they are registered once such a module is known to exist, for they take part in every
module's call.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Mapping
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch.nn.modules import module as _global
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .modules import named
from .namespace import contents
from .numbering import numbered_apart
from .operations import tensors_in
from .paths import MODULE_CALL
from .recorder import Recorder

FUSED = (torch.nn.MultiheadAttention, torch.nn.TransformerEncoderLayer, torch.nn.TransformerEncoder)
_CONSTRUCTORS: tuple[CodeType, ...] = tuple(kind.__init__.__code__ for kind in FUSED)
_FORWARDS: tuple[CodeType, ...] = tuple(kind.forward.__code__ for kind in FUSED)
_PLAIN_CALL = next(step for step in dis.get_instructions(MODULE_CALL) if step.opname == "CALL_FUNCTION_EX")
"""Where a module without hooks calls its `forward`."""


class FusedCalls:
    """Takes the recorder off the mode stack for the calls that PyTorch may fuse."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._handles: list[Any] = []
        self._hooks: tuple[int, ...] = ()
        self._looked: set[int] = set()
        self._running: FrameType | None = None
        """The module's call that runs without the recorder."""

    def start(self, variables: Mapping[str, Any]) -> None:
        """Look for such modules among the person's variables, and watch for others."""
        paths = self._recorder.paths
        paths.watched.update(dict.fromkeys(map(id, _CONSTRUCTORS), self._constructed))
        paths.watched.update(dict.fromkeys(map(id, _FORWARDS), self._not_fused))
        self._recorder.modules.on_new = self._look_inside
        for value in list(variables.values()):
            self._look_through(value, 2)

    def stop(self) -> None:
        """Remove what was registered."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recorder.modules.on_new = None
        self._running = None

    def _look_through(self, value: Any, depth: int) -> None:
        if isinstance(value, torch.nn.Module):
            self._look_inside(value)
        elif depth:
            for item in contents(value):
                self._look_through(item, depth - 1)

    def _look_inside(self, module: Any) -> None:
        """Register the hooks if an attention module lies inside."""
        if self._handles or id(module) in self._looked:
            return
        children = [child for _, child in named(module, "named_modules")]
        self._looked.update(map(id, children))
        if any(isinstance(child, FUSED) for child in (module, *children)):
            self._register()

    def _constructed(self, _: FrameType) -> None:
        self._register()

    @numbered_apart()
    def _register(self) -> None:
        if not self._handles:
            before = register_module_forward_pre_hook(self._before)
            after = register_module_forward_hook(self._after, always_call=True)
            self._handles = [before, after]

    def _not_fused(self, frame: FrameType) -> None:
        """A call that PyTorch might have fused is being recorded: it came past the hooks, or before them."""
        self._register()
        module = frame.f_locals["self"]
        if self._alone() and _may_be_fused(module, ()):
            name = type(module).__name__
            self._recorder.fault(name, RuntimeError("recorded step by step; PyTorch may run it as one fused kernel"))

    def _alone(self) -> bool:
        """Whether no mode of somebody else's is active here: that would keep PyTorch from fusing as well."""
        stack = torch.overrides._get_current_function_mode_stack()
        return self._recorder in stack and all(isinstance(mode, Recorder) for mode in stack)

    # ---- the hooks

    def _before(self, module: Any, _: Any) -> None:
        if self._running is not None:
            if _is_outside(self._running, sys._getframe(1)):
                return
            self._come_back()  # what ran without us was interrupted, and the cell went on
        if isinstance(module, FUSED):
            call = _call_of(sys._getframe(1))
            if call is not None and self._alone() and _may_be_fused(module, _given(call)):
                self._running = call
                self._recorder.stop()

    def _after(self, module: Any, _: Any, result: Any) -> None:
        frame = sys._getframe(1)
        call = _call_of(frame)
        if call is not None and call is self._running:
            self._come_back()
            try:
                with torch._C.DisableTorchFunction():
                    self._recorder.ran_alone(module, call, _given(call), result)
            except Exception as fault:  # noqa: BLE001 - a fault of ours must not become the person's
                self._recorder.fault(type(module).__name__, fault)
        if call is frame:  # not from the function inside: the call has raised
            self._tidy(module, call, sys.exc_info()[1])

    def _come_back(self) -> None:
        self._running = None
        self._recorder.start()

    def _tidy(self, module: Any, call: FrameType, error: BaseException | None) -> None:
        """A module with hooks calls `forward` through one more function: not so without us, so not in the traceback."""
        inner = error.__traceback__.tb_next if error is not None and error.__traceback__ is not None else None
        if error is None or inner is None or self._has_others_hooks(module):
            return
        line = _PLAIN_CALL.positions.lineno if _PLAIN_CALL.positions is not None else None
        error.__traceback__ = TracebackType(inner.tb_next, call, _PLAIN_CALL.offset, line or call.f_lineno)

    def _has_others_hooks(self, module: Any) -> bool:
        ours = {handle.id for handle in self._handles}
        everybodys = (
            _global._global_forward_hooks,
            _global._global_forward_pre_hooks,
            _global._global_backward_hooks,
            _global._global_backward_pre_hooks,
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        return any(handle not in ours for hooks in everybodys for handle in hooks)


def _may_be_fused(module: Any, given: Any) -> bool:
    """Whether nothing about a call asks for a gradient."""
    if module.training:
        return False
    if not torch.is_grad_enabled():
        return True
    asks = any(parameter.requires_grad for parameter in module.parameters())
    return not asks and not any(tensor.requires_grad for _, tensor in tensors_in(given))


def _call_of(frame: FrameType | None) -> FrameType | None:
    """The frame of `Module._call_impl` that runs hooks in this frame: itself, or a function inside it."""
    if frame is not None and frame.f_code is not MODULE_CALL:
        frame = frame.f_back
    return frame if frame is not None and frame.f_code is MODULE_CALL else None


def _given(call: FrameType) -> tuple[Any, Any]:
    return call.f_locals["args"], call.f_locals["kwargs"]


def _is_outside(outer: FrameType, frame: FrameType | None) -> bool:
    while frame is not None and frame is not outer:
        frame = frame.f_back
    return frame is not None
