"""Heads in four bits, as `packed_heads` makes them: turned, and each quarter rounded between ends of its own."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import triton
import triton.language as tl

from .. import packed_heads

NUM_GROUPS = tl.constexpr(packed_heads.NUM_GROUPS)
MAX_CODE = tl.constexpr(float(packed_heads.MAX_CODE))
WIDE, NARROW = (tl.constexpr(span) for span in packed_heads.SPANS)
# At 1.5 * 2^23 a float32 has steps of one, so adding it rounds to whole numbers, halves to even.
ROUNDING = tl.constexpr(12582912.0)


@triton.jit
def rounded(x):
    return (x + ROUNDING) - ROUNDING


@triton.jit
def turned_heads(x, HEADS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr):
    """`packed_heads.turn` of x float32 [HEADS, WIDTH]: sums and differences at each of STAGES distances.

    WIDTH is 2 ** STAGES.
    """
    for stage in tl.static_range(STAGES):
        x = _butterfly(x, HEADS, WIDTH, 1 << stage)
    return x * (1.0 / (1 << (STAGES // 2)))


@triton.jit
def _butterfly(x, HEADS: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr):
    pairs = tl.reshape(x, [HEADS * WIDTH // (2 * SPAN), 2, SPAN])
    first, second = tl.split(tl.permute(pairs, (0, 2, 1)))
    return tl.reshape(tl.permute(tl.join(first + second, first - second), (0, 2, 1)), [HEADS, WIDTH])


@triton.jit
def fit_quarters(x, exists, size):
    """x float32 [HEADS, NUM_GROUPS, QUARTER], of which the columns that `exists` [QUARTER] names count, `size` of them.

    Returns codes as numbers, of x's shape, and scales and minimums, float16 [HEADS, NUM_GROUPS].
    """
    exists = exists[None, None, :]
    low = tl.min(tl.where(exists, x, float("inf")), 2)
    high = tl.max(tl.where(exists, x, float("-inf")), 2)
    x = tl.where(exists, x, 0.0)
    total = tl.sum(x, 2)
    scale, minimum = _drawn_in(low, high, WIDE)
    lost, codes = _codes(x, exists, scale, minimum)
    lost, codes, scale, minimum = _refitted(x, exists, size, total, codes, lost, codes, scale, minimum)
    other_scale, other_minimum = _drawn_in(low, high, NARROW)
    other_lost, other_codes = _codes(x, exists, other_scale, other_minimum)
    better = other_lost < lost
    lost = tl.where(better, other_lost, lost)
    scale, minimum = tl.where(better, other_scale, scale), tl.where(better, other_minimum, minimum)
    codes = tl.where(better[:, :, None], other_codes, codes)
    lost, codes, scale, minimum = _refitted(x, exists, size, total, other_codes, lost, codes, scale, minimum)
    return codes, scale, minimum


@triton.jit
def _drawn_in(low, high, SPAN: tl.constexpr):
    scale = (high - low) * (SPAN / MAX_CODE)
    return scale.to(tl.float16), (low + (high - low) * ((1 - SPAN) / 2)).to(tl.float16)


@triton.jit
def _codes(x, exists, scale, minimum):
    """What is lost, in squares, and codes."""
    wide = scale.to(tl.float32)
    steps = tl.where(wide > 0, tl.div_rn(1.0 + tl.zeros_like(wide), tl.where(wide > 0, wide, 1.0)), 0.0)
    base = minimum.to(tl.float32)[:, :, None]
    codes = tl.minimum(tl.maximum(rounded((x - base) * steps[:, :, None]), 0.0), MAX_CODE)
    codes = tl.where(exists, codes, 0.0)
    away = tl.where(exists, codes * wide[:, :, None] + base - x, 0.0)
    return tl.sum(away * away, 2), codes


@triton.jit
def _refitted(x, exists, size, total, first_codes, lost, codes, scale, minimum):
    """With the line that fits `first_codes` best, where that loses less than what was found before."""
    sum_codes = tl.sum(first_codes, 2)
    spread = size * tl.sum(first_codes * first_codes, 2) - sum_codes * sum_codes
    slope = (size * tl.sum(first_codes * x, 2) - sum_codes * total) / tl.maximum(spread, 1.0)
    slope = tl.where(spread > 0, slope, 0.0)
    new_scale, new_minimum = slope.to(tl.float16), ((total - slope * sum_codes) / size).to(tl.float16)
    new_lost, new_codes = _codes(x, exists, new_scale, new_minimum)
    better = new_lost < lost
    codes = tl.where(better[:, :, None], new_codes, codes)
    scale, minimum = tl.where(better, new_scale, scale), tl.where(better, new_minimum, minimum)
    return tl.where(better, new_lost, lost), codes, scale, minimum
