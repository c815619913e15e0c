"""Attention of packed sequences for training, forward and backward: no padding, no scores in memory.

Lengths are looked at by the kernels alone (see `paged_tiles`), so nothing waits for the card.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from .launch import check
from .paged_tiles import NO_WINDOW, sequence_of_tile
from .tiles import FLOATS, power_of_two
from .varlen_backward import backward_keys, backward_queries
from .varlen_tiles import attend_keys, keys_of_rows, load_rows, rows_of_tile

MIN_HEAD_DIM = 16
MAX_HEAD_DIM = 256
# Query heads to a key/value head, which all stand in one tile; of heads wider than 64 dimensions half as many fit.
MAX_GROUP = 128


@dataclass(frozen=True)
class Tile:
    """Of a launch: rows (queries times heads to a key/value head), keys, warps, stages of loads under way."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_seqlens_ptr, num_seqs, num_tiles, num_kv_heads, scale, window,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride,
    CAUSAL: tl.constexpr, EXACT: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A tile of queries; lse [num_tokens, num_heads] to base 2. The last tiles, with the most keys, begin first."""
    QUERIES: tl.constexpr = ROWS // GROUP
    program = tl.program_id(0)
    kv_head = program % num_kv_heads
    tile = num_tiles - 1 - program // num_kv_heads
    sequence, first = sequence_of_tile(cu_seqlens_ptr, num_seqs, tile, QUERIES)
    start = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64) - start).to(tl.int32)
    if first < length:
        query, here, token, head = rows_of_tile(start, length, first, kv_head, GROUP, ROWS)
        q = load_rows(q_ptr, token, head, here, q_stride, q_head_stride, HEAD_DIM, WIDTH)
        k_ptr += kv_head.to(tl.int64) * k_head_stride
        v_ptr += kv_head.to(tl.int64) * v_head_stride
        last = tl.minimum(first + QUERIES, length) - 1
        begin, common, end = keys_of_rows(first, last, length, window, CAUSAL, KEYS)
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, WIDTH], tl.float32)
        for first_key in range(begin, common, KEYS):
            largest, total, acc = attend_keys(
                q, largest, total, acc, k_ptr, v_ptr, start, first_key, length, query, k_stride, v_stride, scale,
                window, CAUSAL, False, EXACT, HEAD_DIM, WIDTH, KEYS,
            )  # fmt: skip
        for first_key in range(common, end, KEYS):
            largest, total, acc = attend_keys(
                q, largest, total, acc, k_ptr, v_ptr, start, first_key, length, query, k_stride, v_stride, scale,
                window, CAUSAL, True, EXACT, HEAD_DIM, WIDTH, KEYS,
            )  # fmt: skip
        sees = total > 0  # every row of a query does: itself, if nothing else
        row = token * num_kv_heads * GROUP + head
        tl.store(lse_ptr + row, largest + tl.log2(tl.where(sees, total, 1.0)), mask=here)
        column = tl.arange(0, WIDTH)
        mask = here[:, None] & (column < HEAD_DIM)[None, :]
        out = acc / tl.where(sees, total, 1.0)[:, None]
        tl.store(out_ptr + row[:, None] * HEAD_DIM + column[None, :], out.to(q.dtype), mask=mask)


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens: torch.Tensor,
        scale: float,
        causal: bool,
        window: int,
    ) -> torch.Tensor:
        num_tokens, num_heads, _head_dim = q.shape
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(num_tokens, num_heads, dtype=torch.float32, device=q.device)
        num_seqs, num_kv_heads = len(cu_seqlens) - 1, k.shape[1]
        if out.numel() and num_seqs:
            tile = _forward_tile(q, num_heads // num_kv_heads)
            num_tiles = _num_tiles(num_tokens, num_seqs, tile.rows // (num_heads // num_kv_heads))
            _forward[(num_tiles * num_kv_heads,)](
                q, k, v, out, lse, cu_seqlens, num_seqs, num_tiles, num_kv_heads, scale, window,
                *_strides(q, k, v), **_flags(q, k, causal, tile),
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse, cu_seqlens)
        ctx.settings = scale, causal, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        (grad,) = grads
        q, k, v, out, lse, cu_seqlens = ctx.saved_tensors
        scale, causal, window = ctx.settings
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
        num_tokens, num_heads, _ = q.shape
        num_seqs, num_kv_heads = len(cu_seqlens) - 1, k.shape[1]
        if out.numel() and num_seqs:
            group = num_heads // num_kv_heads
            strides = (*_strides(q, k, v), grad.stride(0), grad.stride(1))
            tile = _backward_tile(q, group)
            num_tiles = _num_tiles(num_tokens, num_seqs, tile.rows // group)
            # Before the gradients of keys, which read its delta.
            backward_queries[(num_tiles * num_kv_heads,)](
                q, k, v, out, grad, lse, delta, dq, cu_seqlens, num_seqs, num_tiles, num_kv_heads, scale, window,
                *strides, **_flags(q, k, causal, tile),
            )  # fmt: skip
            num_tiles = _num_tiles(num_tokens, num_seqs, tile.keys)
            backward_keys[(num_tiles * num_kv_heads,)](
                q, k, v, grad, lse, delta, dk, dv, cu_seqlens, num_seqs, num_kv_heads, scale, window,
                *strides, **_flags(q, k, causal, tile),
            )  # fmt: skip
        return dq, dk, dv, None, None, None, None


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
    causal: bool = True,
    window: int = 0,
) -> torch.Tensor:
    """See `ops_attention.varlen_attention`. Heads of 16 to 256 dimensions; tokens and heads may have any strides."""
    check("q", q, dtypes=FLOATS, ndim=3, like=q)
    check("k", k, dtypes=(q.dtype,), ndim=3, like=q)
    check("v", v, dtypes=(q.dtype,), ndim=3, like=q)
    check("cu_seqlens", cu_seqlens, dtypes=(torch.int32, torch.int64), ndim=1, like=q)
    if not MIN_HEAD_DIM <= q.shape[2] <= MAX_HEAD_DIM:
        raise ValueError(f"q has heads of {q.shape[2]}; this kernel takes {MIN_HEAD_DIM} to {MAX_HEAD_DIM}")
    most = MAX_GROUP if q.shape[2] <= 64 else MAX_GROUP // 2
    if k.shape[1] and q.shape[1] // k.shape[1] > most:
        raise ValueError(
            f"q has {q.shape[1] // k.shape[1]} heads of {q.shape[2]} to each of k; at most {most} are taken"
        )
    return _VarlenAttention.apply(q, k, v, cu_seqlens, scale, causal, min(window, NO_WINDOW) or NO_WINDOW)


def _num_tiles(num_tokens: int, num_seqs: int, size: int) -> int:
    """What `sequence_of_tile` has to find all of."""
    return num_tokens // size + num_seqs


def _strides(*tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:2])


def _flags(q: torch.Tensor, k: torch.Tensor, causal: bool, tile: Tile) -> dict[str, Any]:
    return {
        "CAUSAL": causal,
        "EXACT": q.dtype == torch.float32,
        "GROUP": q.shape[1] // k.shape[1],
        "HEAD_DIM": q.shape[2],
        "WIDTH": power_of_two(q.shape[2]),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _forward_tile(q: torch.Tensor, group: int) -> Tile:
    """The largest whose sums stay in registers and whose keys fit 99 KiB, the least that cards since 8.0 have."""
    width = power_of_two(q.shape[2])
    if q.dtype == torch.float32:
        rows = max(32, power_of_two(group))
        return Tile(rows, 32 if width <= 128 else 16, num_warps=4 if rows <= 64 else 8, num_stages=2)
    rows = max(128 if width <= 128 else 64, power_of_two(group))
    return Tile(rows, 64 if width <= 128 else 32, num_warps=8 if width <= 128 else 4, num_stages=2)


def _backward_tile(q: torch.Tensor, group: int) -> Tile:
    """For both passes; the sums of keys and values are two."""
    width = power_of_two(q.shape[2])
    if q.dtype == torch.float32:
        rows = max(16, power_of_two(group))
        return Tile(rows, 32 if width <= 64 and rows <= 64 else 16, num_warps=4 if rows <= 64 else 8, num_stages=1)
    if width <= 128:
        rows = max(64, power_of_two(group))
        return Tile(rows, 64, num_warps=4 if width <= 64 and rows <= 64 else 8, num_stages=2)
    return Tile(max(32, power_of_two(group)), 32, num_warps=4, num_stages=1)
