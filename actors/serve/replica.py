"""The replica: computes steps. It decides nothing."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import torch

from ...runtime.actor import Actor, handler
from ...schemas.serve import Adapters, AskReplica, ListAdapters, ReplicaInfo, Step, StepResult
from ..models.loading import dtype_of, load_decoder
from .errors import ReplicaChanged
from .runner import Runner

T = TypeVar("T")


class ReplicaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`path` is the model's file. `threads` are those of one operation."""

    path: str
    dtype: str
    num_blocks: int
    block_size: int
    threads: int
    weights: str = ""
    kv: str = ""
    draft: str = ""
    num_draft: int = 0
    adapters: tuple[tuple[str, str], ...] = ()


class Replica(Actor[ReplicaConfig]):
    """Loads the model when it starts, and then answers each `Step` with its result, one after another.

    Torch runs in one thread of its own, so the process stays responsive; always the same one, since OpenMP keeps a
    team of threads for each thread that calls it. A step that was cancelled is computed to its end before the next.
    """

    async def started(self) -> None:
        self._life = secrets.token_hex(8)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replica")
        self._runner = await self._in_thread(self._load)

    async def stopped(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    @handler(concurrent=True)
    async def info(self, message: AskReplica) -> ReplicaInfo:
        config = self.config
        return ReplicaInfo(
            life=self._life,
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            dtype=config.dtype,
            kernels="torch",
            weight_bytes=0,
            cache_bytes=0,
        )

    @handler
    async def adapters(self, message: ListAdapters) -> Adapters:
        return Adapters(())

    @handler
    async def step(self, message: Step) -> StepResult:
        if message.life and message.life != self._life:
            raise ReplicaChanged("the replica that this step is for is no more; another has its place")
        return await self._in_thread(lambda: self._runner.execute(message))

    def _load(self) -> Runner:
        config = self.config
        torch.set_num_threads(config.threads)
        decoder = load_decoder(Path(config.path), dtype_of(config.dtype))
        return Runner(decoder, config.num_blocks, config.block_size)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
