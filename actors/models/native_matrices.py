"""Quantized matrices of a file in the native kernels' formats: with the codes that they have, wherever that can be."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...kernels.channels import ChannelInt8
from ...kernels.grouped import Q4_1_GROUP, GroupedInt4
from ...kernels.memory import Arena
from ...kernels.quantized import QuantizedWeight
from ...kernels.weights import PackedWeight, WeightFormat
from .matrices import Weight, dequantize, one_order


def packed_as_kept(parts: Sequence[Weight], places: Sequence[torch.Tensor], arena: Arena) -> PackedWeight:
    """Parts of one product as one weight, each row at its place (int64 [rows of the part]).

    Codes stay as they are: of grouped 4 bits in INT4, whatever order the inputs have, and of 8 bits in INT8. Parts that
    are no such thing (groups that are no multiple of 32, inputs in several orders, plain numbers, a mixture) become
    numbers in bfloat16.
    """
    num_out, num_in = sum(part.shape[0] for part in parts), parts[0].shape[1]
    grouped = [part for part in parts if isinstance(part, GroupedInt4) and part.group_size % Q4_1_GROUP == 0]
    if len(grouped) == len(parts) and one_order(grouped):
        packed = PackedWeight(num_out, num_in, WeightFormat.INT4, arena=arena)
        for part, rows in zip(grouped, places, strict=True):
            packed.fill_grouped(part, rows)
        if grouped[0].order is not None:
            packed.set_order(grouped[0].order)
        return packed
    eights = [codes for part in parts if (codes := _int8(part)) is not None]
    if len(eights) == len(parts):
        packed = PackedWeight(num_out, num_in, WeightFormat.INT8, arena=arena)
        for (codes, scales), rows in zip(eights, places, strict=True):
            packed.fill_int8(codes, scales, rows)
        return packed
    packed = PackedWeight(num_out, num_in, WeightFormat.BFLOAT16, arena=arena)
    for part, rows in zip(parts, places, strict=True):
        packed.fill(dequantize(part, torch.float32), rows)
    return packed


def _int8(part: Weight) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Codes and scales of a matrix of 8 bits."""
    if isinstance(part, ChannelInt8):
        return part.codes, part.scales
    if isinstance(part, QuantizedWeight) and part.format is WeightFormat.INT8 and part.scales is not None:
        return part.codes, part.scales
    return None
