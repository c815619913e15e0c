"""Rounding to bfloat16 so that it is right on average: what is lost in one step is not lost in every step.

The chance to be rounded up is the share of the way to the next number, so steps that are smaller than what the type can
tell apart still move the weights (Zamirai et al., "Revisiting BFloat16 Training", arXiv:2010.06192).
"""

from __future__ import annotations

import torch

# Values that are rounded at a time.
SLICE = 1 << 22
# What bfloat16 leaves out of a float32.
LOST_BITS = 16


def round_stochastically(values: torch.Tensor, into: torch.Tensor, key: tuple[int, ...]) -> None:
    """values float32 [n], into bfloat16 [n]. The same `key` gives the same result on one kind of device."""
    generator = torch.Generator(values.device).manual_seed(_mixed(key))
    for begin in range(0, len(values), SLICE):
        part = values[begin : begin + SLICE]
        noise = torch.randint(0, 1 << LOST_BITS, part.shape, generator=generator, dtype=torch.int32, device=part.device)
        bits = part.view(torch.int32)
        # A magnitude grows with its bits, whatever the sign; what is not finite must stay what it is.
        rounded = ((bits + noise) & -(1 << LOST_BITS)).view(torch.float32)
        into[begin : begin + SLICE] = torch.where(part.isfinite(), rounded, part).to(into.dtype)


def _mixed(key: tuple[int, ...]) -> int:
    """One seed of 63 bits for several numbers: each is spread over all bits before the next comes in."""
    seed = 0
    for number in key:
        seed = (seed ^ (number & (1 << 64) - 1)) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
        seed ^= seed >> 31
    return seed >> 1
