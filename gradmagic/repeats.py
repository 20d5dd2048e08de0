"""Calls that run again, as in a loop: recorded in short, since all but a little of what they tell is known.

Recording a call in full takes about 14 us, in short 4, of which looking at each input takes 0.2 and noting the new
tensor 1.5. Nothing here calls a function of ours that it can do without: that alone takes 60 ns.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .answers import KeptAnswer
from .entries import DEEPEST, OCCURRENCE
from .places import Entry, Place, version_of
from .statistics import ACTIVATIONS
from .tensors import Tensors

NOTED = ACTIVATIONS | {"mul", "div"}
"""Operations of which more is noted than their tensors."""
_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, slice})
"""Kinds of arguments that hold no tensor."""
_is_grad_enabled = torch.is_grad_enabled


class Repeats(Tensors):
    """The tensors of a trace, and how those are noted that are made once more."""

    def note_operation(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """What the diagnosis wants to know of the `NOTED` operations."""
        raise NotImplementedError

    def record_again(self, frame: FrameType, name: str, args: tuple[Any, ...], result: Tensor) -> bool:  # noqa: C901 - split, it would cost 60 ns a part
        """Record the usual call in short: one that runs again and makes one plain tensor of plain ones.

        Returns:
            False for any other, of which nothing is recorded yet: `_record` is for all.
        """
        path = self.paths.of(frame)
        place = path.usual.get(name)
        if place is None or not self._in_short:
            return False
        entries = self._entries
        key = id(result)
        known = entries.get(key)
        if known is not None and known() is result:
            return False
        parents = place.parents
        new = None
        differentiable = False
        depth = self._depth = 1
        for number, tensor in enumerate(args):
            kind = type(tensor)
            if kind is not Tensor and kind is not Parameter:
                if kind in _PLAIN:
                    continue
                return False
            if tensor is result:
                return False
            asks = tensor.requires_grad
            entry = entries.get(id(tensor))
            if (
                entry is not None
                and entry() is not None  # what has the tensor's ``id`` and is alive is the tensor
                and (parent := entry.place) is not None
                and entry.requires_grad is asks
                and (version := entry.version) >= 0
                and version == tensor._version
                and (asks or parent.constant_use is not None)
            ):
                if parent.index not in parents:
                    new = (*(new or ()), parent.index)
            elif (used := self.used(tensor, path, (number, len(args)))) is not None:
                new = (*(new or ()), used.index)
                entry = entries.get(id(tensor))
            if asks:
                differentiable = True
                if entry is not None and entry.depth >= depth:
                    depth = entry.depth + 1
        if depth > DEEPEST:
            return False
        self._depth = depth
        if not self._occurs_again(place, result, known):
            return False
        if new is not None:
            parents.update(new)
        place.input_requires_grad = differentiable
        if differentiable and name in NOTED:
            kept = place.activity
            if type(kept) is not KeptAnswer or not place.requires_grad or not kept.takes(result):
                self.note_operation(name, args, {}, result)
        return True

    def _occurs_again(self, place: Place, tensor: Tensor, gone: Entry | None) -> bool:
        """A place has made one more tensor, outside of transforms, like `_occurrence` in short: 1.5 us instead of 7.

        Args:
            place: what made it.
            tensor: what it made.
            gone: what was known of another tensor of the same ``id``.

        Returns:
            False for a tensor that needs more; then nothing was noted.
        """
        node: Any = tensor.grad_fn
        if node is None and tensor.requires_grad:
            return False
        try:
            place.shape_found = tensor.shape
        except RuntimeError:  # a strided nested tensor has none
            return False
        entry = Entry(tensor)
        entry.place = place
        occurrence = entry.occurrence = place.count
        place.count = occurrence + 1
        self.clock = place.last_clock = self.clock + 1
        entry.depth = self._depth
        entry.gradient_of = entry.kept = None
        entry.given = False
        entry.requires_grad = node is not None
        if place.repeats is not entry.requires_grad:
            place.will_repeat(entry.requires_grad)
        if (dtype := tensor.dtype) is not place.dtype_found:
            place.dtype_found = dtype
            place.is_floating = dtype.is_floating_point or dtype.is_complex
        place.device_found = tensor.device
        place.newest = entry
        entries = self._entries
        if gone is not None:
            del entries[id(tensor)]  # it stands at the end
        entries[id(tensor)] = entry
        if node is None:
            place.grad_enabled = _is_grad_enabled()
            place.inference = tensor.is_inference()
            entry.version = version_of(tensor)
        else:
            entry.version = tensor._version
            # Nodes of one class have one name, and to ask for it takes 1 us.
            if type(node) is not place.node_class:
                place.made_by(node)
            mark = occurrence << OCCURRENCE | place.index
            self._non_leaves[mark] = entry
            if tensor.output_nr or node.metadata.setdefault(self.mark, mark) is not mark:
                self._mark(node, tensor, place, occurrence)
        if len(entries) > self._sweep_at or len(self._non_leaves) > self._sweep_at:
            self.sweep()
        return True
