"""One decoder layer on whole sequences, in stages: the inputs of each of its products can be looked at on the way.

No cache and no ragged batch: sequences of one length, all their positions at once. The weights are those of the lean
decoder's `LlamaLayer`, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from ...kernels import wide_products
from ...kernels.channels import MAX_INT8, quantize_rows
from ..models.llama import LlamaLayer
from ..models.rope import RopeScaling, inverse_frequencies

# What keys and values become before attention reads them: [..., num_tokens, head_dim] -> the same.
KV = Callable[[torch.Tensor], torch.Tensor]


class Block:
    """A layer as stages. `hidden` is the residual stream, [num_seqs, length, hidden].

    `rounds_inputs`: a product's inputs go through int8 with a scale for each token, as they will when the model runs.
    """

    def __init__(self, layer: LlamaLayer, theta: float, scaling: RopeScaling, kv: KV | None = None) -> None:
        self.layer = layer
        self.rounds_inputs = False
        self._kv = kv
        self._frequencies = inverse_frequencies(theta, layer.head_dim, scaling)
        self._magnitude = scaling.attention_scaling

    def attention_inputs(self, hidden: torch.Tensor) -> torch.Tensor:
        """What `qkv` multiplies, [num_seqs, length, hidden]."""
        return self._norm(hidden, self.layer.input_norm)

    def attend(self, inputs: torch.Tensor) -> torch.Tensor:
        """attention_inputs -> what `o` multiplies, [num_seqs, length, q_size]."""
        layer = self.layer
        heads = self.product("qkv", inputs).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
        sizes = [size // layer.head_dim for size in (layer.q_size, layer.kv_size, layer.kv_size)]
        q, k, v = heads.split(sizes, dim=1)  # [num_seqs, heads, length, head_dim]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        length = inputs.shape[1]
        angles = torch.arange(length)[:, None] * self._frequencies
        cos, sin = angles.cos() * self._magnitude, angles.sin() * self._magnitude
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
        if self._kv is not None:
            k, v = self._kv(k), self._kv(v)
        mask = None
        if 0 < layer.window < length:
            mask = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - layer.window)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=layer.scale, enable_gqa=True
        )
        return attended.transpose(1, 2).flatten(2)

    def mlp_inputs(self, hidden: torch.Tensor) -> torch.Tensor:
        """What `gate_up` multiplies; `hidden` has attention's part by now."""
        return self._norm(hidden, self.layer.post_norm)

    def gate(self, inputs: torch.Tensor) -> torch.Tensor:
        """mlp_inputs -> what `down` multiplies, [num_seqs, length, intermediate]."""
        gate, up = self.product("gate_up", inputs).chunk(2, -1)
        return F.silu(gate) * up

    def product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if self.rounds_inputs:
            codes, scales = quantize_rows(x.flatten(0, -2), torch.int8, MAX_INT8)
            x = (codes * scales[:, None]).view_as(x)
        return wide_products.linear(x, getattr(self.layer, name), getattr(self.layer, f"{name}_bias"))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.product("o", self.attend(self.attention_inputs(hidden)))
        return hidden + self.product("down", self.gate(self.mlp_inputs(hidden)))

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.layer.eps)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def in_chunks(hidden: torch.Tensor, tokens: int = 4096) -> Iterator[tuple[slice, torch.Tensor]]:
    """Sequences of `hidden` a few at a time, so that what a stage makes of them stays small."""
    step = max(1, tokens // hidden.shape[1])
    for first in range(0, len(hidden), step):
        where = slice(first, first + step)
        yield where, hidden[where]


def advance(block: Block, hidden: torch.Tensor) -> None:
    """`forward`, in place."""
    for where, part in in_chunks(hidden):
        hidden[where] = block.forward(part)
