"""Layouts of checkpoints, read one code at a time as their makers describe them, against the conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.kernels import checkpoint_formats as formats
from callboard.kernels.channels import ChannelInt8
from callboard.kernels.grouped import GroupedInt4

seeds = st.integers(0, 2**32)


def words(*shape: int) -> torch.Tensor:
    """Any 32 bits."""
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def nibble(word: int, place: int) -> int:
    """Four bits of a signed word, by arithmetic alone."""
    return (word % 2**32) // 16**place % 16


def awq_code(matrix: torch.Tensor, row: int, column: int) -> int:
    """AutoAWQ packs columns 0, 2, 4, 6, 1, 3, 5, 7 of eight from the lowest bits up."""
    place = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}[column % 8]
    return nibble(int(matrix[row, column // 8]), place)


def naive(num_out: int, num_in: int, value: Callable[[int, int], float]) -> torch.Tensor:
    return torch.tensor([[value(n, k) for k in range(num_in)] for n in range(num_out)], dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 8, 12]), seeds)
def test_awq_codes_are_read_in_their_order(eights: int, num_groups: int, group_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    num_in, num_out = num_groups * group_size, 8 * eights
    qweight, qzeros = words(num_in, eights), words(num_groups, eights)
    scales = torch.randn(num_groups, num_out).half()
    weight = formats.from_awq(qweight, qzeros, scales, group_size)

    def value(n: int, k: int) -> float:
        group = k // group_size
        return (awq_code(qweight, k, n) - awq_code(qzeros, group, n)) * scales[group, n].item()

    torch.testing.assert_close(weight.dequantize(torch.float64), naive(num_out, num_in, value), rtol=0, atol=0)
    written = formats.to_awq(weight)
    for name, tensor in {"qweight": qweight, "qzeros": qzeros, "scales": scales}.items():
        assert torch.equal(written[name], tensor), name


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2]), st.booleans(), seeds)
def test_gptq_codes_zeros_and_groups(eights: int, num_groups: int, version: int, ordered: bool, seed: int) -> None:
    torch.manual_seed(seed)
    group_size, num_out = 16, 8 * eights
    num_in = num_groups * group_size
    qweight, qzeros = words(num_in // 8, num_out), words(num_groups, eights)
    scales = torch.randn(num_groups, num_out).half()
    groups = torch.arange(num_in) // group_size
    g_idx = (groups[torch.randperm(num_in)] if ordered else groups).to(torch.int32)
    weight = formats.from_gptq(qweight, qzeros, scales, g_idx, version)

    def value(n: int, k: int) -> float:
        group = int(g_idx[k])
        zero = nibble(int(qzeros[group, n // 8]), n % 8)
        if version == 1:
            zero = (zero + 1) % 16
        return (nibble(int(qweight[k // 8, n]), k % 8) - zero) * scales[group, n].item()

    expected = naive(num_out, num_in, value)
    torch.testing.assert_close(weight.dequantize(torch.float64), expected, rtol=0, atol=0)
    if not ordered:
        assert weight.order is None
        without = formats.from_gptq(qweight, qzeros, scales, None, version)
        torch.testing.assert_close(without.dequantize(torch.float64), expected, rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 18), st.integers(1, 3), st.sampled_from([2, 6, 16]), st.booleans(), st.booleans(), seeds)
def test_compressed_codes_are_signed_and_padded(
    num_out: int, num_groups: int, group_size: int, symmetric: bool, ordered: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    num_in = num_groups * group_size
    packed = words(num_out, -(-num_in // 8))
    zero_point = None if symmetric else words(-(-num_out // 8), num_groups)
    scale = torch.randn(num_out, num_groups).bfloat16()
    groups = torch.arange(num_in) // group_size
    g_idx = groups[torch.randperm(num_in)].to(torch.int32) if ordered else torch.full((num_in,), -1)
    shape = torch.tensor([num_out, num_in])
    weight = formats.from_compressed_int4(packed, scale, zero_point, g_idx, shape, symmetric)

    def value(n: int, k: int) -> float:
        group = int(g_idx[k]) if ordered else k // group_size
        signed_zero = 0 if zero_point is None else nibble(int(zero_point[n // 8, group]), n % 8) - 8
        return (nibble(int(packed[n, k // 8]), k % 8) - 8 - signed_zero) * scale[n, group].item()

    torch.testing.assert_close(weight.dequantize(torch.float64), naive(num_out, num_in, value), rtol=0, atol=0)
    written = formats.to_compressed_int4(weight, symmetric=symmetric)
    assert ("weight_zero_point" in written) is not symmetric
    back = formats.from_compressed_int4(
        written["weight_packed"],
        written["weight_scale"],
        written.get("weight_zero_point"),
        written.get("weight_g_idx"),
        written["weight_shape"],
        symmetric,
    )
    assert torch.equal(back.dequantize(), weight.dequantize())
    if num_in % 8 == 0:
        assert torch.equal(written["weight_packed"], packed)
        assert zero_point is None or num_out % 8 or torch.equal(written["weight_zero_point"], zero_point)
    if ordered and weight.order is not None:
        assert torch.equal(written["weight_g_idx"], g_idx)


def test_eight_bits_are_kept_as_they_are() -> None:
    codes, scale = torch.randint(-128, 128, (5, 7)).to(torch.int8), torch.rand(5, 1).bfloat16()
    weight = formats.from_compressed_int8(codes, scale)
    assert torch.equal(weight.dequantize(torch.float64), codes.double() * scale.double())
    written = formats.to_compressed_int8(weight)
    assert torch.equal(written["weight"], codes)
    assert torch.equal(written["weight_scale"], scale.float())
    again = formats.from_compressed_int8(written["weight"], written["weight_scale"][:, 0])
    assert torch.equal(again.dequantize(), weight.dequantize())


def _awq(**changed: Any) -> GroupedInt4:
    given = {"qweight": words(8, 2), "qzeros": words(2, 2), "scales": torch.ones(2, 16).half(), "group_size": 4}
    return formats.from_awq(**given | changed)


def _gptq(**changed: Any) -> GroupedInt4:
    given = {"qweight": words(2, 8), "qzeros": words(2, 1), "scales": torch.ones(2, 8).half(), "version": 1}
    return formats.from_gptq(**{**given, "g_idx": torch.arange(16) // 8, **changed})


def _int4(**changed: Any) -> GroupedInt4:
    given = {"packed": words(3, 2), "scale": torch.ones(3, 2), "zero_point": words(1, 2), "g_idx": None}
    return formats.from_compressed_int4(**{**given, "shape": [3, 16], "symmetric": False, **changed})


def _int8(**changed: Any) -> ChannelInt8:
    given = {"weight": torch.ones(3, 2, dtype=torch.int8), "scale": torch.ones(3, 1)}
    return formats.from_compressed_int8(**given | changed)


BROKEN = torch.tensor([[1.0, float("nan")], [1.0, 1.0], [float("inf"), 1.0]])


@pytest.mark.parametrize(
    ("convert", "changed", "message"),
    [
        (_awq, {"qweight": words(8, 2).long()}, r"qweight is int64 \[8, 2\]; int32 a matrix"),
        (_awq, {"qzeros": words(2, 3)}, r"qzeros is int32 \[2, 3\]; int32 \[2, 2\] is needed"),
        (_awq, {"scales": torch.ones(2, 15)}, r"scales is float32 \[2, 15\]; floating 2 x 16"),
        (_awq, {"scales": torch.full((2, 16), float("inf"))}, "scales has NaN or infinity"),
        (_awq, {"group_size": 3}, "qweight has 8 inputs, which are no groups of 3"),
        (_awq, {"group_size": 0}, "no groups of 0"),
        (_gptq, {"qweight": words(2, 0)}, "qweight is int32"),
        (_gptq, {"qzeros": words(1, 1)}, r"qzeros is int32 \[1, 1\]; int32 \[2, 1\]"),
        (_gptq, {"scales": torch.ones(3, 8)}, "scales has 3 groups for 16 inputs"),
        (_gptq, {"scales": torch.full((2, 8), float("nan"))}, "scales has NaN"),
        (_gptq, {"g_idx": torch.arange(15)}, r"g_idx is int64 \[15\]; a group is needed for each of 16"),
        (_gptq, {"g_idx": torch.zeros(16, dtype=torch.int32)}, "g_idx does not have 8 inputs for each"),
        (_gptq, {"version": 3}, "version is 1 or 2, not 3"),
        (_int4, {"packed": words(3, 3)}, r"weight_packed is int32 \[3, 3\]; int32 \[3, 2\]"),
        (_int4, {"scale": torch.ones(2, 2)}, "weight_scale is float32"),
        (_int4, {"scale": torch.ones(3, 3)}, "weight_scale has 3 groups for 16 inputs"),
        (_int4, {"scale": BROKEN}, "weight_scale has NaN or infinity"),
        (_int4, {"zero_point": words(3, 2)}, "weight_zero_point is int32"),
        (_int4, {"zero_point": None}, "weight_zero_point is missing"),
        (_int4, {"symmetric": True}, "weight_zero_point is there"),
        (_int4, {"g_idx": torch.ones(16, dtype=torch.int32)}, "weight_g_idx does not have 8 inputs"),
        (_int4, {"shape": [3, 16, 1]}, r"weight_shape is \[3, 16, 1\]"),
        (_int8, {"weight": torch.ones(3, 2)}, r"weight is float32 \[3, 2\]"),
        (_int8, {"scale": torch.ones(2, 1)}, "weight_scale is float32"),
        (_int8, {"scale": torch.tensor([1.0, float("nan"), 1.0])}, "weight_scale has NaN"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    convert: Callable[..., object], changed: dict[str, Any], message: str
) -> None:
    convert()
    with pytest.raises(ValueError, match=message):
        convert(**changed)


def test_what_a_layout_cannot_keep_is_refused() -> None:
    weight = GroupedInt4.from_float(torch.randn(8, 16), 8)
    between = GroupedInt4(weight.codes, weight.scales, weight.zeros + 0.5)
    reordered = GroupedInt4(weight.codes, weight.scales, weight.zeros, torch.randperm(16))
    for convert in (formats.to_awq, formats.to_compressed_int4):
        with pytest.raises(ValueError, match="zeros are not whole"):
            convert(between)
    with pytest.raises(ValueError, match="order"):
        formats.to_awq(reordered)
    with pytest.raises(ValueError, match="eights"):
        formats.to_awq(GroupedInt4.from_float(torch.randn(7, 16), 8))
    with pytest.raises(ValueError, match="not symmetric"):
        formats.to_compressed_int4(weight, symmetric=True)
