"""From the metadata of a GGUF file to the shape of a decoder.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from typing import Any

from ...runtime.errors import ModelDamaged
from .config import LlamaConfig
from .errors import UnsupportedModel
from .gguf import GGUFFile
from .rope import RopeKind, RopeScaling

# The architectures that are LLaMA-shaped, and whether they normalise queries and keys.
ARCHITECTURES = {"llama": False, "qwen2": False, "qwen3": True}
ROPE_FACTORS = "rope_freqs.weight"


def config_from_gguf(file: GGUFFile) -> LlamaConfig:
    """Raises `UnsupportedModel` for what is no decoder of the families here.

    `ModelDamaged` where sizes do not fit the file's own tensors: so whoever builds a decoder from it needs about as
    much memory as the file, whatever the numbers in the file say.
    """
    architecture = file.get("general.architecture", str)
    if architecture not in ARCHITECTURES:
        known = ", ".join(f"'{name}'" for name in ARCHITECTURES)
        raise UnsupportedModel(f"{file.path} has the architecture '{architecture}'; {known} are read here")

    def get(key: str, kind: type, default: Any = None) -> Any:
        return file.get(f"{architecture}.{key}", kind, default)

    hidden_size = get("embedding_length", int)
    num_heads = get("attention.head_count", int)
    head_dim = get("attention.key_length", int, hidden_size // max(1, num_heads))
    if get("rope.dimension_count", int, head_dim) != head_dim:
        raise UnsupportedModel(f"{file.path} rotates only a part of each head, which is not implemented here")
    if get("expert_count", int, 0):
        raise UnsupportedModel(f"{file.path} is a mixture of experts, which is not read from GGUF here")
    if get("attention.sliding_window", int, 0):
        raise UnsupportedModel(f"{file.path} has attention windows, which are not read from GGUF here")
    config = LlamaConfig(
        vocab_size=get("vocab_size", int, len(file.get("tokenizer.ggml.tokens", list))),
        hidden_size=hidden_size,
        intermediate_size=get("feed_forward_length", int),
        num_layers=get("block_count", int),
        num_heads=num_heads,
        num_kv_heads=get("attention.head_count_kv", int, num_heads),
        head_dim=head_dim,
        rms_norm_eps=get("attention.layer_norm_rms_epsilon", float),
        rope_theta=get("rope.freq_base", float, 10000.0),
        context_length=get("context_length", int),
        tied_embeddings="output.weight" not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        qk_norm=ARCHITECTURES[architecture],
        rope_scaling=_rope_scaling(file, architecture),
    )
    _check_tensors(file, config)
    return config


def _rope_scaling(file: GGUFFile, architecture: str) -> RopeScaling:
    if ROPE_FACTORS in file.tensors:
        return RopeScaling(kind=RopeKind.FACTORS, factors=tuple(file.read(ROPE_FACTORS).tolist()))
    prefix = f"{architecture}.rope.scaling"
    kind = file.get(f"{prefix}.type", str, "none")
    factor = file.get(f"{prefix}.factor", float, 1.0)
    if kind == "none" or factor == 1.0:
        return RopeScaling()
    if kind == "linear":
        return RopeScaling(kind=RopeKind.LINEAR, factor=factor)
    if kind == "yarn":
        original = file.get(f"{prefix}.original_context_length", int)
        return RopeScaling(kind=RopeKind.YARN, factor=factor, original_context=original)
    raise UnsupportedModel(f"{file.path} wants '{kind}' rotary scaling, which is not implemented here")


def _check_tensors(file: GGUFFile, config: LlamaConfig) -> None:
    expected = {
        "token_embd.weight": (config.vocab_size, config.hidden_size),
        "blk.0.attn_q.weight": (config.num_heads * config.head_dim, config.hidden_size),
        "blk.0.attn_k.weight": (config.num_kv_heads * config.head_dim, config.hidden_size),
        "blk.0.ffn_gate.weight": (config.intermediate_size, config.hidden_size),
        f"blk.{config.num_layers - 1}.attn_norm.weight": (config.hidden_size,),
    }
    for name, shape in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None or tensor.shape != shape:
            found = "is missing" if tensor is None else f"has the shape {tensor.shape}"
            raise ModelDamaged(f"{file.path} is damaged: tensor '{name}' {found}; the metadata says {shape}")
    num_tokens = len(file.get("tokenizer.ggml.tokens", list))
    if num_tokens > config.vocab_size:
        raise ModelDamaged(f"{file.path} is damaged: {num_tokens} tokens for {config.vocab_size} embeddings")
