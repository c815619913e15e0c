"""The engine: one model being served, as a supervisor of its replicas and its scheduler.

It settles what they share (the model's file, the size of the cache) and passes requests on. What needs torch is
imported when it starts, after the process was prepared for it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import anyio.to_thread
import msgspec

from ...kernels.threads import default_threads, prepare_process, process_env
from ...runtime.actor import Actor, handler
from ...runtime.errors import ConfigError
from ...runtime.exception_groups import leaves
from ...runtime.placement import Process
from ...runtime.supervision import Restart, Strategy, Supervision
from ...schemas.abilities import GetAbilities, ModelAbilities
from ...schemas.serve import (
    Adapters,
    CloseSession,
    Completion,
    DescribeModel,
    Detokenize,
    Embed,
    Embeddings,
    Generate,
    ListAdapters,
    ListSessions,
    LoadAdapter,
    ModelDescription,
    PinSession,
    Score,
    Scores,
    SessionClosed,
    SessionList,
    SessionPinned,
    Token,
    TokenIds,
    Tokenize,
    TokenText,
    UnloadAdapter,
)
from ...schemas.serve_stats import EngineStats, GetStats
from ..models.store import ModelStore
from ..models.tool_formats import tool_format
from .cache_size import block_bytes, blocks_on_card, blocks_on_cpu
from .starting import START_TIMEOUT_S

if TYPE_CHECKING:
    from ..models.served import ModelOptions, ModelShape

Count = Annotated[int, msgspec.Meta(ge=1)]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine's options, `[engine]` in the configuration file.

    `model`: a name of the store, or the path of a model. `dtype`: what is computed in, float32 (answers equal those of
    transformers) or bfloat16 (half the memory). `weights`: how weights are kept, "" for as `dtype`, or float32,
    bfloat16, int8, int4, nf4. `kv_cache`: how keys and values are, "" for as `dtype`, or float32, bfloat16, int8, int4.
    With none of the three, weights are kept as the model's file keeps them. `device`: cpu, cuda, or one card as in
    cuda:1; "" for the first card where there is one. Replicas on cuda or "" are divided over the cards.
    `cuda_graphs`: on a card, steps that only decode are recorded once for each size and replayed (off: to compare, or
    for their memory).

    `cache_mib`: memory for keys and values; 0 takes up to 1 GiB, at most a quarter of what is free, or more where one
    full context needs it and half of what is free holds that, and on a card what it has left. `num_blocks` sets their
    number outright instead, for each replica. `context_length`: 0 for the model's own, or a smaller one.
    `max_batch_tokens`: tokens computed in one step, the most that a decoding stream waits for others' prompts.
    `max_running`: sequences that one replica computes at once. `max_waiting`: requests that may wait beside those.
    `threads`: 0 for all cores (of more than two, all but one), divided over the replicas.

    `overlap`: plan the next step while one is computed (off: to compare). `replicas`: copies of the model, between
    which requests are divided; `replica_process` gives each a process of its own, whose death the engine survives.
    `max_sessions`, `session_ttl_s`: conversations that keep their keys and values, and how long after a turn.
    `draft`: what guesses ahead, "" for nothing, "ngram", or a smaller model; `num_draft` is how many tokens at most.
    `adapters`: LoRA adapters to begin with, folders by name. `tool_format`: how the model writes tool calls, hermes,
    llama3, internlm or mistral; "" for what its chat template shows.
    """

    model: str = "smollm2"
    models_folder: str = ""
    dtype: str = ""
    weights: str = ""
    kv_cache: str = ""
    device: str = ""
    cuda_graphs: bool = True
    cache_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    num_blocks: Annotated[int, msgspec.Meta(ge=0)] = 0
    block_size: Count = 16
    context_length: Annotated[int, msgspec.Meta(ge=0)] = 0
    default_max_tokens: Count = 512
    max_batch_tokens: Count = 256
    max_running: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64
    max_waiting: Annotated[int, msgspec.Meta(ge=1, le=2048)] = 256
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    overlap: bool = True
    replicas: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    replica_process: bool = False
    max_sessions: Annotated[int, msgspec.Meta(ge=0)] = 256
    session_ttl_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    draft: str = ""
    num_draft: Annotated[int, msgspec.Meta(ge=0, le=32)] = 4
    adapters: dict[str, str] = {}
    tool_format: str = ""
    step_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0


class Engine(Actor[EngineConfig]):
    """Starts replicas and `scheduler` below itself, and serves what the scheduler does by asking it.

    Clients may as well go to `<address>.scheduler` directly. Start raises NoSuchModel, ModelDamaged,
    UnsupportedModel, ConfigError.
    """

    # A replica that a request kills is started again at once, several times over, before that request is given up.
    supervision = Supervision(
        strategy=Strategy.ONE_FOR_ONE, max_restarts=20, period_s=60.0, backoff_s=0.05, backoff_max_s=1.0
    )
    mailbox_size = 4096

    async def started(self) -> None:
        prepare_process()
        await anyio.to_thread.run_sync(_import_torch)
        from .scheduler import Scheduler, SchedulerConfig

        config = self.config
        if config.tool_format:
            tool_format("", config.tool_format)
        if config.max_batch_tokens < config.max_running:
            raise ConfigError(
                f"max_batch_tokens ({config.max_batch_tokens}) is below max_running ({config.max_running})",
                hint="every running request needs room for one token in a step",
            )
        path, model, options = await anyio.to_thread.run_sync(self._look_at_model)
        context_length = min(config.context_length or model.context_length, model.context_length)
        draft, draft_model = await anyio.to_thread.run_sync(self._look_at_draft)
        shapes = (model,) if draft_model is None else (model, draft_model)
        num_blocks = config.num_blocks or await anyio.to_thread.run_sync(
            self._count_blocks, path, options, shapes, context_length
        )
        replicas = await self._start_replicas(path, options, num_blocks, draft)
        self._scheduler = await self.spawn(
            Scheduler,
            SchedulerConfig(
                model=config.model,
                path=str(path),
                dtype=options.weights,
                replicas=replicas,
                num_blocks=num_blocks,
                block_size=config.block_size,
                context_length=context_length,
                default_max_tokens=config.default_max_tokens,
                max_batch_tokens=config.max_batch_tokens,
                max_running=config.max_running,
                max_waiting=config.max_waiting,
                step_timeout_s=config.step_timeout_s,
                overlap=config.overlap,
                num_draft=config.num_draft if config.draft else 0,
                max_sessions=config.max_sessions,
                session_ttl_s=config.session_ttl_s,
                tool_format=config.tool_format,
                compute_dtype=options.dtype,
                kv_cache=options.kv,
            ),
            name="scheduler",
            restart=Restart.PERMANENT,
        )

    async def _start_replicas(self, path: Path, options: ModelOptions, num_blocks: int, draft: str) -> tuple[str, ...]:
        """Start them at once, each in a process of its own where that is wanted. Returns their addresses."""
        from .replica import Replica, ReplicaConfig

        config = self.config
        devices = self._devices(options)
        replica = ReplicaConfig(
            path=str(path),
            dtype=options.dtype,
            weights=options.weights,
            kv=options.kv,
            num_blocks=num_blocks,
            block_size=config.block_size,
            threads=config.threads or max(1, default_threads() // config.replicas),
            cuda_graphs=config.cuda_graphs,
            draft=draft,
            num_draft=config.num_draft if config.draft else 0,
            adapters=tuple(config.adapters.items()),
        )
        addresses: dict[int, str] = {}

        async def start(index: int) -> None:
            name = "replica" if config.replicas == 1 else f"replica-{index}"
            ours = msgspec.structs.replace(replica, device=devices[index % len(devices)])
            if config.replica_process:
                # A process is a root of the bus, so its name says whose it is.
                name = f"{self.address.replace('.', '-')}-{name}"
                where = Process(env=process_env(), ready_timeout=START_TIMEOUT_S)
                ref = await self.spawn("serve.replica", ours, name=name, where=where, restart=Restart.PERMANENT)
            else:
                ref = await self.spawn(Replica, ours, name=name, restart=Restart.PERMANENT)
            addresses[index] = ref.address

        try:
            async with anyio.create_task_group() as group:
                for index in range(config.replicas):
                    group.start_soon(start, index)
        except BaseExceptionGroup as group_of_errors:
            raise next(leaves(group_of_errors)) from None  # the first is why the others were given up
        return tuple(addresses[index] for index in range(config.replicas))

    @handler(concurrent=True)
    async def generate(self, message: Generate) -> AsyncIterator[Token | Completion]:
        async with self._scheduler.stream(message) as tokens:
            async for token in tokens:
                yield token
            yield tokens.result

    @handler(concurrent=True)
    async def embed(self, message: Embed) -> Embeddings:
        return await self._scheduler.ask(message, timeout=math.inf)  # the caller's own deadline cancels this

    @handler(concurrent=True)
    async def score(self, message: Score) -> Scores:
        return await self._scheduler.ask(message, timeout=math.inf)

    @handler(concurrent=True)
    async def close_session(self, message: CloseSession) -> SessionClosed:
        return await self._scheduler.ask(message)

    @handler(concurrent=True)
    async def list_sessions(self, message: ListSessions) -> SessionList:
        return await self._scheduler.ask(message)

    @handler(concurrent=True)
    async def pin_session(self, message: PinSession) -> SessionPinned:
        return await self._scheduler.ask(message)

    @handler(concurrent=True)
    async def tokenize(self, message: Tokenize) -> TokenIds:
        return await self._scheduler.ask(message, timeout=math.inf)

    @handler(concurrent=True)
    async def detokenize(self, message: Detokenize) -> TokenText:
        return await self._scheduler.ask(message)

    @handler(concurrent=True)
    async def describe(self, message: DescribeModel) -> ModelDescription:
        return await self._scheduler.ask(message)

    @handler(concurrent=True)
    async def abilities(self, message: GetAbilities) -> ModelAbilities:
        return await self._scheduler.ask(message)

    @handler(concurrent=True)
    async def load_adapter(self, message: LoadAdapter) -> Adapters:
        return await self._scheduler.ask(message, timeout=math.inf)

    @handler(concurrent=True)
    async def unload_adapter(self, message: UnloadAdapter) -> Adapters:
        return await self._scheduler.ask(message, timeout=math.inf)

    @handler(concurrent=True)
    async def list_adapters(self, message: ListAdapters) -> Adapters:
        return await self._scheduler.ask(message)

    @handler(concurrent=True)
    async def stats(self, message: GetStats) -> EngineStats:
        return await self._scheduler.ask(message)

    def _look_at_model(self) -> tuple[Path, ModelShape, ModelOptions]:
        from ..models.formats import resolve
        from ..models.loading import dtype_of, load_config
        from ..models.served import ModelOptions

        config = self.config
        path = self._store().path(config.model)
        options = resolve(
            path, ModelOptions(dtype=config.dtype, weights=config.weights, kv=config.kv_cache, device=config.device)
        )
        dtype_of(options.dtype)
        return path, load_config(path), options

    def _devices(self, options: ModelOptions) -> list[str]:
        """Where replicas run, in turns: one device, or all cards where none was named."""
        import torch

        if options.device == "cpu" or self.config.device not in ("", "cuda"):
            return [options.device]
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]

    def _count_blocks(
        self, path: Path, options: ModelOptions, models: Sequence[ModelShape], context_length: int
    ) -> int:
        """Blocks for each replica's cache, a draft model's included: as many as the memory for it holds."""
        import torch

        from ..models.device import free_bytes
        from ..models.formats import estimated_bytes

        config = self.config
        one_block = block_bytes(models, config.block_size, options.kv)
        full_context = -(-context_length // config.block_size) * one_block
        if options.device == "cpu":
            return blocks_on_cpu(one_block, full_context, config.cache_mib, config.replicas)
        devices = self._devices(options)
        return blocks_on_card(
            one_block,
            full_context,
            config.cache_mib,
            num_replicas=-(-config.replicas // len(devices)),
            free=min(free_bytes(torch.device(device)) for device in devices[: config.replicas]),
            weights=estimated_bytes(path, options.weights),
            most=config.max_running,
        )

    def _look_at_draft(self) -> tuple[str, ModelShape | None]:
        """What the replica is told of who guesses (nothing, "ngram", or where the model lies), and such a model's
        shape."""
        from ..models.loading import load_config

        draft = self.config.draft
        if draft in ("", "ngram"):
            return draft, None
        path = self._store().path(draft)
        return str(path), load_config(path)

    def _store(self) -> ModelStore:
        folder = self.config.models_folder
        return ModelStore(Path(folder) if folder else None)


def _import_torch() -> None:
    import torch

    assert torch
