"""Four-bit weights in groups of inputs: what those of AWQ, GPTQ and our own quantizers become when they are loaded."""

from __future__ import annotations

import torch
from torch import nn


class GroupedInt4(nn.Module):
    """A matrix [num_out, num_in] whose value is (code - zero) * scale.

    codes   uint8 [num_out, num_in / 2]        two of four bits, the low half is the first
    scales  floating [num_out, num_groups]     a group is num_in / num_groups inputs in a row
    zeros   floating [num_out, num_groups]     in steps of a code; 8 throughout where the grid is symmetric
    order   int64 [num_in] or None             column i of what is kept multiplies input order[i] (GPTQ's act-order)
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    order: torch.Tensor | None

    def __init__(
        self, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, order: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        num_in = 2 * codes.shape[1]
        if scales.shape != zeros.shape or scales.shape[0] != codes.shape[0] or num_in % scales.shape[1]:
            raise ValueError(
                f"codes {tuple(codes.shape)}, scales {tuple(scales.shape)} and zeros {tuple(zeros.shape)} are not of "
                "one matrix"
            )
        if order is not None and order.shape != (num_in,):
            raise ValueError(f"an order of {tuple(order.shape)} for {num_in} inputs")
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.register_buffer("order", order)

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], 2 * self.codes.shape[1]

    @property
    def group_size(self) -> int:
        return self.shape[1] // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the codes stand for, [num_out, num_in], columns in the order of the inputs."""
        wide = torch.promote_types(dtype, torch.float32)
        codes = torch.stack([self.codes & 0x0F, self.codes >> 4], -1).flatten(1).to(wide)
        groups = codes.unflatten(1, (-1, self.group_size))
        values = (groups - self.zeros.to(wide)[..., None]) * self.scales.to(wide)[..., None]
        values = values.flatten(1).to(dtype)
        if self.order is None:
            return values
        return torch.empty_like(values).index_copy_(1, self.order, values)
