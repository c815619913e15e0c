"""Weight maps: from the names and layouts of a file to the canonical ones, which are those of transformers.

Every format is mapped to (canonical name, tensor) pairs, and a decoder loads these; so a new format is a map here and
a new decoder needs no change there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from ...runtime.errors import ModelDamaged
from .config import LlamaConfig
from .config_gguf import ROPE_FACTORS
from .errors import UnsupportedModel
from .gguf import GGUFFile
from .matrices import QUANTIZED, Weight, take_rows

_GGUF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_GGUF_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.bias": "self_attn.o_proj.bias",
    "ffn_gate.bias": "mlp.gate_proj.bias",
    "ffn_up.bias": "mlp.up_proj.bias",
    "ffn_down.bias": "mlp.down_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
}
_INTERNLM2_TOP = {
    "model.tok_embeddings.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
}
_INTERNLM2_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
_INTERNLM2_NAME = re.compile(r"(model\.layers\.\d+)\.(.+)\.(weight|bias)")
# Tables that old files keep beside the weights; they follow from the configuration.
_DERIVED = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_CANONICAL_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_TO_GGUF_TOP = {canonical: name for name, canonical in _GGUF_TOP.items()}
_TO_GGUF_LAYER = {canonical: name for name, canonical in _GGUF_LAYER.items()}


def gguf_layer(name: str) -> int | None:
    """The layer that a tensor of a GGUF file belongs to, None for those of no layer."""
    match = _LAYER.fullmatch(name)
    return int(match[1]) if match else None


def gguf_weights(
    file: GGUFFile, config: LlamaConfig, names: Iterable[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a file, all or those of `names`, in float32 under their canonical names, one at a time to keep memory
    low."""
    # Only the converter of this architecture changes the order of rows.
    permuted = file.get("general.architecture", str) == "llama"
    for name in file.tensors if names is None else names:
        if name == ROPE_FACTORS:
            continue  # it is in the configuration
        array = file.read(name)
        if permuted and ".attn_q." in name:
            array = unpermute(array, config.num_heads)
        elif permuted and ".attn_k." in name:
            array = unpermute(array, config.num_kv_heads)
        yield _canonical(name, file), torch.from_numpy(array)


def hf_weights(tensors: Iterable[tuple[str, Weight]], config: LlamaConfig) -> Iterator[tuple[str, Weight]]:
    """The tensors of a folder in Hugging Face's layout, quantized ones too, under their canonical names.

    Left out: an output matrix that the configuration says is the embedding again, and tables that follow from it.
    """
    for name, tensor in tensors:
        if name.endswith(_DERIVED):
            continue
        for canonical, part in _from_internlm2(name, tensor, config):
            if canonical != "lm_head.weight" or not config.tied_embeddings:
                yield canonical, part


def _from_internlm2(name: str, tensor: Weight, config: LlamaConfig) -> Iterator[tuple[str, Weight]]:
    """InternLM2's own names and its fused projection; whatever else comes under its own name."""
    match = _INTERNLM2_NAME.fullmatch(name)
    if match is None or not (match[2] == "attention.wqkv" or match[2] in _INTERNLM2_LAYER):
        yield _INTERNLM2_TOP.get(name, name), tensor
        return
    layer, product, kind = match.groups()
    if product != "attention.wqkv":
        yield f"{layer}.{_INTERNLM2_LAYER[product]}.{kind}", tensor
        return
    parts: tuple[Weight, ...]
    if isinstance(tensor, QUANTIZED):
        parts = tuple(take_rows(tensor, rows) for rows in split_wqkv(torch.arange(tensor.shape[0]), config))
    else:
        parts = split_wqkv(tensor, config)
    for projection, part in zip("qkv", parts, strict=True):
        yield f"{layer}.self_attn.{projection}_proj.{kind}", part


def split_wqkv(fused: torch.Tensor, config: LlamaConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """InternLM2's fused projection as the query, key and value projections.

    Its rows are grouped by key/value head: the heads that query it, then its key, then its value. The rest of the
    shape (a matrix's columns) stays.
    """
    group = config.num_heads // config.num_kv_heads
    rows = config.num_kv_heads * (group + 2) * config.head_dim
    if fused.shape[0] != rows:
        raise ModelDamaged(f"a fused projection has {fused.shape[0]} rows; {rows} are needed")
    grouped = fused.unflatten(0, (config.num_kv_heads, group + 2, config.head_dim))
    q, k, v = grouped[:, :group], grouped[:, group], grouped[:, group + 1]
    return q.flatten(0, 2), k.flatten(0, 1), v.flatten(0, 1)


def unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo the row order that llama.cpp gives the query and key projections of the `llama` architecture.

    It rotates neighbouring pairs (0, 1), (2, 3), ... of a head; transformers, and the decoder here, rotate a row with
    the one half a head away: (0, d/2), (1, d/2 + 1), ... So rows are taken from [heads, d/2, 2] back to
    [heads, 2, d/2].
    """
    rows, *columns = weight.shape  # a bias has rows only
    halves = weight.reshape(num_heads, rows // num_heads // 2, 2, *columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """What `unpermute` undoes."""
    rows, *columns = weight.shape
    pairs = weight.reshape(num_heads, 2, rows // num_heads // 2, *columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def gguf_name(canonical: str) -> str:
    """What a GGUF file calls a tensor. Raises UnsupportedModel for one that no file of these families has."""
    match = _CANONICAL_LAYER.fullmatch(canonical)
    name = _TO_GGUF_LAYER.get(match[2]) if match else _TO_GGUF_TOP.get(canonical)
    if name is None:
        raise UnsupportedModel(f"GGUF has no name for the tensor '{canonical}'")
    return f"blk.{match[1]}.{name}" if match else name


def _canonical(name: str, file: GGUFFile) -> str:
    if name in _GGUF_TOP:
        return _GGUF_TOP[name]
    match = _LAYER.fullmatch(name)
    if match and match[2] in _GGUF_LAYER:
        return f"model.layers.{match[1]}.{_GGUF_LAYER[match[2]]}"
    raise UnsupportedModel(f"{file.path} holds the tensor '{name}', which a plain LLaMA decoder does not have")
