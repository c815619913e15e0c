"""From a `config.json` in Hugging Face's layout to the shape of a decoder.

`UnsupportedModel` means that the lean decoder does not do what the file asks for; transformers may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ...runtime.errors import ModelDamaged
from .config import LlamaConfig
from .errors import UnsupportedModel
from .rope import RopeKind, RopeScaling

T = TypeVar("T")

# `model_type` of the LLaMA-shaped families.
FAMILIES = ("llama", "mistral", "ministral", "qwen2", "qwen3", "internlm2", "internlm3")
# The families whose configuration may say that only some layers, or none, look back a limited way.
_LAYERWISE_WINDOWS = ("qwen2", "qwen3", "ministral")


def config_from_hf(raw: Mapping[str, Any]) -> LlamaConfig:
    """`ModelDamaged` where a value is missing or of the wrong kind."""
    get = _Reader(raw)
    family = get("model_type", str)
    if family not in FAMILIES:
        raise UnsupportedModel(f"the lean decoder does not know the family '{family}'")
    if raw.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"the lean decoder does not know the activation '{raw['hidden_act']}'")
    hidden_size, num_heads = get("hidden_size", int), get("num_attention_heads", int)
    head_dim = get("head_dim", int, 128 if family == "qwen3" else hidden_size // max(1, num_heads))
    context_length = get("max_position_embeddings", int)
    theta, scaling = _rope(get, context_length)
    num_layers = get("num_hidden_layers", int)
    # InternLM's `bias` is that of the attention in its second version, and of everything after it in the third.
    bias = get("attention_bias", bool, False) or (family == "internlm2" and get("bias", bool, False))
    third = family == "internlm3" and get("bias", bool, False)
    return LlamaConfig(
        vocab_size=get("vocab_size", int),
        hidden_size=hidden_size,
        intermediate_size=get("intermediate_size", int),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=get("num_key_value_heads", int, num_heads),
        head_dim=head_dim,
        rms_norm_eps=get("rms_norm_eps", float),
        rope_theta=theta,
        context_length=context_length,
        tied_embeddings=get("tie_word_embeddings", bool, False),
        qkv_bias=bias or family == "qwen2" or (family == "internlm3" and get("qkv_bias", bool, False)),
        o_bias=(bias or third) and family != "qwen2",
        mlp_bias=get("mlp_bias", bool, False) or third,
        qk_norm=family == "qwen3",
        windows=_windows(get, family, num_layers),
        rope_scaling=scaling,
    )


class _Reader:
    """Values of a `config.json`, each checked for its kind. What is null counts as absent."""

    def __init__(self, raw: Mapping[str, Any], where: str = "config.json") -> None:
        self.raw = raw
        self._where = where

    def __call__(self, key: str, kind: type[T], default: T | None = None) -> T:
        value: Any = self.raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelDamaged(f"{self._where} has no '{key}'")
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelDamaged(f"{self._where}: '{key}' is {value!r}, which is no {kind.__name__}")
        return value

    def inner(self, *keys: str) -> _Reader:
        """The first of these objects that is there; an empty one if none is."""
        for key in keys:
            value = self.raw.get(key)
            if isinstance(value, Mapping):
                return _Reader(value, f"{self._where}: {key}")
            if value is not None:
                raise ModelDamaged(f"{self._where}: '{key}' is {value!r}, which is no object")
        return _Reader({}, self._where)


def _windows(get: _Reader, family: str, num_layers: int) -> tuple[int, ...]:
    window = get("sliding_window", int, 0)
    if window < 0:
        raise ModelDamaged(f"config.json: 'sliding_window' is {window}")
    if family == "mistral":
        return (window,) * num_layers if window else ()
    if family not in _LAYERWISE_WINDOWS:
        return ()
    if family != "ministral" and not get("use_sliding_window", bool, False):
        window = 0
    types = get.raw.get("layer_types")
    if types is None:
        first = get("max_window_layers", int, 0 if family == "ministral" else 28)
        types = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers:
        raise ModelDamaged(f"config.json: 'layer_types' does not name {num_layers} layers")
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise UnsupportedModel(f"the lean decoder does not know layers of the kind {sorted(map(str, unknown))}")
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in types)
    return windows if any(windows) else ()


def _rope(get: _Reader, context_length: int) -> tuple[float, RopeScaling]:
    """(theta, scaling). Newer files have all of it in `rope_parameters`, older ones the scaling in `rope_scaling`."""
    inner = get.inner("rope_parameters", "rope_scaling")
    theta = inner("rope_theta", float, get("rope_theta", float, 10000.0))
    if inner("partial_rotary_factor", float, get("partial_rotary_factor", float, 1.0)) != 1.0:
        raise UnsupportedModel("the lean decoder does not rotate only a part of each head")
    kind = inner("rope_type", str, inner("type", str, "default"))
    # `dynamic` changes nothing before the context exceeds `max_position_embeddings`, which it never does here.
    if kind in ("default", "dynamic"):
        return theta, RopeScaling()
    if kind not in (RopeKind.LINEAR, RopeKind.LLAMA3, RopeKind.YARN):
        raise UnsupportedModel(f"the lean decoder does not know the rotary scaling '{kind}'")
    original = get("original_max_position_embeddings", int, 0)
    factor = inner.raw.get("attention_factor")
    return theta, RopeScaling(
        kind=RopeKind(kind),
        factor=inner("factor", float),
        original_context=original or inner("original_max_position_embeddings", int, context_length),
        low_freq_factor=inner("low_freq_factor", float, 1.0),
        high_freq_factor=inner("high_freq_factor", float, 4.0),
        attention_factor=None if factor is None else inner("attention_factor", float),
        beta_fast=inner("beta_fast", float, 32.0),
        beta_slow=inner("beta_slow", float, 1.0),
        mscale=inner("mscale", float, 0.0),
        mscale_all_dim=inner("mscale_all_dim", float, 0.0),
        truncate=inner("truncate", bool, True),
    )
