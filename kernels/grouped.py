"""Four-bit weights in groups of inputs: what those of AWQ, GPTQ and our own quantizers become when they are loaded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

MAX_CODE = 15
# Where zero lies on a symmetric grid: codes 0 to 15 stand for -8 to 7 steps.
SYMMETRIC_ZERO = 8
Q4_1_GROUP = 32


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n] of at most 15 -> uint8 [..., n / 2], the first of two in the low half."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_nibbles`."""
    return torch.stack([packed & 0x0F, packed >> 4], -1).flatten(-2)


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
        if codes.dtype != torch.uint8 or not (scales.is_floating_point() and zeros.is_floating_point()):
            raise ValueError(f"codes {codes.dtype}, scales {scales.dtype}, zeros {zeros.dtype}: not uint8 and floating")
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.register_buffer("order", order)

    @classmethod
    def from_float(
        cls,
        weight: torch.Tensor,
        group_size: int,
        symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
    ) -> GroupedInt4:
        """Plain rounding of weight [num_out, num_in] to the nearest code of each group's grid.

        The grid spans from the least to the largest of the group and holds zero, which falls on a code; symmetric,
        it spans the largest magnitude both ways, with steps of 2/15 of it and zero at code 8 (so the largest itself,
        where it is positive, is half a step beyond the last code). Codes are those for the scale as it is kept.
        """
        groups = weight.to(torch.promote_types(weight.dtype, torch.float32)).unflatten(1, (-1, group_size))
        if symmetric:
            high = groups.abs().amax(-1)
            low = -high
        else:
            low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = ((high - low) / MAX_CODE).to(scale_dtype)
        if not scales.isfinite().all():
            raise ValueError(f"weight is not finite, or beyond what scales of {scale_dtype} reach")
        kept = scales.to(groups.dtype)
        # A group of zeros, or of what rounds to them, has the scale 0: any code stands for zero.
        inverse = torch.where(kept > 0, 1 / kept, 0)
        if symmetric:
            zeros = torch.full_like(kept, SYMMETRIC_ZERO)
        else:
            zeros = (-low * inverse).round().clamp(0, MAX_CODE)
        codes = ((groups * inverse[..., None]).round() + zeros[..., None]).clamp(0, MAX_CODE)
        return cls(pack_nibbles(codes.flatten(1).to(torch.uint8)), scales, zeros.to(scale_dtype))

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
        return self.rows(0, self.shape[0], dtype)

    def rows(self, first: int, last: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the codes of the rows `first` to `last` - 1 stand for."""
        wide = torch.promote_types(dtype, torch.float32)
        codes = unpack_nibbles(self.codes[first:last]).to(wide)
        groups = codes.unflatten(1, (-1, self.group_size))
        values = (groups - self.zeros[first:last].to(wide)[..., None]) * self.scales[first:last].to(wide)[..., None]
        values = values.flatten(1).to(dtype)
        if self.order is None:
            return values
        return torch.empty_like(values).index_copy_(1, self.order, values)


def to_q4_1(weight: GroupedInt4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and minimums of `quantized.QuantizedWeight` in INT4 (GGUF's Q4_1: groups of 32, halves).

    Codes uint8 [num_out, padded num_in / 2], scales and minimums float16 [num_out, padded num_in / 32]; num_in is
    padded to a multiple of 32. Codes are the same and scales too where they were halves; the minimum, -zero * scale,
    is rounded to a half, so a value moves by at most 2^-11 of its group's minimum: 0.75 percent of a step at zero 15.
    Measured on normal weights in groups of 128: 4.5e-4 of their size (rms), where plain rounding itself costs 0.1;
    with scales of float32, which are rounded too, 6.4e-4.

    ValueError where groups are no multiples of 32, where inputs are reordered (32 inputs in a row have several scales
    there), or where a scale or minimum is beyond what a half holds.
    """
    num_in = weight.shape[1]
    group_size, num_groups = weight.group_size, weight.scales.shape[1]
    if weight.order is not None:
        raise ValueError("a weight whose inputs are reordered has no scale for 32 inputs in a row")
    if group_size % Q4_1_GROUP and num_groups > 1:
        raise ValueError(f"groups of {group_size} inputs are no multiples of {Q4_1_GROUP}")
    padding = -num_in % Q4_1_GROUP
    codes = F.pad(weight.codes, (0, padding // 2)) if padding else weight.codes
    first_inputs = torch.arange(0, num_in, Q4_1_GROUP, device=codes.device)
    scales = weight.scales.float()
    minimums = (-weight.zeros.float() * scales).half()[:, first_inputs // group_size]
    halves = scales.half()[:, first_inputs // group_size]
    if not (halves.isfinite().all() and minimums.isfinite().all()):
        raise ValueError("a scale or a minimum is beyond what a half holds")
    return codes, halves, minimums
