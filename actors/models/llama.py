"""A lean decoder of the LLaMA-shaped families, for inference: fused weights, ragged batches, a paged key/value cache.

Query, key and value projections are one matrix, and so are gate and up: two large products where transformers makes
five. Everything else is an op of `kernels`. What families differ in is told by `LlamaConfig`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ...kernels import ops
from ...kernels.gpu import graphs, launch
from ...kernels.quantized import Cache, QuantizedWeight
from ...kernels.ragged import RaggedBatch
from ...kernels.weights import FOUR_BITS, WeightFormat
from ...schemas.serve import AdapterInfo
from .config import LlamaConfig
from .errors import UnsupportedModel
from .fused_products import FusedProducts, Product
from .kv_cache import KVCache
from .lora import AdapterStore, SelectedAdapters
from .lora_llama import read_llama_adapter
from .matrices import KEPT, Quantized, Weight, linear, place, stack
from .one_by_one import forward_one_by_one, rows_one_by_one
from .rope import inverse_frequencies

PRODUCTS = ("qkv", "o", "gate_up", "down")
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")


class Part(NamedTuple):
    """Where a canonical tensor lies inside a fused one: these rows of that parameter (all rows if None)."""

    parameter: str
    rows: slice | None = None


class LlamaLayer(nn.Module):
    """One decoder layer: attention, then the gated MLP, each after a norm, each added to the residual stream.

    The four products are `qkv`, `o`, `gate_up` and `down`; each may have a bias of that name (None where it has not).
    """

    def __init__(self, config: LlamaConfig, index: int, dtype: torch.dtype, *, quantized: bool = False) -> None:
        super().__init__()
        self.index = index
        self.q_size = config.num_heads * config.head_dim
        self.kv_size = config.num_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.eps = config.rms_norm_eps
        self.scale = config.head_dim**-0.5
        self.window = config.window(index)
        self.intermediate_size = config.intermediate_size
        hidden, intermediate = config.hidden_size, config.intermediate_size
        num_qkv = self.q_size + 2 * self.kv_size
        # Matrices that come quantized take no memory as numbers.
        device = "meta" if quantized else None
        self.input_norm = _weight(hidden, dtype=dtype)
        self.qkv = _weight(num_qkv, hidden, dtype=dtype, device=device)
        self.o = _weight(hidden, self.q_size, dtype=dtype, device=device)
        self.post_norm = _weight(hidden, dtype=dtype)
        self.gate_up = _weight(2 * intermediate, hidden, dtype=dtype, device=device)
        self.down = _weight(hidden, intermediate, dtype=dtype, device=device)
        self.qkv_bias = _weight(num_qkv, dtype=dtype) if config.qkv_bias else None
        self.o_bias = _weight(hidden, dtype=dtype) if config.o_bias else None
        self.gate_up_bias = _weight(2 * intermediate, dtype=dtype) if config.mlp_bias else None
        self.down_bias = _weight(hidden, dtype=dtype) if config.mlp_bias else None
        self.q_norm = _weight(self.head_dim, dtype=dtype) if config.qk_norm else None
        self.k_norm = _weight(self.head_dim, dtype=dtype) if config.qk_norm else None

    def parts(self) -> dict[str, Part]:
        """Canonical name within the layer -> where it goes."""
        q, kv, intermediate = self.q_size, self.kv_size, self.intermediate_size
        products = {
            "self_attn.q_proj": Part("qkv", slice(0, q)),
            "self_attn.k_proj": Part("qkv", slice(q, q + kv)),
            "self_attn.v_proj": Part("qkv", slice(q + kv, q + 2 * kv)),
            "self_attn.o_proj": Part("o"),
            "mlp.gate_proj": Part("gate_up", slice(0, intermediate)),
            "mlp.up_proj": Part("gate_up", slice(intermediate, 2 * intermediate)),
            "mlp.down_proj": Part("down"),
        }
        parts = {
            "input_layernorm.weight": Part("input_norm"),
            "post_attention_layernorm.weight": Part("post_norm"),
        }
        if self.q_norm is not None:
            parts["self_attn.q_norm.weight"] = Part("q_norm")
            parts["self_attn.k_norm.weight"] = Part("k_norm")
        for name, part in products.items():
            parts[f"{name}.weight"] = part
            if getattr(self, f"{part.parameter}_bias") is not None:
                parts[f"{name}.bias"] = Part(f"{part.parameter}_bias", part.rows)
        return parts

    def forward(
        self,
        hidden: torch.Tensor,  # [num_tokens, hidden]: what the layer before added
        residual: torch.Tensor,  # [num_tokens, hidden]: the stream before that
        rotation: tuple[torch.Tensor, torch.Tensor],  # cos, sin [num_tokens, head_dim / 2]
        caches: tuple[Cache, Cache],
        batch: RaggedBatch,
        adapters: SelectedAdapters | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, residual = ops.add_rms_norm(hidden, residual, self.input_norm, self.eps)
        heads = self._product("qkv", hidden, adapters).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split([size // self.head_dim for size in (self.q_size, self.kv_size, self.kv_size)], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = ops.rms_norm(q, self.q_norm, self.eps), ops.rms_norm(k, self.k_norm, self.eps)
        q = ops.rotary_write(q, k, v, *rotation, *caches, batch.slots)
        attended = ops.paged_attention(q, *caches, batch, self.scale, self.window)
        hidden = self._product("o", attended.flatten(1), adapters)
        hidden, residual = ops.add_rms_norm(hidden, residual, self.post_norm, self.eps)
        gate_up = self._product("gate_up", hidden, adapters)
        return self._product("down", ops.silu_mul(gate_up), adapters), residual

    def _product(self, name: str, x: torch.Tensor, adapters: SelectedAdapters | None) -> torch.Tensor:
        y = linear(x, getattr(self, name))
        bias: torch.Tensor | None = getattr(self, f"{name}_bias")
        if bias is not None:
            y = y.add_(bias)
        if adapters is not None:
            adapters.add(y, x, f"{self.index}.{name}")
        return y


class LlamaDecoder(nn.Module):
    """The whole decoder, a `ServedModel`. Weights are empty until `load_weights`, on the device that is torch's default
    when it is made; call it under `torch.inference_mode`."""

    def __init__(
        self,
        config: LlamaConfig,
        dtype: torch.dtype,
        kv: torch.dtype | None = None,
        *,
        quantized: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        """`kv`: how keys and values are kept, where it is not `dtype`. `quantized`: matrices of the layers may come in
        few bits, and are kept so. `cuda_graphs`: decoding steps are recorded, on a device where that can be."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.kv = kv or dtype
        self.quantized = quantized
        self.vocab_size = config.vocab_size
        self.hidden_size = config.hidden_size
        self.context_length = config.context_length
        self.embedding = _weight(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(LlamaLayer(config, i, dtype, quantized=quantized) for i in range(config.num_layers))
        self.norm = _weight(config.hidden_size, dtype=dtype)
        self.head = (
            self.embedding if config.tied_embeddings else _weight(config.vocab_size, config.hidden_size, dtype=dtype)
        )
        self.inverse_frequencies: torch.Tensor  # [head_dim / 2]
        frequencies = inverse_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)
        self.device = self.norm.device
        self.kernels = "torch" if launch.unavailable(self.device) else "triton"
        self.records = cuda_graphs and not graphs.unavailable(self.device)
        self._adapters = AdapterStore(dtype, self.device)

    @property
    def weight_bytes(self) -> int:
        quantized = (module.nbytes for module in self.modules() if isinstance(module, KEPT))
        return sum(weight.nbytes for weight in self.parameters()) + sum(quantized)

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        if not self.records:
            return KVCache(self.config, num_blocks, block_size, self.kv, self.device)
        num_spare = graphs.num_spare_blocks(block_size)
        cache = KVCache(self.config, num_blocks, block_size, self.kv, self.device, num_spare)
        cache.graphs = graphs.DecodeGraphs(partial(self._compute, cache=cache), block_size, num_blocks)
        return cache

    def quantize(self, format: WeightFormat) -> None:
        """Keep the matrices in `format` from now on, after they are loaded; the vocabulary's in int8 where that has
        four bits."""
        for layer in self.layers:
            for name in PRODUCTS:
                _replace(layer, name, QuantizedWeight.from_float(getattr(layer, name), format))
        vocabulary = WeightFormat.INT8 if format in FOUR_BITS else format
        embedding = QuantizedWeight.from_float(self.embedding, vocabulary)
        head = embedding if self.config.tied_embeddings else QuantizedWeight.from_float(self.head, vocabulary)
        _replace(self, "embedding", embedding)
        _replace(self, "head", head)

    def settle(self) -> None:
        """When all weights are there: quantized ones are laid out as the device's kernels read them."""
        place(self, self.device)

    def forward(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        batch: RaggedBatch,
        adapters: Sequence[str] | None = None,
        deterministic: bool = False,
    ) -> torch.Tensor:
        """token_ids [num_tokens] -> final hidden states [num_tokens, hidden], after the last norm.

        Writes the tokens' keys and values into `cache`.
        """
        if deterministic and batch.num_tokens > 1:
            return forward_one_by_one(self.forward, token_ids, cache, batch, adapters)
        selected = self._adapters.select(adapters, batch)
        if selected is None and cache.graphs is not None and cache.graphs.takes(batch):
            return cache.graphs.run(token_ids, batch)
        return self._compute(token_ids, batch, cache, selected)

    def _compute(
        self,
        token_ids: torch.Tensor,
        batch: RaggedBatch,
        cache: KVCache,
        selected: SelectedAdapters | None = None,
    ) -> torch.Tensor:
        if isinstance(self.embedding, QuantizedWeight):
            residual = self.embedding.rows(token_ids, self.dtype)
        else:
            residual = torch.nn.functional.embedding(token_ids, self.embedding)
        hidden = torch.zeros_like(residual)
        # In float32 and then converted, as in transformers; once for all layers.
        angles = batch.positions[:, None].float() * self.inverse_frequencies
        scaling = self.config.rope_scaling.attention_scaling
        rotation = (angles.cos() * scaling).to(self.dtype), (angles.sin() * scaling).to(self.dtype)
        for layer, k, v in zip(self.layers, cache.k, cache.v, strict=True):
            hidden, residual = layer(hidden, residual, rotation, (k, v), batch, selected)
        return ops.add_rms_norm(hidden, residual, self.norm, self.config.rms_norm_eps)[0]

    def logits(self, hidden: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        """hidden [num_rows, hidden] -> float32 [num_rows, vocab]."""
        if deterministic and len(hidden) > 1:
            return rows_one_by_one(self.logits, hidden)
        return linear(hidden, self.head).float()

    def load_adapter(self, name: str, path: Path) -> AdapterInfo:
        return self._adapters.load(name, path, lambda: read_llama_adapter(path, self.config))

    def unload_adapter(self, name: str) -> None:
        self._adapters.unload(name)

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return self._adapters.infos()

    def load_weights(self, weights: Iterable[tuple[str, Weight]]) -> None:
        """Copy every canonical (name, tensor) to its place, converted to the decoder's type; keep quantized matrices as
        they are, if the decoder was made for them.

        `ModelDamaged` where one is unknown, missing, of another shape, or holds a value that is not finite.
        """
        fused = FusedProducts(self)
        for name, weight in fused.checked(weights):
            if self.quantized and (product := fused.add(name, weight)):
                if product.parts:
                    self._keep(product)
            elif isinstance(weight, torch.Tensor):
                self.target(name).copy_(weight)
            else:
                self._keep_vocabulary(name, weight)

    def _keep(self, product: Product) -> None:
        device = self.norm.device
        parts = [
            part.to(device, self.dtype) if isinstance(part, torch.Tensor) else part.to(device)
            for _, part in product.parts
        ]
        _replace(self.layers[product.layer], product.name, stack(parts))

    def _keep_vocabulary(self, name: str, weight: Quantized) -> None:
        weight = weight.to(self.norm.device)
        if name == "lm_head.weight":
            _replace(self, "head", weight)
            return
        if not isinstance(weight, QuantizedWeight):
            raise UnsupportedModel(f"tensor '{name}' is quantized in a way that is not done for embeddings here")
        _replace(self, "embedding", weight)
        if self.config.tied_embeddings:
            _replace(self, "head", weight)

    def canonical_names(self) -> Iterator[str]:
        """The tensors that this decoder is made of."""
        yield from ("model.embed_tokens.weight", "model.norm.weight")
        if not self.config.tied_embeddings:
            yield "lm_head.weight"
        for i, layer in enumerate(self.layers):
            yield from (f"model.layers.{i}.{name}" for name in layer.parts())  # pyright: ignore

    def product_of(self, name: str) -> tuple[int, str, slice, int] | None:
        """Of a canonical name that is a product's matrix: the layer, the product, its rows there, and how many parts
        that has. None for other tensors."""
        match = _LAYER_NAME.fullmatch(name)
        if match is None:
            return None
        parts: dict[str, Part] = self.layers[int(match[1])].parts()  # pyright: ignore[reportCallIssue]
        product = parts[match[2]].parameter
        if product not in PRODUCTS:
            return None
        num_parts = sum(part.parameter == product for part in parts.values())
        return int(match[1]), product, parts[match[2]].rows or slice(0, self.target(name).shape[0]), num_parts

    def part(self, name: str) -> tuple[int, Part]:
        """Layer and place of a canonical name within the layers."""
        match = _LAYER_NAME.fullmatch(name)
        if match is None:
            raise KeyError(name)
        return int(match[1]), self.layers[int(match[1])].parts()[match[2]]  # pyright: ignore

    def target(self, name: str) -> torch.Tensor:
        """What a canonical tensor is copied to."""
        top = {
            "model.embed_tokens.weight": self.embedding,
            "model.norm.weight": self.norm,
            "lm_head.weight": self.head,
        }
        if name in top:
            return top[name].data
        index, part = self.part(name)
        whole: torch.Tensor = getattr(self.layers[index], part.parameter).data
        return whole if part.rows is None else whole[part.rows]


def _replace(module: nn.Module, name: str, weight: nn.Module | torch.Tensor) -> None:
    """Another weight in the place of a parameter."""
    delattr(module, name)
    if isinstance(weight, torch.Tensor):
        weight = nn.Parameter(weight, requires_grad=False)
    setattr(module, name, weight)


def _weight(*shape: int, dtype: torch.dtype, device: str | None = None) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
