"""Rotary position embedding: the frequency at which each pair of a head's dimensions turns, and its published scalings.

LLaMA 3's scaling: https://arxiv.org/abs/2407.21783; YaRN: https://arxiv.org/abs/2309.00071.
"""

from __future__ import annotations

import enum
import math

import msgspec
import torch


class RopeKind(enum.StrEnum):
    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"
    FACTORS = "factors"  # a divisor for each frequency, which a GGUF file brings along


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """How frequencies are stretched for a context beyond `original_context`, the one that the model was first trained
    for. Which fields matter depends on `kind`; the names are those of a model's `rope_parameters`."""

    kind: RopeKind = RopeKind.DEFAULT
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    factors: tuple[float, ...] = ()

    @property
    def attention_scaling(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.kind is not RopeKind.YARN:
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _yarn_scale(self.factor, self.mscale) / _yarn_scale(self.factor, self.mscale_all_dim)
        return _yarn_scale(self.factor, 1.0)


def inverse_frequencies(theta: float, head_dim: int, scaling: RopeScaling) -> torch.Tensor:
    """float32 [head_dim / 2], on the device where tensors are being made: the angle, in radians, by which each pair
    turns from one position to the next.

    Computed on the CPU: the numbers are the same everywhere, and to compute on "meta" torch imports its compiler, which
    took half of the time in which an engine starts.
    """
    with torch.device("cpu"):
        frequencies = _inverse_frequencies(theta, head_dim, scaling)
    return frequencies.to(torch.get_default_device())


def _inverse_frequencies(theta: float, head_dim: int, scaling: RopeScaling) -> torch.Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / theta**exponents
    if scaling.kind is RopeKind.LINEAR:
        return plain / scaling.factor
    if scaling.kind is RopeKind.LLAMA3:
        return _llama3(plain, scaling)
    if scaling.kind is RopeKind.YARN:
        return _yarn(plain, theta, head_dim, scaling)
    if scaling.kind is RopeKind.FACTORS:
        return plain / torch.tensor(scaling.factors, dtype=torch.float32)
    return plain


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Long wavelengths are stretched, short ones kept, and those between mixed by how often they turn in the original
    context."""
    turns = scaling.original_context * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(plain: torch.Tensor, theta: float, head_dim: int, scaling: RopeScaling) -> torch.Tensor:
    """As `_llama3`, with a ramp that is linear in the dimension rather than in the number of turns."""

    def dimension(turns: float) -> float:
        """Where a pair turns that often in the original context."""
        return head_dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001  # a ramp without width would divide by zero
    stretched = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return stretched * plain / scaling.factor + (1 - stretched) * plain


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
