"""The replica: computes steps. It decides nothing, and knows of each sequence what the scheduler told it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import torch

from ...kernels import ops
from ...runtime.actor import Actor, handler
from ...runtime.log import log
from ...schemas.serve import Adapters, ListAdapters, LoadAdapter, UnloadAdapter
from ...schemas.serve_steps import AskReplica, ReplicaInfo, Step, StepResult
from ..models.device import compute_device, slower_because
from ..models.loading import load_model, load_tokenizer
from ..models.served import ModelOptions
from .draft_loading import load_drafter
from .errors import ReplicaChanged
from .grammar import grammar_compiler
from .runner import Runner

T = TypeVar("T")


class ReplicaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`path` is the model's file or folder; `dtype`, `weights`, `kv`, `device` and `cuda_graphs` as in `ModelOptions`.
    `threads` are those of one operation. `draft`: what guesses ahead ("": nothing, "ngram", or the path of a smaller
    model with the same tokenizer), at most `num_draft` tokens in a step. `adapters`: (name, path) of those to load at
    the start."""

    path: str
    num_blocks: int
    block_size: int
    threads: int
    dtype: str = "float32"
    weights: str = ""
    kv: str = ""
    device: str = "cpu"
    cuda_graphs: bool = True
    draft: str = ""
    num_draft: int = 0
    adapters: tuple[tuple[str, str], ...] = ()


class Replica(Actor[ReplicaConfig]):
    """Loads the model when it starts, and then answers each `Step` with its result, in the order they come.

    Torch runs in one thread of its own, so the process stays responsive; always the same one, since OpenMP keeps a
    team of threads for each thread that calls it. Whatever touches the model waits its turn there, so a step that was
    sent ahead begins as soon as the one before it is computed, and one that was cancelled is computed to its end.

    Each start is another `life` with an empty cache: a step for another one is refused with ReplicaChanged. Start
    raises what loading raises: NoSuchModel, ModelDamaged, UnsupportedModel, ConfigError.
    """

    async def started(self) -> None:
        self._life = secrets.token_hex(8)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replica")
        self._runner = await self._in_thread(self._load)

    async def stopped(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    @handler(concurrent=True)
    async def step(self, message: Step) -> StepResult:
        if message.life != self._life:
            raise ReplicaChanged("this replica has started anew since; its cache holds nothing of that step")
        return await self._in_thread(lambda: self._runner.execute(message))

    @handler(concurrent=True)
    async def info(self, message: AskReplica) -> ReplicaInfo:
        if message.forget:
            await self._in_thread(self._runner.forget_all)
        config, model, drafter = self.config, self._runner.model, self._runner.drafter
        return ReplicaInfo(
            life=self._life,
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            dtype=config.dtype,
            kernels=model.kernels,
            device=str(model.device),
            slower_because=self._slower_because,
            weight_bytes=model.weight_bytes + (drafter.weight_bytes if drafter else 0),
            cache_bytes=self._runner.cache.num_bytes + (drafter.cache_bytes if drafter else 0),
        )

    @handler(concurrent=True)
    async def load_adapter(self, message: LoadAdapter) -> Adapters:
        return await self._in_thread(lambda: self._runner.load_adapter(message.name, Path(message.path)))

    @handler(concurrent=True)
    async def unload_adapter(self, message: UnloadAdapter) -> Adapters:
        return await self._in_thread(lambda: self._runner.unload_adapter(message.name))

    @handler(concurrent=True)
    async def list_adapters(self, message: ListAdapters) -> Adapters:
        return await self._in_thread(self._runner.adapters)

    def _load(self) -> Runner:
        config = self.config
        torch.set_num_threads(config.threads)
        ops.prepare()
        path = Path(config.path)
        options = ModelOptions(
            dtype=config.dtype,
            weights=config.weights,
            kv=config.kv,
            device=config.device,
            threads=config.threads,
            cuda_graphs=config.cuda_graphs,
        )
        device = compute_device(config.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread: kernels are launched on the current one
        model = load_model(path, options)
        self._slower_because = slower_because(device)
        log.info(
            "%s computes on %s: %s, %s%s",
            path.name,
            device,
            model.kernels,
            str(model.dtype).removeprefix("torch."),
            f"; {self._slower_because}" if self._slower_because else "",
            extra={"actor": self.address},
        )
        for name, folder in config.adapters:
            model.load_adapter(name, Path(folder))
        return Runner(
            model,
            config.num_blocks,
            config.block_size,
            lambda: grammar_compiler(load_tokenizer(path), model.vocab_size),
            load_drafter(config.draft, path, options, model, config.num_blocks, config.block_size),
            config.num_draft,
        )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
