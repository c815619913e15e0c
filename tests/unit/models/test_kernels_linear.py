"""Formats of quantized weights and their products in plain torch, against float64 and against bitsandbytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from callboard.kernels import linears, native, nf4, ops_linear, planar
from callboard.kernels.channels import ChannelInt8, Fp8Weight, quantize_rows
from callboard.kernels.grouped import GroupedInt4, to_q4_1, unpack_nibbles
from callboard.kernels.linears import Weight
from callboard.kernels.nf4 import Nf4Weight
from callboard.kernels.planar import PlanarInt4, PlanarNf4
from callboard.kernels.quantized import QuantizedWeight
from callboard.kernels.weights import WeightFormat

seeds = st.integers(0, 2**32)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reordered(weight: GroupedInt4) -> GroupedInt4:
    return GroupedInt4(weight.codes, weight.scales, weight.zeros, torch.randperm(weight.shape[1]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from([2, 16, 50]), st.sampled_from([*DTYPES]), seeds)
def test_plain_rounding_is_within_half_a_step(
    num_out: int, num_groups: int, group_size: int, scale_dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(num_out, num_groups * group_size) + torch.randn(num_out, 1)
    weight[0, :group_size] = 0
    rounded = GroupedInt4.from_float(weight, group_size, scale_dtype=scale_dtype)
    assert rounded.scales.dtype == scale_dtype
    assert torch.equal(rounded.zeros, rounded.zeros.round())
    step = rounded.scales.double().repeat_interleave(group_size, 1)
    # The grid moves by half a step at most for zero to fall on a code; its ends move by what the scale was rounded.
    slack = 15 * step * torch.finfo(scale_dtype).eps + 1e-6
    error = (rounded.dequantize(torch.float64) - weight.double()).abs()
    assert bool((error <= step / 2 + slack).all())
    assert bool((rounded.dequantize()[weight == 0] == 0).all())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from([2, 16, 50]), seeds)
def test_symmetric_rounding_has_its_zero_at_eight(num_out: int, num_groups: int, group_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(num_out, num_groups * group_size)
    rounded = GroupedInt4.from_float(weight, group_size, symmetric=True)
    assert bool((rounded.zeros == 8).all())
    step = rounded.scales.double().repeat_interleave(group_size, 1)
    error = (rounded.dequantize(torch.float64) - weight.double()).abs()
    top = weight > 7 * step
    assert bool((error[~top] <= (step / 2 * 1.01)[~top]).all())
    assert bool((error[top] <= (step / 2 * 1.02)[top]).all())


def test_weights_that_are_not_finite_are_refused() -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        weight = torch.randn(4, 64)
        weight[2, 7] = value
        for make in (
            lambda w: GroupedInt4.from_float(w, 32),
            lambda w: GroupedInt4.from_float(w, 32, symmetric=True),
            ChannelInt8.from_float,
            Fp8Weight.from_float,
            Nf4Weight.from_float,
        ):
            with pytest.raises(ValueError, match="not finite"):
                make(weight)
    with pytest.raises(ValueError, match=r"beyond what scales of torch\.float16 reach"):
        GroupedInt4.from_float(torch.full((1, 4), 2e6), 4)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.sampled_from([(64, 32), (256, 128), (96, 96), (50, 50), (20, 20)]),
    st.sampled_from(DTYPES),
    seeds,
)
def test_q4_1_keeps_codes_and_moves_values_by_the_rounding_of_a_half(
    num_out: int, sizes: tuple[int, int], scale_dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    num_in, group_size = sizes
    weight = GroupedInt4.from_float(torch.randn(num_out, num_in), group_size, scale_dtype=scale_dtype)
    codes, scales, minimums = to_q4_1(weight)
    kept = QuantizedWeight(WeightFormat.INT4, num_in, codes, scales, minimums)
    assert torch.equal(unpack_nibbles(codes)[:, :num_in], unpack_nibbles(weight.codes))
    minimum = (weight.zeros.double() * weight.scales.double()).repeat_interleave(group_size, 1)
    bound = 2.0**-11 * minimum + 2.0**-25
    if scale_dtype != torch.float16:
        bound = bound + 15 * (2.0**-11 * weight.scales.double() + 2.0**-25).repeat_interleave(group_size, 1)
    # In float64, which QuantizedWeight computes in where it is asked to.
    error = (kept.dequantize(torch.float64) - weight.dequantize(torch.float64)).abs()
    assert bool((error <= bound).all())


def test_q4_1_is_refused_where_it_would_not_be_the_same_weight() -> None:
    weight = GroupedInt4.from_float(torch.randn(4, 96), 48)
    with pytest.raises(ValueError, match="groups of 48"):
        to_q4_1(weight)
    with pytest.raises(ValueError, match="reordered"):
        to_q4_1(reordered(GroupedInt4.from_float(torch.randn(4, 96), 32)))
    large = GroupedInt4(weight.codes, torch.full((4, 1), 1e5), torch.ones(4, 1))
    with pytest.raises(ValueError, match="beyond what a half holds"):
        to_q4_1(large)


def test_a_format_names_parts_that_do_not_fit() -> None:
    codes = torch.zeros(4, 32, dtype=torch.uint8)
    ones = torch.ones(4, 2)
    with pytest.raises(ValueError, match="not uint8 and floating"):
        GroupedInt4(codes.to(torch.int8), ones, ones)
    with pytest.raises(ValueError, match="codes"):
        ChannelInt8(codes, torch.ones(4))
    with pytest.raises(ValueError, match="scales"):
        ChannelInt8(codes.to(torch.int8), torch.ones(3))
    good = Nf4Weight.from_float(torch.randn(4, 64))
    with pytest.raises(ValueError, match="codes"):
        Nf4Weight(good.codes[:, :10], good.absmax, good.nested_absmax, good.offset)
    with pytest.raises(ValueError, match="absmax"):
        Nf4Weight(good.codes, good.absmax[:2], good.nested_absmax, good.offset)
    with pytest.raises(ValueError, match="nested_absmax"):
        Nf4Weight(good.codes, good.absmax, good.nested_absmax.half(), good.offset)
    with pytest.raises(ValueError, match="offset"):
        Nf4Weight(good.codes, good.absmax, good.nested_absmax, torch.zeros(2))
    with pytest.raises(ValueError, match="blocks of 64"):
        Nf4Weight.from_float(torch.randn(4, 65))


@pytest.mark.parametrize("shape", [(1, 64), (7, 320), (80, 256), (3, 128)])
def test_nf4_is_that_of_bitsandbytes(shape: tuple[int, int]) -> None:
    from bitsandbytes import functional

    matrix = torch.randn(shape) * torch.rand(shape[0], 1)
    packed, state = functional.quantize_4bit(matrix, blocksize=64, compress_statistics=True, quant_type="nf4")
    assert state.state2 is not None
    assert state.offset is not None
    assert torch.equal(nf4.dynamic_map(), state.state2.code)
    theirs = functional.dequantize_4bit(packed, state)
    # Their tensors are ours, and mean the same to the bit.
    taken = Nf4Weight(packed.view(len(matrix), -1), state.absmax, state.state2.absmax, state.offset)
    assert torch.equal(taken.dequantize(), theirs)
    # Our rounding gives their codes; among the absmax some lie so close to the middle of two values that their search
    # of the table, which is no exact one, takes the other.
    ours = Nf4Weight.from_float(matrix)
    assert torch.equal(ours.codes, taken.codes)
    assert torch.equal(ours.nested_absmax, taken.nested_absmax)
    assert torch.equal(ours.offset, taken.offset)
    # A single block is its own mean: nothing is left to scale, and any code stands for it.
    nested = ours.nested_absmax[torch.arange(len(ours.absmax)) // 256]
    exact = (matrix.view(-1, 64).abs().amax(1) - ours.offset)[nested > 0] / nested[nested > 0]
    distance, theirs = ((nf4.dynamic_map()[weight.absmax[nested > 0].int()] - exact).abs() for weight in (ours, taken))
    assert bool((distance <= theirs + 1e-6).all())
    assert bool((theirs <= distance + 1e-4).all())
    assert int((ours.absmax != taken.absmax)[nested > 0].sum()) <= 1 + 0.02 * len(exact)


def test_rows_of_nf4_are_those_of_the_whole() -> None:
    weight = Nf4Weight.from_float(torch.randn(70, 448))
    whole = weight.dequantize()
    assert torch.equal(weight.rows(33, 69), whole[33:69])
    assert torch.equal(PlanarNf4.from_nf4(weight).rows(33, 69), whole[33:69])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.sampled_from([(64, 16), (96, 48), (256, 128), (576, 64), (50, 50)]), st.integers(0, 2), seeds
)
def test_planes_hold_what_was_packed(num_out: int, sizes: tuple[int, int], kind: int, seed: int) -> None:
    torch.manual_seed(seed)
    num_in, group_size = sizes
    weight = GroupedInt4.from_float(torch.randn(num_out, num_in), group_size, symmetric=kind == 0)
    if kind == 2:
        weight = reordered(weight)
    placed = PlanarInt4.from_grouped(weight)
    assert placed.words.shape[1] % planar.WORD_MULTIPLE == 0
    assert (placed.offsets is None) is bool((weight.zeros == 8).all())
    torch.testing.assert_close(
        placed.rows(0, num_out, torch.float64), weight.dequantize(torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("num_in", [33, 64, 100])
def test_planes_of_the_cpu_engines_formats(num_in: int) -> None:
    matrix = torch.randn(5, num_in)
    int4, nf4_weight = (QuantizedWeight.from_float(matrix, f) for f in (WeightFormat.INT4, WeightFormat.NF4))
    torch.testing.assert_close(PlanarInt4.from_q4_1(int4).rows(0, 5), int4.dequantize())
    torch.testing.assert_close(PlanarNf4.from_quantized(nf4_weight).rows(0, 5), nf4_weight.dequantize())
    for convert, weight in ((PlanarInt4.from_q4_1, nf4_weight), (PlanarNf4.from_quantized, int4)):
        with pytest.raises(ValueError, match="a weight in"):
            convert(weight)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(1, 80), st.sampled_from([torch.int8, torch.float8_e4m3fn]), seeds)
def test_inputs_are_the_nearest_codes_of_their_token(
    num_tokens: int, num_in: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    largest = 127 if dtype == torch.int8 else 448.0
    x = torch.randn(num_tokens, num_in) * 10 ** torch.randn(num_tokens, 1)
    codes, scales = quantize_rows(x, dtype, largest)
    assert codes.float().abs().amax().item() == largest if num_tokens else codes.shape == (0, num_in)
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype).double()
    every = every[every.isfinite() & (every.abs() <= largest)]
    scaled = x.double() / scales.double()[:, None]
    nearest = (scaled[..., None] - every).abs().amin(-1)
    assert bool(((scaled - codes.double()).abs() <= nearest + 1e-4).all())


def weights(num_out: int, num_in: int) -> list[Weight]:
    matrix = torch.randn(num_out, num_in)
    grouped = GroupedInt4.from_float(matrix, 32)
    normal = Nf4Weight.from_float(matrix)
    return [
        grouped,
        reordered(grouped),
        GroupedInt4.from_float(matrix, num_in, symmetric=True, scale_dtype=torch.float32),
        normal,
        PlanarInt4.from_grouped(reordered(grouped)),
        PlanarNf4.from_nf4(normal),
        ChannelInt8.from_float(matrix),
        Fp8Weight.from_float(matrix),
        *(QuantizedWeight.from_float(matrix, f) for f in WeightFormat if f is not WeightFormat.FLOAT32),
    ]


def values_of(weight: Weight) -> torch.Tensor:
    if isinstance(weight, PlanarInt4 | PlanarNf4):
        return weight.rows(0, weight.shape[0], torch.float64)
    return weight.dequantize(torch.float64)


def rounded_inputs(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """float64 of what a weight's products see of x."""
    if isinstance(weight, ChannelInt8 | Fp8Weight):
        codes, scales = quantize_rows(x, weight.code_dtype, weight.largest)
        return codes.double() * scales.double()[:, None]
    if not isinstance(weight, QuantizedWeight):
        return x.double()
    if weight.format in (WeightFormat.BFLOAT16, WeightFormat.NF4):
        return x.bfloat16().double()
    wide = weight.format is WeightFormat.INT8 and native.int8_input_bits(x.shape[1]) == 16
    groups, largest = (x.float()[:, None], 32639) if wide else (x.float().unflatten(1, (-1, 32)), 127)
    top = groups.abs().amax(-1, keepdim=True)
    return ((groups * (torch.full_like(top, largest) / top)).round().double() * (top.double() / largest)).flatten(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(weights(1, 64))))
def test_products_are_those_of_float64(index: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several slices of a weight, the last of them smaller.
    monkeypatch.setattr(linears, "SLICE", 3 * 128)
    weight = weights(7, 128)[index]
    x, bias = torch.randn(5, 128).to(dtype), torch.randn(7).to(dtype)
    values, rounded = values_of(weight), rounded_inputs(x, weight)
    # Sums of float32 and one or two roundings of the result, which a bias makes two.
    terms = rounded.abs() @ values.abs().T + 1
    bound = 2 * torch.finfo(dtype).eps * (rounded @ values.T).abs() + torch.finfo(dtype).eps * bias.double().abs()
    bound += torch.finfo(dtype).eps * (rounded @ values.T + bias.double()).abs() + 1e-6 * terms
    actual = ops_linear.linear(x, weight, bias)
    assert actual.dtype == dtype
    error = (actual.double() - rounded @ values.T - bias.double()).abs()
    assert bool((error <= bound).all()), f"{type(weight).__name__} is off by {(error / bound).max():.3g} of the bound"
    batched = ops_linear.linear(x.view(1, 5, 128), weight, bias)
    assert torch.equal(batched, actual[None])
    assert ops_linear.linear(x[:0], weight).shape == (0, 7)


def test_whole_sums_of_int8_are_exact() -> None:
    weight = ChannelInt8(torch.full((2, 4096), -128, dtype=torch.int8), torch.ones(2))
    x = torch.full((1, 4096), 127.0)
    x[0, -1] = 126
    expected = torch.tensor(-128.0 * (127 * 4095 + 126), dtype=torch.float64)
    assert ops_linear.linear(x.double(), weight).tolist() == [[expected.item()] * 2]
    # Within a rounding of float32 also where torch multiplies the codes as floating numbers.
    torch.testing.assert_close(ops_linear.linear(x, weight)[0, 0].double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 5])
def test_gradients_of_inputs(index: int) -> None:
    weight = weights(4, 64)[index]
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, bias: ops_linear.linear(x, weight, bias), (x, bias))


def test_what_does_not_fit_is_named() -> None:
    weight = ChannelInt8.from_float(torch.randn(4, 64))
    with pytest.raises(ValueError, match="the weight takes 64 inputs"):
        ops_linear.linear(torch.randn(3, 63), weight)
    with pytest.raises(ValueError, match="for 4 outputs"):
        ops_linear.linear(torch.randn(3, 64), weight, torch.randn(3))
    with pytest.raises(ValueError, match="requires a gradient"):
        ops_linear.linear(torch.randn(3, 64, requires_grad=True), weight)
    with torch.no_grad():
        assert ops_linear.linear(torch.randn(3, 64, requires_grad=True), weight).shape == (3, 4)


def test_weights_stay_as_they_are_where_no_triton_runs() -> None:
    for weight in weights(4, 64):
        assert ops_linear.place(weight, torch.device("cpu")) is weight
    module = nn.ModuleList(weights(4, 64))
    assert not list(module.parameters())
