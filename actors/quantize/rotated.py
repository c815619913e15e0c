"""A model taken off its quantization grid: the same function, its residual stream turned at random.

Some files already lie on a grid of few bits, which plain rounding would find again and so lose nothing. Norms are
folded into the products after them; so the output matrix is not the embedding any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from ...kernels.rotation import random_orthogonal, rotate_inputs, rotate_outputs
from .source import Source

_READ = {
    "input_layernorm.weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm.weight": ("mlp.gate_proj", "mlp.up_proj"),
}
_WRITTEN = ("self_attn.o_proj", "mlp.down_proj")
_EMBEDDING, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


class RotatedSource:
    """Another source, turned by `seed` as it is read. Computed in float64, given in float32, and kept in memory: a
    benchmark reads it once for each method."""

    def __init__(self, source: Source, seed: int = 0) -> None:
        self._source = source
        self._rotation = random_orthogonal(source.config.hidden_size, seed)
        self.config = msgspec.structs.replace(source.config, tied_embeddings=False)
        self.dtype = source.dtype
        self._kept: dict[int | None, dict[str, torch.Tensor]] = {}

    def tensors(self, layer: int | None) -> Iterator[tuple[str, torch.Tensor]]:
        if layer not in self._kept:
            self._kept[layer] = dict(self._turned(layer))
        yield from self._kept[layer].items()

    def _turned(self, layer: int | None) -> Iterator[tuple[str, torch.Tensor]]:
        tensors = {name: tensor.to(torch.float64) for name, tensor in self._source.tensors(layer)}
        turned = self._vocabulary(tensors) if layer is None else self._layer(tensors, f"model.layers.{layer}.")
        yield from ((name, tensor.float()) for name, tensor in turned)

    def _vocabulary(self, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        embedding, norm = tensors[_EMBEDDING], tensors[_NORM]
        yield _EMBEDDING, rotate_inputs(embedding, self._rotation)  # its rows are what is written to the stream
        yield _NORM, torch.ones_like(norm)
        yield _HEAD, rotate_inputs(tensors.get(_HEAD, embedding), self._rotation, norm)

    def _layer(self, tensors: dict[str, torch.Tensor], prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        norm_of = {
            f"{prefix}{product}.weight": prefix + norm for norm, products in _READ.items() for product in products
        }
        written = tuple(f"{prefix}{product}." for product in _WRITTEN)
        for name, tensor in tensors.items():
            if name in norm_of:
                yield name, rotate_inputs(tensor, self._rotation, tensors[norm_of[name]])
            elif name.startswith(written):
                yield name, rotate_outputs(tensor, self._rotation)
            elif name.removeprefix(prefix) in _READ:
                yield name, torch.ones_like(tensor)
            else:
                yield name, tensor

    def write_rest(self, folder: Path) -> dict[str, Any]:
        return {**self._source.write_rest(folder), "tie_word_embeddings": False}

    def close(self) -> None:
        self._source.close()
