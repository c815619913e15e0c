"""The reference of packed attention: plain torch, one sequence at a time, differentiable, any floating type."""

from __future__ import annotations

from itertools import pairwise

import torch


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
    causal: bool = True,
    window: int = 0,
) -> torch.Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    parts = [q[:0]]
    bounds = cu_seqlens.tolist()
    for begin, end in pairwise(bounds):
        keys, values = (x[begin:end].to(wide).repeat_interleave(group, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[begin:end].to(wide), keys) * scale
        if causal:
            place = torch.arange(end - begin, device=q.device)
            age = place[:, None] - place
            hidden = (age < 0) | (age >= window) if window else age < 0
            scores = scores.masked_fill(hidden, float("-inf"))
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(q.dtype))
    return torch.cat(parts)
