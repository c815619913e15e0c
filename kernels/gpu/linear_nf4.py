"""Inputs in floating point times weights in NF4, on a card; absmax of 8 bits are decoded in the kernel."""

from __future__ import annotations

import torch

from ..planar import PlanarNf4
from .four_bits import multiply
from .inputs import FLOATING, check_bias, check_inputs
from .launch import check
from .product_tiles import Tiles


def linear_nf4(
    x: torch.Tensor, weight: PlanarNf4, bias: torch.Tensor | None = None, *, tiles: Tiles | None = None
) -> torch.Tensor:
    """x [num_tokens, num_in], bias [num_out] -> [num_tokens, num_out], summed in float32.

    Weights are computed in float32 with few rows, and rounded to the type of x with many. `tiles`: how the product is
    cut; None: as `tiles.tiles_of_words` says.
    """
    check_inputs(x, weight.shape)
    check_bias(bias, x, weight.shape)
    check("weight.words", weight.words, dtypes=(torch.int32,), ndim=2, like=x)
    check("weight.values", weight.values, dtypes=(torch.float32,), ndim=1, like=x)
    check("weight.absmax", weight.absmax, dtypes=(*FLOATING, torch.uint8), ndim=2, like=x)
    return multiply(x, weight, bias, tiles)
