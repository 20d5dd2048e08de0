"""A gradient's numbers are those of the usual torch functions, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch

from gradmagic.births import BirthWatch
from gradmagic.gathering import Gathering
from gradmagic.places import Gradients
from gradmagic.statistics import _MOST_WAITING, Backlog, Waiting, activity, measure

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (1000, 33)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_equal_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Norm, mean, extremes, zeros."""
    gradient = torch.randn(shape, dtype=dtype).relu()
    stats = measure(gradient).result()
    assert stats.norm == gradient.norm().item()
    assert stats.mean == gradient.mean().item()
    assert (stats.min, stats.max) == (gradient.min().item(), gradient.max().item())
    assert stats.zero_fraction == pytest.approx((gradient == 0).double().mean().item())
    assert stats.rms == pytest.approx(gradient.double().pow(2).mean().sqrt().item())
    assert (stats.numel, stats.nan_count, stats.inf_count) == (gradient.numel(), 0, 0)


def test_the_norm_is_that_of_the_stored_grad_also_for_an_expanded_or_transposed_gradient() -> None:
    """`.grad` is stored densely, in the leaf's layout; a sum depends on its order."""
    expanded = torch.rand(1, 257).expand(129, 257)
    assert measure(expanded).result().norm == expanded.clone().norm().item()
    transposed = torch.rand(257, 129).t()
    stored = torch.empty(129, 257).copy_(transposed)
    assert measure(transposed, (257, 1)).result().norm == stored.norm().item()


def test_up_to_six_elements_show_their_values() -> None:
    """In row-major order."""
    assert measure(torch.arange(6.0).view(3, 2).t()).result().values == (0.0, 2.0, 4.0, 1.0, 3.0, 5.0)
    assert measure(torch.zeros(7)).result().values is None
    assert measure(torch.tensor(2.5)).result().values == (2.5,)


@pytest.mark.parametrize("start", [0, 2])
def test_memory_that_was_taken_away_is_not_read(start: int) -> None:
    """FSDP does that to parameters that are not in use; to read them would crash the process."""
    whole = torch.ones(8)
    part = whole[start:]
    whole.untyped_storage().resize_(0)
    assert math.isnan(measure(part).result().norm)


def test_backward_adds_to_a_measured_gradient_in_place() -> None:
    """As it does when nobody has looked: what comes by two paths takes the memory of one."""
    x = torch.ones(20, requires_grad=True)
    y = torch.nn.functional.tanhshrink(x)
    measured = []
    y.register_hook(lambda gradient: measured.append((measure(gradient), gradient.data_ptr())))
    (y * 2).backward(torch.ones(20))
    assert x.grad is not None
    assert [where for _, where in measured] == [x.grad.data_ptr()]


def test_zeros_without_memory_are_zeros() -> None:
    """PyTorch's derivative of the sign of a number."""
    assert measure(torch._efficientzerotensor((2, 3))).result() == measure(torch.zeros(2, 3)).result()


def test_nan_and_infinity_are_counted() -> None:
    """Also when the norm alone would not tell which."""
    stats = measure(torch.tensor([math.nan, math.inf, -math.inf, 1.0])).result()
    assert (stats.nan_count, stats.inf_count) == (1, 2)


def test_a_norm_that_overflows_is_no_infinite_element() -> None:
    """Finite elements stay finite in the count."""
    stats = measure(torch.full((4,), 3e38)).result()
    assert math.isinf(stats.norm)
    assert (stats.nan_count, stats.inf_count) == (0, 0)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex32])
def test_half_precision_is_reduced_in_float32(dtype: torch.dtype) -> None:
    """65,504 is float16's largest number; the norm of many ones is beyond it."""
    gradient = torch.full((70_000,), 300.0, dtype=dtype)
    expected = gradient.to(torch.promote_types(dtype, torch.float32)).norm().item()
    assert measure(gradient).result().norm == expected


def test_complex_gradients_are_described_by_their_magnitudes() -> None:
    """There is no smallest complex number."""
    stats = measure(torch.tensor([3 + 4j, 0j])).result()
    assert (stats.norm, stats.min, stats.max, stats.mean) == (5.0, 0.0, 5.0, 2.5)
    assert stats.values == (3 + 4j, 0j)


def test_sparse_gradients_are_described_by_their_stored_values() -> None:
    """Coalesced: a row that was looked up twice counts once."""
    gradient = torch.sparse_coo_tensor([[1, 1]], torch.tensor([2.0, 3.0]), (10,), check_invariants=True)
    stats = measure(gradient).result()
    assert (stats.norm, stats.numel, stats.values) == (5.0, 1, (5.0,))


def test_meta_tensors_have_no_numbers() -> None:
    """Nothing is there to be read."""
    stats = measure(torch.ones(3, 3, device="meta")).result()
    assert math.isnan(stats.norm)
    assert (stats.numel, stats.values) == (9, None)


def test_units_of_a_relu_are_dead_when_no_sample_wakes_them() -> None:
    """One column of three is zero in every row; an image counts its channels."""
    before = torch.tensor([[1.0, -1.0, 2.0], [-1.0, -2.0, 3.0]])
    found = activity("relu", (before,), {}, before.relu())
    assert found is not None
    assert (found.result(), found.units, found.samples) == ((1, 3, 6), 3, 2)
    image = torch.zeros(2, 3, 4, 4)
    image[:, 0] = 1.0
    found = activity("relu", (image,), {}, image)
    assert found is not None
    assert (found.result()[0], found.units, found.samples) == (2, 3, 32)


def test_tanh_is_saturated_where_less_than_two_percent_of_the_slope_is_left() -> None:
    """1 - 0.989**2 is above 2 %, 1 - 0.991**2 is below."""
    result = torch.tensor([0.5, 0.989, 0.991, -0.991])
    found = activity("tanh", (result,), {}, result)
    assert found is not None
    assert found.result() == (2, 2, 4)


def test_a_masked_softmax_with_one_possibility_left_is_not_called_saturated() -> None:
    """The first row of a causal mask has nothing to choose from."""
    scores = torch.tensor([[0.0, -math.inf], [9.0, 0.0]])
    found = activity("softmax", (scores,), {"dim": 1}, scores.softmax(1))
    assert found is not None
    assert found.result() == (1, 1, 1)


def test_a_softmax_of_complex_numbers_is_not_judged() -> None:
    """With `dtype=` it drops their imaginary parts; complex numbers cannot be compared with minus infinity."""
    scores = torch.tensor([[3 + 4j, 0j]])
    assert activity("softmax", (scores, 1), {"dtype": torch.float32}, torch.ones(1, 2) / 2) is None


def test_a_clamp_with_other_bounds_is_no_activation() -> None:
    """Only `clamp(min=0)` is a ReLU."""
    x = torch.ones(3)
    assert activity("clamp", (x, -1, 1), {}, x) is None
    assert activity("clamp", (x,), {"min": 0}, x) is not None


def on_a_device(*numbers: float) -> Waiting:
    """Numbers as they wait on a device, without one."""
    waiting = Waiting(torch.empty(0))
    waiting._tensor = torch.tensor(numbers, dtype=torch.float64)
    return waiting


def test_what_waits_on_a_device_is_read_in_one_go_and_done_in_order() -> None:
    """Also what is known already, when something before it still waits."""
    backlog = Backlog()
    done: list[list[float]] = []
    first, second = on_a_device(1.0, 2.0), on_a_device(3.0)
    for waiting in (first, second, Waiting(torch.tensor([4.0]))):
        backlog.when_known(waiting, lambda waiting=waiting: done.append(waiting.numbers()))
    backlog.when_known(None, lambda: done.append([]))
    assert done == []
    backlog.settle()
    assert done == [[1.0, 2.0], [3.0], [4.0], []]
    assert first.tensor is second.tensor is None


def test_on_the_cpu_nothing_waits() -> None:
    """What is to be done is done at once."""
    done: list[int] = []
    Backlog().when_known(Waiting(torch.tensor([4.0])), lambda: done.append(1))
    assert done == [1]


def test_the_backlog_is_bounded() -> None:
    """One wait for the device for many thousand gradients, in a cell that makes more of them."""
    backlog = Backlog()
    done: list[float] = []
    for number in range(_MOST_WAITING + 5):
        waiting = on_a_device(float(number))
        backlog.when_known(waiting, lambda waiting=waiting: done.extend(waiting.numbers()))
    assert done == [float(number) for number in range(_MOST_WAITING)]


def test_a_gradient_whose_memory_is_gone_is_not_read() -> None:
    """As FSDP leaves parameters that are not in use: to read them would end the process."""
    backlog, told = Backlog(), list[Exception]()
    watch = BirthWatch(backlog, lambda what, error: told.append(error))
    gathering = Gathering(backlog, watch, lambda what, error: told.append(error))
    gradient = torch.ones(16)
    gradient.untyped_storage().resize_(0)
    to = Gradients()
    gathering.take(gradient, None, to, 0, 1)
    gathering.settle()
    assert told == []
    assert to.last is not None
    assert math.isnan(to.last[2].result().norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("numel", [1, 2, 5, 6, 7, 8, 64, 100, 255, 256, 1000, 2040, 2041, 2048, 4096])
def test_gradients_that_are_reduced_together_have_the_numbers_of_each_alone(numel: int, dtype: torch.dtype) -> None:
    """To the last bit, for every column and the values, whatever shares the matrix with them."""
    torch.manual_seed(0)
    gradients = [torch.randn(numel, dtype=torch.float64).mul(10.0**n).to(dtype) for n in range(-2, 3)]
    gradients[1][: numel // 2] = 0
    gradients[2][-1] = math.nan
    gradients[3][0] = math.inf
    gradients.append(torch.zeros(numel, dtype=dtype))
    backlog = Backlog()
    gathering = Gathering(backlog, BirthWatch(backlog, lambda *_: None), lambda *_: None)
    received = [Gradients() for _ in gradients]
    for to, gradient in zip(received, gradients, strict=True):
        assert gathering.take(gradient, None, to, 0, 1) is None, "it did not wait"
    gathering.settle()
    for to, gradient in zip(received, gradients, strict=True):
        assert to.last is not None
        assert repr(to.last[2].result()) == repr(measure(gradient).result())


@pytest.mark.parametrize("numel", [1025, 2039, 2040, 2041, 8193, 131_072, 131_073, 132_095, 132_096, 200_003])
def test_zeros_are_counted_exactly_however_many_there_are(numel: int) -> None:
    """Truth values are added up eight at once: the rest, and rows of any length, count too."""
    gradient = torch.randn(numel).relu()
    gradient[-1], gradient[0] = 0, math.nan
    assert measure(gradient).result().zero_fraction == 1 - int(torch.count_nonzero(gradient)) / numel
    assert measure(torch.ones(numel)).result().zero_fraction == 0, "a byte has overflown"
    transposed = torch.randn(3, numel).relu().t()
    assert measure(transposed).result().zero_fraction == 1 - int(torch.count_nonzero(transposed)) / (3 * numel)
