"""Four-bit NormalFloat weights with double quantization, as bitsandbytes keeps them (QLoRA, arXiv:2305.14314).

What a code means agrees with `bitsandbytes.functional.dequantize_4bit` to the bit, so tensors of its checkpoints can be
taken as they are; `quantized.QuantizedWeight` has an NF4 of its own for the CPU engine, with a half for 64 inputs.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from .quantized import NF4_VALUES

BLOCK = 64
NESTED_BLOCK = 256


class Nf4Weight(nn.Module):
    """A matrix [num_out, num_in] whose value is NF4_VALUES[code] * absmax of its block of 64 inputs.

    codes          uint8 [num_out, num_in / 2]             two of four bits, the high half is the first
    absmax         uint8 [num_out * num_in / 64]           codes of `dynamic_map`, blocks in the order of the matrix
    nested_absmax  float32 [ceil(num_blocks / 256)]        what 256 values of the map are multiplied with
    offset         float32 []                              what is then added: the mean of the absmax

    num_in is a multiple of 64, so that no block crosses a row.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    nested_absmax: torch.Tensor
    offset: torch.Tensor

    def __init__(
        self, codes: torch.Tensor, absmax: torch.Tensor, nested_absmax: torch.Tensor, offset: torch.Tensor
    ) -> None:
        super().__init__()
        if codes.ndim != 2 or codes.dtype != torch.uint8 or 2 * codes.shape[1] % BLOCK:
            raise ValueError(f"codes {codes.dtype} {tuple(codes.shape)} are no uint8 with inputs in blocks of {BLOCK}")
        num_blocks = 2 * codes.numel() // BLOCK
        if absmax.shape != (num_blocks,) or absmax.dtype != torch.uint8:
            raise ValueError(f"absmax {absmax.dtype} {tuple(absmax.shape)}: uint8 for each of {num_blocks} blocks")
        num_nested = -(-num_blocks // NESTED_BLOCK)
        if nested_absmax.shape != (num_nested,) or nested_absmax.dtype != torch.float32:
            raise ValueError(
                f"nested_absmax {nested_absmax.dtype} {tuple(nested_absmax.shape)}: {num_nested} of float32 are needed"
            )
        if offset.numel() != 1 or offset.dtype != torch.float32:
            raise ValueError(f"offset {offset.dtype} {tuple(offset.shape)}: one float32 is needed")
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.register_buffer("nested_absmax", nested_absmax)
        self.register_buffer("offset", offset.reshape(()))

    @classmethod
    def from_float(cls, weight: torch.Tensor) -> Nf4Weight:
        """weight [num_out, num_in] of any floating type, each value to the nearest of its block."""
        if weight.ndim != 2 or weight.shape[1] % BLOCK:
            raise ValueError(f"weight {tuple(weight.shape)} is no matrix with inputs in blocks of {BLOCK}")
        blocks = weight.float().reshape(-1, BLOCK)
        absmax = blocks.abs().amax(1)
        if not absmax.isfinite().all():
            raise ValueError("weight is not finite")
        values = torch.tensor(NF4_VALUES, device=weight.device)
        codes = _nearest(blocks * _reciprocal(absmax)[:, None], values)
        pairs = codes.view(len(weight), -1, 2)
        offset = absmax.mean()
        padded = F.pad(absmax - offset, (0, -len(absmax) % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
        nested = padded.abs().amax(1)
        small = _nearest(padded * _reciprocal(nested)[:, None], dynamic_map().to(weight.device))
        return cls(pairs[..., 0] << 4 | pairs[..., 1], small.flatten()[: len(absmax)].contiguous(), nested, offset)

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], 2 * self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    def block_absmax(self, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Of the blocks `first` to `last` - 1: what their values are multiplied with, float32."""
        codes = self.absmax[first:last]
        nested = self.nested_absmax[torch.arange(first, first + len(codes), device=codes.device) // NESTED_BLOCK]
        return dynamic_map().to(codes.device)[codes.int()] * nested + self.offset

    def rows(self, first: int, last: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the codes of the rows `first` to `last` - 1 stand for."""
        codes = self.codes[first:last]
        values = torch.tensor(NF4_VALUES, device=codes.device)
        unpacked = values[torch.stack([codes >> 4, codes & 0x0F], -1).view(-1, BLOCK).int()]
        per_row = self.shape[1] // BLOCK
        scaled = unpacked * self.block_absmax(first * per_row, (first + len(codes)) * per_row)[:, None]
        return scaled.view(len(codes), -1).to(dtype)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the codes stand for, [num_out, num_in]; products are rounded to float32."""
        return self.rows(0, self.shape[0], dtype)


@functools.cache
def dynamic_map() -> torch.Tensor:
    """The 256 values of the signed dynamic tree type, float32 ascending: Dettmers, "8-Bit Approximations for
    Parallelism in Deep Learning" (arXiv:1511.04561).

    For each power of ten from 10^-6 to 1 there are means of neighbours among 2^e + 1 points evenly spaced over 0.1 to 1
    (e from 0 to 6), of both signs; beside them 0 and 1.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        points = torch.linspace(0.1, 1, 2**exponent + 1)
        means = (points[:-1] + points[1:]) / 2
        for sign in (1, -1):
            values += (sign * 10.0 ** (exponent - 6) * means).tolist()
    return torch.tensor(sorted(values))


def _nearest(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """uint8: which of `values`, ascending, is nearest to each of x."""
    return torch.bucketize(x, (values[1:] + values[:-1]) / 2).to(torch.uint8)


def _reciprocal(x: torch.Tensor) -> torch.Tensor:
    """1 / x, and 0 of 0. The codes of bitsandbytes are those of products with it."""
    return torch.where(x > 0, 1 / x, 0)
