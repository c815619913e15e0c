"""The arithmetic of paged attention for one tile: a running softmax (base 2) over steps of keys, and its parts joined.

Codes of int8 are multiplied as they are, in the type of the queries: a key's scale comes to its scores, a value's to
its weight in the softmax. Codes of four bits, whose quarters of a head have scales of their own, become numbers first.
Keys that no query of a tile may miss go without a mask.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import triton
import triton.language as tl

from ..packed_heads import NUM_GROUPS as _NUM_GROUPS
from .cache_formats import INT4, PLAIN
from .paged_tiles import keys_of_tile, splits_of_tile

NUM_GROUPS = tl.constexpr(_NUM_GROUPS)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(x, y, total, EXACT: tl.constexpr):
    if EXACT:  # three products of halves of each number: nearly float32's own precision
        return tl.dot(x, y, total, input_precision="tf32x3")
    else:
        return tl.dot(x, y, total)


@triton.jit
def tanh(x):
    """From an exponential that never overflows."""
    small = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def _number(numbers_ptr, slot, slot_stride, here):
    """A scale or minimum of each key, float32 [BLOCK]."""
    return tl.load(numbers_ptr + slot * slot_stride, mask=here, other=0.0).to(tl.float32)


@triton.jit
def _quarters(codes, scale_ptr, min_ptr, slot, slot_stride, here, column, CODES: tl.constexpr, dtype: tl.constexpr):
    """What half a head's codes [BLOCK, WIDTH] stand for; the pointers are those of its first quarter in slot zero."""
    is_first = (column < CODES // 2)[None, :]
    scale = _number(scale_ptr, slot, slot_stride, here)[:, None]
    scale_second = _number(scale_ptr + 1, slot, slot_stride, here)[:, None]
    minimum = _number(min_ptr, slot, slot_stride, here)[:, None]
    minimum_second = _number(min_ptr + 1, slot, slot_stride, here)[:, None]
    values = (codes & 0x0F).to(tl.float32) * tl.where(is_first, scale, scale_second)
    return (values + tl.where(is_first, minimum, minimum_second)).to(dtype)


@triton.jit
def _add_values(acc, weights, codes, scale, EXACT: tl.constexpr):
    """Values in int8: `scale` float32 [BLOCK]."""
    if codes.dtype == tl.float16:
        # A weight times a scale may be less than half precision holds: there values come to their size first.
        return dot(weights.to(tl.float16), (codes.to(tl.float32) * scale[:, None]).to(tl.float16), acc, EXACT)
    else:
        return dot((weights * scale[None, :]).to(codes.dtype), codes, acc, EXACT)


@triton.jit
def _step(
    q, q_high, largest, total, acc, acc_high, first_key, end, position, table_ptr,
    k_ptr, k_scale_ptr, k_min_ptr, v_ptr, v_scale_ptr, v_min_ptr, k_slot_stride, v_slot_stride, scale_slot_stride,
    scale, softcap, window, FORMAT: tl.constexpr, BLOCK_SIZE: tl.constexpr, CODES: tl.constexpr, CAPPED: tl.constexpr,
    MASKED: tl.constexpr, EXACT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK keys more. k_ptr to v_min_ptr are those of slot zero of this head; CODES columns of them exist."""
    key = first_key + tl.arange(0, BLOCK)
    here = key < end
    block = tl.load(table_ptr + key // BLOCK_SIZE, mask=here, other=0).to(tl.int64)
    slot = block * BLOCK_SIZE + key % BLOCK_SIZE
    column = tl.arange(0, WIDTH)
    inside = here[:, None] & (column < CODES)[None, :]
    k = tl.load(k_ptr + slot[:, None] * k_slot_stride + column[None, :], mask=inside, other=0.0)
    zeros = tl.zeros([q.shape[0], BLOCK], tl.float32)
    if FORMAT == INT4:
        low = _quarters(k, k_scale_ptr, k_min_ptr, slot, scale_slot_stride, here, column, CODES, q.dtype)
        high = _quarters(k >> 4, k_scale_ptr + 2, k_min_ptr + 2, slot, scale_slot_stride, here, column, CODES, q.dtype)
        scores = dot(q_high, tl.trans(high), dot(q, tl.trans(low), zeros, EXACT), EXACT)
    else:
        scores = dot(q, tl.trans(k.to(q.dtype)), zeros, EXACT)
        if FORMAT != PLAIN:
            scores *= _number(k_scale_ptr, slot, scale_slot_stride, here)[None, :]
    if CAPPED:
        scores = tanh(scores * (scale / softcap)) * (softcap * LOG2_E)
    else:
        scores = scores * (scale * LOG2_E)
    if MASKED:
        age = position[:, None] - key[None, :]
        scores = tl.where((age < 0) | (age >= window), float("-inf"), scores)
    new = tl.maximum(largest, tl.max(scores, 1))
    base = new
    if MASKED:
        base = tl.where(new > float("-inf"), new, 0.0)  # minus infinity less itself would be no number
    weights = tl.exp2(scores - base[:, None])
    keep = tl.exp2(largest - base)
    total = total * keep + tl.sum(weights, 1)
    v = tl.load(v_ptr + slot[:, None] * v_slot_stride + column[None, :], mask=inside, other=0.0)
    acc = acc * keep[:, None]
    if FORMAT == INT4:
        low = _quarters(v, v_scale_ptr, v_min_ptr, slot, scale_slot_stride, here, column, CODES, q.dtype)
        high = _quarters(v >> 4, v_scale_ptr + 2, v_min_ptr + 2, slot, scale_slot_stride, here, column, CODES, q.dtype)
        acc = dot(weights.to(q.dtype), low, acc, EXACT)
        acc_high = dot(weights.to(q.dtype), high, acc_high * keep[:, None], EXACT)
    elif FORMAT == PLAIN:
        acc = dot(weights.to(q.dtype), v.to(q.dtype), acc, EXACT)
    else:
        acc = _add_values(acc, weights, v.to(q.dtype), _number(v_scale_ptr, slot, scale_slot_stride, here), EXACT)
    return new, total, acc, acc_high


@triton.jit
def _rows_of_tile(start, num_queries, first, kv_head, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """Of each row: its query in the sequence, whether there is one, its token in the batch, its head."""
    QUERIES: tl.constexpr = ROWS // GROUP
    row = tl.arange(0, ROWS)
    query = first + row // GROUP
    here = (row < QUERIES * GROUP) & (query < num_queries)
    return query, here, start.to(tl.int64) + query, kv_head * GROUP + row % GROUP


@triton.jit
def attend_tile(
    q_ptr, out_ptr, part_ptr, lse_ptr, sinks_ptr, k_ptr, k_scale_ptr, k_min_ptr, v_ptr, v_scale_ptr, v_min_ptr,
    table_ptr, start, part_start, num_queries, first, seq_len, kv_head, num_parts, num_kv_heads, scale, softcap, window,
    q_token_stride, q_head_stride, k_slot_stride, k_head_stride, v_slot_stride, v_head_stride, scale_slot_stride,
    num_splits, FORMAT: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr,
    CAPPED: tl.constexpr, HAS_SINKS: tl.constexpr, EXACT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Queries `first` and on of a sequence over this program's split of their keys.

    Written to `out` where there is but one split, else to `part`, with the logarithm of its weight to `lse`. There a
    split has `num_parts` rows of heads, of which this sequence's queries begin at `part_start`.
    """
    QUERIES: tl.constexpr = ROWS // GROUP
    CODES: tl.constexpr = HEAD_DIM // 2 if FORMAT == INT4 else HEAD_DIM
    before = seq_len - num_queries
    last = tl.minimum(first + QUERIES, num_queries) - 1
    all_begin, all_end = keys_of_tile(before + first, before + last, window, BLOCK)
    used, size = splits_of_tile(all_begin, all_end, num_splits, BLOCK)
    split = tl.program_id(1)
    if split < used:
        begin = all_begin + split * size
        end = tl.minimum(begin + size, all_end)
        query, here, token, head = _rows_of_tile(start, num_queries, first, kv_head, GROUP, ROWS)
        column = tl.arange(0, WIDTH)
        inside = here[:, None] & (column < CODES)[None, :]
        place = token[:, None] * q_token_stride + head[:, None] * q_head_stride + column[None, :]
        q = tl.load(q_ptr + place, mask=inside, other=0.0)
        q_high = q
        acc = tl.zeros([ROWS, WIDTH], tl.float32)
        acc_high = acc
        if FORMAT == INT4:
            q_high = tl.load(q_ptr + place + CODES, mask=inside, other=0.0)
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        position = tl.where(here, before + query, before + last)  # rows without a query see what the last one does
        k_ptr += kv_head.to(tl.int64) * k_head_stride
        v_ptr += kv_head.to(tl.int64) * v_head_stride
        number = kv_head * (NUM_GROUPS if FORMAT == INT4 else 1)
        # Up to here every query sees every key.
        common = begin
        if before + last - begin < window:
            common = tl.maximum(begin, tl.minimum(end, before + first + 1) // BLOCK * BLOCK)
        for first_key in range(begin, common, BLOCK):
            largest, total, acc, acc_high = _step(
                q, q_high, largest, total, acc, acc_high, first_key, end, position, table_ptr, k_ptr,
                k_scale_ptr + number, k_min_ptr + number, v_ptr, v_scale_ptr + number, v_min_ptr + number,
                k_slot_stride, v_slot_stride, scale_slot_stride, scale, softcap, window,
                FORMAT, BLOCK_SIZE, CODES, CAPPED, False, EXACT, WIDTH, BLOCK,
            )  # fmt: skip
        for first_key in range(common, end, BLOCK):
            largest, total, acc, acc_high = _step(
                q, q_high, largest, total, acc, acc_high, first_key, end, position, table_ptr, k_ptr,
                k_scale_ptr + number, k_min_ptr + number, v_ptr, v_scale_ptr + number, v_min_ptr + number,
                k_slot_stride, v_slot_stride, scale_slot_stride, scale, softcap, window,
                FORMAT, BLOCK_SIZE, CODES, CAPPED, True, EXACT, WIDTH, BLOCK,
            )  # fmt: skip
        base = tl.where(largest > float("-inf"), largest, 0.0)
        if HAS_SINKS and used == 1:
            total += tl.exp2(tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E - base)
        inverse = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
        acc = acc * inverse[:, None]
        acc_high = acc_high * inverse[:, None]
        if used == 1:
            row = token * num_kv_heads * GROUP + head
            target = row[:, None] * HEAD_DIM + column[None, :]
            tl.store(out_ptr + target, acc.to(out_ptr.dtype.element_ty), mask=inside)
            if FORMAT == INT4:
                tl.store(out_ptr + target + CODES, acc_high.to(out_ptr.dtype.element_ty), mask=inside)
        else:
            part = (split.to(tl.int64) * num_parts + part_start + query) * num_kv_heads * GROUP + head
            target = part[:, None] * HEAD_DIM + column[None, :]
            tl.store(part_ptr + target, acc, mask=inside)
            if FORMAT == INT4:
                tl.store(part_ptr + target + CODES, acc_high, mask=inside)
            weight = tl.where(total > 0, base + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
            tl.store(lse_ptr + part, weight, mask=here)


@triton.jit
def join_tile(
    out_ptr, part_ptr, lse_ptr, sinks_ptr, start, part_start, num_queries, first, seq_len, kv_head, num_parts,
    num_kv_heads, window, num_splits, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, HAS_SINKS: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The splits of a tile, from the first to the last, into `out`; nothing where there was but one."""
    QUERIES: tl.constexpr = ROWS // GROUP
    before = seq_len - num_queries
    last = tl.minimum(first + QUERIES, num_queries) - 1
    begin, end = keys_of_tile(before + first, before + last, window, BLOCK)
    used, _size = splits_of_tile(begin, end, num_splits, BLOCK)
    if used > 1:
        query, here, token, head = _rows_of_tile(start, num_queries, first, kv_head, GROUP, ROWS)
        column = tl.arange(0, WIDTH)
        inside = here[:, None] & (column < HEAD_DIM)[None, :]
        part_row = (part_start + query) * num_kv_heads * GROUP + head
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, WIDTH], tl.float32)
        step = tl.cast(num_parts, tl.int64) * num_kv_heads * GROUP
        for split in range(used):
            lse = tl.load(lse_ptr + split * step + part_row, mask=here, other=0.0)
            new = tl.maximum(largest, lse)
            base = tl.where(new > float("-inf"), new, 0.0)
            keep = tl.exp2(largest - base)
            weight = tl.exp2(lse - base)
            place = (split * step + part_row)[:, None] * HEAD_DIM + column[None, :]
            part = tl.load(part_ptr + place, mask=inside, other=0.0)
            acc = acc * keep[:, None] + part * weight[:, None]
            total = total * keep + weight
            largest = new
        if HAS_SINKS:
            base = tl.where(largest > float("-inf"), largest, 0.0)
            total += tl.exp2(tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E - base)
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        target = (token * num_kv_heads * GROUP + head)[:, None] * HEAD_DIM + column[None, :]
        tl.store(out_ptr + target, acc.to(out_ptr.dtype.element_ty), mask=inside)
