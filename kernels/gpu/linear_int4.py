"""W4A16: inputs in floating point times four-bit weights in groups, on a card."""

from __future__ import annotations

import torch

from ..planar import PlanarInt4
from .four_bits import multiply
from .inputs import FLOATING, check_bias, check_inputs
from .launch import check
from .product_tiles import Tiles


def linear_int4(
    x: torch.Tensor, weight: PlanarInt4, bias: torch.Tensor | None = None, *, tiles: Tiles | None = None
) -> torch.Tensor:
    """x [num_tokens, num_in], bias [num_out] -> [num_tokens, num_out], summed in float32.

    Weights are computed in float32 with few rows, and rounded to the type of x with many. `tiles`: how the product is
    cut; None: as `tiles.tiles_of_words` says.
    """
    check_inputs(x, weight.shape)
    check_bias(bias, x, weight.shape)
    check("weight.words", weight.words, dtypes=(torch.int32,), ndim=2, like=x)
    check("weight.scales", weight.scales, dtypes=FLOATING, ndim=2, like=x)
    if weight.offsets is not None:
        check("weight.offsets", weight.offsets, dtypes=FLOATING, ndim=2, like=x)
    if weight.order is not None:
        check("weight.order", weight.order, dtypes=(torch.int64,), ndim=1, like=x)
        x = x.index_select(1, weight.order)
    return multiply(x, weight, bias, tiles)
