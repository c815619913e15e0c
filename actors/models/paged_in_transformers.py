"""An attention function for transformers' registry: keys and values go to the paged cache, attention to `kernels`.

transformers calls it in every attention layer, with the tokens of all sequences laid end to end as one. What the
layers cannot hand down (the cache, which tokens belong to which sequence) it finds in `current`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...kernels import ops
from ...kernels.quantized import Cache
from ...kernels.ragged import RaggedBatch
from .errors import UnsupportedModel
from .kv_cache import KVCache
from .lora import SelectedAdapters

NAME = "callboard_paged"
# What layers also hand down, and what says nothing that the batch does not say already.
_KNOWN_TENSORS = {"position_ids", "cache_position", "position_embeddings"}


@dataclass(frozen=True)
class CurrentStep:
    """`layers`: place of each attention module's keys and values in the cache. `learning`: a step that finds out,
    and adds to `layers`, `cache` and `windows` (how far back each layer looks, 0: all) what it meets."""

    batch: RaggedBatch
    cache: KVCache
    layers: dict[int, int]
    adapters: SelectedAdapters | None = None
    learning: bool = False
    windows: list[int] = field(default_factory=list)

    def place(self, module: nn.Module, k: torch.Tensor) -> tuple[Cache, Cache]:
        layer = self.layers.get(id(module))
        if layer is None:
            if not self.learning:
                raise UnsupportedModel(f"{type(module).__name__} does attention only now and then")
            layer = self.layers[id(module)] = len(self.cache.k)
            for caches in (self.cache.k, self.cache.v):
                caches.append(k.new_zeros(self.cache.num_blocks, self.cache.block_size, *k.shape[1:]))
        return self.cache.k[layer], self.cache.v[layer]


current: ContextVar[CurrentStep] = ContextVar("current")


def register() -> None:
    """Make the function known by `NAME`. No mask function is: transformers then makes no masks for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, paged_attention)


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,  # [1, num_heads, num_tokens, head_dim]
    key: torch.Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
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
    """Returns [1, num_tokens, num_heads, head_dim], and no weights.

    `UnsupportedModel` where a layer wants attention of another kind: not causal, with a mask or a bias of its own.
    """
    _check(module, attention_mask, is_causal, others)
    step = current.get()
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    value_dim = v.shape[-1]
    if value_dim < k.shape[-1]:  # the cache has one size for both
        v = nn.functional.pad(v, (0, k.shape[-1] - value_dim))
    if v.shape[-1] != k.shape[-1]:
        raise UnsupportedModel(f"{type(module).__name__} has larger values than keys")
    k_cache, v_cache = step.place(module, k)
    if step.learning:
        step.windows.append(sliding_window or 0)
    ops.write_kv(k, v, k_cache, v_cache, step.batch.slots)
    attended = ops.paged_attention(
        q,
        k_cache,
        v_cache,
        step.batch,
        scaling if scaling is not None else q.shape[-1] ** -0.5,
        sliding_window or 0,
        softcap or 0.0,
        s_aux,
    )
    return attended[None, ..., :value_dim], None


def _check(
    module: nn.Module, attention_mask: torch.Tensor | None, is_causal: bool | None, others: Mapping[str, Any]
) -> None:
    kind = type(module).__name__
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if not causal:
        raise UnsupportedModel(f"{kind} looks at what comes later in the text, which cannot be served token by token")
    if attention_mask is not None:
        raise UnsupportedModel(f"{kind} makes an attention mask of its own")
    odd = [name for name, value in others.items() if isinstance(value, torch.Tensor) and name not in _KNOWN_TENSORS]
    if odd:
        raise UnsupportedModel(f"{kind} hands its attention '{odd[0]}', which is not implemented here")
