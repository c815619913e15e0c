"""Eight-bit weights with a scale for each output, for inputs that get a scale for each token as they come."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

MAX_INT8 = 127
FP8 = torch.float8_e4m3fn
# The largest finite value of e4m3: Micikevicius et al., "FP8 Formats for Deep Learning" (2022).
MAX_FP8 = 448.0


class _ChannelWeight(nn.Module):
    """codes [num_out, num_in], scales float32 [num_out]: a value is code * scale."""

    codes: torch.Tensor
    scales: torch.Tensor
    code_dtype: torch.dtype
    largest: float

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__()
        if codes.ndim != 2 or codes.dtype != self.code_dtype:
            raise ValueError(f"codes {codes.dtype} {tuple(codes.shape)} are no matrix of {self.code_dtype}")
        if scales.shape != codes.shape[:1] or scales.dtype != torch.float32:
            raise ValueError(f"scales {scales.dtype} {tuple(scales.shape)} for {len(codes)} outputs: one float32 each")
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @classmethod
    def from_float(cls, weight: torch.Tensor) -> Self:
        """weight [num_out, num_in] of any floating type, rounded to nearest. ValueError where it is not finite."""
        codes, scales = quantize_rows(weight, cls.code_dtype, cls.largest)
        if not scales.isfinite().all():
            raise ValueError("weight is not finite")
        return cls(codes, scales)

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the codes stand for, [num_out, num_in]."""
        return self.rows(0, len(self.codes), dtype)

    def rows(self, first: int, last: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the codes of the rows `first` to `last` - 1 stand for."""
        wide = torch.promote_types(dtype, torch.float32)
        return (self.codes[first:last].to(wide) * self.scales[first:last].to(wide)[:, None]).to(dtype)


class ChannelInt8(_ChannelWeight):
    """W8A8: int8 weights, and int8 inputs with one scale for each token (SmoothQuant, arXiv:2211.10438)."""

    code_dtype = torch.int8
    largest = MAX_INT8


class Fp8Weight(_ChannelWeight):
    """W8A8 in e4m3 (arXiv:2209.05433), inputs too, with one scale for each token."""

    code_dtype = FP8
    largest = MAX_FP8


def quantize_rows(x: torch.Tensor, dtype: torch.dtype, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x [num_rows, num_in] -> codes of `dtype` of the same shape, scales float32 [num_rows].

    The scale is the row's largest magnitude / `largest`, and codes are the nearest to x / scale, halves to even; a
    row of zeros has the scale 0. In float32 whatever the type of x, so that every path gives the same codes.
    """
    wide = x.float()
    tops = wide.abs().amax(1) if x.shape[1] else wide.new_zeros(len(x))
    # Divisions of tensors: by a plain number torch may multiply with its reciprocal, which is rounded twice.
    scales = tops / torch.full_like(tops, largest)
    scaled = torch.where(scales[:, None] > 0, wide / scales[:, None], 0).clamp(-largest, largest)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scales
