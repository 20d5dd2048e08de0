"""Gradients that gradtrace's own backward leaves to look at, and that make way for the person's next backward.

The plain notebook would not have run this backward. So each ``.grad`` it set is a guest: a one-shot tensor hook
puts back what was there before, as soon as the tensor takes part in another backward, and so does the next step of
an optimizer. A ``.grad`` that the person has since set, zeroed or changed is theirs and stays.
"""

from __future__ import annotations

import sys
import weakref
from types import FrameType

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook
from torch.utils.weak import TensorWeakRef

from .numbering import numbered_apart
from .places import version_of

_OPTIMIZER = torch.optim.Optimizer.profile_hook_step.__code__.co_filename


class GuestGradient:
    """Tensor hook of one tensor whose ``.grad`` is a guest. The tensor alone keeps it alive."""

    # torch.save and pickle would warn about a hook that gets lost (see torch.utils.hooks.unserializable_hook).
    __torch_unserializable__ = True

    def __init__(self, tensor: Tensor, gradient: Tensor, before: Tensor | None, party: GuestParty) -> None:
        self._tensor = TensorWeakRef(tensor)
        self._gradient = TensorWeakRef(gradient)
        self._version = version_of(gradient)
        self._before = before
        self._party = party
        tensor.register_hook(self)

    def __call__(self, _: Tensor) -> None:
        """The tensor takes part in another backward."""
        if self in self._party:
            # The other leaves' guests leave too: a total norm over all parameters must not see them.
            self._party.leave()
        else:
            self.leave()

    def makes_way_for(self) -> Tensor | None:
        """What ``.grad`` will hold once the guest has left."""
        tensor, guest = self._tensor(), self._gradient()
        if tensor is not None and guest is not None and tensor.grad is guest and version_of(guest) == self._version:
            return self._before
        return tensor.grad if tensor is not None else None

    def leave(self) -> None:
        """Put back what ``.grad`` held before, unless the person has changed it."""
        # The hook goes last: one that an interrupt leaves in place finds nothing to do any more.
        tensor, before = self._tensor(), self.makes_way_for()
        if tensor is not None and tensor.grad is not before:
            tensor.grad = before
        self._before = None
        self._take_off(tensor)
        self._party.forget(self)

    def _take_off(self, tensor: Tensor | None) -> None:
        """Take the hook off."""
        # Not by a handle: an interrupt between setting the hook and noting its handle would lose it.
        hooks = (tensor._backward_hooks if tensor is not None else None) or {}
        for number in [number for number, hook in hooks.items() if hook is self]:
            del hooks[number]


class GuestParty:
    """The leaves' guests of one backward. It lives as long as one of them does."""

    def __init__(self) -> None:
        self._leaves: weakref.WeakSet[GuestGradient] = weakref.WeakSet()
        self._before_step: _BeforeStep | None = None

    def __contains__(self, guest: GuestGradient) -> bool:
        return guest in self._leaves

    @numbered_apart()
    def invite(self, tensor: Tensor, gradient: Tensor, before: Tensor | None) -> None:
        """Put `gradient` into the tensor's ``.grad`` as a guest that gives way to `before`."""
        # The hook comes first: an interrupt must not leave a gradient that no hook takes away again.
        guest = GuestGradient(tensor, gradient, before, self)
        if tensor.is_leaf:
            self._leaves.add(guest)
            self._before_step = self._before_step or _BeforeStep(self)
        if tensor.grad is not gradient:
            # The attribute refuses what backward itself leaves there: at a sparse CSR leaf, a strided gradient.
            tensor.grad = gradient

    def leave(self) -> None:
        """All leaves' guests leave."""
        for guest in list(self._leaves):
            guest.leave()

    def forget(self, guest: GuestGradient) -> None:
        """A guest has left."""
        self._leaves.discard(guest)
        if not self._leaves and self._before_step is not None:
            self._before_step.party_is_over()


class _BeforeStep:
    """One-shot hook before any optimizer's step: the guests leave, so that the step does not see them."""

    def __init__(self, party: GuestParty) -> None:
        self._party = weakref.ref(party)
        self._held: GuestParty | None = None
        # When the leaves die before any step, their guests die with them, and the party with those.
        weakref.finalize(party, self._take_out)
        register_optimizer_step_pre_hook(self)

    def __call__(self, *_: object) -> None:
        # Held, because the party's end would take this hook out of the dict that PyTorch is walking through.
        self._held = self._party()
        if self._held is not None:
            self._held.leave()
        self._sweep()

    def party_is_over(self) -> None:
        if self._held is None:
            self._take_out()

    def _take_out(self) -> None:
        # Python's collector may end the party at any moment, also while PyTorch walks through the dict: then the next
        # step takes the hook out.
        if not _is_stepping():
            self._delete()

    def _delete(self) -> None:
        for key in [key for key, hook in _global_optimizer_pre_hooks.items() if hook is self]:
            del _global_optimizer_pre_hooks[key]

    def _sweep(self) -> None:
        """Take our hooks out, when nothing follows in PyTorch's walk: a dict must not change before its last item."""
        if next(reversed(_global_optimizer_pre_hooks.values()), None) is not self:
            return
        for hook in [hook for hook in _global_optimizer_pre_hooks.values() if isinstance(hook, _BeforeStep)]:
            hook._delete()
            hook._held = None


def _is_stepping() -> bool:
    """Whether an optimizer of any thread is in its step."""
    frames = list(sys._current_frames().values())
    try:
        return any(map(_leads_to_step, frames))
    finally:
        frames.clear()  # a frame that holds itself lives on, and with it the gradients that it was given


def _leads_to_step(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "wrapper" and frame.f_code.co_filename == _OPTIMIZER:
            return True
        frame = frame.f_back
    return False


def guest_of(tensor: Tensor) -> GuestGradient | None:
    """The guest hook on a tensor, or None."""
    hooks = tensor._backward_hooks or {}
    return next((hook for hook in hooks.values() if isinstance(hook, GuestGradient)), None)
