"""A lean LLaMA decoder for inference: fused weights, ragged batches, a paged key/value cache.

Query, key and value projections are one matrix, and so are gate and up: two large products where transformers makes
five. Everything else is an op of `kernels`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from ...kernels import ops
from ...kernels.ragged import RaggedBatch
from ...runtime.errors import ModelDamaged
from .config import LlamaConfig
from .kv_cache import KVCache

_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")


class _Part(NamedTuple):
    """Where a canonical tensor lies inside a fused one: these rows of that parameter (all rows if None)."""

    parameter: str
    rows: slice | None = None


class LlamaLayer(nn.Module):
    """One decoder layer: attention, then the gated MLP, each after a norm, each added to the residual stream."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.q_size = config.num_heads * config.head_dim
        self.kv_size = config.num_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.eps = config.rms_norm_eps
        self.scale = config.head_dim**-0.5
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.input_norm = _weight(hidden, dtype=dtype)
        self.qkv = _weight(self.q_size + 2 * self.kv_size, hidden, dtype=dtype)
        self.o = _weight(hidden, self.q_size, dtype=dtype)
        self.post_norm = _weight(hidden, dtype=dtype)
        self.gate_up = _weight(2 * intermediate, hidden, dtype=dtype)
        self.down = _weight(hidden, intermediate, dtype=dtype)

    def parts(self) -> dict[str, _Part]:
        """Canonical name within the layer -> where it goes."""
        q, kv, intermediate = self.q_size, self.kv_size, self.gate_up.shape[0] // 2
        return {
            "input_layernorm.weight": _Part("input_norm"),
            "self_attn.q_proj.weight": _Part("qkv", slice(0, q)),
            "self_attn.k_proj.weight": _Part("qkv", slice(q, q + kv)),
            "self_attn.v_proj.weight": _Part("qkv", slice(q + kv, q + 2 * kv)),
            "self_attn.o_proj.weight": _Part("o"),
            "post_attention_layernorm.weight": _Part("post_norm"),
            "mlp.gate_proj.weight": _Part("gate_up", slice(0, intermediate)),
            "mlp.up_proj.weight": _Part("gate_up", slice(intermediate, 2 * intermediate)),
            "mlp.down_proj.weight": _Part("down"),
        }

    def forward(
        self,
        hidden: torch.Tensor,  # [num_tokens, hidden]: what the layer before added
        residual: torch.Tensor,  # [num_tokens, hidden]: the stream before that
        rotation: tuple[torch.Tensor, torch.Tensor],  # cos, sin [num_tokens, head_dim / 2]
        caches: tuple[torch.Tensor, torch.Tensor],
        batch: RaggedBatch,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, residual = ops.add_rms_norm(hidden, residual, self.input_norm, self.eps)
        heads = ops.linear(hidden, self.qkv).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split([size // self.head_dim for size in (self.q_size, self.kv_size, self.kv_size)], dim=1)
        q, k = ops.rotary(q, k, *rotation)
        ops.write_kv(k, v, *caches, batch.slots)
        attended = ops.paged_attention(q, *caches, batch, self.scale)
        hidden = ops.linear(attended.flatten(1), self.o)
        hidden, residual = ops.add_rms_norm(hidden, residual, self.post_norm, self.eps)
        return ops.linear(ops.silu_mul(ops.linear(hidden, self.gate_up)), self.down), residual


class LlamaDecoder(nn.Module):
    """The whole decoder. Weights are empty until `load_weights`; call it under `torch.inference_mode`."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.embedding = _weight(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(LlamaLayer(config, dtype) for _ in range(config.num_layers))
        self.norm = _weight(config.hidden_size, dtype=dtype)
        self.head = (
            self.embedding if config.tied_embeddings else _weight(config.vocab_size, config.hidden_size, dtype=dtype)
        )
        self.inverse_frequencies: torch.Tensor  # [head_dim / 2]
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("inverse_frequencies", 1.0 / config.rope_theta**exponents, persistent=False)

    def forward(self, token_ids: torch.Tensor, cache: KVCache, batch: RaggedBatch) -> torch.Tensor:
        """token_ids [num_tokens] -> final hidden states [num_tokens, hidden], after the last norm.

        Writes the tokens' keys and values into `cache`.
        """
        residual = torch.nn.functional.embedding(token_ids, self.embedding)
        hidden = torch.zeros_like(residual)
        # In float32 and then converted, as in transformers; once for all layers.
        angles = batch.positions[:, None].float() * self.inverse_frequencies
        rotation = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        for layer, k, v in zip(self.layers, cache.k, cache.v, strict=True):
            hidden, residual = layer(hidden, residual, rotation, (k, v), batch)
        return ops.add_rms_norm(hidden, residual, self.norm, self.config.rms_norm_eps)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_rows, hidden] -> [num_rows, vocab]."""
        return ops.linear(hidden, self.head)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy every canonical (name, tensor) to its place, converted to the decoder's type.

        `ModelDamaged` where one is unknown, missing, of another shape, or holds a value that is not finite.
        """
        missing = set(self._canonical_names())
        for name, tensor in weights:
            if name not in missing:
                raise ModelDamaged(f"tensor '{name}' has no place in this decoder, or came twice")
            target = self._target(name)
            if target.shape != tensor.shape:
                raise ModelDamaged(
                    f"tensor '{name}' has the shape {tuple(tensor.shape)}; {tuple(target.shape)} is needed"
                )
            target.copy_(tensor)
            # One pass without a mask: any NaN or infinity makes the sum one.
            if not bool(target.sum(dtype=torch.float32).isfinite()):
                raise ModelDamaged(f"tensor '{name}' holds values that are not finite")
            missing.discard(name)
        if missing:
            raise ModelDamaged(f"{len(missing)} tensors are missing, among them '{min(missing)}'")

    def _canonical_names(self) -> Iterator[str]:
        yield from ("model.embed_tokens.weight", "model.norm.weight")
        if not self.config.tied_embeddings:
            yield "lm_head.weight"
        for i, layer in enumerate(self.layers):
            yield from (f"model.layers.{i}.{name}" for name in layer.parts())  # pyright: ignore

    def _target(self, name: str) -> torch.Tensor:
        match = _LAYER_NAME.fullmatch(name)
        if match is None:
            top = {
                "model.embed_tokens.weight": self.embedding,
                "model.norm.weight": self.norm,
                "lm_head.weight": self.head,
            }
            return top[name].data
        layer = self.layers[int(match[1])]
        part = layer.parts()[match[2]]  # pyright: ignore
        whole: torch.Tensor = getattr(layer, part.parameter).data
        return whole if part.rows is None else whole[part.rows]


def _weight(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
