"""Matrices in few bits as a decoder keeps them: what is done to a product's weight whatever its format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...kernels import ops, ops_linear
from ...kernels.channels import ChannelInt8
from ...kernels.grouped import GroupedInt4
from ...kernels.planar import PlanarInt4, PlanarNf4
from ...kernels.quantized import QuantizedWeight
from .errors import UnsupportedModel

QUANTIZED = (GroupedInt4, ChannelInt8, QuantizedWeight)
# As it is kept anywhere, on a card too.
KEPT = (*QUANTIZED, PlanarInt4, PlanarNf4)
Quantized = GroupedInt4 | ChannelInt8 | QuantizedWeight
# A canonical tensor of a file: its numbers, or a matrix that the file has in few bits.
Weight = torch.Tensor | Quantized


class Apart(nn.Module):
    """Matrices of one input that are one product, but cannot be one matrix: their outputs are laid end to end.

    What differs is the format, the size of groups, or the order that GPTQ gave the inputs.
    """

    def __init__(self, parts: Sequence[Weight]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            part if isinstance(part, QUANTIZED) else _Plain(part)  # pyright: ignore[reportArgumentType]
            for part in parts
        )

    @property
    def shape(self) -> tuple[int, int]:
        shapes = [weight.shape for weight in self._weights()]
        return sum(shape[0] for shape in shapes), shapes[0][1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.cat([dequantize(weight, dtype) for weight in self._weights()])

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([linear(x, weight) for weight in self._weights()], -1)

    def _weights(self) -> list[Weight]:
        return [part.weight if isinstance(part, _Plain) else part for part in self.parts]  # pyright: ignore


class _Plain(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


def place(model: nn.Module, device: torch.device) -> None:
    """Bring a model's quantized matrices, when all are there, into the layout that the device's kernels read.

    Not those of its embeddings, whose rows are looked up. Raises UnsupportedModel for groups of a size that the kernels
    there do not take.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, QUANTIZED) and name != "embedding" and child is not getattr(module, "embedding", None):
                try:
                    setattr(module, name, ops_linear.place(child, device))
                except ValueError as error:
                    raise UnsupportedModel(
                        f"its quantized weights cannot be multiplied on {device}: {error}"
                    ) from error


def linear(x: torch.Tensor, weight: Weight | Apart) -> torch.Tensor:
    """x [num_tokens, num_in], weight [num_out, num_in] -> [num_tokens, num_out]."""
    return weight.linear(x) if isinstance(weight, Apart) else ops.linear(x, weight)


def dequantize(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    return weight.dequantize(dtype) if isinstance(weight, QUANTIZED) else weight.to(dtype)


def take_rows(weight: Quantized, rows: torch.Tensor) -> Quantized:
    """Some outputs of a matrix, in that order (int64)."""
    if isinstance(weight, GroupedInt4):
        return GroupedInt4(weight.codes[rows], weight.scales[rows], weight.zeros[rows], weight.order)
    if isinstance(weight, ChannelInt8):
        return ChannelInt8(weight.codes[rows], weight.scales[rows])
    scales = None if weight.scales is None else weight.scales[rows]
    minimums = None if weight.minimums is None else weight.minimums[rows]
    return QuantizedWeight(weight.format, weight.num_in, weight.codes[rows], scales, minimums)


def stack(parts: Sequence[Weight]) -> Weight | Apart:
    """Products of one input as one: one matrix where their formats are the same, else `Apart`."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, GroupedInt4) for part in parts):
        grouped: list[GroupedInt4] = list(parts)  # pyright: ignore[reportAssignmentType]
        if one_grid(grouped):
            codes, scales, zeros = (
                torch.cat([getattr(part, name) for part in grouped]) for name in ("codes", "scales", "zeros")
            )
            return GroupedInt4(codes, scales, zeros, grouped[0].order)
    elif all(isinstance(part, ChannelInt8) for part in parts):
        codes, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
        return ChannelInt8(codes, scales)
    elif all(isinstance(part, QuantizedWeight) for part in parts):
        eights: list[QuantizedWeight] = list(parts)  # pyright: ignore[reportAssignmentType]
        if len({part.format for part in eights}) == 1:
            codes = torch.cat([part.codes for part in eights])
            scales, minimums = (
                None if getattr(eights[0], name) is None else torch.cat([getattr(part, name) for part in eights])
                for name in ("scales", "minimums")
            )
            return QuantizedWeight(eights[0].format, eights[0].num_in, codes, scales, minimums)
    elif all(isinstance(part, torch.Tensor) for part in parts):
        return torch.cat(list(parts))  # pyright: ignore[reportArgumentType, reportCallIssue]
    return Apart(parts)


def one_grid(parts: Sequence[GroupedInt4]) -> bool:
    """Whether matrices have groups of one size, and their inputs in one order."""
    return one_order(parts) and len({(part.group_size, part.scales.dtype) for part in parts}) == 1


def one_order(parts: Sequence[GroupedInt4]) -> bool:
    first, *others = (part.order for part in parts)
    if first is None:
        return all(order is None for order in others)
    return all(order is not None and torch.equal(order, first) for order in others)
