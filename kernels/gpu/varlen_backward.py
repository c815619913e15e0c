"""Gradients of packed attention without atomics: of queries by tiles of queries, of keys and values by tiles of keys.

Weights of the softmax are made again from the scores and the logarithm of their sum (Dao et al., "FlashAttention",
2022).
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import triton
import triton.language as tl

from .paged_steps import LOG2_E, dot
from .paged_tiles import sequence_of_tile
from .varlen_tiles import keys_of_rows, load_keys, load_rows, rows_of_tile, store_keys, visible


@triton.jit
def _query_step(
    dq, q, grad, lse, delta, k_ptr, v_ptr, start, first_key, length, query, k_stride, v_stride, scale, window,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    k = load_keys(k_ptr, start, first_key, length, k_stride, HEAD_DIM, WIDTH, KEYS)
    v = load_keys(v_ptr, start, first_key, length, v_stride, HEAD_DIM, WIDTH, KEYS)
    zeros = tl.zeros([q.shape[0], KEYS], tl.float32)
    weights = tl.exp2(dot(q, tl.trans(k), zeros, EXACT) * (scale * LOG2_E) - lse[:, None])
    if MASKED:
        weights = tl.where(visible(query, first_key, length, window, CAUSAL, KEYS), weights, 0.0)
    of_scores = weights * (dot(grad, tl.trans(v), zeros, EXACT) - delta[:, None])
    return dot(of_scores.to(k.dtype), k, dq, EXACT)


@triton.jit
def backward_queries(
    q_ptr, k_ptr, v_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, cu_seqlens_ptr, num_seqs, num_tiles,
    num_kv_heads, scale, window, q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride,
    grad_stride, grad_head_stride, CAUSAL: tl.constexpr, EXACT: tl.constexpr, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dq of a tile, and delta [num_tokens, num_heads]: each row's gradient times what it attended to."""
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
        grad = load_rows(grad_ptr, token, head, here, grad_stride, grad_head_stride, HEAD_DIM, WIDTH)
        num_heads = num_kv_heads * GROUP
        out = load_rows(out_ptr, token, head, here, num_heads * HEAD_DIM, HEAD_DIM, HEAD_DIM, WIDTH)
        delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
        row = token * num_heads + head
        tl.store(delta_ptr + row, delta, mask=here)
        lse = tl.load(lse_ptr + row, mask=here, other=float("inf"))
        k_ptr += kv_head.to(tl.int64) * k_head_stride
        v_ptr += kv_head.to(tl.int64) * v_head_stride
        last = tl.minimum(first + QUERIES, length) - 1
        begin, common, end = keys_of_rows(first, last, length, window, CAUSAL, KEYS)
        dq = tl.zeros([ROWS, WIDTH], tl.float32)
        for first_key in range(begin, common, KEYS):
            dq = _query_step(
                dq, q, grad, lse, delta, k_ptr, v_ptr, start, first_key, length, query, k_stride, v_stride, scale,
                window, CAUSAL, False, EXACT, HEAD_DIM, WIDTH, KEYS,
            )  # fmt: skip
        for first_key in range(common, end, KEYS):
            dq = _query_step(
                dq, q, grad, lse, delta, k_ptr, v_ptr, start, first_key, length, query, k_stride, v_stride, scale,
                window, CAUSAL, True, EXACT, HEAD_DIM, WIDTH, KEYS,
            )  # fmt: skip
        column = tl.arange(0, WIDTH)
        mask = here[:, None] & (column < HEAD_DIM)[None, :]
        tl.store(dq_ptr + row[:, None] * HEAD_DIM + column[None, :], (dq * scale).to(q.dtype), mask=mask)


@triton.jit
def _key_step(
    dk, dv, k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, start, first, first_key, length, kv_head, num_kv_heads,
    q_stride, q_head_stride, grad_stride, grad_head_stride, scale, window, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
    EXACT: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    query, here, token, head = rows_of_tile(start, length, first, kv_head, GROUP, ROWS)
    q = load_rows(q_ptr, token, head, here, q_stride, q_head_stride, HEAD_DIM, WIDTH)
    grad = load_rows(grad_ptr, token, head, here, grad_stride, grad_head_stride, HEAD_DIM, WIDTH)
    row = token * num_kv_heads * GROUP + head
    lse = tl.load(lse_ptr + row, mask=here, other=float("inf"))  # no row: weights of zero
    delta = tl.load(delta_ptr + row, mask=here, other=0.0)
    zeros = tl.zeros([KEYS, ROWS], tl.float32)
    weights = tl.exp2(dot(k, tl.trans(q), zeros, EXACT) * (scale * LOG2_E) - lse[None, :])  # [KEYS, ROWS]
    if MASKED:
        age = query[None, :] - (first_key + tl.arange(0, KEYS))[:, None]
        weights = tl.where((age >= 0) & (age < window), weights, 0.0)
    dv = dot(weights.to(grad.dtype), grad, dv, EXACT)
    of_scores = weights * (dot(v, tl.trans(grad), zeros, EXACT) - delta[None, :])
    return dot(of_scores.to(q.dtype), q, dk, EXACT), dv


@triton.jit
def backward_keys(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, cu_seqlens_ptr, num_seqs, num_kv_heads,
    scale, window, q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride,
    grad_stride, grad_head_stride, CAUSAL: tl.constexpr, EXACT: tl.constexpr, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys: all queries that see them, of all heads that share them, in order."""
    QUERIES: tl.constexpr = ROWS // GROUP
    program = tl.program_id(0)
    kv_head = program % num_kv_heads
    sequence, first_key = sequence_of_tile(cu_seqlens_ptr, num_seqs, program // num_kv_heads, KEYS)
    start = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64) - start).to(tl.int32)
    if first_key < length:
        k_ptr += kv_head.to(tl.int64) * k_head_stride
        v_ptr += kv_head.to(tl.int64) * v_head_stride
        k = load_keys(k_ptr, start, first_key, length, k_stride, HEAD_DIM, WIDTH, KEYS)
        v = load_keys(v_ptr, start, first_key, length, v_stride, HEAD_DIM, WIDTH, KEYS)
        dk = tl.zeros([KEYS, WIDTH], tl.float32)
        dv = tl.zeros([KEYS, WIDTH], tl.float32)
        begin = 0
        end = length
        masked_end = 0
        if CAUSAL:
            # Queries before the last key do not see all keys, nor do those that a window hides the first one from.
            begin = first_key
            end = tl.minimum(length, tl.minimum(first_key + KEYS - 1, length - 1) + window)
            masked_end = begin + tl.cdiv(tl.minimum(first_key + KEYS, end) - begin, QUERIES) * QUERIES
            if end - 1 - first_key >= window:
                masked_end = begin + tl.cdiv(end - begin, QUERIES) * QUERIES
        for first in range(begin, tl.minimum(masked_end, end), QUERIES):
            dk, dv = _key_step(
                dk, dv, k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, start, first, first_key, length, kv_head,
                num_kv_heads, q_stride, q_head_stride, grad_stride, grad_head_stride, scale, window,
                CAUSAL, True, EXACT, GROUP, HEAD_DIM, WIDTH, ROWS, KEYS,
            )  # fmt: skip
        for first in range(masked_end, end, QUERIES):
            dk, dv = _key_step(
                dk, dv, k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, start, first, first_key, length, kv_head,
                num_kv_heads, q_stride, q_head_stride, grad_stride, grad_head_stride, scale, window,
                CAUSAL, False, EXACT, GROUP, HEAD_DIM, WIDTH, ROWS, KEYS,
            )  # fmt: skip
        stride = num_kv_heads * HEAD_DIM
        store_keys(dk_ptr + kv_head * HEAD_DIM, dk * scale, start, first_key, length, stride, HEAD_DIM, WIDTH, KEYS)
        store_keys(dv_ptr + kv_head * HEAD_DIM, dv, start, first_key, length, stride, HEAD_DIM, WIDTH, KEYS)
