"""Attention of packed sequences in torch, on any device: PyTorch's own attention, and its gradients."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
    causal: bool = True,
    window: int = 0,
) -> torch.Tensor:
    """See `ops_attention.varlen_attention`; waits for a card to learn the lengths."""
    parts = [q[:0]]
    for begin, end in pairwise(bounds_of(cu_seqlens, len(q))):
        if begin == end:
            continue
        mask = _window_mask(end - begin, window, q.device) if 0 < window < end - begin else None
        queries, keys, values = (x[begin:end].transpose(0, 1)[None] for x in (q, k, v))
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


def bounds_of(cu_seqlens: torch.Tensor, num_tokens: int) -> list[int]:
    """The numbers themselves, once it is sure that they are bounds of sequences."""
    bounds: list[int] = cu_seqlens.tolist()
    if not bounds or bounds[0] != 0 or bounds[-1] != num_tokens or bounds != sorted(bounds):
        raise ValueError(f"cu_seqlens goes from 0 up to the {num_tokens} tokens of q, not {bounds[:8]}")
    return bounds


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, length], true where a query sees a key."""
    place = torch.arange(length, device=device)
    age = place[:, None] - place
    return (age >= 0) & (age < window)
