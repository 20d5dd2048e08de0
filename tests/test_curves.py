"""Series and curves: what repeats, in compact arrays that stay bounded and keep what matters."""

from __future__ import annotations

import contextlib
import math
from array import array
from dataclasses import dataclass

import pytest
from interrupts import interrupted, moments_of

from gradmagic.curves import POINTS, Curve, GradSeries, GrowingCurve, GrowingSeries, joined


@dataclass(frozen=True)
class Numbers:
    """Statistics of a gradient, as far as a series takes them."""

    norm: float
    min: float = -1.0
    max: float = 1.0
    zero_fraction: float = 0.5
    nan_count: int = 0


def of_passes(norms: list[float], loss: int = 0) -> GradSeries:
    """One gradient for each pass."""
    growing = GrowingSeries(loss)
    for step, norm in enumerate(norms):
        growing.add(step, step, 0, Numbers(norm))
    return joined([(0, growing)])


def of_times(*passes: list[float]) -> GradSeries:
    """Several occurrences in each pass, which backward delivers last first."""
    growing = GrowingSeries(0)
    start = 0
    for number, norms in enumerate(passes):
        for time in reversed(range(len(norms))):
            growing.add(number, number, start + time, Numbers(norms[time]))
        start += len(norms)
    return joined([(0, growing)])


def test_a_short_series_is_kept_whole_and_in_order_of_execution() -> None:
    """Backward delivers the last time step first."""
    found = of_times([0.1, 0.2, 0.4])
    assert found.norm.tolist() == [0.1, 0.2, 0.4]
    assert found.occurrences.tolist() == found.times.tolist() == [0, 1, 2]
    assert (found.total, found.zero_fraction.tolist(), found.nan_count.tolist()) == (3, [0.5] * 3, [0] * 3)
    assert (found.first, found.last) == ((0, 0, 0.1), (0, 2, 0.4))


def test_time_steps_are_counted_within_each_pass_where_there_are_several() -> None:
    """The occurrences count on."""
    found = of_times([1.0, 2.0], [3.0, 4.0])
    assert found.passes.tolist() == [0, 0, 1, 1]
    assert found.occurrences.tolist() == [0, 1, 2, 3]
    assert found.times.tolist() == [0, 1, 0, 1]


def test_each_pass_has_a_summary_over_time() -> None:
    """Count, ends, extremes and the geometric mean of the factors from each step to the one before."""
    first, second = of_times([0.25, 9.0, 1.0], [2.0, 1.0, math.nan]).summaries()
    assert (first.count, first.first, first.last, first.smallest, first.largest) == (3, 0.25, 1.0, 0.25, 9.0)
    assert first.factor == pytest.approx(0.5)
    assert (second.number, second.step, second.smallest, second.largest, second.factor) == (1, 1, 1.0, 2.0, None)


@pytest.mark.parametrize("norms", [[0.0, 1.0], [1.0, 0.0], [math.inf, 1.0], [1.0]])
def test_there_is_no_factor_where_a_norm_is_zero_or_not_finite_or_alone(norms: list[float]) -> None:
    """A ratio would say nothing."""
    assert of_times(norms).summaries()[0].factor is None


def test_the_series_of_one_loss_can_be_taken_out() -> None:
    """And so can the last pass."""
    one, other = GrowingSeries(0), GrowingSeries(1)
    for step in range(3):
        one.add(2 * step, step, 0, Numbers(1.0 + step))
        other.add(2 * step + 1, step, 0, Numbers(10.0 + step))
    both = joined([(0, one), (0, other)])
    assert both.losses.tolist() == [0, 1] * 3
    assert both.of(1).norm.tolist() == [10.0, 11.0, 12.0]
    assert both.of(1).steps.tolist() == [0, 1, 2]
    assert both.last_pass().norm.tolist() == [12.0]
    assert len(both.of(7)) == 0


def test_the_peaks_of_passes_are_their_largest_norms() -> None:
    """As their summaries have them; where nothing is finite it is the last."""
    series = of_times([0.25, 9.0, 1.0], [2.0, math.inf], [math.nan, math.inf], [0.0, -0.0])
    assert series.peaks() == Curve(array("q", range(4)), array("d", [9.0, 2.0, math.inf, 0.0]), 4)
    assert [summary.largest for summary in series.summaries()][:2] == [9.0, 2.0]
    once = of_passes([3.0, math.nan, 1.0])
    assert (once.peaks().steps, once.peaks().values) == (once.steps, once.norm)
    assert GradSeries().peaks() == Curve()


def test_the_factor_of_a_series_is_that_of_its_last_pass() -> None:
    """An earlier pass has no say; one occurrence has none."""
    series = of_times([1.0, 2.0], [0.25, 0.5, 1.0])
    assert series.factor == series.last_pass().factor == series.summaries()[-1].factor == 0.5
    assert of_passes([1.0, 2.0]).factor is GradSeries().factor is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_extremes_are_finite_and_the_first_of_their_kind(bad: float) -> None:
    """Whatever else is there, and however large they are: their sum may be no number."""
    huge = 1.7e308
    curve = Curve(array("q", range(6)), array("d", [bad, huge, -0.0, 0.0, huge, bad]), 6)
    assert curve.extremes == (curve.smallest, curve.largest) == ((2, -0.0), (1, huge))
    assert Curve(array("q", [0]), array("d", [bad]), 1).extremes == (None, None)


def test_a_long_series_is_thinned_and_keeps_first_last_and_extremes() -> None:
    """Evenly in steps; what is left are the true numbers."""
    norms = [1.0 + (step * 7919 % 1000) / 1000 for step in range(100_000)]
    norms[12_345], norms[54_321] = 1e-9, 1e9
    found = of_passes(norms)
    assert len(found) <= POINTS
    assert found.total == 100_000
    assert all(norms[step] == norm for step, norm in zip(found.steps, found.norm, strict=True))
    assert (found.first, found.last) == ((0, 0, norms[0]), (99_999, 0, norms[-1]))
    assert (found.smallest, found.largest) == ((12_345, 0, 1e-9), (54_321, 0, 1e9))
    gaps = [after - before for before, after in zip(found.steps, found.steps[1:], strict=False)]
    assert max(gaps) <= 256


def test_the_first_that_is_not_finite_stays() -> None:
    """It tells when training broke."""
    norms = [1.0] * 10_000
    norms[3_333:] = [math.nan] * (10_000 - 3_333)
    found = of_passes(norms)
    assert 3_333 in found.steps
    assert all(math.isfinite(norm) for step, norm in zip(found.steps, found.norm, strict=True) if step < 3_333)


@pytest.mark.parametrize("value", [math.nan, 0.0, 1.0, math.inf])
def test_a_series_of_one_value_throughout_is_bounded_too(value: float) -> None:
    """No extremes to hold on to."""
    found = of_passes([value] * 9_000)
    assert len(found) <= POINTS
    assert (found.steps[0], found.steps[-1]) == (0, 8_999)


def test_many_occurrences_in_one_pass_are_thinned_by_occurrence() -> None:
    """A scan of 50,000 steps in one graph."""
    norms = [2.0 + math.sin(time) for time in range(50_000)]
    norms[777] = 1e-3
    found = of_times(norms)
    assert len(found) <= POINTS
    assert (found.occurrences[0], found.occurrences[-1], found.total) == (0, 49_999, 50_000)
    assert found.smallest is not None
    assert found.smallest.time == 777


def test_whole_passes_go_first_so_that_those_that_stay_have_all_their_time_steps() -> None:
    """400 passes of 50 steps: the summaries of those kept are exact."""
    passes = [[1.0 + number + time / 50 for time in range(50)] for number in range(400)]
    found = of_times(*passes)
    summaries = found.summaries()
    assert len(found) <= POINTS
    assert {summary.count for summary in summaries} == {50}
    assert (summaries[0].step, summaries[-1].step) == (0, 399)
    assert all(summary.largest == passes[summary.step][-1] for summary in summaries)


def test_a_curve_knows_its_ends_and_its_extremes() -> None:
    """With the step of each; NaN is no extreme."""
    growing = GrowingCurve()
    for value in (2.0, math.nan, 5.0, 1.0, 3.0):
        growing.add(value)
    curve = growing.frozen()
    assert (curve.first, curve.last, curve.smallest, curve.largest) == ((0, 2.0), (4, 3.0), (3, 1.0), (2, 5.0))
    assert curve.total == 5
    assert Curve().first is Curve().smallest is None


def test_a_long_curve_is_thinned() -> None:
    """The same bound, the same landmarks."""
    growing = GrowingCurve()
    for step in range(70_001):
        growing.add(100.0 if step == 31_111 else float(step % 13))
    curve = growing.frozen()
    assert len(curve) <= POINTS
    assert (curve.first, curve.last, curve.largest) == ((0, 0.0), (70_000, float(70_000 % 13)), (31_111, 100.0))


def test_a_frozen_curve_does_not_grow_with_its_source() -> None:
    """A report that is shown while the cell runs stays as it was."""
    growing = GrowingCurve()
    growing.add(1.0)
    before = growing.frozen()
    growing.add(2.0)
    assert before.values == array("d", [1.0])


def grow(series: GrowingSeries, curve: GrowingCurve) -> None:
    """Until both have thinned themselves out; each number is that of its pass."""
    for step in range(50):
        series.add(step, step, 0, Numbers(step))
        curve.add(step)


def test_ctrl_c_at_any_moment_leaves_no_number_to_another_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the cell catches it and goes on."""
    monkeypatch.setattr("gradmagic.curves.POINTS", 40)
    monkeypatch.setattr("gradmagic.curves._ENOUGH", 30)
    moments = moments_of(lambda: grow(GrowingSeries(0), GrowingCurve()))
    assert len(moments) > 20
    for moment in moments:
        series, curve = GrowingSeries(0), GrowingCurve()
        with contextlib.suppress(KeyboardInterrupt):
            interrupted(lambda: grow(series, curve), moment)  # noqa: B023 - it is called at once
        series.add(100, 100, 0, Numbers(100))
        curve.add(100, 100)
        found, values = joined([(0, series)]), curve.frozen()
        assert found.norm.tolist() == found.passes.tolist()
        assert len(found.nan_count) == len(found.norm)
        assert values.values.tolist() == values.steps.tolist()
        assert (found.norm[-1], values.values[-1]) == (100, 100)
