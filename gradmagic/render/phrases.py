"""Why a gradient is None, in a few words."""

from __future__ import annotations

from ..records import Reason, TensorRow

PHRASES: dict[Reason, str] = {
    "requires_grad_false": "does not require grad",
    "frozen": "frozen: requires_grad is off",
    "requires_grad_too_late": "requires_grad was switched on after its use",
    "integer_dtype": "integers have no gradient",
    "no_grad": "made under no_grad",
    "inference_mode": "made under inference_mode",
    "detached": "detached from the graph",
    "not_differentiable": "not differentiable",
    "unused": "the root does not depend on it",
    "cut_upstream": "cut off from the root",
    "custom_backward_none": "a custom backward returned None for it",
    "backward_inputs": "left out by backward(inputs=...)",
    "after_backward": "made after backward",
    "no_backward": "no backward ran",
    "backward_failed": "backward failed",
    "replaced_in_place": "replaced by a later in-place change",
    "inside_transform": "made inside a torch.func transform",
}

AT = frozenset({"cut_upstream", "detached", "replaced_in_place", "backward_failed", "no_grad", "inference_mode"})
"""Reasons whose phrase reads on with ``at line 7``; behind every other one the place stands in brackets."""


def remark(row: TensorRow) -> str:
    """The row's note, or else its reason in words, with the culprit's place when that is another line."""
    text = row.note or (PHRASES[row.reason] if row.reason is not None else "")
    place = _culprit(row)
    if not place or place in text:
        return text
    if row.note or row.reason not in AT:
        return f"{text} ({place})" if text else f"see {place}"
    return f"{text} at {place}"


def _culprit(row: TensorRow) -> str:
    """Where the code to blame stands, unless that is the row's own line."""
    if row.culprit is None:
        return ""
    same = (row.culprit.file, row.culprit.line) == (row.file, row.line)
    return "" if same else str(row.culprit)
