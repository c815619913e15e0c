"""How many blocks a cache gets: as many as the memory that it may take holds, on the CPU or on a card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil

from ...runtime.errors import ConfigError

if TYPE_CHECKING:
    from ..models.served import ModelShape

MIB = 1 << 20
# On a CPU, which others use too.
AUTO_CACHE_MIB = 1024
AUTO_CACHE_SHARE = 0.25
# Of a card's free memory; the rest is for what a step computes in passing, and what is lost between allocations.
CARD_SHARE = 0.85

KV_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A head's keys, and its values, have a scale for each token in the int8 cache.
SCALE_BYTES = 4


def blocks_on_cpu(block_bytes: int, full_context: int, cache_mib: int, num_replicas: int) -> int:
    """For each replica. `full_context`: bytes of the longest sequence. `cache_mib`: for all replicas; 0 for up to a GiB
    and at most a quarter of what is free, or more where one full context needs it and half of that holds it."""
    if cache_mib:
        return max(1, cache_mib * MIB // num_replicas // block_bytes)
    free = psutil.virtual_memory().available // num_replicas
    usual = min(AUTO_CACHE_MIB * MIB // num_replicas, int(free * AUTO_CACHE_SHARE))
    return max(1, max(usual, min(full_context, free // 2)) // block_bytes)


def blocks_on_card(
    block_bytes: int, full_context: int, cache_mib: int, num_replicas: int, free: int, weights: int, most: int
) -> int:
    """For each of the replicas that share a card with `free` bytes, each with `weights` bytes of weights.

    Whatever is left is used, but not more than `most` full contexts take, since no more sequences run at once.
    ConfigError where the weights leave no room for one block.
    """
    if cache_mib:
        return max(1, cache_mib * MIB // num_replicas // block_bytes)
    room = int(free * CARD_SHARE) // num_replicas - weights
    if room < block_bytes:
        raise ConfigError(
            f"{free / MIB:,.0f} MiB are free on the card, and {num_replicas} x {weights / MIB:,.0f} MiB of weights "
            "leave no room for keys and values",
            hint="keep weights in fewer bits (`weights`), or have fewer replicas",
        )
    return max(1, min(room, most * full_context) // block_bytes)


def block_bytes(models: Sequence[ModelShape], block_size: int, kv_type: str) -> int:
    """Bytes of one block of each model's cache together."""
    return block_size * sum(kv_bytes(model, kv_type) for model in models)


def kv_bytes(model: ModelShape, kv_type: str) -> int:
    """Bytes that a token's keys and values take."""
    import torch

    from ...kernels.packed_heads import NUM_GROUPS
    from ..models.kv_cache import kv_bytes_per_token

    num_values = kv_bytes_per_token(model, torch.int8)  # of one byte each
    if kv_type == "int4":
        return num_values // 2 + num_values // model.head_dim * NUM_GROUPS * SCALE_BYTES  # scale and minimum in half
    if kv_type == "int8":
        return num_values + num_values // model.head_dim * SCALE_BYTES
    if kv_type not in KV_VALUE_BYTES:
        raise ConfigError(
            f"there is no type of keys and values '{kv_type}'",
            hint=f"choose one of {', '.join((*KV_VALUE_BYTES, 'int8', 'int4'))}",
        )
    return num_values * KV_VALUE_BYTES[kv_type]
