"""The native products against float64, for every format of weights, and what the formats keep of a weight."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callboard.kernels import native, reference
from callboard.kernels.grouped import GroupedInt4
from callboard.kernels.weights import Finish, NativeEngine, PackedWeight, WeightFormat

WHY_NOT = native.unavailable()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no native kernels: {WHY_NOT}")

GROUP, GROUP_NF4 = 32, 64
# Of the sum of the magnitudes that a product adds up: float32 sums of up to 300 terms.
ROUNDING = 1e-5
# What rounding the inputs costs, of the norm of the result: 8 bits in groups of 32, or 8 bits of mantissa.
ACTIVATIONS = {WeightFormat.INT8: 0.01, WeightFormat.INT4: 0.01, WeightFormat.BFLOAT16: 0.005, WeightFormat.NF4: 0.005}


@pytest.fixture(scope="module")
def engine() -> NativeEngine:
    return NativeEngine(2)


def packed(matrix: torch.Tensor, format: WeightFormat, bias: torch.Tensor | None = None) -> PackedWeight:
    weight = PackedWeight(matrix.shape[0], matrix.shape[1], format, has_bias=bias is not None)
    weight.fill(matrix)
    if bias is not None and weight.bias is not None:
        weight.bias[: len(bias)] = bias
    return weight


def whole(weight: PackedWeight) -> torch.Tensor:
    return weight.rows(range(weight.num_out)).double()


def as_multiplied(x: torch.Tensor, format: WeightFormat) -> torch.Tensor:
    """The inputs as a product with a weight of this format reads them."""
    if format is WeightFormat.FLOAT32:
        return x.double()
    if format in (WeightFormat.BFLOAT16, WeightFormat.NF4):
        return x.bfloat16().double()
    if format is WeightFormat.INT8 and native.kernels().cb_int8_input_bits(x.shape[1]) == 16:
        top = x.abs().amax(-1, keepdim=True)
        codes = (x * torch.where(top > 0, torch.full_like(top, 32639) / top, 0)).round()
        return codes.double() * (top / 32639).double()
    groups = torch.nn.functional.pad(x, (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    top = groups.abs().amax(-1, keepdim=True)
    codes = (groups * torch.where(top > 0, torch.full_like(top, 127) / top, 0)).round()
    return (codes.double() * (top / 127).double()).flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("format", WeightFormat)
@pytest.mark.parametrize("finish", Finish)
@settings(max_examples=25)
@example(num_rows=1, num_out=64, num_in=64, has_bias=True, seed=0)
@example(num_rows=13, num_out=96, num_in=65, has_bias=False, seed=1)
@example(num_rows=7, num_out=37, num_in=300, has_bias=True, seed=2)
@given(st.integers(0, 30), st.integers(1, 100), st.integers(1, 200), st.booleans(), st.integers(0, 2**32))
def test_a_product_is_that_of_the_weight_as_it_is_kept(
    format: WeightFormat,
    finish: Finish,
    num_rows: int,
    num_out: int,
    num_in: int,
    has_bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    if finish is Finish.SILU_MUL:
        num_out = -(-num_out // 32) * 32
    x = torch.randn(num_rows, num_in) * torch.rand(num_rows, 1) * 3
    bias = torch.randn(num_out) if has_bias else None
    weight = packed(torch.randn(num_out, num_in), format, bias)
    kept, seen = whole(weight), as_multiplied(x, format)
    exact = seen @ kept.T + (0 if bias is None else bias.double())
    slack = ROUNDING * (seen.abs() @ kept.abs().T + 1)
    width = num_out // 2 if finish is Finish.SILU_MUL else num_out
    # What is not written would stay a NaN, and what is written too much would not.
    room = torch.full((num_rows + 2, width), float("nan"))
    out = room[:num_rows]
    if finish is Finish.ADD:
        before = torch.randn(num_rows, num_out)
        out.copy_(before)
        exact = exact + before.double()
    if finish is Finish.SILU_MUL:
        gate, up = exact.unflatten(1, (-1, 2, 16)).unbind(2)
        slack = slack.unflatten(1, (-1, 2, 16)).sum(2).mul(2 + gate.abs() + up.abs()).flatten(1)
        exact = (gate * torch.sigmoid(gate) * up).flatten(1)
    result = NativeEngine(1).linear(x, weight, out, finish)
    assert result is out
    assert ((out.double() - exact).abs() <= slack).all()
    assert room[num_rows:].isnan().all()


@pytest.mark.parametrize("format", ACTIVATIONS)
def test_rounding_the_inputs_costs_little(format: WeightFormat, engine: NativeEngine) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 320)
    weight = packed(torch.randn(70, 320), format)
    exact = x.double() @ whole(weight).T
    assert (engine.linear(x, weight).double() - exact).norm() < ACTIVATIONS[format] * exact.norm()


def test_it_is_known_without_them_how_many_bits_of_inputs_are_kept() -> None:
    """So that torch rounds them alike."""
    for num_in in (1, 576, native.MOST_WIDE_INPUTS, native.MOST_WIDE_INPUTS + 1):
        assert native.kernels().cb_int8_input_bits(num_in) == native.int8_input_bits(num_in)


def test_more_inputs_than_halves_of_16_bits_can_be_added_up_for_have_8(engine: NativeEngine) -> None:
    torch.manual_seed(0)
    for num_in in (native.MOST_WIDE_INPUTS, native.MOST_WIDE_INPUTS + 1):
        # As large as sums can be: all codes are the largest.
        weight = packed(torch.ones(2, num_in), WeightFormat.INT8)
        x = torch.ones(9, num_in) * torch.tensor([1.0, -1.0, 0.5] * 3)[:, None]
        exact = (x.double() @ whole(weight).T).float()
        torch.testing.assert_close(engine.linear(x, weight), exact, rtol=1e-3, atol=0)


def test_one_far_larger_input_spoils_no_more_than_its_group(engine: NativeEngine) -> None:
    torch.manual_seed(8)
    x, matrix = torch.randn(9, 640), torch.randn(70, 640)
    x[:, 40], matrix[:, 40] = 100, 0
    weight = packed(matrix, WeightFormat.INT8)
    exact = x.double() @ whole(weight).T
    assert (engine.linear(x, weight).double() - exact).norm() < 0.08 * exact.norm()  # one scale a row: 0.23


@pytest.mark.parametrize("format", WeightFormat)
def test_a_rows_product_is_the_same_in_any_company_and_with_any_threads(format: WeightFormat) -> None:
    torch.manual_seed(1)
    x = torch.randn(40, 150)
    weight = packed(torch.randn(100, 150), format, torch.randn(100))
    together = NativeEngine(1).linear(x, weight)
    for num_threads in (1, 2, 3):
        engine = NativeEngine(num_threads)
        for count in range(1, 41):
            assert torch.equal(engine.linear(x[40 - count :], weight), together[40 - count :]), (num_threads, count)


@pytest.mark.parametrize("format", WeightFormat)
def test_so_are_those_of_rows_that_threads_divide(format: WeightFormat) -> None:
    torch.manual_seed(1)
    x = torch.randn(300, 150)
    weight = packed(torch.randn(100, 150), format, torch.randn(100))
    together = NativeEngine(1).linear(x, weight)
    assert torch.equal(NativeEngine(1).linear(x[:7], weight), together[:7])
    for num_threads in (2, 3, 4):
        engine = NativeEngine(num_threads)
        for count in (128, 129, 192, 193, 255, 257, 300):  # from 64 for each
            assert torch.equal(engine.linear(x[300 - count :], weight), together[300 - count :]), (num_threads, count)


@pytest.mark.parametrize("format", WeightFormat)
@settings(max_examples=20)
@example(num_rows=33, num_out=100, num_in=70, num_threads=2, seed=0)
@given(st.integers(1, 40), st.integers(1, 150), st.integers(1, 100), st.integers(1, 3), st.integers(0, 2**32))
def test_the_likeliest_is_that_of_the_whole_product(
    format: WeightFormat, num_rows: int, num_out: int, num_in: int, num_threads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    matrix, bias = torch.randn(num_out, num_in), torch.randn(num_out)
    twice = torch.randint(num_out, (num_out // 2,))  # rows of the matrix that are there again: of equals, the first
    matrix[: num_out // 2], bias[: num_out // 2] = matrix[twice], bias[twice]
    weight = packed(matrix, format, bias)
    x, engine = torch.randn(num_rows, num_in), NativeEngine(num_threads)
    assert torch.equal(engine.likeliest(x, weight), reference.greedy(engine.linear(x, weight)))


def test_a_row_without_a_finite_largest_output_has_no_likeliest(engine: NativeEngine) -> None:
    weight = packed(torch.randn(100, 64), WeightFormat.FLOAT32, torch.zeros(100))
    assert weight.bias is not None
    x = torch.randn(12, 64)
    x[3, 5], x[7] = float("nan"), float("inf")
    assert (engine.likeliest(x, weight) < 0).tolist() == [row in (3, 7) for row in range(12)]
    weight.bias[:100] = float("-inf")
    assert (engine.likeliest(x, weight) == -1).all()
    weight.bias[40] = 0
    assert (engine.likeliest(x[:3], weight) == 40).all()


def test_float32_and_bfloat16_are_kept_as_they_are() -> None:
    torch.manual_seed(2)
    matrix = torch.randn(45, 77)
    assert torch.equal(packed(matrix, WeightFormat.FLOAT32).rows(range(45)), matrix)
    assert torch.equal(packed(matrix, WeightFormat.BFLOAT16).rows(range(45)), matrix.bfloat16().float())


def test_int8_is_within_half_a_step_of_its_row() -> None:
    torch.manual_seed(3)
    matrix = torch.randn(45, 77) * torch.logspace(-3, 3, 45)[:, None]
    matrix[7] = 0
    kept = whole(packed(matrix, WeightFormat.INT8))
    step = matrix.abs().amax(1, keepdim=True).double() / 127
    assert ((kept - matrix.double()).abs() <= 0.5001 * step).all()
    codes = (kept / step.clamp(min=1e-30)).round()
    torch.testing.assert_close(codes * step, kept, rtol=1e-6, atol=0)
    assert codes.abs().amax(1).tolist() == [127.0] * 7 + [0.0] + [127.0] * 37


def test_int4_reproduces_a_matrix_on_its_grid() -> None:
    """Groups of 32 whose values are minimum + code * step, as llama.cpp's Q4_1 has them."""
    torch.manual_seed(4)
    codes = torch.randint(0, 16, (40, 4, GROUP))
    codes[..., 0], codes[..., -1] = 0, 15  # the whole range is in use
    step = torch.randint(1, 9, (40, 4, 1)) / 64
    minimum = torch.randint(-64, 64, (40, 4, 1)) / 32
    matrix = (minimum + codes * step).flatten(1)
    assert torch.equal(packed(matrix, WeightFormat.INT4).rows(range(40)), matrix)


def test_int4_is_within_half_a_step_of_its_group() -> None:
    torch.manual_seed(5)
    matrix = torch.randn(33, 100)
    kept = packed(matrix, WeightFormat.INT4).rows(range(33))
    for first in range(0, 100, GROUP):
        group = matrix[:, first : first + GROUP]
        step = (group.amax(1) - group.amin(1)) / 15
        # The step and the minimum are halves, of 11 bits.
        slack = (0.5 * step + 2**-11 * (15 * step + group.amin(1).abs()))[:, None]
        assert ((kept[:, first : first + GROUP] - group).abs() <= slack).all()


def nf4_values() -> torch.Tensor:
    """From the definition in "QLoRA" (Dettmers et al., 2023): quantiles of the normal distribution, more of them above
    zero than below, which is one of them; scaled to [-1, 1]."""
    farthest = 0.9677083
    above = torch.special.ndtri(torch.linspace(farthest, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(farthest, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return values / values.abs().max()


def test_nf4_keeps_the_nearest_of_the_published_values() -> None:
    torch.manual_seed(6)
    table = nf4_values()
    matrix = torch.randn(50, 3 * GROUP_NF4)
    kept = whole(packed(matrix, WeightFormat.NF4)).unflatten(1, (-1, GROUP_NF4))
    groups = matrix.double().unflatten(1, (-1, GROUP_NF4))
    scale = groups.abs().amax(-1, keepdim=True).half().double()
    # A product multiplies the values in bfloat16.
    code = (kept / scale - table.bfloat16().double()[:, None, None, None]).abs().argmin(0)
    torch.testing.assert_close(table.bfloat16().double()[code] * scale, kept, rtol=1e-3, atol=1e-6)
    distances = (groups / scale - table[:, None, None, None]).abs()
    two_nearest = distances.topk(2, dim=0, largest=False)
    undecided = two_nearest.values[1] - two_nearest.values[0] < 1e-5
    assert ((code == two_nearest.indices[0]) | undecided).all()
    assert set(code.unique().tolist()) == set(range(16))
    assert all(low < high for low, high in pairwise(table.tolist()))


@pytest.mark.parametrize("format", WeightFormat)
def test_rows_may_come_in_pieces_and_in_any_order(format: WeightFormat) -> None:
    torch.manual_seed(7)
    matrix = torch.randn(75, 90)
    expected = packed(matrix, format)
    weight = PackedWeight(75, 90, format)
    for places in torch.randperm(75).split(20):
        weight.fill(matrix[places], places)
    assert torch.equal(weight.data, expected.data)
    assert torch.equal(weight.rows([74, 0, 33, 33]), expected.rows(range(75))[[74, 0, 33, 33]])


def test_formats_take_the_memory_that_they_promise() -> None:
    bits = {format: 8 * PackedWeight(256, 512, format).nbytes / (256 * 512) for format in WeightFormat}
    assert bits == {"float32": 32, "bfloat16": 16, "int8": 8 + 32 / 512, "int4": 4 + 2 * 16 / 32, "nf4": 4 + 16 / 64}


def test_arguments_that_do_not_go_together_are_refused(engine: NativeEngine) -> None:
    weight = PackedWeight(40, 50, WeightFormat.INT8)
    for rows, places in (
        (torch.zeros(3, 49), None),
        (torch.zeros(3, 50), torch.tensor([0, 1])),
        (torch.zeros(2, 50), torch.tensor([0, 40])),
        (torch.zeros(2, 50), torch.tensor([-1, 0])),
        (torch.zeros(41, 50), None),
    ):
        with pytest.raises(ValueError, match="do not fit a weight of 40"):
            weight.fill(rows, places)
    for which in ([40], [-1]):
        with pytest.raises(ValueError, match="has no row"):
            weight.rows(which)
    for x in (torch.zeros(2, 51), torch.zeros(2, 50, dtype=torch.float64)):
        with pytest.raises(ValueError, match="does not go with"):
            engine.linear(x, weight)
    x = torch.zeros(2, 50)
    for out in (torch.zeros(2, 41), torch.zeros(40, 2).T, torch.zeros(2, 40, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="contiguous float32"):
            engine.linear(x, weight, out)
    with pytest.raises(ValueError, match="turns of 16"):
        engine.linear(x, weight, finish=Finish.SILU_MUL)


def random_grouped(num_out: int, num_groups: int, group: int, *, permuted: bool) -> GroupedInt4:
    num_in = num_groups * group
    return GroupedInt4(
        torch.randint(0, 256, (num_out, num_in // 2), dtype=torch.uint8),
        (torch.rand(num_out, num_groups) / 20).half(),
        torch.randint(0, 16, (num_out, num_groups)).half(),
        torch.randperm(num_in) if permuted else None,
    )


@settings(max_examples=40)
@given(
    st.integers(1, 70),
    st.integers(1, 4),
    st.sampled_from([32, 64, 96]),
    st.booleans(),
    st.integers(1, 14),
    st.integers(0, 2**32),
)
def test_codes_in_groups_are_kept_as_they_are_in_any_order_of_inputs(
    num_out: int, num_groups: int, group: int, permuted: bool, num_rows: int, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = random_grouped(num_out, num_groups, group, permuted=permuted)
    packed = PackedWeight(num_out, weight.shape[1], WeightFormat.INT4)
    places = torch.randperm(num_out)
    packed.fill_grouped(weight, places)
    if weight.order is not None:
        packed.set_order(weight.order)
    numbers = weight.dequantize(torch.float64)
    kept = packed.rows(places).double()
    # The minimum of a group is the one thing that is rounded: to half, so by 2^-11 of 15 steps at most.
    steps = torch.empty_like(numbers).index_copy_(
        1,
        torch.arange(weight.shape[1]) if weight.order is None else weight.order,
        weight.scales.double().repeat_interleave(group, 1),
    )
    assert ((kept - numbers).abs() <= 15 * 2**-11 * steps + 1e-6).all()
    # Inputs that int8 holds exactly, a scale of one in each group: sums are whole numbers of exact parts.
    x = torch.randint(-126, 127, (num_rows, weight.shape[1])).float()
    x[:, torch.arange(0, weight.shape[1], 32) if weight.order is None else weight.order[::32]] = 127
    expected = torch.empty(num_rows, num_out, dtype=torch.float64)
    expected[:, places] = x.double() @ kept.T
    slack = 1e-5 * (x.abs() @ kept.abs().float().T).amax()
    torch.testing.assert_close(NativeEngine(2).linear(x, packed).double(), expected, rtol=1e-5, atol=float(slack))


@settings(max_examples=20)
@given(st.integers(1, 70), st.integers(1, 150), st.integers(0, 2**32))
def test_codes_of_eight_bits_are_kept_as_they_are(num_out: int, num_in: int, seed: int) -> None:
    torch.manual_seed(seed)
    codes, scales = torch.randint(-128, 128, (num_out, num_in), dtype=torch.int8), torch.rand(num_out, 1)
    packed = PackedWeight(num_out, num_in, WeightFormat.INT8)
    packed.fill_int8(codes, scales)
    assert torch.equal(packed.rows(range(num_out)), codes * scales)


def test_codes_that_do_not_fit_are_refused() -> None:
    packed = PackedWeight(8, 64, WeightFormat.INT4)
    for weight, said in (
        (random_grouped(8, 4, 16, permuted=False), "groups of 16"),
        (random_grouped(8, 1, 96, permuted=False), "8, 96"),
        (random_grouped(9, 2, 32, permuted=False), "rows 0 to 8"),
    ):
        with pytest.raises(ValueError, match=said):
            packed.fill_grouped(weight)
    large = random_grouped(8, 2, 32, permuted=False)
    huge = GroupedInt4(large.codes, torch.full((8, 2), 1e5), large.zeros.float())
    with pytest.raises(ValueError, match="half holds"):
        packed.fill_grouped(huge)
    with pytest.raises(ValueError, match="int4"):
        packed.fill_int8(torch.zeros(8, 64, dtype=torch.int8), torch.ones(8))
    with pytest.raises(ValueError, match="scales"):
        PackedWeight(8, 64, WeightFormat.INT8).fill_int8(torch.zeros(8, 64, dtype=torch.int8), torch.ones(7))
    for order in (torch.zeros(64, dtype=torch.int64), torch.arange(63)):
        with pytest.raises(ValueError, match="permutation"):
            packed.set_order(order)
