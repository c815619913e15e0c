"""W8A8 in e4m3 on cards that have it: inputs rounded with one scale a token times weights with one an output."""

from __future__ import annotations

import torch

from ..channels import FP8, MAX_FP8, Fp8Weight
from .eight_bits import multiply, quantize_rows
from .inputs import check_bias, check_inputs
from .launch import check, interpreted
from .product_tiles import Tiles

MIN_CAPABILITY = (8, 9)


def unavailable(device: torch.device) -> str:
    """Why no product in e4m3 runs on this card; empty where it does."""
    if interpreted():
        return ""
    capability = torch.cuda.get_device_capability(device)
    if capability >= MIN_CAPABILITY:
        return ""
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}; "
        f"products in float8 need {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
    )


def linear_fp8(
    x: torch.Tensor, weight: Fp8Weight, bias: torch.Tensor | None = None, *, tiles: Tiles | None = None
) -> torch.Tensor:
    """x [num_tokens, num_in], bias [num_out] -> [num_tokens, num_out], summed in float32.

    Inputs are rounded as `channels.quantize_rows` does. ValueError on a card before compute capability 8.9.
    """
    if why := unavailable(x.device):
        raise ValueError(f"weight is in float8: {why}")
    check_inputs(x, weight.shape)
    check_bias(bias, x, weight.shape)
    check("weight.codes", weight.codes, dtypes=(FP8,), ndim=2, like=x)
    check("weight.scales", weight.scales, dtypes=(torch.float32,), ndim=1, like=x)
    codes, x_scales = quantize_rows(x, FP8, MAX_FP8)
    return multiply(codes, x_scales, weight.codes, weight.scales, bias, x.dtype, tiles)
