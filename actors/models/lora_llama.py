"""Puts an adapter's matrices to the fused products of the lean decoder."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ...runtime.errors import ModelDamaged
from .config import LlamaConfig
from .errors import UnsupportedModel
from .lora import Adapter, LowRank
from .peft_folder import read_peft
from .weights import split_wqkv

_MODULE = re.compile(r"model\.layers\.(\d+)\.(.+)")
# InternLM2's own names; `attention.wqkv` is treated apart.
_INTERNLM2 = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}


def read_llama_adapter(path: Path, config: LlamaConfig) -> Adapter:
    """An adapter whose products are named `LAYER.qkv`, `LAYER.o`, `LAYER.gate_up`, `LAYER.down`.

    `UnsupportedModel` where it changes something else, `ModelDamaged` where a shape does not fit the base model.
    """
    modules = read_peft(path)
    fused: dict[str, list[tuple[slice, LowRank]]] = {}
    for module, pair in modules.items():
        match = _MODULE.fullmatch(module)
        name = match[2] if match else ""
        if match is None or (name != "attention.wqkv" and _INTERNLM2.get(name, name) not in _products(config)):
            raise UnsupportedModel(f"{path} changes '{module}', which no adapter may change here")
        if int(match[1]) >= config.num_layers:
            raise ModelDamaged(f"{path} changes '{module}', but the model has {config.num_layers} layers")
        if name == "attention.wqkv":
            pair = LowRank(pair.a, torch.cat(split_wqkv(pair.b, config)))
            product, rows, num_in = "qkv", slice(0, _num_out(config, "qkv")), config.hidden_size
        else:
            product, rows, num_in = _products(config)[_INTERNLM2.get(name, name)]
        if pair.a.shape[1] != num_in or pair.b.shape[0] != rows.stop - rows.start:
            raise ModelDamaged(
                f"{path} does not fit this model: '{module}' takes {num_in} and gives {rows.stop - rows.start}, "
                f"the adapter {pair.a.shape[1]} and {pair.b.shape[0]}"
            )
        fused.setdefault(f"{match[1]}.{product}", []).append((rows, pair))
    rank = max(pair.a.shape[0] for pair in modules.values())
    return Adapter(rank, {name: _fuse(parts, _num_out(config, name.split(".")[1])) for name, parts in fused.items()})


def _fuse(parts: list[tuple[slice, LowRank]], num_out: int) -> LowRank:
    """Several products that read the same input as one: their `a` stacked, their `b` in a matrix of blocks."""
    a = torch.cat([pair.a for _, pair in parts])
    b = torch.zeros(num_out, a.shape[0])
    column = 0
    for rows, pair in parts:
        rank = pair.a.shape[0]
        b[rows, column : column + rank] = pair.b
        column += rank
    return LowRank(a, b)


def _products(config: LlamaConfig) -> dict[str, tuple[str, slice, int]]:
    """Canonical name -> (fused product, its rows there, size of the input)."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, intermediate = config.hidden_size, config.intermediate_size
    return {
        "self_attn.q_proj": ("qkv", slice(0, q), hidden),
        "self_attn.k_proj": ("qkv", slice(q, q + kv), hidden),
        "self_attn.v_proj": ("qkv", slice(q + kv, q + 2 * kv), hidden),
        "self_attn.o_proj": ("o", slice(0, hidden), q),
        "mlp.gate_proj": ("gate_up", slice(0, intermediate), hidden),
        "mlp.up_proj": ("gate_up", slice(intermediate, 2 * intermediate), hidden),
        "mlp.down_proj": ("down", slice(0, hidden), intermediate),
    }


def _num_out(config: LlamaConfig, product: str) -> int:
    return max(rows.stop for name, rows, _ in _products(config).values() if name == product)
