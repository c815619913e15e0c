"""The shape of a decoder that a GGUF file describes, as the configuration that transformers has for it."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from .config import LlamaConfig
from .config_hf import config_from_hf
from .errors import UnsupportedModel
from .gguf import GGUFFile
from .rope import RopeKind, RopeScaling, inverse_frequencies

# LLaMA 3's scaling as all models have it that were published with it; their factors differ.
_LLAMA3 = RopeScaling(kind=RopeKind.LLAMA3, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
_CLOSE = 1e-4
_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def config_to_hf(shape: LlamaConfig, file: GGUFFile, dtype: str) -> Any:
    """A `PretrainedConfig`. UnsupportedModel where transformers cannot say what the file says."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family = file.get("general.architecture", str)
    ids = {name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _IDS.items()}
    biases = {"attention_bias": shape.qkv_bias, "mlp_bias": shape.mlp_bias} if family == "llama" else {}
    config: Any = AutoConfig.for_model(
        family,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context_length,
        rms_norm_eps=shape.rms_norm_eps,
        tie_word_embeddings=shape.tied_embeddings,
        rope_parameters={"rope_theta": shape.rope_theta, **_rope_parameters(shape)},
        dtype=dtype,
        **biases,
        **ids,
    )
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]]
    if not _are_same(config_from_hf(config.to_dict()), shape):
        raise UnsupportedModel(f"{file.path}: transformers has no configuration for this shape of a decoder")
    return config


def _rope_parameters(shape: LlamaConfig) -> dict[str, Any]:
    scaling = shape.rope_scaling
    if scaling.kind is RopeKind.FACTORS:  # a file has what comes of LLaMA 3's scaling; the slowest pair has it whole
        scaling = msgspec.structs.replace(_LLAMA3, factor=float(round(max(scaling.factors))))
    found: dict[str, Any] = {"rope_type": scaling.kind.value}
    if scaling.kind is not RopeKind.DEFAULT:
        found["factor"] = scaling.factor
    if scaling.kind in (RopeKind.YARN, RopeKind.LLAMA3):
        found["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind is RopeKind.LLAMA3:
        found["low_freq_factor"], found["high_freq_factor"] = scaling.low_freq_factor, scaling.high_freq_factor
    return found


def rope_factors(config: LlamaConfig) -> list[float]:
    """By what each pair's frequency is divided."""
    plain = inverse_frequencies(config.rope_theta, config.head_dim, RopeScaling())
    return (plain / inverse_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)).tolist()


def _are_same(one: LlamaConfig, other: LlamaConfig) -> bool:
    """Where a file has factors, it is they that must agree, not what they come of."""
    factors = (RopeKind.LLAMA3, RopeKind.FACTORS)
    if one.rope_scaling.kind in factors and other.rope_scaling.kind in factors:
        pairs = zip(rope_factors(one), rope_factors(other), strict=True)
        if not all(math.isclose(a, b, rel_tol=_CLOSE) for a, b in pairs):
            return False
        other = msgspec.structs.replace(other, rope_scaling=one.rope_scaling)
    return one == other
