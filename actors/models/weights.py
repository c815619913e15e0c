"""Weight maps: from the names and layouts of a file to the canonical ones, which are those of transformers.

Every format is mapped to (canonical name, tensor) pairs, and a decoder loads these; so a new format is a map here and
a new decoder needs no change there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch

from .config import LlamaConfig
from .errors import UnsupportedModel
from .gguf import GGUFFile

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
}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def gguf_weights(file: GGUFFile, config: LlamaConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a `llama` file in float32 under its canonical name, one at a time to keep memory low."""
    for name in file.tensors:
        array = file.read(name)
        if name.endswith("attn_q.weight"):
            array = unpermute(array, config.num_heads)
        elif name.endswith("attn_k.weight"):
            array = unpermute(array, config.num_kv_heads)
        yield _canonical(name, file), torch.from_numpy(array)


def unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo the row order that llama.cpp gives the query and key projections of the `llama` architecture.

    It rotates neighbouring pairs (0, 1), (2, 3), ... of a head; transformers, and the decoder here, rotate a row with
    the one half a head away: (0, d/2), (1, d/2 + 1), ... So rows are taken from [heads, d/2, 2] back to
    [heads, 2, d/2].
    """
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def _canonical(name: str, file: GGUFFile) -> str:
    if name in _GGUF_TOP:
        return _GGUF_TOP[name]
    match = _LAYER.fullmatch(name)
    if match and match[2] in _GGUF_LAYER:
        return f"model.layers.{match[1]}.{_GGUF_LAYER[match[2]]}"
    raise UnsupportedModel(f"{file.path} holds the tensor '{name}', which a plain LLaMA decoder does not have")
