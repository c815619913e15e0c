"""The door to attention over packed sequences, for training: one signature, the path picked by device."""

from __future__ import annotations

import torch

from . import native_training, native_varlen
from . import varlen_attention as in_torch
from .gpu import launch


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
    causal: bool = True,
    window: int = 0,
) -> torch.Tensor:
    """Attention within each of several sequences that lie end to end, differentiable by q, k and v (once).

    q [num_tokens, num_heads, head_dim], k and v [num_tokens, num_kv_heads, head_dim] of one type; query head h reads
    key/value head h // (num_heads / num_kv_heads). Sequence i has the tokens cu_seqlens[i] to cu_seqlens[i + 1] - 1:
    int32 or int64 [num_seqs + 1], from 0 up to num_tokens, in no descending order (a sequence may be empty; on a card
    nobody looks whether this holds, for to look would be to wait). Softmax in at least float32. Returns [num_tokens,
    num_heads, head_dim].

    `causal`: a query sees no later key. `window`, with `causal` only: of the keys up to its own it sees the last
    `window` (0: all). Gradients are the same bits in every run.
    """
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} are not tokens, heads and dimensions of one size")
    if len(q) != len(k) or q.shape[2] != k.shape[2] or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"q {tuple(q.shape)} does not go with k of {tuple(k.shape)}")
    if cu_seqlens.ndim != 1 or not len(cu_seqlens) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens is {cu_seqlens.dtype} of {tuple(cu_seqlens.shape)}; whole numbers are needed")
    if window < 0 or (window and not causal):
        raise ValueError(f"a window of {window} needs causal attention and is not negative")
    if q.device.type == "cuda" and q.dtype != torch.float64 and not launch.unavailable(q.device):
        from .gpu import varlen_attention as on_card

        return on_card.varlen_attention(q, k, v, cu_seqlens, scale, causal, window)
    if q.shape[2] in native_varlen.HEAD_DIMS and native_training.takes(q, k, v):
        in_torch.bounds_of(cu_seqlens, len(q))
        return native_varlen.varlen_attention(q, k, v, cu_seqlens, scale, causal, window)
    return in_torch.varlen_attention(q, k, v, cu_seqlens, scale, causal, window)
