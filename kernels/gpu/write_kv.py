"""Keys and values of a step into paged caches of any format, and before that, in the same launch, rotary embedding.

A program has some heads of one token: queries turn and are written out, keys turn, and keys and values are put in the
cache's format. Each number of a row is read with the one that turns with it, whose load finds it near: so one
arithmetic serves halves and interleaved pairs, heads that turn in part, and bytes that hold two dimensions.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..packed_heads import turns
from ..quantized import Cache
from .cache_formats import INT4, INT8, CacheArguments, cache_arguments
from .fit_quarters import NUM_GROUPS, fit_quarters, rounded, turned_heads
from .launch import check
from .tiles import FLOATS, num_warps, power_of_two

# Values that one program takes.
TILE = 2048
FP8_MAX = tl.constexpr(448.0)


@triton.jit
def _turned(x_heads, column, mask, cos_row, sin_row, num_pairs, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr):
    """These columns of some heads, [HEADS, WIDTH] float32, rounded to their own type as if they had been written."""
    x = tl.load(x_heads + column[None, :], mask=mask, other=0.0)
    if ROTARY:
        turns = column < 2 * num_pairs
        if INTERLEAVED:
            pair = column // 2
            is_first = column % 2 == 0
            partner = column + tl.where(is_first, 1, -1)
        else:
            is_first = column < num_pairs
            pair = tl.where(is_first, column, column - num_pairs)
            partner = tl.where(is_first, column + num_pairs, column - num_pairs)
        cos = tl.load(cos_row + pair, mask=turns, other=1.0).to(tl.float32)
        sin = tl.load(sin_row + pair, mask=turns, other=0.0).to(tl.float32)
        sin = tl.where(is_first, -sin, sin)
        other = tl.load(x_heads + partner[None, :], mask=mask & turns[None, :], other=0.0).to(tl.float32)
        x = (x.to(tl.float32) * cos[None, :] + other * sin[None, :]).to(x.dtype)
    return x.to(tl.float32)


@triton.jit
def _write_heads(
    x_heads, codes_heads, scale_heads, min_heads, here, cos_row, sin_row, num_pairs, head_dim,
    FORMAT: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Heads of one token in a cache's format; with INT4, WIDTH is four times that of a quarter of a head, and STAGES of
    a turn make it, 0 for heads that are not turned."""
    column = tl.arange(0, WIDTH)
    if FORMAT == INT4:
        # Quarters begin at multiples of a power of two, whatever their size.
        QUARTER: tl.constexpr = WIDTH // NUM_GROUPS
        size = head_dim // NUM_GROUPS
        exists = column % QUARTER < size
        column = column // QUARTER * size + column % QUARTER
        mask = here[:, None] & exists[None, :]
        x = _turned(x_heads, column, mask, cos_row, sin_row, num_pairs, ROTARY, INTERLEAVED)
        if STAGES:
            x = turned_heads(x, HEADS, WIDTH, STAGES)
        codes, scales, minimums = fit_quarters(
            tl.reshape(x, [HEADS, NUM_GROUPS, QUARTER]), tl.arange(0, QUARTER) < size, size
        )
        group = tl.arange(0, NUM_GROUPS)
        tl.store(scale_heads[:, None] + group[None, :], scales, mask=here[:, None])
        tl.store(min_heads[:, None] + group[None, :], minimums, mask=here[:, None])
        halves = tl.reshape(codes, [HEADS, 2, WIDTH // 2])
        # The second half of a head is the high half of each byte.
        bits = tl.sum(halves * (1.0 + 15.0 * tl.arange(0, 2).to(tl.float32))[None, :, None], 1)
        column = tl.arange(0, WIDTH // 2)
        mask = here[:, None] & (column % QUARTER < size)[None, :]
        column = column // QUARTER * size + column % QUARTER
        tl.store(codes_heads + column[None, :], bits.to(tl.int32).to(tl.uint8), mask=mask)
    else:
        mask = here[:, None] & (column < head_dim)[None, :]
        x = _turned(x_heads, column, mask, cos_row, sin_row, num_pairs, ROTARY, INTERLEAVED)
        if FORMAT == INT8:
            top = tl.max(tl.abs(x), 1)
            tl.store(scale_heads, tl.div_rn(top, 127.0 + tl.zeros_like(top)), mask=here)
            steps = tl.where(top > 0, tl.div_rn(127.0 + tl.zeros_like(top), tl.where(top > 0, top, 1.0)), 0.0)
            tl.store(codes_heads + column[None, :], rounded(x * steps[:, None]).to(tl.int8), mask=mask)
        else:
            if codes_heads.dtype.element_ty == tl.float8e4nv:
                x = tl.minimum(tl.maximum(x, -FP8_MAX), FP8_MAX)  # it has no infinity
            tl.store(codes_heads + column[None, :], x.to(codes_heads.dtype.element_ty), mask=mask)


@triton.jit
def _turn_and_write(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, q_out_ptr, k_codes_ptr, k_scale_ptr, k_min_ptr,
    v_codes_ptr, v_scale_ptr, v_min_ptr, slots_ptr, num_q_heads, num_kv_heads, num_q_tiles, num_kv_tiles,
    head_dim, num_pairs, q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    cos_stride, sin_stride, k_slot_stride, k_cache_head_stride, v_slot_stride, v_cache_head_stride, scale_slot_stride,
    FORMAT: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    Q_WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Of each token tiles of queries come first, then those of keys, then those of values."""
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    cos_row = cos_ptr + token * cos_stride
    sin_row = sin_ptr + token * sin_stride
    if tile < num_q_tiles:
        head = tile * HEADS + tl.arange(0, HEADS)
        here = head < num_q_heads
        column = tl.arange(0, Q_WIDTH)
        mask = here[:, None] & (column < head_dim)[None, :]
        heads = q_ptr + token * q_token_stride + head[:, None] * q_head_stride
        q = _turned(heads, column, mask, cos_row, sin_row, num_pairs, ROTARY, INTERLEAVED)
        out = q_out_ptr + (token * num_q_heads + head[:, None]) * head_dim + column[None, :]
        tl.store(out, q.to(q_out_ptr.dtype.element_ty), mask=mask)
    else:
        tile -= num_q_tiles
        slot = tl.load(slots_ptr + token).to(tl.int64)
        if slot >= 0:
            if tile < num_kv_tiles:
                head = tile * HEADS + tl.arange(0, HEADS)
                place = slot * scale_slot_stride + head * (NUM_GROUPS if FORMAT == INT4 else 1)
                _write_heads(
                    k_ptr + token * k_token_stride + head[:, None] * k_head_stride,
                    k_codes_ptr + slot * k_slot_stride + head[:, None] * k_cache_head_stride,
                    k_scale_ptr + place, k_min_ptr + place, head < num_kv_heads, cos_row, sin_row, num_pairs, head_dim,
                    FORMAT, ROTARY, INTERLEAVED, HEADS, WIDTH, STAGES,
                )  # fmt: skip
            else:
                head = (tile - num_kv_tiles) * HEADS + tl.arange(0, HEADS)
                place = slot * scale_slot_stride + head * (NUM_GROUPS if FORMAT == INT4 else 1)
                _write_heads(
                    v_ptr + token * v_token_stride + head[:, None] * v_head_stride,
                    v_codes_ptr + slot * v_slot_stride + head[:, None] * v_cache_head_stride,
                    v_scale_ptr + place, v_min_ptr + place, head < num_kv_heads, cos_row, sin_row, num_pairs, head_dim,
                    FORMAT, False, False, HEADS, WIDTH, STAGES,
                )  # fmt: skip


def write_kv(k: torch.Tensor, v: torch.Tensor, k_cache: Cache, v_cache: Cache, slots: torch.Tensor) -> None:
    """See `ops.write_kv`. Tokens and heads may have any strides; a token whose slot is negative is not written."""
    keys, values = _check(k, v, k_cache, v_cache, slots)
    _launch(None, k, v, None, None, keys, values, slots, False)


def rotary_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: Cache,
    v_cache: Cache,
    slots: torch.Tensor,
    interleaved: bool = False,
) -> torch.Tensor:
    """`rotary`, then `write_kv` of the turned keys, in one launch; returns the turned q.

    A token whose slot is negative (a row that pads a CUDA graph) is turned and not written.
    """
    check("q", q, dtypes=FLOATS, ndim=3, like=q)
    check("k", k, dtypes=(q.dtype,), ndim=3, like=q)
    if k.shape[0] != q.shape[0] or k.shape[2] != q.shape[2]:
        raise ValueError(f"k has the shape {tuple(k.shape)}, q {tuple(q.shape)}: tokens and head sizes differ")
    for name, table in (("cos", cos), ("sin", sin)):
        check(name, table, dtypes={q.dtype, torch.float32}, ndim=2, like=q)
        if table.shape != (q.shape[0], cos.shape[1]) or 2 * table.shape[1] > q.shape[2]:
            raise ValueError(
                f"{name} has the shape {tuple(table.shape)}; {q.shape[0]} tokens with at most {q.shape[2] // 2} pairs "
                "are needed"
            )
    keys, values = _check(k, v, k_cache, v_cache, slots)
    return _launch(q, k, v, cos, sin, keys, values, slots, interleaved)


def _check(
    k: torch.Tensor, v: torch.Tensor, k_cache: Cache, v_cache: Cache, slots: torch.Tensor
) -> tuple[CacheArguments, CacheArguments]:
    check("k", k, dtypes=FLOATS, ndim=3, like=k)
    check("v", v, dtypes=(k.dtype,), ndim=3, like=k)
    check("slots", slots, dtypes=(torch.int64, torch.int32), ndim=1, like=k)
    keys, values = cache_arguments("k_cache", k_cache, like=k), cache_arguments("v_cache", v_cache, like=k)
    if v.shape != k.shape:
        raise ValueError(f"v has the shape {tuple(v.shape)}, k {tuple(k.shape)}")
    if slots.shape[0] != k.shape[0]:
        raise ValueError(f"there are {slots.shape[0]} slots for {k.shape[0]} tokens")
    for name, cache, arguments in (("k_cache", k_cache, keys), ("v_cache", v_cache, values)):
        if cache.shape[2:] != k.shape[1:] or arguments.format != keys.format:
            raise ValueError(
                f"{name} is {arguments.format_name} of {tuple(cache.shape)}; with k of {tuple(k.shape)} it is "
                f"{keys.format_name} with heads of {tuple(k.shape[1:])}"
            )
    return keys, values


def _launch(
    q: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    keys: CacheArguments,
    values: CacheArguments,
    slots: torch.Tensor,
    interleaved: bool,
) -> torch.Tensor:
    """Without q nothing turns, and what is returned is empty."""
    num_tokens, num_kv_heads, head_dim = k.shape
    num_q_heads = 0 if q is None else q.shape[1]
    out = torch.empty(num_tokens, num_q_heads, head_dim, dtype=k.dtype, device=k.device)
    if not num_tokens or not head_dim or not num_kv_heads + num_q_heads:
        return out
    width = power_of_two(head_dim)
    heads = min(power_of_two(max(num_q_heads, num_kv_heads)), max(1, TILE // width))
    num_q_tiles, num_kv_tiles = triton.cdiv(num_q_heads, heads), triton.cdiv(num_kv_heads, heads)
    # Where nothing turns, pointers that are not read.
    cos_or_any, sin_or_any = (k, k) if cos is None or sin is None else (cos, sin)
    queries = k if q is None else q
    _turn_and_write[(num_tokens, num_q_tiles + 2 * num_kv_tiles)](
        queries, k, v, cos_or_any, sin_or_any, out, *keys.pointers, *values.pointers, slots,
        num_q_heads, num_kv_heads, num_q_tiles, num_kv_tiles, head_dim, cos.shape[1] if cos is not None else 0,
        queries.stride(0), queries.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        cos_or_any.stride(0), sin_or_any.stride(0), keys.slot_stride, keys.head_stride,
        values.slot_stride, values.head_stride, keys.scale_slot_stride,
        FORMAT=keys.format, ROTARY=cos is not None, INTERLEAVED=interleaved, HEADS=heads,
        WIDTH=NUM_GROUPS.value * power_of_two(head_dim // NUM_GROUPS.value) if keys.format == INT4.value else width,
        Q_WIDTH=width, STAGES=head_dim.bit_length() - 1 if turns(head_dim) else 0, num_warps=num_warps(heads * width),
    )  # fmt: skip
    return out
