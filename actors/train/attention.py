"""Attention of training, for transformers' registry: each sequence of a packed batch sees itself alone.

transformers calls it in every attention layer. Where sequences begin cannot be handed down by every model's code, so it
is found in `packed`, which is set around a forward pass; the backward pass needs nothing of it, but an activation
checkpoint runs layers again in it, and so a step sets `packed` until its gradients are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...kernels import ops_attention
from ..models.errors import UnsupportedModel
from .ulysses import SequenceGroup

NAME = "callboard_varlen"


class _Packed:
    """One for the process: autograd runs what a checkpoint computes again in threads of its own, which have no context
    variables of ours."""

    def __init__(self) -> None:
        self.cu_seqlens: torch.Tensor | None = None
        self.shared: SequenceGroup | None = None


_packed = _Packed()


@contextmanager
def packed(cu_seqlens: torch.Tensor | None, shared: SequenceGroup | None = None) -> Iterator[None]:
    """Sequences lie end to end in the one row of a batch, from cu_seqlens[i] to cu_seqlens[i + 1]; None: each row is
    one sequence. `shared`: the row is this rank's part of one that the ranks of a group have together."""
    before = _packed.cu_seqlens, _packed.shared
    _packed.cu_seqlens, _packed.shared = cu_seqlens, shared
    try:
        yield
    finally:
        _packed.cu_seqlens, _packed.shared = before


def current_shared() -> SequenceGroup | None:
    return _packed.shared


def current_cu_seqlens(num_rows: int, length: int, device: torch.device) -> torch.Tensor:
    """Where the sequences of a batch [num_rows, length] begin when it is laid out as one row."""
    if _packed.cu_seqlens is not None:
        return _packed.cu_seqlens
    return torch.arange(0, (num_rows + 1) * length, length, dtype=torch.int32, device=device)


def register() -> None:
    """Make the function known by `NAME`. No mask function is: transformers then makes no masks for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, varlen)


def varlen(
    module: nn.Module,
    query: torch.Tensor,  # [num_rows, num_heads, length, head_dim]
    key: torch.Tensor,  # [num_rows, num_kv_heads, length, head_dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Returns [num_rows, length, num_heads, head_dim], and no weights. UnsupportedModel for attention of other
    kinds."""
    kind = type(module).__name__
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    for asked, what in (
        (not causal, "looks at what comes later"),
        (attention_mask is not None, "makes a mask of its own"),
        (bool(softcap), "caps its scores"),
        (s_aux is not None, "has attention sinks"),
        (bool(dropout), "drops attention out"),
        (key.shape[2] != query.shape[2], "keeps keys of an earlier call"),
    ):
        if asked:
            raise UnsupportedModel(f"{kind} {what}, which training does not do here")
    num_rows, _, length, head_dim = query.shape
    q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    value_dim = v.shape[-1]
    if value_dim < head_dim:
        v = nn.functional.pad(v, (0, head_dim - value_dim))
    cu_seqlens = current_cu_seqlens(num_rows, length, query.device)
    scale = scaling if scaling is not None else head_dim**-0.5

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ops_attention.varlen_attention(q, k, v, cu_seqlens, scale, window=sliding_window or 0)

    attended = attend(q, k, v) if _packed.shared is None else _packed.shared.attention(q, k, v, attend)
    return attended.view(num_rows, length, -1, head_dim)[..., :value_dim], None
