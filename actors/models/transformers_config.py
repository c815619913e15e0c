"""What the configuration of a model that runs in transformers says of its size, read without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ...runtime.errors import ModelDamaged
from .errors import UnsupportedModel
from .folder import ModelFolder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What a layer may be here: others keep a state, or see something else than a window of what came before.
_LAYER_TYPES = {"full_attention", "sliding_attention"}


class TransformersShape(msgspec.Struct, frozen=True, kw_only=True):
    """`kv_shapes` is exact once the model is loaded; before that it supposes that all layers are alike."""

    vocab_size: int
    context_length: int
    num_layers: int
    num_kv_heads: int
    head_dim: int

    @property
    def kv_shapes(self) -> tuple[tuple[int, int], ...]:
        return ((self.num_kv_heads, self.head_dim),) * self.num_layers


def transformers_config(folder: ModelFolder) -> PreTrainedConfig:
    """The configuration as transformers reads it. `UnsupportedModel` for what is no causal model of its own."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family = folder.config.get("model_type")
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModel(
            f"{folder.path} is a model of the family '{family}', which neither this engine nor the installed "
            "transformers knows as one that continues text"
        )
    try:
        config = AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ModelDamaged(f"{folder.path}: transformers cannot read the configuration: {error}") from error
    if config.is_encoder_decoder:
        raise UnsupportedModel(f"{folder.path} has an encoder; models that only continue text are served here")
    return config


def transformers_shape(folder: ModelFolder) -> TransformersShape:
    config = transformers_config(folder).get_text_config()
    types = set(getattr(config, "layer_types", None) or ())
    if not types <= _LAYER_TYPES:
        odd = ", ".join(sorted(types - _LAYER_TYPES))
        raise UnsupportedModel(f"{folder.path} has layers that are no plain attention ({odd})")
    num_heads = _number(folder, config, "num_attention_heads")
    hidden_size = _number(folder, config, "hidden_size")
    head_dim = getattr(config, "head_dim", None) or hidden_size // num_heads
    if latent := getattr(config, "qk_rope_head_dim", None):  # keys are kept as they enter the products
        head_dim = latent + config.qk_nope_head_dim
        num_kv_heads = num_heads
    elif getattr(config, "multi_query", False):
        num_kv_heads = 1
    else:
        num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return TransformersShape(
        vocab_size=_number(folder, config, "vocab_size"),
        context_length=_context_length(folder, config),
        num_layers=_number(folder, config, "num_hidden_layers"),
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
    )


def _context_length(folder: ModelFolder, config: PreTrainedConfig) -> int:
    """Up to where the rotary frequencies stay the same.

    `longrope` takes other ones for the whole sequence once it is longer than the original context, which keys that
    are already in a cache cannot follow.
    """
    length = _number(folder, config, "max_position_embeddings")
    scalings: Any = getattr(config, "rope_parameters", None) or {}
    for scaling in (scalings, *(value for value in scalings.values() if isinstance(value, dict))):
        if scaling.get("rope_type") == "longrope":
            length = min(length, scaling.get("original_max_position_embeddings") or length)
    return length


def _number(folder: ModelFolder, config: PreTrainedConfig, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or value < 1:
        raise UnsupportedModel(f"{folder.path}: its configuration gives no '{name}' ({value!r})")
    return value
