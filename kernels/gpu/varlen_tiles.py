"""What the kernels of packed attention share: which rows a tile has, which keys a row sees, a step of the softmax.

Rows are (query, head) pairs as in `paged_tiles`: row r of a tile is query r // group, head r % group of those that
share a key/value head. So the gradients of a key, which all these heads add to, are one program's, in one order.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import triton
import triton.language as tl

from .paged_steps import LOG2_E, dot


@triton.jit
def rows_of_tile(start, length, first, kv_head, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """Of each row: its query in the sequence, whether there is one, its token, its head."""
    QUERIES: tl.constexpr = ROWS // GROUP
    row = tl.arange(0, ROWS)
    query = first + row // GROUP
    here = (row < QUERIES * GROUP) & (query < length)
    return query, here, start + query, kv_head * GROUP + row % GROUP


@triton.jit
def load_rows(x_ptr, token, head, here, token_stride, head_stride, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """[ROWS, WIDTH], zero where there is nothing."""
    column = tl.arange(0, WIDTH)
    place = token[:, None] * token_stride + head[:, None] * head_stride + column[None, :]
    return tl.load(x_ptr + place, mask=here[:, None] & (column < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def load_keys(
    x_ptr, start, first, length, token_stride, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr
):
    """[KEYS, WIDTH] of one head, zero where there is nothing; x_ptr is that of token zero."""
    key = first + tl.arange(0, KEYS)
    column = tl.arange(0, WIDTH)
    place = (start + key)[:, None] * token_stride + column[None, :]
    return tl.load(x_ptr + place, mask=(key < length)[:, None] & (column < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def store_keys(
    x_ptr, x, start, first, length, token_stride, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr
):
    key = first + tl.arange(0, KEYS)
    column = tl.arange(0, WIDTH)
    place = (start + key)[:, None] * token_stride + column[None, :]
    mask = (key < length)[:, None] & (column < HEAD_DIM)[None, :]
    tl.store(x_ptr + place, x.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def keys_of_rows(first, last, length, window, CAUSAL: tl.constexpr, KEYS: tl.constexpr):
    """Of the queries `first` to `last`: the keys [begin, end) that any sees, and `common`, up to which all see all."""
    if CAUSAL:
        begin = tl.maximum(0, first - window + 1) // KEYS * KEYS
        end = last + 1
        common = begin
        if last - begin < window:
            common = tl.maximum(begin, (first + 1) // KEYS * KEYS)
    else:
        begin = 0
        end = length
        common = length // KEYS * KEYS
    return begin, common, end


@triton.jit
def visible(query, first_key, length, window, CAUSAL: tl.constexpr, KEYS: tl.constexpr):
    """[ROWS, KEYS]: which keys which queries see."""
    key = first_key + tl.arange(0, KEYS)
    if CAUSAL:
        age = query[:, None] - key[None, :]
        return (age >= 0) & (age < window) & (key < length)[None, :]
    else:
        return (query[:, None] >= 0) & (key < length)[None, :]


@triton.jit
def attend_keys(
    q, largest, total, acc, k_ptr, v_ptr, start, first_key, length, query, k_stride, v_stride, scale, window,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """KEYS keys more in a running softmax to base 2."""
    k = load_keys(k_ptr, start, first_key, length, k_stride, HEAD_DIM, WIDTH, KEYS)
    scores = dot(q, tl.trans(k), tl.zeros([q.shape[0], KEYS], tl.float32), EXACT) * (scale * LOG2_E)
    if MASKED:
        scores = tl.where(visible(query, first_key, length, window, CAUSAL, KEYS), scores, float("-inf"))
    new = tl.maximum(largest, tl.max(scores, 1))
    base = new
    if MASKED:
        base = tl.where(new > float("-inf"), new, 0.0)  # minus infinity less itself would be no number
    weights = tl.exp2(scores - base[:, None])
    keep = tl.exp2(largest - base)
    v = load_keys(v_ptr, start, first_key, length, v_stride, HEAD_DIM, WIDTH, KEYS)
    acc = dot(weights.to(v.dtype), v, acc * keep[:, None], EXACT)
    return new, total * keep + tl.sum(weights, 1), acc
