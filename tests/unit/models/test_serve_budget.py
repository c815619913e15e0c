"""The memory that the engine counts on for keys and values is what the caches take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from serving import serving

from callboard.actors.models.loading import load_config, load_model
from callboard.actors.models.served import ModelOptions
from callboard.actors.serve.cache_size import MIB, kv_bytes
from callboard.schemas.serve_stats import GetStats

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("kv", ["float32", "bfloat16", "int8"])
def test_a_native_cache_takes_what_the_engine_counts_on(native_path: Path, kv: str) -> None:
    model = load_model(native_path, ModelOptions(kv=kv, threads=1))
    assert model.kernels == "native"
    assert model.new_cache(5, 32).num_bytes == 5 * 32 * kv_bytes(load_config(native_path), kv)


@pytest.mark.parametrize("kv", ["float32", "bfloat16", "int8", "int4"])
def test_a_cache_of_torch_does_too(tiny_path: Path, kv: str) -> None:
    model = load_model(tiny_path, ModelOptions(dtype="float32", kv=kv))
    assert model.kernels == "torch"
    assert model.new_cache(5, 4).num_bytes == 5 * 4 * kv_bytes(load_config(tiny_path), kv)


@pytest.mark.parametrize(
    "options",
    [{}, {"draft": "ngram"}, {"draft": "itself"}, {"replicas": 2, "draft": "itself"}, {"kv_cache": "int8"}],
)
async def test_all_caches_together_fill_the_memory_for_them(native_path: Path, options: dict[str, Any]) -> None:
    """A draft model has a cache of its own under the same block numbers."""
    if options.get("draft") == "itself":
        options = {**options, "draft": str(native_path)}
    async with serving(native_path, num_blocks=0, cache_mib=3, block_size=16, **options) as scheduler:
        with anyio.fail_after(10):
            while len((stats := await scheduler.ask(GetStats())).replicas) < options.get("replicas", 1):
                pass
        assert 2.9 * MIB < sum(replica.cache_bytes for replica in stats.replicas) <= 3 * MIB
