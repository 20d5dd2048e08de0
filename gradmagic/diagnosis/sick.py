"""Findings about gradients that flowed and are sick: NaN, zero, vanishing, exploding, saturated, out of all proportion."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from ..records import Finding, Severity
from . import cures, hints
from .facts import Birth, PassFacts, RowFacts, RunFacts
from .flow import Flow
from .not_finite import find_not_finite
from .words import by_module, named, number, quoted, times

_STEPS = 5
"""Fewer repetitions, or layers, tell no trend."""

_SAMPLES = 8
"""A unit that is zero in fewer samples may be so by chance: 1/2 to the power of 8 is 0.4 %."""

_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
"""Distance from 1 to the next number (``torch.finfo(dtype).eps``). A change of less than half of it is rounded away."""


def find_sickness(run: RunFacts, flow: Flow) -> list[Finding]:
    """Everything that is wrong with gradients that are there."""
    finished = [done for done in run.passes if done.error is None]
    if not finished:
        return []
    not_finite = find_not_finite(run, flow, finished)
    trends = _through_time(run) + _through_depth(run)
    dead = _dead(run)
    found = [*not_finite, *trends, *dead, *_saturated(run, flow), *_scaled(run)]
    found += _zero(run, flow, finished[-1], covered=bool(dead))
    if not not_finite and not trends:
        found += [*_dominating(run), *_below_precision(run)]
    return found


# ---- vanishing and exploding


def _through_time(run: RunFacts) -> list[Finding]:
    """Gradients of a row that occurs again and again in one pass, from its first occurrence to its last."""
    found: dict[str, tuple[float, int, Finding]] = {}
    for index, row in enumerate(run.rows):
        if row.kind != "non-leaf" or len(row.grads) < _STEPS:
            continue
        norms = _norms_in_last_pass(row)
        if len(norms) < _STEPS:
            continue
        trend = _trend(norms, run.thresholds.spread)
        if trend is None:
            continue
        kind = "vanishing" if trend < 1 else "exploding"
        strength = abs(math.log(trend)) + (100.0 if row.name else 0.0)
        if kind not in found or strength > found[kind][0]:
            found[kind] = (strength, index, _time_finding(row, index, norms, kind))
    return [finding for _, _, finding in found.values()]


def _norms_in_last_pass(row: RowFacts) -> list[float]:
    return list(row.grads.last_pass().norm)


def _trend(norms: Sequence[float], spread: float) -> float | None:
    """Norm at the far end (the first occurrence) over norm at the near end, when it is a trend beyond `spread`."""
    if not all(map(math.isfinite, norms)) or not norms[-1]:
        return None
    positive = [norm for norm in norms if norm > 0]
    underflowed = norms[0] == 0 and min(positive) < 1e-30
    ratio = (min(positive) if underflowed else norms[0]) / norms[-1]
    if ratio <= 0 or 1 / spread <= ratio <= spread:
        return None
    steps = [math.log(after / before) for before, after in itertools.pairwise(positive)]
    towards = [step > 0 if ratio < 1 else step < 0 for step in steps]
    return ratio if sum(towards) >= 0.7 * len(towards) else None


def _time_finding(row: RowFacts, index: int, norms: Sequence[float], kind: str) -> Finding:
    first, last, steps = norms[0], norms[-1], len(norms)
    smallest = first or min(norm for norm in norms if norm > 0)
    factor = (smallest / last) ** (1 / (steps - 1))
    falls = "falls" if kind == "vanishing" else "grows"
    cure = (
        "Use a gated cell (`nn.LSTM`, `nn.GRU`), an orthogonal initial matrix (`nn.init.orthogonal_`), or fewer steps."
        if kind == "vanishing"
        else "Clip it (`torch.nn.utils.clip_grad_norm_`), scale the recurrent matrix down (`nn.init.orthogonal_`), or "
        "take fewer steps."
    )
    return Finding(
        kind=kind,
        severity="warning",
        message=f"The gradient of {quoted(row)} {falls} from {number(last)} at the last of {steps} steps to {number(first)} "
        f"at the first: a factor of {number(factor)} a step.",
        hint=cure,
        location=row.location,
        rows=(index,),
    )


def _through_depth(run: RunFacts) -> list[Finding]:
    """Gradients of the weight matrices, or of what the layers give, from the first layer to the last."""
    weights = [i for i, row in enumerate(run.rows) if row.kind in ("leaf", "parameter") and len(row.shape) >= 2]
    outputs = [i for i, row in enumerate(run.rows) if row.op in _LAYERS and row.kind == "non-leaf" and row.count == 1]
    for rows in (weights, outputs):
        layers = [(index, run.rows[index]) for index in rows if run.rows[index].grad is not None]
        sizes = [row.grad.rms for _, row in layers if row.grad is not None]
        trend = _trend(sizes, run.thresholds.spread) if len(layers) >= _STEPS else None
        if trend is not None:
            return [_depth_finding(run, layers, sizes, trend)]
    return []


_LAYERS = frozenset({"linear", "matmul", "mm", "addmm", "conv1d", "conv2d", "conv3d", "bilinear"})


def _depth_finding(
    run: RunFacts, layers: Sequence[tuple[int, RowFacts]], sizes: Sequence[float], trend: float
) -> Finding:
    first, last = layers[0][1], layers[-1][1]
    kind = "vanishing" if trend < 1 else "exploding"
    factor = trend ** (1 / (len(layers) - 1))
    falls = "falls" if kind == "vanishing" else "grows"
    cure = (
        "Use `relu` or `gelu` with a fitting initialisation (`nn.init.kaiming_normal_`), normalisation layers, or residual "
        "connections."
        if kind == "vanishing"
        else "Initialise smaller (`nn.init.xavier_uniform_`), add normalisation layers, or clip the gradients."
    )
    used = next((use.location for use in run.rows if layers[0][0] in use.parents), first.location)
    return Finding(
        kind=kind,
        severity="warning",
        message=f"The gradient {falls} through {len(layers)} layers, from {number(sizes[-1])} an element in {named(last)} "
        f"to {number(sizes[0])} in {named(first)}: a factor of {number(factor)} a layer.",
        hint=cure,
        location=used if first.is_leaf else first.location,
        rows=(layers[0][0], layers[-1][0]),
    )


# ---- zero


def _dead(run: RunFacts) -> list[Finding]:
    found = []
    for index, row in enumerate(run.rows):
        activity = row.activity
        if activity is None or row.op in ("tanh", "sigmoid", "softmax") or not row.reached or activity.units < 2:
            continue
        everywhere = activity.share == 1.0
        many = activity.samples >= _SAMPLES and activity.idle >= run.thresholds.dead_share * activity.units
        if everywhere or many:
            found.append(_dead_finding(row, index))
    return found[:3]


def _dead_finding(row: RowFacts, index: int) -> Finding:
    activity = row.activity
    idle, units, samples = (activity.idle, activity.units, activity.samples) if activity is not None else (0, 0, 0)
    return Finding(
        kind="dead_relu",
        severity="warning",
        message=f"{idle} of {units} units of {quoted(row)} are zero for the whole batch ({samples} samples): no gradient "
        "passes through them, so what feeds them does not learn.",
        hint="Use `leaky_relu`, lower the learning rate or the bias, or initialise for ReLU (`nn.init.kaiming_normal_`).",
        location=row.location,
        rows=(index,),
    )


_STEPPED = frozenset({"Round", "Sign", "Floor", "Ceil", "Trunc", "FloorDivide", "Heaviside"})
_RANGED = frozenset({"Clamp", "ClampMin", "ClampMax", "Hardtanh", "Threshold", "Relu", "Hardsigmoid"})
_SATURATING = frozenset({"Sigmoid", "Tanh", "Softmax", "LogSigmoid"})


def _zero(run: RunFacts, flow: Flow, done: PassFacts, covered: bool) -> list[Finding]:
    """Leaves whose whole gradient is exactly zero, and the operation that made it so."""
    zero = [index for index, row in enumerate(run.rows) if row.kind in ("leaf", "parameter") and _all_zero(row)]
    found = []
    explained: set[int] = set()
    for birth in done.births:
        killed = [leaf for leaf in zero if leaf == birth.row or leaf in flow.upstream(birth.row)]
        if birth.kind != "zero" or birth.consumer is None or not killed or birth.consumer in explained:
            continue
        finding = _killed(run, birth, killed, covered)
        if finding is not None:
            explained.add(birth.consumer)
            found.append(finding)
    if not found and not covered:
        found += _stuck(run, zero)
    return found


def _all_zero(row: RowFacts) -> bool:
    return row.grad is not None and row.grad.numel > 0 and row.grad.zero_fraction == 1.0


def _killed(run: RunFacts, birth: Birth, killed: Sequence[int], covered: bool) -> Finding | None:
    consumer = run.rows[birth.consumer] if birth.consumer is not None else run.rows[birth.row]
    name = cures.plain(birth.grad_fn)
    severity: Severity = "warning"
    text = consumer.location.text
    if name in _STEPPED:
        severity, what = "error", "has a derivative of zero everywhere"
        given = hints.operands(text)
        x = hints.in_brackets(given[0].text) if given else "x"
        hint = hints.in_statement(consumer.location, f"{x} + ({text} - {x}).detach()")
    elif name in _RANGED and not covered:
        what = "lies outside its range in every element, where its slope is zero"
        hint = "Widen the range, or scale the input; `leaky_relu` and `softplus` have a slope everywhere."
    elif name in _SATURATING:
        what = "is so far saturated that its slope is exactly zero"
        hint = "Scale its input down, or use the form with logits (`binary_cross_entropy_with_logits`, `log_softmax`)."
    else:
        return None
    leaves = by_module([run.rows[leaf] for leaf in killed])
    return Finding(
        kind="zero_gradient",
        severity=severity,
        message=f"The gradient of {leaves} is exactly zero: {quoted(consumer)} {what}.",
        hint=hint,
        location=consumer.location,
        rows=(*killed, *(() if birth.consumer is None else (birth.consumer,))),
    )


def _stuck(run: RunFacts, zero: Sequence[int]) -> list[Finding]:
    """Weights that are zero and whose gradient is zero as well: no step will ever move them."""
    stuck = [index for index in zero if run.rows[index].weight_rms == 0 and len(run.rows[index].shape) >= 2]
    if not stuck:
        return []
    rows = [run.rows[index] for index in stuck]
    first = rows[0]
    return [
        Finding(
            kind="zero_gradient",
            severity="warning",
            message=f"{by_module(rows)} {'is' if len(rows) == 1 else 'are'} zero, and so is the gradient: no step of "
            "gradient descent moves them, because every product with them is zero.",
            hint=f"Initialise at random: `nn.init.xavier_uniform_({first.label})`.",
            location=first.location if not first.adopted else None,
            rows=tuple(stuck),
        )
    ]


# ---- saturation and proportion


def _saturated(run: RunFacts, flow: Flow) -> list[Finding]:
    found = []
    for index, row in enumerate(run.rows):
        activity = row.activity
        if activity is None or row.op not in ("tanh", "sigmoid", "softmax") or not row.reached:
            continue
        users = {run.rows[user].op for user in flow.consumers.get(index, ())}
        # With the logarithm of the loss the flat slope cancels out; a certain classifier is no sick one.
        if users & {"binary_cross_entropy", "log"} or activity.share <= run.thresholds.saturated_share:
            continue
        if activity.units * activity.samples < (2 if row.op == "softmax" else _SAMPLES):
            continue
        found.append(_saturated_finding(row, index, activity.share))
    return found[:3]


def _saturated_finding(row: RowFacts, index: int, share: float) -> Finding:
    what = "distributions" if row.op == "softmax" else "elements"
    cure = (
        "Divide the logits, as attention does by the root of its dimension, or raise the temperature."
        if row.op == "softmax"
        else "Scale its input down: smaller initial weights (`nn.init.xavier_uniform_`), or normalise before it."
    )
    return Finding(
        kind="saturated",
        severity="warning",
        message=f"{share:.0%} of the {what} of {quoted(row)} are saturated: less than 2 % of the gradient passes there.",
        hint=cure,
        location=row.location,
        rows=(index,),
    )


def _learning(run: RunFacts) -> list[tuple[int, RowFacts]]:
    leaves = [(index, row) for index, row in enumerate(run.rows) if row.kind in ("leaf", "parameter")]
    return [(i, row) for i, row in leaves if row.grad is not None and math.isfinite(row.grad.norm) and row.grad.numel]


def _dominating(run: RunFacts) -> list[Finding]:
    leaves = _learning(run)
    by_norm = sorted(leaves, key=lambda pair: -_norm(pair[1]))
    if len(by_norm) < 3 or _norm(by_norm[1][1]) == 0:
        return []
    if _norm(by_norm[0][1]) < run.thresholds.dominates * _norm(by_norm[1][1]):
        return []
    (index, row), (_, second) = by_norm[:2]
    others = [_norm(other) for _, other in by_norm[1:]]
    return [
        Finding(
            kind="dominating_gradient",
            severity="warning",
            message=f"The gradient of {named(row)} is {times(_norm(row) / _norm(second))} larger than the next, that of "
            f"`{second.label}` (norms {number(_norm(row))} and {number(_norm(second))}; half of the others lie below "
            f"{number(statistics.median(others))}): one learning rate does not fit both.",
            hint=f"Normalise what `{row.label}` is multiplied with, or give it a learning rate of its own.",
            rows=(index,),
        )
    ]


def _norm(row: RowFacts) -> float:
    return row.grad.norm if row.grad is not None else 0.0


def _below_precision(run: RunFacts) -> list[Finding]:
    """Parameters that an update would leave as they are, because it is rounded away."""
    found = []
    learning = _learning(run)
    # A bias before a normalisation has only rounding noise for a gradient, so vectors count where there is nothing else.
    matrices = [(index, row) for index, row in learning if len(row.shape) >= 2]
    for index, row in matrices or learning:
        epsilon = _EPSILON.get(row.dtype)
        if epsilon is None or not row.weight_rms or not _largest(row):
            continue
        step, how = _step_of(run, index, row)
        if step < epsilon / 2 * row.weight_rms:
            found.append((index, row, step, how))
    if not found:
        return []
    index, row, step, how = found[0]
    half = row.dtype in ("float16", "bfloat16")
    return [
        Finding(
            kind="below_precision",
            severity="warning",
            message=f"An update of {by_module([each for _, each, _, _ in found])} would be rounded away: {how} is at most "
            f"{number(step)}, and `{row.label}` ({row.dtype}, about {number(row.weight_rms or 0)} an element) cannot tell "
            f"changes below {number((_EPSILON[row.dtype] / 2) * (row.weight_rms or 0))}.",
            hint="Keep the weights in float32, and compute in half precision under `torch.autocast`."
            if half
            else "Scale the loss up, or raise the learning rate.",
            rows=tuple(i for i, *_ in found),
        )
    ]


def _largest(row: RowFacts) -> float:
    """The largest element of any gradient that reached the row."""
    return max((max(abs(low), abs(high)) for low, high in zip(row.grads.min, row.grads.max, strict=True)), default=0.0)


def _step_of(run: RunFacts, index: int, row: RowFacts) -> tuple[float, str]:
    largest = _largest(row) / run.scale
    for optimizer in run.optimizers:
        if index in optimizer.rows and optimizer.rate > 0:
            if optimizer.type_name == "SGD":
                return optimizer.rate * largest, f"learning rate times gradient (`{optimizer.name}`)"
            # Adam and its relatives divide by the gradient's own size, so that a step is about the learning rate.
            return optimizer.rate, f"the learning rate (`{optimizer.name}`)"
    return largest, "the gradient"


# ---- mixed precision


def _scaled(run: RunFacts) -> list[Finding]:
    if run.scale == 1.0:
        return []
    root = run.rows[run.roots[-1]] if run.roots else None
    by = f"`{run.scaler}`" if run.scaler else (quoted(root) if root is not None else "the cell")
    return [
        Finding(
            kind="scaled_loss",
            severity="info",
            message=f"{by} multiplied the loss by {run.scale:.0f}; the table shows the gradients divided by that.",
            hint=_unscaling(run),
            location=root.location if root is not None else None,
            rows=run.roots[-1:],
        )
    ]


def _unscaling(run: RunFacts) -> str:
    if not run.scaler:
        return f"Divide `.grad` by {run.scale:.0f} before you look at it, clip it or take a step."
    if run.unscaled:
        return ""
    return f"`{run.scaler}.unscale_(optimizer)` divides `.grad` itself; do so before you look at it or clip it."
