"""W8A8 and W8A16: inputs times eight-bit weights with a scale for each output, on a card."""

from __future__ import annotations

import torch

from ..channels import MAX_INT8, ChannelInt8
from ..quantized import QuantizedWeight
from ..weights import WeightFormat
from .eight_bits import multiply, quantize_rows
from .inputs import check_bias, check_inputs
from .launch import check
from .product_tiles import Tiles


def linear_int8(
    x: torch.Tensor, weight: ChannelInt8, bias: torch.Tensor | None = None, *, tiles: Tiles | None = None
) -> torch.Tensor:
    """W8A8: x [num_tokens, num_in], bias [num_out] -> [num_tokens, num_out].

    Inputs are rounded to int8 with one scale a token, as `channels.quantize_rows` does; sums are whole numbers, so they
    are exact up to 2^31 / (127 * 128) = 132,104 inputs, beyond which x is refused.
    """
    check_inputs(x, weight.shape)
    check_bias(bias, x, weight.shape)
    check("weight.codes", weight.codes, dtypes=(torch.int8,), ndim=2, like=x)
    check("weight.scales", weight.scales, dtypes=(torch.float32,), ndim=1, like=x)
    if x.shape[1] * MAX_INT8 * (MAX_INT8 + 1) >= 1 << 31:
        raise ValueError(f"x has the shape {tuple(x.shape)}; whole sums of so many inputs do not fit 32 bits")
    codes, x_scales = quantize_rows(x, torch.int8, MAX_INT8)
    return multiply(codes, x_scales, weight.codes, weight.scales, bias, x.dtype, tiles)


def linear_int8_a16(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None, *, tiles: Tiles | None = None
) -> torch.Tensor:
    """W8A16: x stays as it is; `weight` in INT8, whose codes are exact in any type of x.

    The CPU engine rounds inputs to int8 in groups of 32, which a card's matrix instructions do not do, and one scale a
    token costs a small model percents of its perplexity; so here they are not rounded at all.
    """
    if weight.format is not WeightFormat.INT8 or weight.scales is None:
        raise ValueError(f"weight is in {weight.format}; this kernel takes int8")
    check_inputs(x, weight.shape)
    check_bias(bias, x, weight.shape)
    check("weight.codes", weight.codes, dtypes=(torch.int8,), ndim=2, like=x)
    scales = weight.scales.view(-1)
    check("weight.scales", scales, dtypes=(torch.float32,), ndim=1, like=x)
    return multiply(x, None, weight.codes, scales, bias, x.dtype, tiles)
