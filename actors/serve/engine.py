"""The engine: one model being served, as a supervisor of its replica and its scheduler.

It settles what they share (the model's file, the size of the cache) and passes requests on. What needs torch is
imported when it starts, after the process was prepared for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
import msgspec
import psutil

from ...runtime.actor import Actor, handler
from ...runtime.errors import ConfigError
from ...runtime.supervision import Restart, Strategy, Supervision
from ...schemas.serve import Completion, EngineStats, Generate, GetStats, Token
from ..models.store import ModelStore
from .threads import default_threads, prepare_process

if TYPE_CHECKING:
    from ..models.config import LlamaConfig

MIB = 1 << 20
AUTO_CACHE_MIB = 1024
AUTO_CACHE_SHARE = 0.25

Count = Annotated[int, msgspec.Meta(ge=1)]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine's options, `[engine]` in the configuration file.

    `model`: a name of the store, or the path of a .gguf file. `dtype`: float32 (answers equal those of transformers)
    or bfloat16 (half the memory). `cache_mib`: memory for keys and values; 0 takes up to 1 GiB, at most a quarter of
    what is free, or more where one full context needs it and half of what is free holds that. `num_blocks` sets their
    number outright instead. `context_length`: 0 for the model's own, or a smaller one. `max_batch_tokens`: tokens
    computed in one step, the most that a decoding stream waits for others' prompts. `threads`: 0 for all cores (of
    more than two, all but one).
    """

    model: str = "smollm2"
    models_folder: str = ""
    dtype: str = "float32"
    cache_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    num_blocks: Annotated[int, msgspec.Meta(ge=0)] = 0
    block_size: Count = 16
    context_length: Annotated[int, msgspec.Meta(ge=0)] = 0
    default_max_tokens: Count = 512
    max_batch_tokens: Count = 256
    max_running: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64
    max_waiting: Annotated[int, msgspec.Meta(ge=1, le=2048)] = 256
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    step_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0


class Engine(Actor[EngineConfig]):
    """Starts `replica` and `scheduler` below itself, and serves `Generate` and `GetStats` by asking the scheduler.

    Clients may as well go to `<address>.scheduler` directly. Start raises NoSuchModel, ModelDamaged,
    UnsupportedModel, ConfigError.
    """

    supervision = Supervision(strategy=Strategy.ONE_FOR_ONE)
    mailbox_size = 4096

    async def started(self) -> None:
        prepare_process()
        await anyio.to_thread.run_sync(_import_torch)
        from .replica import Replica, ReplicaConfig
        from .scheduler import Scheduler, SchedulerConfig

        config = self.config
        if config.max_batch_tokens < config.max_running:
            raise ConfigError(
                f"max_batch_tokens ({config.max_batch_tokens}) is below max_running ({config.max_running})",
                hint="every running request needs room for one token in a step",
            )
        path, model = await anyio.to_thread.run_sync(self._look_at_model)
        context_length = min(config.context_length or model.context_length, model.context_length)
        num_blocks = config.num_blocks or auto_num_blocks(config, model, context_length)
        threads = config.threads or default_threads()
        replica = await self.spawn(
            Replica,
            ReplicaConfig(
                path=str(path),
                dtype=config.dtype,
                num_blocks=num_blocks,
                block_size=config.block_size,
                threads=threads,
            ),
            name="replica",
            restart=Restart.PERMANENT,
        )
        self._scheduler = await self.spawn(
            Scheduler,
            SchedulerConfig(
                model=config.model,
                path=str(path),
                dtype=config.dtype,
                replica=replica.address,
                num_blocks=num_blocks,
                block_size=config.block_size,
                context_length=context_length,
                default_max_tokens=config.default_max_tokens,
                max_batch_tokens=config.max_batch_tokens,
                max_running=config.max_running,
                max_waiting=config.max_waiting,
                step_timeout_s=config.step_timeout_s,
            ),
            name="scheduler",
            restart=Restart.PERMANENT,
        )

    @handler(concurrent=True)
    async def generate(self, message: Generate) -> AsyncIterator[Token | Completion]:
        async with self._scheduler.stream(message) as tokens:
            async for token in tokens:
                yield token
            yield tokens.result

    @handler(concurrent=True)
    async def stats(self, message: GetStats) -> EngineStats:
        return await self._scheduler.ask(message)

    def _look_at_model(self) -> tuple[Path, LlamaConfig]:
        from ..models.loading import dtype_of, load_config

        dtype_of(self.config.dtype)
        folder = self.config.models_folder
        path = ModelStore(Path(folder) if folder else None).path(self.config.model)
        return path, load_config(path)


def auto_num_blocks(config: EngineConfig, model: LlamaConfig, context_length: int) -> int:
    """Blocks for the cache: as many as the memory for it holds."""
    from ..models.kv_cache import kv_bytes_per_token
    from ..models.loading import dtype_of

    block_bytes = config.block_size * kv_bytes_per_token(model, dtype_of(config.dtype))
    if config.cache_mib:
        return max(1, config.cache_mib * MIB // block_bytes)
    free = psutil.virtual_memory().available
    full_context = -(-context_length // config.block_size) * block_bytes
    usual = min(AUTO_CACHE_MIB * MIB, int(free * AUTO_CACHE_SHARE))
    return max(1, max(usual, min(full_context, free // 2)) // block_bytes)


def _import_torch() -> None:
    import torch

    assert torch
