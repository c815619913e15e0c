"""The shape of a LLaMA-like decoder, as a frozen value, whatever file it is read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...runtime.errors import ModelDamaged
from .gguf import GGUFFile
from .rope import RopeScaling

# Far beyond what any model of this shape was made for; more is a damaged number.
MAX_CONTEXT_LENGTH = 1 << 24


class LlamaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the families share, and where they differ.

    `qkv_bias`, `o_bias`, `mlp_bias`: which products have one. `qk_norm`: queries and keys are normalised, head by
    head, before they are turned. `windows`: how far each layer looks back (0: to the beginning); empty where none has
    a limit.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    context_length: int
    tied_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] = ()
    rope_scaling: RopeScaling = RopeScaling()

    def __post_init__(self) -> None:
        sizes = (self.hidden_size, self.intermediate_size, self.num_layers, self.num_heads, self.num_kv_heads)
        if min(*sizes, self.head_dim, self.vocab_size) < 1 or not 0 < self.context_length <= MAX_CONTEXT_LENGTH:
            raise ModelDamaged(f"a decoder cannot have these sizes: {self}")
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise ModelDamaged(
                f"a decoder cannot have {self.num_heads} heads, {self.num_kv_heads} key/value heads "
                f"and head size {self.head_dim}"
            )
        if self.windows and (len(self.windows) != self.num_layers or min(self.windows) < 0):
            raise ModelDamaged(f"{self.num_layers} layers cannot have the attention windows {self.windows}")
        factors = self.rope_scaling.factors
        if factors and len(factors) != self.head_dim // 2:
            raise ModelDamaged(f"{len(factors)} rotary factors do not go with head size {self.head_dim}")

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> LlamaConfig:
        """From the metadata of a GGUF file; see `config_gguf`."""
        from .config_gguf import config_from_gguf

        return config_from_gguf(file)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> LlamaConfig:
        """From the content of a `config.json`; see `config_hf`."""
        from .config_hf import config_from_hf

        return config_from_hf(raw)

    def window(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0

    @property
    def kv_shapes(self) -> tuple[tuple[int, int], ...]:
        """(number of key/value heads, their size) of each layer that keeps keys and values."""
        return ((self.num_kv_heads, self.head_dim),) * self.num_layers
