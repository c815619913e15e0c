"""Keys and values as the native kernels keep them."""

from __future__ import annotations

import math

import numpy as np

from ...kernels import native
from ...kernels.memory import large_pages
from ...kernels.packed_heads import NUM_GROUPS
from ...kernels.weights import WeightFormat
from ...runtime.errors import ConfigError
from .config import LlamaConfig
from .kv_cache import KVCache

LANES = 16
KV_BITS = {WeightFormat.FLOAT32: 32, WeightFormat.BFLOAT16: 16, WeightFormat.INT8: 8, WeightFormat.INT4: 4}
# What a token and head has beside its codes: a scale, or a scale and a minimum for each quarter.
_NUMBERS = {WeightFormat.INT8: (1, np.float32), WeightFormat.INT4: (2 * NUM_GROUPS, np.float16)}


class NativeCache(KVCache):
    """Keys and values in the layout of native/kv_cache.h: tiles of 16 tokens. Memory is used as blocks are, from the
    first on: what a tile has in all layers lies together, in large pages, of which a step then meets few."""

    def __init__(self, config: LlamaConfig, num_blocks: int, block_size: int, format: WeightFormat) -> None:
        if block_size % LANES:
            raise ConfigError(
                f"the native kernels need blocks of a multiple of {LANES} tokens, not {block_size}",
                hint="set `block_size`, or CALLBOARD_NATIVE=0 for the slower kernels of torch",
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.format = format
        num_tiles = num_blocks * block_size // LANES
        heads = (num_tiles, config.num_layers, 2, config.num_kv_heads)
        each, kind = _NUMBERS.get(format, (0, np.float32))
        self._codes = _zeros((*heads, LANES * config.head_dim * KV_BITS[format] // 8), np.uint8)
        self._numbers = _zeros((*heads, LANES * each), kind)
        # Of each layer, [num_tiles, num_kv_heads, what a tile and head has]; scales of keys and of values.
        self.keys = [self._codes[:, layer, 0] for layer in range(config.num_layers)]
        self.values = [self._codes[:, layer, 1] for layer in range(config.num_layers)]
        self.scales = [self._numbers[:, layer] for layer in range(config.num_layers)]

    @property
    def num_bytes(self) -> int:
        return self._codes.nbytes + self._numbers.nbytes

    def c_struct(self, layer: int) -> native.CCache:
        scales = self.scales[layer]
        has_scales = scales.size > 0
        return native.CCache(
            self.keys[layer].ctypes.data,
            self.values[layer].ctypes.data,
            scales[:, 0].ctypes.data if has_scales else None,
            scales[:, 1].ctypes.data if has_scales else None,
        )


def _zeros(shape: tuple[int, ...], kind: type[np.number]) -> np.ndarray:
    """Begins at a page; zeroed by the system as it is touched."""
    count = math.prod(shape)
    memory = large_pages(max(count * np.dtype(kind).itemsize, 1))
    return np.frombuffer(memory, kind, count).reshape(shape)
