"""The lean decoder on the native CPU kernels: packed weights, and one call for the whole forward pass.

Each token's numbers depend on its own sequence alone, bit for bit: see native/linear.h and native/attention.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from ...kernels import native
from ...kernels.memory import Arena
from ...kernels.ragged import RaggedBatch
from ...kernels.weights import FOUR_BITS, NativeEngine, PackedWeight, WeightFormat
from ...runtime.errors import ConfigError, ModelDamaged
from ...schemas.serve import AdapterInfo
from .config import LlamaConfig
from .errors import UnsupportedModel
from .fused_products import FusedProducts, Product
from .kv_cache import KVCache
from .llama import PRODUCTS, LlamaDecoder
from .lora import Adapter, AdapterStore
from .lora_llama import read_llama_adapter
from .matrices import Quantized, Weight
from .native_cache import KV_BITS, LANES, NativeCache
from .native_matrices import packed_as_kept

MAX_HEAD_DIM = 256


def why_not_native(config: LlamaConfig) -> str:
    """Why this decoder cannot run on the native kernels; empty where it can."""
    if config.head_dim % LANES or config.head_dim > MAX_HEAD_DIM:
        return f"its heads have {config.head_dim} dimensions; multiples of {LANES} up to {MAX_HEAD_DIM} are done"
    if config.intermediate_size % LANES:
        return f"its inner size {config.intermediate_size} is no multiple of {LANES}"
    return native.unavailable()


class NativeLayer:
    """The weights of one layer."""

    def __init__(self, config: LlamaConfig, format: WeightFormat, arena: Arena) -> None:
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.input_norm = torch.empty(hidden)
        self.post_norm = torch.empty(hidden)
        self.q_norm = torch.empty(config.head_dim) if config.qk_norm else None
        self.k_norm = torch.empty(config.head_dim) if config.qk_norm else None
        self.products = {
            "qkv": PackedWeight(q + 2 * kv, hidden, format, has_bias=config.qkv_bias, arena=arena),
            "o": PackedWeight(hidden, q, format, has_bias=config.o_bias, arena=arena),
            "gate_up": PackedWeight(2 * intermediate, hidden, format, has_bias=config.mlp_bias, arena=arena),
            "down": PackedWeight(hidden, intermediate, format, has_bias=config.mlp_bias, arena=arena),
        }


class NativeDecoder:
    """A `ServedModel`. Computes in float32 between products; these are of the weights' format."""

    kernels = "native"
    device = torch.device("cpu")
    batch_invariant = True

    def __init__(
        self,
        config: LlamaConfig,
        weights: WeightFormat,
        kv: WeightFormat,
        num_threads: int,
        *,
        quantized: bool = False,
    ) -> None:
        """`quantized`: matrices of the layers may come in few bits, and are kept in the nearest format of ours."""
        if kv not in KV_BITS:
            raise ConfigError(f"keys and values cannot be kept in {kv}", hint=f"choose one of {', '.join(KV_BITS)}")
        self.config = config
        self.weights = weights
        self.quantized = quantized
        self.kv = kv
        self.dtype = torch.float32
        self.vocab_size = config.vocab_size
        self.hidden_size = config.hidden_size
        self.context_length = config.context_length
        self._engine = NativeEngine(num_threads)
        with torch.device("meta"):
            self._shapes = LlamaDecoder(config, torch.float32)  # knows where each tensor goes
        # Four bits are too few for the vocabulary: it costs more perplexity than all layers together.
        vocabulary = WeightFormat.INT8 if weights in FOUR_BITS else weights
        arena = self._arena = Arena()
        self._embedding = PackedWeight(config.vocab_size, config.hidden_size, vocabulary, arena=arena)
        self._head = (
            self._embedding
            if config.tied_embeddings
            else PackedWeight(config.vocab_size, config.hidden_size, vocabulary, arena=arena)
        )
        self._layers = [NativeLayer(config, weights, arena) for _ in range(config.num_layers)]
        self._norm = torch.empty(config.hidden_size)
        self._rotation = Rotation(config)
        self._adapters = AdapterStore(torch.float32, self.device)
        self._bound: _Bound | None = None

    @property
    def weight_bytes(self) -> int:
        packed = {id(weight): weight.nbytes for weight in (self._embedding, self._head)}
        layers = (weight for layer in self._layers for weight in layer.products.values())
        return sum(packed.values()) + sum(weight.nbytes for weight in layers)

    def new_cache(self, num_blocks: int, block_size: int) -> NativeCache:
        return NativeCache(self.config, num_blocks, block_size, self.kv)

    def forward(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        batch: RaggedBatch,
        adapters: Sequence[str] | None = None,
        deterministic: bool = False,
    ) -> torch.Tensor:
        """See `ServedModel`. Always as if `deterministic`."""
        if not isinstance(cache, NativeCache):
            raise TypeError("this cache was made by another model")
        if batch.block_size != cache.block_size:
            raise ValueError(f"the cache has blocks of {cache.block_size}, the batch of {batch.block_size}")
        if len(token_ids) and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self.vocab_size:
            raise ValueError(f"token ids lie from 0 to {self.vocab_size - 1}")
        if self._bound is None or self._bound.cache is not cache:
            self._bound = _Bound(self, cache)
        rows = self._adapter_of_tokens(adapters, batch)
        cos, sin = self._rotation.rows(batch.positions)
        tables = batch.block_tables.contiguous()
        ids = token_ids.contiguous()
        out = torch.empty(batch.num_tokens, self.hidden_size)
        c_batch = native.CBatch(
            batch.num_tokens,
            batch.num_seqs,
            tables.shape[1],
            len(self._adapters.infos()),
            ids.data_ptr(),
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            batch.query_starts.data_ptr(),
            tables.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            None if rows is None else rows.data_ptr(),
        )
        self._engine.forward(self._bound.model, c_batch, out)
        return out

    def logits(self, hidden: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        """hidden [num_rows, hidden] -> float32 [num_rows, vocab]."""
        return self._engine.linear(hidden, self._head)

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """`ops.greedy` of the logits of hidden [num_rows, hidden], int64 [num_rows]."""
        return self._engine.likeliest(hidden, self._head)

    def load_adapter(self, name: str, path: Path) -> AdapterInfo:
        info = self._adapters.load(name, path, lambda: self._interleaved(read_llama_adapter(path, self.config)))
        self._bound = None
        return info

    def unload_adapter(self, name: str) -> None:
        self._adapters.unload(name)
        self._bound = None

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return self._adapters.infos()

    def load_weights(self, weights: Iterable[tuple[str, Weight]]) -> None:
        """Pack every canonical (name, tensor). `ModelDamaged` as for `LlamaDecoder.load_weights`."""
        fused = FusedProducts(self._shapes)
        for name, weight in fused.checked(weights):
            if self.quantized and (product := fused.add(name, weight)):
                if product.parts:
                    self._keep(product)
            elif isinstance(weight, torch.Tensor):
                self._place(name, weight)
            else:
                self._keep_vocabulary(name, weight)

    def _keep(self, product: Product) -> None:
        products = self._layers[product.layer].products
        places = [self._places(product.name, rows) for rows, _ in product.parts]
        try:
            packed = packed_as_kept([part for _, part in product.parts], places, self._arena)
        except ValueError as error:
            raise ModelDamaged(f"layer {product.layer}, product '{product.name}': {error}") from error
        # What was there was never written to, so it takes no memory.
        packed.bias = products[product.name].bias
        products[product.name] = packed

    def _keep_vocabulary(self, name: str, weight: Quantized) -> None:
        packed = packed_as_kept([weight], [torch.arange(weight.shape[0])], self._arena)
        if name == "lm_head.weight":
            self._head = packed
            return
        if packed.order is not None:
            raise UnsupportedModel(f"tensor '{name}' is quantized in a way that is not done for embeddings here")
        self._embedding = packed
        if self.config.tied_embeddings:
            self._head = packed

    def _places(self, product: str, rows: slice) -> torch.Tensor:
        """Where rows of a product lie in ours."""
        places = torch.arange(rows.start, rows.stop)
        return interleave(places, self.config.intermediate_size) if product == "gate_up" else places

    def _place(self, name: str, tensor: torch.Tensor) -> None:
        top = {"model.embed_tokens.weight": self._embedding, "lm_head.weight": self._head}
        if name in top:
            top[name].fill(tensor)
            return
        if name == "model.norm.weight":
            self._norm.copy_(tensor)
            return
        index, part = self._shapes.part(name)
        layer = self._layers[index]
        product = part.parameter.removesuffix("_bias")
        if product not in PRODUCTS:
            getattr(layer, product).copy_(tensor)
            return
        weight = layer.products[product]
        places = self._places(product, part.rows or slice(0, weight.num_out))
        if part.parameter != product and weight.bias is not None:
            weight.bias[places] = tensor.float()
        else:
            weight.fill(tensor, places)

    def _interleaved(self, adapter: Adapter) -> Adapter:
        """The adapter with the rows of its gate_up products in the order of ours."""
        order = torch.argsort(
            interleave(torch.arange(2 * self.config.intermediate_size), self.config.intermediate_size)
        )
        return adapter.map(lambda name, pair: pair.take(order) if name.endswith(".gate_up") else pair)

    def _adapter_of_tokens(self, adapters: Sequence[str] | None, batch: RaggedBatch) -> torch.Tensor | None:
        """int32 [num_tokens]: the place of each token's adapter, 0 for none; None where no sequence has one."""
        if adapters is None or not any(adapters):
            return None
        if len(adapters) != batch.num_seqs:
            raise ValueError(f"{len(adapters)} adapters for {batch.num_seqs} sequences")
        assert self._bound is not None
        places = [0 if not name else self._bound.place(name) for name in adapters]
        return torch.tensor(places, dtype=torch.int32).repeat_interleave(batch.query_starts.diff()).contiguous()


class _Bound:
    """The C structures of a decoder, its cache and its adapters. They point into these, which are kept here."""

    def __init__(self, decoder: NativeDecoder, cache: NativeCache) -> None:
        config = decoder.config
        self.cache = cache
        self._decoder = decoder
        names = [info.name for info in decoder.adapters()]
        self._places = {name: index + 1 for index, name in enumerate(names)}
        self._adapters = [decoder._adapters.get(name) for name in names]
        self._tables: list[ctypes.Array[native.CLora]] = []
        self._embedding = decoder._embedding.c_struct()
        self._layers = (native.CLayer * config.num_layers)(
            *(self._layer(index, layer) for index, layer in enumerate(decoder._layers))
        )
        self.model = native.CModel(
            config.num_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            decoder.kv.code,
            cache.block_size,
            config.rms_norm_eps,
            config.head_dim**-0.5,
            decoder._norm.data_ptr(),
            ctypes.addressof(self._embedding),
            ctypes.addressof(self._layers),
        )

    def place(self, name: str) -> int:
        if name not in self._places:
            self._decoder._adapters.get(name)  # says what there is instead
        return self._places[name]

    def _layer(self, index: int, layer: NativeLayer) -> native.CLayer:
        c_layer = native.CLayer(
            layer.input_norm.data_ptr(),
            layer.post_norm.data_ptr(),
            None if layer.q_norm is None else layer.q_norm.data_ptr(),
            None if layer.k_norm is None else layer.k_norm.data_ptr(),
            *(layer.products[name].c_struct() for name in PRODUCTS),
            self._decoder.config.window(index),
            0,
            self.cache.c_struct(index),
        )
        for at, name in enumerate(PRODUCTS):
            c_layer.lora[at] = self._table(f"{index}.{name}")
        return c_layer

    def _table(self, product: str) -> int | None:
        """What each adapter adds to a product; None where none does."""
        pairs = [adapter.products.get(product) for adapter in self._adapters]
        if not any(pairs):
            return None
        table = (native.CLora * len(pairs))(
            *(
                native.CLora() if pair is None else native.CLora(pair.a.data_ptr(), pair.b.data_ptr(), pair.a.shape[0])
                for pair in pairs
            )
        )
        self._tables.append(table)
        return ctypes.addressof(table)


class Rotation:
    """Cosines and sines of the rotary embedding by position, made when a position is first asked for."""

    def __init__(self, config: LlamaConfig) -> None:
        from .rope import inverse_frequencies

        self._frequencies = inverse_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
        self._scaling = config.rope_scaling.attention_scaling
        self._cos = self._sin = torch.empty(0, config.head_dim // 2)

    def rows(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions int64 [num_tokens] -> cos, sin float32 [num_tokens, head_dim / 2]."""
        needed = int(positions.max()) + 1 if len(positions) else 0
        if needed > len(self._cos):
            angles = torch.arange(max(needed, 2 * len(self._cos)))[:, None].float() * self._frequencies
            self._cos, self._sin = angles.cos() * self._scaling, angles.sin() * self._scaling
        return self._cos[positions], self._sin[positions]


def interleave(rows: torch.Tensor, intermediate: int) -> torch.Tensor:
    """Where rows of gate (the first `intermediate`) and up lie when they take turns of 16, as the kernels need it."""
    is_up, index = rows // intermediate, rows % intermediate
    return index // LANES * 2 * LANES + is_up * LANES + index % LANES
