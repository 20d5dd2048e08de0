"""What to say about backward itself: its errors retold, and why it did not run."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import BackwardPass, Finding

_KNOWN_ERRORS = (
    ("a second time", "second_backward"),
    ("modified by an inplace operation", "changed_in_place"),
    ("only for scalar outputs", "root_not_scalar"),
    ("only for real scalar outputs", "root_not_real"),
    ("does not require grad and does not have a grad_fn", "root_without_graph"),
)
"""Texts of PyTorch's own errors (torch/csrc/autograd, torch/autograd/__init__.py) and what we call them."""


@dataclass(frozen=True, slots=True)
class NoRoot:
    """Why gradtrace ran no backward.

    Attributes:
        kind: ``nothing_differentiable``, ``no_scalar``, ``not_scalar``, ``not_found``, ``cell_failed``...
        subject: the name or expression in question.
        shape: its shape, where that is the matter.
        detail: the original error text, where there is one.
        near: names that look like it.
        where: the line in question.
        by: what ran there.
    """

    kind: str
    subject: str = ""
    shape: tuple[int, ...] = ()
    detail: str = ""
    near: tuple[str, ...] = ()
    where: str = ""
    by: str = ""


def retell_errors(passes: list[BackwardPass]) -> list[Finding]:
    """One finding for each pass that failed."""
    return [_retell(done, passes[:index]) for index, done in enumerate(passes) if done.error]


def _retell(done: BackwardPass, before: list[BackwardPass]) -> Finding:
    error = done.error or ""
    kind = next((kind for text, kind in _KNOWN_ERRORS if text in error), "backward_failed")
    message, hint = _SENTENCES[kind]
    where = f"{done.location}, run by the cell" if done.location is not None else "run by gradtrace"
    earlier = [str(other.location) for other in before if other.location is not None]
    if kind == "second_backward" and earlier:
        message += f" It was used up by the backward at {earlier[-1]}."
    return Finding(
        kind=kind,
        severity="error",
        message=message.format(root=done.root, where=where),
        hint=hint.format(root=done.root),
        location=done.location,
        detail=error,
    )


_SENTENCES = {
    "second_backward": (
        "Backward from `{root}` ({where}) came to a part of the graph that an earlier backward had already used up "
        "and freed.",
        "Compute `{root}` anew before this backward, call the earlier one with `retain_graph=True`, "
        "or `.detach()` what comes from an earlier step.",
    ),
    "changed_in_place": (
        "Backward from `{root}` ({where}) needs a tensor that was changed in place after it had been saved.",
        "Write the in-place change (`+=`, `x[...] =`, `relu_`, `inplace=True`) out of place: `x = x + ...`.",
    ),
    "root_not_scalar": (
        "Backward needs a single number to start from, and `{root}` ({where}) has more than one element.",
        "{root}.sum().backward()",
    ),
    "root_not_real": (
        "Backward needs a real number to start from, and `{root}` ({where}) is complex.",
        "{root}.abs().backward()",
    ),
    "root_without_graph": (
        "Backward cannot start from `{root}` ({where}): no graph leads to it, because nothing it was computed from "
        "requires grad, or because the way was cut.",
        "Give one of its inputs `requires_grad=True`, and see the table for the line that cut the graph.",
    ),
    "backward_failed": ("Backward from `{root}` ({where}) failed.", ""),
}


def explain_no_root(why: NoRoot) -> Finding:
    """Why no backward ran, and what to write."""
    message, hint, severity = _NO_ROOT[why.kind]
    shape = "×".join(str(size) for size in why.shape)
    near = f" Did you mean {' or '.join(f'`{name}`' for name in why.near)}?" if why.near else ""
    values = {"subject": why.subject, "shape": shape, "where": why.where, "by": why.by}
    return Finding(
        kind=why.kind,
        severity="error" if severity == "error" else "info",
        message=message.format(**values) + near,
        hint=hint.format(**values),
        detail=why.detail,
    )


_NO_ROOT = {
    "nothing_made": ("No torch tensor was made or used in this cell, so there is nothing to trace.", "", "info"),
    "nothing_differentiable": (
        "Nothing in this cell requires a gradient, so there is nothing to run backward through.",
        "Make an input with `requires_grad=True`, for example `w = torch.randn(3, requires_grad=True)`.",
        "info",
    ),
    "no_scalar": (
        "No backward ran: the cell made no single number to start from. The last differentiable tensor is "
        "`{subject}`, of shape {shape}.",
        "%%gradtrace --backward {subject}.sum()",
        "info",
    ),
    "scalar_without_graph": (
        "No backward ran: `{subject}` is a single number, but no graph leads to it. Its way was cut; "
        "the table says where.",
        "",
        "info",
    ),
    "no_root": (
        "No backward ran: no differentiable scalar of this cell is still alive to start from.",
        "Bind the loss to a name, for example `loss = ...`.",
        "info",
    ),
    "not_scalar": (
        "`--backward {subject}` has shape {shape}; backward needs a single number.",
        "%%gradtrace --backward {subject}.sum()",
        "error",
    ),
    "not_a_tensor": ("`--backward {subject}` is not a tensor, so backward cannot start there.", "", "error"),
    "root_without_graph": (
        "No graph leads to `--backward {subject}`: nothing it was computed from requires grad, or the way was cut.",
        "Give one of its inputs `requires_grad=True`, and see the table for the line that cut the graph.",
        "error",
    ),
    "not_found": ("`--backward {subject}` could not be evaluated after the cell.", "", "error"),
    "cell_failed": (
        "The cell stopped with an error before backward could run; this is what it had made so far.",
        "",
        "info",
    ),
    "graph_used_up": (
        "No backward was added: the cell's own `{by}` ({where}) had already used up the graph of `{subject}`. "
        "Its gradients are in the table.",
        "Pass `retain_graph=True` there to keep the graph.",
        "info",
    ),
}
