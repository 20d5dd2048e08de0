"""Makes ``.grad`` of the non-leaves be there, as if ``retain_grad`` had been called on each of them.

Once the cell is over, it is. While the cell goes on after a backward of its own, it is not: a tensor that retains its
gradient raises an internal assert of PyTorch's when ``squeeze_`` and then another operation change it in place, and it
keeps ``.grad`` when ``detach_`` makes a leaf of it. So the hooks that listen to such a pass store what they hear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from .entries import is_deep
from .places import Entry
from .stored import is_captured, is_closed, is_watched
from .tensors import Tensors

_DEEP = 1_000
"""Of the tensors that lie deep in the graph, only so many retain their gradient: a guest's hook looks at the node."""

Kept = dict[int, Entry]
"""The tensors that one autograd node has made, by their output number."""


def retain(tensors: Tensors) -> None:
    """Ask PyTorch to keep ``.grad`` of every non-leaf that the person can still reach.

    Not done at birth: retain_grad does not follow every in-place operation (``t_``, ``squeeze_``, ``unsqueeze_``...)
    to the newest version.
    """
    with torch._C.DisableTorchFunction():
        tensors.sweep()
        held = list(tensors.held())
        deep = [entry for _, entry in held if is_deep(entry)]
        too_many = set(map(id, deep[:-_DEEP]))
        for tensor, entry in held:
            if id(entry) not in too_many and _wants_gradient(tensor) and _can_keep(tensor, entry):
                try:
                    tensor.retain_grad()
                except RuntimeError as error:
                    tensors.fault("retain_grad", error)


def kept_by(tensors: Tensors, node: Any, marks: Mapping[int, int]) -> Kept | None:
    """The tensors that a node has made, by the marks of its outputs, and whose gradients a pass over it will bring."""
    found: Kept | None = None
    for output, mark in marks.items():
        if not tensors.is_held(mark):
            continue
        tensor, entry = tensors.of(mark)
        if tensor is None or entry is None:
            continue
        if tensor.retains_grad:
            entry.forget_gradient(tensor)  # it was not asked for then: PyTorch starts from none
        elif _wants_gradient(tensor) and tensor.grad_fn is node and _can_keep(tensor, entry):
            found = {**(found or {}), output: entry}
    return found


def keep(entry: Entry, gradient: Tensor) -> None:
    """Store what has arrived at a tensor in its ``.grad``, or add it to what is there.

    Without its history, if it has one (``create_graph``): a tensor whose ``.grad`` leads back to itself is never freed.
    """
    tensor = entry.ref()
    if tensor is None:
        return
    with torch._C.DisableTorchFunction(), torch.no_grad():
        # Not ``tensor.grad``: PyTorch warns when that is None.
        before, gradient = entry.kept() if entry.kept is not None else None, gradient.detach()
        if before is not None:
            kept = before + gradient
        elif gradient.layout is torch.strided:
            kept = gradient.clone(memory_format=torch.contiguous_format)
        else:
            kept = gradient.clone()
        tensor.grad = kept
        entry.kept = TensorWeakRef(kept)


def _wants_gradient(tensor: Tensor) -> bool:
    return tensor.requires_grad and not tensor.is_leaf and not tensor.retains_grad


def _can_keep(tensor: Tensor, entry: Entry) -> bool:
    if entry.given:
        return False  # what the person has put there stays
    if tensor.layout is not torch.strided or (entry.place is not None and entry.place.transformed):
        return False  # retain_grad on a sparse CSR tensor makes backward itself raise
    # To keep a gradient is to clone it, and a mode, class or CUDA graph of the person's would see that.
    return not is_watched() and not is_closed(tensor) and not is_captured(tensor)
