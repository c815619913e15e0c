"""W4A16: inputs in floating point times four-bit weights in groups, on a card."""

from __future__ import annotations

import torch
import triton

from ..planar import PlanarInt4
from . import split, tuning
from .four_bits import MAX_TILED, multiply
from .inputs import FLOATING, check_bias, check_inputs
from .launch import check
from .product_tiles import Tiles, choices_of_words, tiles_of


def linear_int4(
    x: torch.Tensor, weight: PlanarInt4, bias: torch.Tensor | None = None, *, tiles: Tiles | None = None
) -> torch.Tensor:
    """x [num_tokens, num_in], bias [num_out] -> [num_tokens, num_out], summed in float32.

    Weights are computed in float32 with few rows, and rounded to the type of x with many. `tiles`: how the product is
    cut; None: as is fastest on this card, which is tried once (`tuning`).
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
    if tiles is None and 0 < len(x) <= MAX_TILED and weight.shape[0]:
        tiles = _tuned(x, weight, bias)
    return multiply(x, weight, bias, tiles)


def _tuned(x: torch.Tensor, weight: PlanarInt4, bias: torch.Tensor | None) -> Tiles:
    # Numbers of rows that lie between the same powers of two are cut alike.
    rows, (num_out, num_in) = triton.next_power_of_2(len(x)), weight.shape
    choices = choices_of_words(rows, num_out, weight.words.shape[1], split.num_processors(x.device))
    key = (rows, num_out, num_in, str(x.dtype), int(weight.kind), weight.group_words, bias is None)
    return tiles_of(tuning.pick("linear_int4", key, choices, lambda config: _run(config, x, weight, bias)))


def _run(config: tuning.Config, x: torch.Tensor, weight: PlanarInt4, bias: torch.Tensor | None) -> None:
    multiply(x, weight, bias, tiles_of(config))
