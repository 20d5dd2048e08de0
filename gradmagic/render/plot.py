"""The flow of gradients, drawn by matplotlib (an extra). The only room that knows it."""

from __future__ import annotations

import io
import math
import warnings
from base64 import b64encode
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ..report import Picture, Report
from .flow import FlowLine, FlowPoint, Group, HeatMap, Order, flow_lines, flow_points, heat_map
from .numbers import plural

COLORS: dict[Group, str] = {"activations": "#1f6fc4", "parameters": "#b35900"}
"""Blue and orange can be told apart by the colour-blind; the two also differ in their markers."""
MARKERS: dict[Group, str] = {"activations": "o", "parameters": "s"}
AXES: dict[Order, str] = {
    "execution": "order of execution (gradients flow from right to left)",
    "depth": "tensors between here and the root",
}
ALARM = "#b3261e"
MOST_LABELS = 40
"""With more rows than this, only where a module begins is named."""
MOST_LINES = 24
"""So many lines of a heat map have room for a name."""
WIDTH, DOTS = 9 * 72, 144
INSTEAD = (
    "plot of the norms in order of execution, which the table has in numbers; "
    "in a terminal: -o report, then report.plot().figure.savefig('flow.png')"
)
MISSING = 'a plot needs matplotlib: pip install "gradmagic[plot]"'


def plot(report: Report, kind: Picture = "flow", by: Order = "execution", ax: Any = None) -> Any:
    """Draws the flow, or the steps, on `ax` or on a new figure; see `Report.plot`."""
    if kind not in ("flow", "steps"):
        raise ValueError(f"kind must be 'flow' or 'steps', not {kind!r}")
    if by not in ("execution", "depth"):
        raise ValueError(f"by must be 'execution' or 'depth', not {by!r}")
    if ax is None:
        _matplotlib("matplotlib")
        _, ax = _matplotlib("matplotlib.pyplot").subplots(figsize=(9, 4), layout="constrained")
    if kind == "steps":
        _draw_steps(heat_map(report), ax)
    else:
        _draw_flow(flow_points(report, by), by, ax)
    return ax


def bundle(report: Report) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """`picture` for a notebook, and what to do in a terminal, by their MIME types; and how wide it is to be drawn.

    As an image, which every front end shows, GitHub and LaTeX too.
    """
    data = b64encode(picture(report)).decode()
    return {"text/plain": INSTEAD, "image/png": data}, {"image/png": {"width": WIDTH}}


def picture(report: Report) -> bytes:
    """The flow, and the steps below it where something repeats, as PNG at two pixels a point."""
    figure_class = _matplotlib("matplotlib.figure").Figure  # not of pyplot: nothing of the person's is touched
    steps = heat_map(report)
    figure = figure_class(figsize=(9, 7.5 if steps else 4), layout="constrained", dpi=DOTS, facecolor="white")
    axes = figure.subplots(2 if steps else 1, 1, squeeze=False)[:, 0]
    _draw_flow(flow_points(report), "execution", axes[0])
    if steps:
        _draw_steps(steps, axes[1])
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of scripts that the font has not: boxes are drawn
        figure.savefig(out, format="png")
    return out.getvalue()


def _matplotlib(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(MISSING) from error


def _plain(text: str) -> str:
    """`text` for matplotlib, where two dollars would begin a formula."""
    return text.replace("$", r"\$")


# ---- along the execution, or along depth


def _draw_flow(points: Sequence[FlowPoint], by: Order, ax: Any) -> None:
    ax.set_ylabel("‖grad‖")
    ax.set_xlabel(AXES[by])
    if not points:
        _say_nothing(ax, "no gradients to draw")
        return
    if any(point.is_drawable for point in points):
        ax.set_yscale("log")
    for group in COLORS:
        _draw_group(points, group, ax)
    _draw_outside(points, ax)
    _name_positions(points, by, ax)
    ax.grid(axis="y", alpha=0.3)
    ax.legend(loc="best", fontsize="x-small", ncols=2)


def _draw_group(points: Sequence[FlowPoint], group: Group, ax: Any) -> None:
    lines = flow_lines(points, group)
    if not lines:
        return
    positions, color = [line.position for line in lines], COLORS[group]
    ax.plot(positions, [line.norm for line in lines], color=color, marker=MARKERS[group], markersize=4, label=group)
    if any(line.low < line.high for line in lines):
        _draw_band(lines, color, ax)
    elements = [(p.position, p.largest) for p in points if p.group == group and p.is_drawable and p.largest]
    if elements:
        where, largest = zip(*elements, strict=True)
        ax.plot(where, largest, color=color, linestyle="", marker="_", alpha=0.6, label="their largest element")


def _draw_band(lines: Sequence[FlowLine], color: str, ax: Any) -> None:
    positions, lows, highs = zip(*((line.position, line.low, line.high) for line in lines), strict=True)
    label = "smallest to largest" if len(lines) > MOST_LABELS else None
    ax.fill_between(positions, lows, highs, color=color, alpha=0.15, linewidth=0, step="mid", label=label)
    if label is None:  # a line at each place tells where the band is more than a slope between two
        ax.vlines(positions, lows, highs, color=color, alpha=0.35, linewidth=1, label="smallest to largest")


def _draw_outside(points: Sequence[FlowPoint], ax: Any) -> None:
    """What has no place on a log axis stands at its edge, each kind with a sign of its own."""
    kinds = (
        ("NaN or infinite", 0.97, "X", [p for p in points if p.norm is not None and not math.isfinite(p.norm)]),
        ("zero", 0.03, "v", [p for p in points if p.norm == 0]),
        ("None", 0.03, "x", [p for p in points if p.norm is None]),
    )
    across = ax.get_xaxis_transform()  # y from 0 at the bottom to 1 at the top
    for label, height, marker, found in kinds:
        if found:
            positions = [point.position for point in found]
            style = {"linestyle": "", "marker": marker, "color": ALARM, "clip_on": False, "label": label}
            ax.plot(positions, [height] * len(found), transform=across, **style)


def _name_positions(points: Sequence[FlowPoint], by: Order, ax: Any) -> None:
    if by == "depth":
        ax.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        return
    named = [(point.position, point.label) for point in points]
    if len(named) > MOST_LABELS:
        named = _module_starts(points)
    ax.set_xticks([at for at, _ in named], [_plain(text) for _, text in named], rotation=60, ha="right", fontsize=7)
    ax.set_xlim(points[0].position - 0.5, points[-1].position + 0.5)


def _module_starts(points: Sequence[FlowPoint]) -> list[tuple[int, str]]:
    """Where another module begins, as deep as there is room for names."""
    for depth in (3, 2, 1):
        heads = [".".join(point.module.split(".")[:depth]) for point in points]
        starts = [i for i, head in enumerate(heads) if head and (i == 0 or heads[i - 1] != head)]
        if len(starts) <= MOST_LABELS:
            return [(points[i].position, heads[i]) for i in starts] or [(points[0].position, points[0].label)]
    return [(point.position, point.label) for point in points[:: -(-len(points) // MOST_LABELS)]]


# ---- over steps


def _draw_steps(found: HeatMap | None, ax: Any) -> None:
    if found is None:
        _say_nothing(ax, "nothing got more than one gradient")
        return
    colors, colormaps = _matplotlib("matplotlib.colors"), _matplotlib("matplotlib")
    numbers = [norm for norms in found.norms for norm in norms if norm is not None and 0 < norm < math.inf]
    low, high = (min(numbers), max(numbers)) if numbers else (1.0, 1.0)
    scale = colors.LogNorm(low, high if high > low else low * 10)
    colormap = colormaps.colormaps["viridis"].with_extremes(bad="#dddddd")
    cells = [[_on_scale(norm) for norm in norms] for norms in found.norms]
    width = found.columns[1] - found.columns[0] if len(found.columns) > 1 else 1
    edges = (found.columns[0] - width / 2, found.columns[-1] + width / 2, len(cells) - 0.5, -0.5)
    image = ax.imshow(cells, norm=scale, cmap=colormap, aspect="auto", interpolation="nearest", extent=edges)
    _mark_cells(found, ax)
    named = range(0, len(cells), -(-len(cells) // MOST_LINES))
    ax.set_yticks(named, [_plain(found.labels[line]) for line in named], fontsize=7)
    ax.set_xlabel(found.axis + (f" ({plural(found.more, 'row')} left out)" if found.more else ""))
    ax.figure.colorbar(image, ax=ax, label="‖grad‖ (grey: none)")


def _mark_cells(found: HeatMap, ax: Any) -> None:
    """What is not finite, and what is zero, each with its sign."""
    for label, marker, test in (("NaN or infinite", "X", _is_bad), ("zero", "v", _is_zero)):
        lines = [zip(found.columns, norms, strict=True) for norms in found.norms]
        places = [(column, y) for y, line in enumerate(lines) for column, norm in line if test(norm)]
        if places:
            ax.plot(*zip(*places, strict=True), linestyle="", marker=marker, color=ALARM, markersize=4, label=label)
            ax.legend(loc="upper right", fontsize="small")


def _on_scale(norm: float | None) -> float:
    return norm if norm is not None and 0 < norm < math.inf else math.nan


def _is_bad(norm: float | None) -> bool:
    return norm is not None and not math.isfinite(norm)


def _is_zero(norm: float | None) -> bool:
    return norm == 0


def _say_nothing(ax: Any, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center")
