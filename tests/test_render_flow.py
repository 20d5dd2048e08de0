"""The flow of gradients as numbers, and drawn by matplotlib."""

from __future__ import annotations

import math
import sys
from array import array
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from IPython.utils.capture import capture_output
from matplotlib import pyplot
from matplotlib.figure import Figure
from plain import run_plain, run_traced
from sample_reports import at, constant, gan, large, rnn, row, series, small, stats
from shells import session

from gradmagic.curves import GradSeries
from gradmagic.records import TensorRow
from gradmagic.render.flow import FlowPoint, depths_of, flow_lines, flow_points, heat_map
from gradmagic.render.plot import bundle, picture
from gradmagic.report import Report


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    yield
    pyplot.close("all")


def chain(*norms: float | None) -> Report:
    """x0 -> x1 -> ... -> the root, with these norms."""
    rows = [
        row(f"x{i}", i + 2, grad=stats(norm) if norm is not None else None, inputs=(i - 1,) if i else ())
        if norm is not None
        else row(f"x{i}", i + 2, reason="cut_upstream", culprit=at(1), inputs=(i - 1,) if i else ())
        for i, norm in enumerate(norms)
    ]
    return Report(rows=rows, root=rows[-1])


def times(points: list[FlowPoint]) -> list[tuple[int, str]]:
    return [(point.position, point.label) for point in points]


class TestFlow:
    def test_norms_are_those_of_plain_pytorch(self) -> None:
        """Each point has the norm that retain_grad shows in an untraced run."""
        source = "w = torch.arange(4.).requires_grad_()\nh = w * 3\nz = h.exp()\nloss = z.sum()\n"
        report, _ = run_traced(source)
        plain = run_plain(source).namespace
        norms = {point.label: point.norm for point in flow_points(report)}
        assert norms == {name: float(plain[name].grad.norm()) for name in ("w", "h", "z", "loss")}

    def test_leaves_and_what_is_made_from_them_are_apart(self) -> None:
        """Parameters and other leaves are one group, non-leaves the other; constants have no place."""
        rows = [constant("x", 2), row("w", 3, kind="leaf", grad=stats(2.0)), row("h", 4, grad=stats(1.0))]
        points = flow_points(Report(rows=rows))
        assert [(point.label, point.group, point.position) for point in points] == [
            ("w", "parameters", 0),
            ("h", "activations", 1),
        ]

    def test_a_gradient_that_is_missed_is_a_point_without_a_norm(self) -> None:
        """What a person would look for is there; what nobody expects is not."""
        points = flow_points(chain(1.0, None, 1.0))
        assert [point.norm for point in points] == [1.0, None, 1.0]
        assert not points[1].is_drawable

    def test_the_band_is_that_of_all_occurrences(self) -> None:
        """A row of a loop spans from its smallest to its largest norm; its point is the last."""
        rows = [row("h", 2, count=3, grad=stats(4.0), grads=series([2.0, 8.0, 4.0]))]
        (line,) = flow_lines(flow_points(Report(rows=rows)), "activations")
        assert (line.norm, line.low, line.high) == (4.0, 2.0, 8.0)

    def test_a_scaled_loss_is_drawn_without_its_scale(self) -> None:
        """As in the table."""
        report = replace(chain(8.0, 4.0), scale=4.0)
        assert [point.norm for point in flow_points(report)] == [2.0, 4.0]  # the root's own is as it is

    def test_depth_is_the_longest_way_to_the_root(self) -> None:
        """A shortcut does not make a tensor less deep, and a loop's way back does not count."""
        rows = [
            row("x", 2, inputs=(2,), grad=stats(1.0)),
            row("h", 3, inputs=(0,), grad=stats(1.0)),
            row("z", 4, inputs=(0, 1, 2), grad=stats(1.0)),
            row("loss", 5, inputs=(0, 2), grad=stats(1.0)),
            row("aside", 6, inputs=(0,), grad=stats(1.0)),
        ]
        report = Report(rows=rows, root=rows[3])
        assert depths_of(report) == [3, 2, 1, 0, None]
        assert times(flow_points(report, "depth")) == [(-3, "x"), (-2, "h"), (-1, "z"), (0, "loss")]

    def test_several_tensors_at_one_depth_are_a_median_and_a_band(self) -> None:
        """Two branches of one depth share a position."""
        rows = [
            row("a", 2, grad=stats(1.0)),
            row("b", 3, grad=stats(3.0)),
            row("loss", 4, inputs=(0, 1), grad=stats(1.0)),
        ]
        line = flow_lines(flow_points(Report(rows=rows, root=rows[2]), "depth"), "activations")[0]
        assert (line.position, line.norm, line.low, line.high) == (-1, 2.0, 1.0, 3.0)


class TestHeatMap:
    def test_over_passes_each_step_is_a_column(self) -> None:
        """A training loop: the norms of each step."""
        rows = [row("w", 2, kind="leaf", grad=stats(3.0), grads=series([1.0, 2.0, 3.0], passes=[0, 1, 2]))]
        found = heat_map(Report(rows=rows))
        assert found is not None
        assert (found.axis, found.columns, found.norms) == ("step", (0, 1, 2), ((1.0, 2.0, 3.0),))

    def test_within_one_pass_each_time_step_is_a_column(self) -> None:
        """An unrolled loop."""
        rows = [row("h", 2, grad=stats(3.0), grads=series([1.0, math.nan, 3.0])), row("z", 3, grad=stats(1.0))]
        found = heat_map(Report(rows=rows))
        assert found is not None
        assert (found.axis, found.labels) == ("time step", ("h",))
        assert found.norms[0][0] == 1.0
        assert math.isnan(found.norms[0][1] or 0.0)

    def test_many_steps_share_columns_and_what_is_not_finite_wins(self) -> None:
        """1,000 steps are 200 columns of five."""
        norms = [1.0] * 1_000
        norms[7] = math.inf
        found = heat_map(Report(rows=[row("h", 2, grad=stats(1.0), grads=series(norms, passes=list(range(1_000))))]))
        assert found is not None
        assert len(found.columns) == 200
        assert [i for i, norm in enumerate(found.norms[0]) if norm == math.inf] == [1]

    def test_nothing_repeats(self) -> None:
        """Then there is no heat map."""
        assert heat_map(chain(1.0, 1.0)) is None

    def test_many_rows_are_thinned_and_counted(self) -> None:
        """At most 60 lines."""
        rows = [row(f"h{i}", i + 2, grad=stats(1.0), grads=series([1.0, 2.0])) for i in range(130)]
        found = heat_map(Report(rows=rows))
        assert found is not None
        assert len(found.labels) + found.more == 130
        assert len(found.labels) <= 60


class TestPlot:
    def test_it_returns_axes_with_a_log_scale(self) -> None:
        """Lines of both groups, named in the legend."""
        ax = rnn().plot()
        assert ax.get_yscale() == "log"
        assert {"activations", "parameters", "None"} <= {text.get_text() for text in ax.get_legend().get_texts()}
        assert "h" in [label.get_text() for label in ax.get_xticklabels()]

    def test_it_draws_on_the_axes_it_is_given(self) -> None:
        """Nothing of pyplot's is made then."""
        above, below = Figure().subplots(2, 1)
        assert rnn().plot(ax=above) is above
        assert rnn().plot("steps", ax=below) is below
        assert pyplot.get_fignums() == []

    def test_the_numbers_drawn_are_the_norms(self) -> None:
        """Point by point."""
        ax = chain(4.0, 2.0, 1.0).plot()
        (line,) = [line for line in ax.get_lines() if line.get_label() == "activations"]
        assert list(line.get_ydata()) == [4.0, 2.0, 1.0]

    @pytest.mark.parametrize(
        "report",
        [
            Report(),
            chain(None, None),
            chain(0.0, 0.0),
            chain(math.nan, 1.0),
            chain(math.inf, math.inf),
            Report(rows=[constant("x", 1)]),
            gan(),
            large(300),
            Report(rows=[row("a$b$c", 2, grad=small(1.0)), row("重み🔥", 3, grad=small(1.0))]),
        ],
        ids=["empty", "None", "zeros", "NaN", "infinite", "constants", "losses", "large", "odd names"],
    )
    @pytest.mark.parametrize("by", ["execution", "depth"])
    def test_every_report_can_be_drawn(self, report: Report, by: str) -> None:
        """Whatever is in it, as a flow and as a picture."""
        report.plot(by=by)  # type: ignore[arg-type]  # parametrized
        assert picture(report).startswith(b"\x89PNG")

    def test_steps_with_holes_nan_and_zeros(self) -> None:
        """Signs tell them apart."""
        losses = GradSeries(
            *(array("q", [0, 2]),) * 5,
            **{name: array("d", [0.0, math.nan]) for name in ("norm", "min", "max", "zero_fraction")},
            nan_count=array("q", [0, 1]),
            total=2,
        )
        ax = Report(rows=[row("h", 2, grad=stats(1.0), grads=losses)]).plot("steps")
        assert {text.get_text() for text in ax.get_legend().get_texts()} == {"NaN or infinite", "zero"}

    def test_wrong_words_are_refused(self) -> None:
        """With those that are right."""
        with pytest.raises(ValueError, match="'flow' or 'steps', not 'both'"):
            rnn().plot("both")  # type: ignore[arg-type]  # what is tested
        with pytest.raises(ValueError, match="'execution' or 'depth', not 'line'"):
            rnn().plot(by="line")  # type: ignore[arg-type]  # what is tested

    def test_without_matplotlib_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One sentence, with the command."""
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r'needs matplotlib: pip install "gradmagic\[plot\]"'):
            rnn().plot()

    def test_the_picture_touches_nothing_of_pyplots(self) -> None:
        """The person's current figure stays what it was."""
        figure = pyplot.figure()
        assert "image/png" in bundle(rnn())[0]
        assert pyplot.gcf() is figure

    def test_it_opens_as_an_image_of_the_size_it_says(self) -> None:
        """Read by matplotlib itself."""
        pixels = pyplot.imread(BytesIO(picture(rnn())))
        assert pixels.shape[1] == 9 * 144


class TestMagic:
    CELL = "w = torch.tensor([1.0, 2.0], requires_grad=True)\nloss = (w * 2).sum()"

    def test_plot_stands_below_the_report(self) -> None:
        """The table first, then an image that needs no script and no network."""
        with session() as here, capture_output() as shown:
            here.shell.run_cell("import torch")
            here.shell.run_cell(f"%%gradtrace --plot\n{self.CELL}")
        table, plot = [output.data for output in shown.outputs]
        assert "<table" in table["text/html"]
        assert b64decode(plot["image/png"]).startswith(b"\x89PNG")
        assert "savefig" in plot["text/plain"]

    def test_without_matplotlib_nothing_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A long cell does not end in that message."""
        monkeypatch.setattr("gradmagic.options.find_spec", lambda name: None)
        with session() as here:
            ran = here.run("%%gradtrace --plot\nran = True")
        assert 'pip install "gradmagic[plot]"' in ran.stderr + ran.stdout
        assert "ran" not in ran.names


def test_reports_of_real_loops_are_drawn() -> None:
    """A training loop with an optimizer: twelve steps, twelve columns."""
    source = (
        "net = torch.nn.Linear(4, 2)\nopt = torch.optim.SGD(net.parameters(), 0.1)\n"
        "for step in range(12):\n    opt.zero_grad()\n    loss = net(torch.ones(3, 4)).pow(2).sum()\n"
        "    loss.backward()\n    opt.step()\n"
    )
    torch.manual_seed(0)
    report, _ = run_traced(source)
    found = heat_map(report)
    assert found is not None
    assert found.columns == tuple(range(12))
    assert "net.weight" in found.labels
    assert isinstance(report.rows[0], TensorRow)
