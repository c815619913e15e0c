"""The paged key/value cache of one model: plain tensors, which nobody but the attention ops look into."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch

from ...kernels.gpu.graphs import DecodeGraphs
from ...kernels.quantized import Cache, PackedCache, QuantizedCache


class CacheShape(Protocol):
    """What a cache must know of a model: (number of key/value heads, their size) of each layer that keeps any."""

    @property
    def kv_shapes(self) -> tuple[tuple[int, int], ...]: ...


class KVCache:
    """`k[layer]` and `v[layer]` are [num_blocks, block_size, num_kv_heads, head_dim], by that layer's own sizes; with
    torch.int8 for `dtype` they are codes and scales, with torch.uint8 codes of four bits, scales and minimums.

    Zeroed, because a masked place still enters a product with weight zero, and zero times NaN is NaN. Blocks cost
    memory, and the time to get it, only once they are used.

    `num_spare`: blocks behind those, which no sequence has. `graphs`: of decoding steps on this cache, where a decoder
    records any.
    """

    graphs: DecodeGraphs | None = None

    def __init__(
        self,
        config: CacheShape,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        num_spare: int = 0,
    ) -> None:
        shapes = [(num_blocks + num_spare, block_size, *heads) for heads in config.kv_shapes]
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.k = [_empty_cache(shape, dtype, device) for shape in shapes]
        self.v = [_empty_cache(shape, dtype, device) for shape in shapes]

    @property
    def num_bytes(self) -> int:
        return sum(cache.nbytes for cache in (*self.k, *self.v))


def _empty_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Cache:
    if dtype == torch.uint8:
        codes, numbers = PackedCache.part_shapes(shape)
        return PackedCache(_zeros(codes, dtype, device), *(_zeros(numbers, torch.float16, device) for _ in range(2)))
    if dtype == torch.int8:
        return QuantizedCache(_zeros(shape, dtype, device), _zeros(shape[:-1], torch.float32, device))
    return _zeros(shape, dtype, device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes its zeros; numpy's come from the operating system as pages are touched.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def kv_bytes_per_token(config: CacheShape, dtype: torch.dtype) -> int:
    return 2 * dtype.itemsize * sum(num_kv_heads * head_dim for num_kv_heads, head_dim in config.kv_shapes)
