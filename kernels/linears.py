"""Products with quantized weights in plain torch, on any device; of float64 inputs they are the reference.

No more than `SLICE` values of a matrix are there in floating point at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from . import quantized
from .channels import ChannelInt8, Fp8Weight, quantize_rows
from .grouped import GroupedInt4
from .nf4 import Nf4Weight
from .planar import PlanarInt4, PlanarNf4
from .quantized import SLICE, QuantizedWeight

# Kept in few bits, multiplied with inputs as they are.
WeightOnly = GroupedInt4 | Nf4Weight | PlanarInt4 | PlanarNf4
# Multiplied with inputs of the same bits.
ChannelWeight = ChannelInt8 | Fp8Weight
Weight = WeightOnly | ChannelWeight | QuantizedWeight


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """x [num_tokens, num_in], bias [num_out] -> [num_tokens, num_out] of x's type.

    On a CPU computed in at least float32, whose processors multiply halves slowly; on a card in the type of x.
    """
    if isinstance(weight, QuantizedWeight):
        out = quantized.linear(x, weight)
    elif isinstance(weight, ChannelWeight):
        out = _with_rounded_inputs(x, weight)
    else:
        dtype = torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype
        parts = [F.linear(x.to(dtype), weight.rows(*rows, dtype)) for rows in slices(weight)]
        out = torch.cat(parts, -1).to(x.dtype)
    return out if bias is None else out + bias.to(out.dtype)


def slices(weight: Weight) -> Iterator[tuple[int, int]]:
    """The rows of a weight from the first to the last, as (first, last + 1) of at most `SLICE` values."""
    num_out, num_in = weight.shape
    step = max(1, SLICE // num_in)
    for first in range(0, num_out, step):
        yield first, min(num_out, first + step)


def _with_rounded_inputs(x: torch.Tensor, weight: ChannelWeight) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    codes, scales = quantize_rows(x, weight.code_dtype, weight.largest)
    if _has_whole_products(x, weight):
        sums = torch._int_mm(codes, weight.codes.T).to(wide)  # pyright: ignore[reportPrivateImportUsage]
    else:
        values = codes.to(wide)
        sums = torch.cat([F.linear(values, weight.codes[slice(*rows)].to(wide)) for rows in slices(weight)], -1)
    return (sums * weight.scales.to(wide) * scales.to(wide)[:, None]).to(x.dtype)


def _has_whole_products(x: torch.Tensor, weight: ChannelWeight) -> bool:
    """Whether torch multiplies int8 fast: with AVX-512's instructions. Its loop for other processors is slow."""
    fast = x.device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    # Its sums are of 32 bits, which float64 inputs, the reference, are to be free of.
    return fast and weight.code_dtype == torch.int8 and x.dtype != torch.float64 and 0 not in x.shape
