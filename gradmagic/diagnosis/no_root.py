"""Why gradtrace ran no backward, and what to write so that it can."""

from __future__ import annotations

from ..records import Finding
from .errors import explain_no_graph
from .facts import RunFacts
from .flow import Flow
from .words import shape_text


def explain_no_root(run: RunFacts, flow: Flow) -> list[Finding]:
    """Why no backward ran, and what to write."""
    why = run.no_root
    if why is None or run.failed is not None:
        return []
    if run.passes and (
        why.kind in ("no_root", "nothing_computed") if why.row is None else flow.cut_above(why.row) is None
    ):
        return []  # it was `autograd.grad` that the cell wanted
    if why.row is not None:
        return [_without_graph(run, flow, why.row)]
    message, hint, severity = _NO_ROOT[why.kind]
    shape = shape_text(why.shape)
    near = f" Did you mean {' or '.join(f'`{name}`' for name in why.near)}?" if why.near else ""
    values = {"subject": why.subject, "sum": _sum_of(why.subject), "shape": shape, "where": why.where, "by": why.by}
    return [
        Finding(
            kind=why.kind,
            severity="error" if severity == "error" else "info",
            message=message.format(**values) + near,
            hint=hint.format(**values),
            detail=why.detail,
        )
    ]


def _sum_of(expression: str) -> str:
    """``h.sum()``; an operation needs parentheses, and on the magic line quotes around its spaces."""
    if " " not in expression:
        return f"{expression}.sum()"
    quote = "'" if '"' in expression else '"'
    return f"{quote}({expression}).sum(){quote}"


def _without_graph(run: RunFacts, flow: Flow, row: int) -> Finding:
    """A number that would be the loss, had its way not been cut; a metric looks the same, so that this is no error."""
    opening = f"No backward ran: `{run.rows[row].label}` is a single number, but no graph leads to it"
    message, hint, location = explain_no_graph(run, flow, row, opening)
    return Finding(
        kind="root_without_graph", severity="info", message=message, hint=hint, location=location, rows=(row,)
    )


_NO_ROOT = {
    "nothing_made": ("No torch tensor was made in this cell, so there is nothing to trace.", "", "info"),
    "nothing_differentiable": (
        "Nothing that this cell computes requires a gradient, so there is nothing to run backward through.",
        "Call a model, or make an input with `requires_grad=True`, for example "
        "`w = torch.randn(3, requires_grad=True)`.",
        "info",
    ),
    "no_scalar": (
        "No backward ran: the cell made no single number to start from. The last differentiable tensor is "
        "`{subject}`, of shape {shape}.",
        "%%gradtrace --backward {sum}",
        "info",
    ),
    "nothing_computed": (
        "No backward ran: this cell has computed nothing that backward could run through.",
        "",
        "info",
    ),
    "no_root": (
        "No backward ran: no differentiable scalar of this cell is still alive to start from.",
        "Bind the loss to a name, for example `loss = ...`.",
        "info",
    ),
    "made_elsewhere": (
        "No backward ran: `{subject}` was not made here, but before this cell or in another thread, where gradtrace "
        "cannot look. It starts from neither unasked.",
        "%%gradtrace --backward {subject}",
        "info",
    ),
    "not_scalar": (
        "`--backward {subject}` has shape {shape}; backward needs a single number.",
        "%%gradtrace --backward {sum}",
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
    "ran_elsewhere": (
        "No backward was added: the cell has run one where gradtrace cannot look, such as in a thread that it started. "
        "`{subject}` has a gradient from there; the table has none.",
        "Run backward in the cell's own thread.",
        "info",
    ),
    "graph_used_up": (
        "No backward was added: the cell's own `{by}` ({where}) had already used up the graph of `{subject}`. "
        "Its gradients are in the table.",
        "Pass `retain_graph=True` there to keep the graph.",
        "info",
    ),
}
