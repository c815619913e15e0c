"""Rotary position embedding of queries and keys in one launch, halves or interleaved, of all or part of each head."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import check
from .tiles import FLOATS, num_warps, power_of_two

# Pairs that one program turns.
TILE = 2048


@triton.jit
def _turn(
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    num_q_heads,
    num_k_heads,
    num_q_tiles,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    cos_stride,
    sin_stride,
    half,
    head_dim,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """Some heads of one token: tiles of queries come first, then those of keys.

    HALF is at least the number of pairs, REST at least the number of dimensions that do not turn (0: none).
    """
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    if tile < num_q_tiles:
        first = tile * HEADS
        num_heads = num_q_heads
        x = q_ptr + token * q_token_stride
        stride = q_head_stride
        out = q_out_ptr + token * num_q_heads * head_dim
    else:
        first = (tile - num_q_tiles) * HEADS
        num_heads = num_k_heads
        x = k_ptr + token * k_token_stride
        stride = k_head_stride
        out = k_out_ptr + token * num_k_heads * head_dim
    head = first + tl.arange(0, HEADS)
    here = head < num_heads
    x_head = x + head[:, None] * stride
    out_head = out + head[:, None] * head_dim
    pair = tl.arange(0, HALF)
    cos = tl.load(cos_ptr + token * cos_stride + pair, mask=pair < half, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + token * sin_stride + pair, mask=pair < half, other=0.0).to(tl.float32)[None, :]
    if INTERLEAVED:
        # Read and written as they lie, and parted in registers: neighbours in memory stay with neighbouring threads.
        column = tl.arange(0, 2 * HALF)
        mask = here[:, None] & (column < 2 * half)[None, :]
        both = tl.load(x_head + column[None, :], mask=mask, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(both, (HEADS, HALF, 2)))
        turned = tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (HEADS, 2 * HALF))
        tl.store(out_head + column[None, :], turned.to(out_head.dtype.element_ty), mask=mask)
    else:
        mask = here[:, None] & (pair < half)[None, :]
        a = tl.load(x_head + pair[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x_head + half + pair[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(out_head + pair[None, :], (a * cos - b * sin).to(out_head.dtype.element_ty), mask=mask)
        tl.store(out_head + half + pair[None, :], (b * cos + a * sin).to(out_head.dtype.element_ty), mask=mask)
    if REST > 0:
        column = 2 * half + tl.arange(0, REST)
        mask = here[:, None] & (column < head_dim)[None, :]
        tl.store(out_head + column[None, :], tl.load(x_head + column[None, :], mask=mask), mask=mask)


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops.rotary`. Tokens and heads may have any strides."""
    check("q", q, dtypes=FLOATS, ndim=3, like=q)
    check("k", k, dtypes=(q.dtype,), ndim=3, like=q)
    num_tokens, num_q_heads, head_dim = q.shape
    num_k_heads = k.shape[1]
    if k.shape[0] != num_tokens or k.shape[2] != head_dim:
        raise ValueError(f"k has the shape {tuple(k.shape)}, q {tuple(q.shape)}: tokens and head sizes differ")
    for name, table in (("cos", cos), ("sin", sin)):
        check(name, table, dtypes={q.dtype, torch.float32}, ndim=2, like=q)
        if table.shape != (num_tokens, cos.shape[1]) or 2 * table.shape[1] > head_dim:
            raise ValueError(
                f"{name} has the shape {tuple(table.shape)}; {num_tokens} tokens with at most {head_dim // 2} pairs "
                "are needed"
            )
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    half = cos.shape[1]
    if not num_tokens or not head_dim:
        return q_out, k_out
    width = power_of_two(max(half, 1))
    rest = head_dim - 2 * half
    heads = min(power_of_two(max(num_q_heads, num_k_heads, 1)), max(1, TILE // width))
    num_q_tiles, num_k_tiles = triton.cdiv(num_q_heads, heads), triton.cdiv(num_k_heads, heads)
    if num_q_tiles + num_k_tiles:
        _turn[(num_tokens, num_q_tiles + num_k_tiles)](
            q, k, cos, sin, q_out, k_out, num_q_heads, num_k_heads, num_q_tiles,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), cos.stride(0), sin.stride(0), half, head_dim,
            INTERLEAVED=interleaved, HEADS=heads, HALF=width, REST=power_of_two(rest) if rest else 0,
            num_warps=num_warps(2 * heads * width),
        )  # fmt: skip
    return q_out, k_out
