"""Products with eight-bit weights that have a scale for each output: the kernels of `linear_int8` and `linear_fp8`.

Inputs are of the weight's own type with a scale for each token (`quantize_rows` makes them), or in floating point as
they are. Scales are applied once, to the finished sum. Few rows and many are as in `four_bits`.
"""
# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false
# Kernels are what Triton makes of them: their arguments, launches and loops are not those of plain functions.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import split
from .product_tiles import Tiles, tiles_of_inputs

# Inputs of a row that are scaled at a time.
QUANTIZE_BLOCK = 2048


def quantize_rows(x: torch.Tensor, dtype: torch.dtype, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`channels.quantize_rows` on a card, to the bit: codes [num_tokens, num_in], scales float32 [num_tokens]."""
    codes = torch.empty(x.shape, dtype=dtype, device=x.device)
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    if len(x):
        block = min(QUANTIZE_BLOCK, triton.next_power_of_2(max(16, x.shape[1])))
        _quantize_rows[(len(x),)](
            x, codes, scales, x.shape[1], x.stride(0), LARGEST=largest, WHOLE=dtype == torch.int8, BLOCK=block,
            num_warps=4 if block >= 1024 else 1,
        )  # fmt: skip
    return codes, scales


def multiply(
    x: torch.Tensor,
    x_scales: torch.Tensor | None,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """x [num_tokens, num_in] of codes with their scales [num_tokens], or floating without; codes [num_out, num_in],
    scales float32 [num_out]; all checked -> [num_tokens, num_out] of `dtype`."""
    num_tokens, num_in = x.shape
    out = torch.empty(num_tokens, len(codes), dtype=dtype, device=x.device)
    if out.numel() == 0:
        return out
    if tiles is None:
        tiles = tiles_of_inputs(num_tokens, len(codes), num_in, x.element_size(), split.num_processors(x.device))
    sums = split.buffer(out, tiles.num_splits)
    kernel = _few_rows if tiles.few else _many_rows
    grid = (triton.cdiv(num_tokens, tiles.tokens), triton.cdiv(len(codes), tiles.outputs), tiles.num_splits)
    kernel[grid](
        x,
        x_scales,
        codes,
        scales,
        bias if tiles.num_splits == 1 else None,
        sums,
        num_tokens,
        len(codes),
        num_in,
        x.stride(0),
        codes.stride(0),
        WHOLE=x.dtype == torch.int8,
        TOKENS=tiles.tokens,
        OUTPUTS=tiles.outputs,
        INPUTS=tiles.words,
        SPLITS=tiles.num_splits,
        num_warps=tiles.num_warps,
        num_stages=1 if tiles.few else 3,
    )
    return split.add(sums, bias, out)


@triton.jit
def _quantize_rows(
    x, codes, scales, num_in, stride_x, LARGEST: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A row to a program, read twice: the second time it is in the cache."""
    m = tl.program_id(0).to(tl.int64)
    tops = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, num_in, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + m * stride_x + column, mask=column < num_in, other=0).to(tl.float32)
        tops = tl.maximum(tops, tl.abs(value))
    # Divisions rounded to nearest, as everywhere: the operator's own is off by a bit now and then.
    scale = tl.div_rn(tl.max(tops, axis=0), LARGEST)
    tl.store(scales + m, scale)
    divisor = tl.where(scale > 0, scale, 1.0)
    for start in range(0, num_in, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + m * stride_x + column, mask=column < num_in, other=0).to(tl.float32)
        scaled = tl.div_rn(value, divisor + tl.zeros_like(value))
        scaled = tl.where(scale > 0, tl.minimum(tl.maximum(scaled, -LARGEST), LARGEST), 0.0)
        # At 1.5 * 2^23 steps a sum is rounded to whole steps, halves to even; so the cast that follows is exact.
        if WHOLE:
            step = 1.0
        else:
            # Three bits of mantissa, and no step smaller than that of the exponent -6.
            power = (scaled.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
            step = tl.maximum(power, 0.015625) * 0.125
        scaled = (scaled + step * 12582912.0) - step * 12582912.0
        tl.store(codes + m * num_in + column, scaled.to(codes.dtype.element_ty), mask=column < num_in)


@triton.jit
def _few_rows(
    x, x_scales, codes, scales, bias, out, num_tokens, num_out, num_in, stride_x, stride_codes, WHOLE: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """out [SPLITS, num_tokens, num_out]. Tiles are [TOKENS, OUTPUTS, INPUTS] or broadcast to it, 16 bytes to a thread.

    WHOLE: inputs are codes of int8, and sums whole numbers.
    """
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None, None]
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)[None, :, None]
    part = tl.program_id(2)
    rows = codes + n.to(tl.int64) * stride_codes
    inputs = x + m.to(tl.int64) * stride_x
    if WHOLE:
        sums = tl.zeros([TOKENS, OUTPUTS, INPUTS], dtype=tl.int32)
    else:
        sums = tl.zeros([TOKENS, OUTPUTS, INPUTS], dtype=tl.float32)
    for start in range(part * INPUTS, num_in, SPLITS * INPUTS):
        k = start + tl.arange(0, INPUTS)[None, None, :]
        places = rows + k
        if x.dtype.element_ty.primitive_bitwidth > 8:
            # 8 to a load, as there are of inputs in 16 bits: then both are in the same registers.
            places = tl.max_contiguous(places, [1, 1, 8])
        code = tl.load(places, mask=(n < num_out) & (k < num_in), other=0.0, eviction_policy="evict_first")
        inp = tl.load(inputs + k, mask=(m < num_tokens) & (k < num_in), other=0.0)
        sums += code.to(sums.dtype) * inp.to(sums.dtype)
    result = tl.sum(sums, axis=2).to(tl.float32)
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)[None, :]
    _finish(result, m, n, part, x_scales, scales, bias, out, num_tokens, num_out)


@triton.jit
def _many_rows(
    x, x_scales, codes, scales, bias, out, num_tokens, num_out, num_in, stride_x, stride_codes, WHOLE: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """out [SPLITS, num_tokens, num_out]."""
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    part = tl.program_id(2)
    rows = codes + n.to(tl.int64) * stride_codes
    inputs = x + m.to(tl.int64) * stride_x
    if WHOLE:
        sums = tl.zeros([OUTPUTS, TOKENS], dtype=tl.int32)
    else:
        sums = tl.zeros([OUTPUTS, TOKENS], dtype=tl.float32)
    for start in range(part * INPUTS, num_in, SPLITS * INPUTS):
        k = start + tl.arange(0, INPUTS)[None, :]
        code = tl.load(rows + k, mask=(n < num_out) & (k < num_in), other=0.0)
        inp = tl.load(inputs + k, mask=(m < num_tokens) & (k < num_in), other=0.0)
        if WHOLE:
            sums = tl.dot(code, tl.trans(inp), sums, out_dtype=tl.int32)
        elif code.dtype == inp.dtype:
            # Sums of float8 products keep some 14 bits in the matrix unit: they leave it after each step.
            sums = tl.dot(code, tl.trans(inp), sums, max_num_imprecise_acc=INPUTS)
        else:
            # Whole numbers to 128 are exact in any floating type.
            sums = tl.dot(code.to(inp.dtype), tl.trans(inp), sums, input_precision="ieee")
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[None, :]
    _finish(sums.to(tl.float32), m, n, part, x_scales, scales, bias, out, num_tokens, num_out)


@triton.jit
def _finish(result, m, n, part, x_scales, scales, bias, out, num_tokens, num_out):
    """A tile of sums, in whichever order of dimensions m and n have, becomes values of the result."""
    result *= tl.load(scales + n, mask=n < num_out, other=0)
    if x_scales is not None:
        result *= tl.load(x_scales + m, mask=m < num_tokens, other=0)
    if bias is not None:
        result += tl.load(bias + n, mask=n < num_out, other=0).to(tl.float32)
    place = (part * num_tokens + m).to(tl.int64) * num_out + n
    tl.store(out + place, result.to(out.dtype.element_ty), mask=(m < num_tokens) & (n < num_out))
