"""Keys and values as the native kernels keep them."""

from __future__ import annotations

import numpy as np

from ...kernels import native
from ...kernels.packed_heads import NUM_GROUPS
from ...kernels.weights import WeightFormat
from ...runtime.errors import ConfigError
from .config import LlamaConfig
from .kv_cache import KVCache

LANES = 16
LINE = 64
KV_BITS = {WeightFormat.FLOAT32: 32, WeightFormat.BFLOAT16: 16, WeightFormat.INT8: 8, WeightFormat.INT4: 4}
# What a token and head has beside its codes: a scale, or a scale and a minimum for each quarter.
_NUMBERS = {WeightFormat.INT8: (1, np.float32), WeightFormat.INT4: (2 * NUM_GROUPS, np.float16)}


class NativeCache(KVCache):
    """Keys and values in the layout of native/attention.h: tiles of 16 tokens. Pages cost memory once they are used."""

    def __init__(self, config: LlamaConfig, num_blocks: int, block_size: int, format: WeightFormat) -> None:
        if block_size % LANES:
            raise ConfigError(
                f"the native kernels need blocks of a multiple of {LANES} tokens, not {block_size}",
                hint="set `block_size`, or CALLBOARD_NATIVE=0 for the slower kernels of torch",
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.format = format
        num_bytes = num_blocks * block_size * config.num_kv_heads * config.head_dim * KV_BITS[format] // 8
        each, kind = _NUMBERS.get(format, (0, np.float32))
        num_scales = num_blocks * block_size * config.num_kv_heads * each
        self.keys = [_zeros(num_bytes) for _ in range(config.num_layers)]
        self.values = [_zeros(num_bytes) for _ in range(config.num_layers)]
        self.scales = [np.zeros((2, num_scales), kind) for _ in range(config.num_layers)]

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in (*self.keys, *self.values, *self.scales))

    def c_struct(self, layer: int) -> native.CCache:
        scales = self.scales[layer]
        has_scales = scales.size > 0
        return native.CCache(
            self.keys[layer].ctypes.data,
            self.values[layer].ctypes.data,
            scales[0].ctypes.data if has_scales else None,
            scales[1].ctypes.data if has_scales else None,
        )


def _zeros(num_bytes: int) -> np.ndarray:
    """Bytes that begin at a cache line, as the kernels load them fastest; zeroed by the system as they are touched."""
    whole = np.zeros(num_bytes + LINE, np.uint8)
    start = -whole.ctypes.data % LINE
    return whole[start : start + num_bytes]
