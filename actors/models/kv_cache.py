"""The paged key/value cache of one model: plain tensors, which nobody but the attention ops look into."""

from __future__ import annotations

import torch

from .config import LlamaConfig


class KVCache:
    """`k[layer]` and `v[layer]` are [num_blocks, block_size, num_kv_heads, head_dim].

    Zeroed, because a masked place still enters a product with weight zero, and zero times NaN is NaN. The operating
    system gives zeroed pages when they are first touched, so blocks cost memory only once they are used.
    """

    def __init__(
        self,
        config: LlamaConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.k = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.v = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]


def kv_bytes_per_token(config: LlamaConfig, dtype: torch.dtype) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
