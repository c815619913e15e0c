"""The model that is asked: what it is, whether somebody serves it, and serving it where nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from ...runtime.actor import Actor
from ...runtime.census import actors_of
from ...runtime.errors import (
    ActorStopped,
    CallboardError,
    ConfigError,
    DeadlineExceeded,
    NoSuchActor,
    NoSuchModel,
    NotUnderstood,
)
from ...runtime.placement import Process
from ...runtime.refs import Ref
from ...runtime.supervision import Restart
from ...schemas.base import Request
from ...schemas.runtime import ActorInfo, ListNodes
from ...schemas.serve import DescribeModel, ListAdapters, ModelDescription
from ..models.digest import adapted, base_of, folder_digest, is_adapter, model_digest
from ..models.store import ModelStore

R = TypeVar("R")

ENGINE_KIND, SCHEDULER_KIND, MAIN = "serve.engine", "serve.scheduler", "node.main"
# A scheduler that lives says what it serves at once; loading a model may take minutes.
DESCRIBE_TIMEOUT_S = 3.0
START_TIMEOUT_S = 600.0
# The code of an engine whose queue is full, and how long it is left alone then: nothing tells when there is room.
_OVERLOADED = "serve.overloaded"
_OVERLOADED_PAUSE_S = 0.5
# What an adapter is called in an engine that is started for it.
_ADAPTER_NAME = "evaluated"


class EngineOptions(msgspec.Struct, frozen=True):
    """What of an engine's options the numbers depend on; the engine itself says what is wrong with the others."""

    dtype: str = ""
    weights: str = ""
    kv_cache: str = ""
    device: str = ""
    context_length: int = 0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """`scheduler`: where it is served, None for nowhere. `base`: the model to load, where `name` is an adapter."""

    name: str
    digest: str
    dtype: str
    compute_dtype: str
    kv_cache: str
    context_length: int
    scheduler: Ref | None = None
    adapter: str = ""
    base: str = ""


@dataclass(frozen=True)
class ServedEngine:
    """An engine that serves a subject. `ask` waits for room where the engine's queue is full."""

    scheduler: Ref
    model: ModelDescription
    adapter: str

    @property
    def context_length(self) -> int:
        return self.model.context_length

    async def ask(self, request: Request[R]) -> R:
        while True:
            try:
                return await self.scheduler.ask(request, timeout=math.inf)
            except CallboardError as error:
                if error.to_info().code != _OVERLOADED:
                    raise
                await anyio.sleep(_OVERLOADED_PAUSE_S)


async def find_subject(actor: Actor[Any], store: ModelStore, name: str, options: str) -> Subject:
    """Raises NoSuchModel, ModelDamaged, UnsupportedModel, ConfigError."""
    for scheduler, model in await _served(actor):
        if name == model.model or name in model.adapters:
            adapter = "" if name == model.model else name
            return await _served_subject(store, name, scheduler, model, adapter)
    return await anyio.to_thread.run_sync(_local_subject, store, name, options)


@asynccontextmanager
async def engine_of(
    actor: Actor[Any], subject: Subject, options: str, models_folder: str
) -> AsyncIterator[ServedEngine]:
    """The engine that serves it, or one in a process of its own, which ends with the block."""
    if subject.scheduler is not None:
        yield ServedEngine(subject.scheduler, await subject.scheduler.ask(DescribeModel()), subject.adapter)
        return
    config = {"models_folder": models_folder, **msgspec.json.decode(options), "model": subject.base or subject.name}
    if subject.base:
        config["adapters"] = {**config.get("adapters", {}), subject.adapter: subject.name}
    # A process is a root of the bus, so its name says whose it is.
    name = f"{actor.address.replace('.', '-')}-engine"
    engine = await actor.spawn(
        ENGINE_KIND,
        msgspec.json.encode(config).decode(),
        name=name,
        where=Process(ready_timeout=START_TIMEOUT_S),
        restart=Restart.TEMPORARY,
    )
    try:
        scheduler = actor.actor(f"{engine.address}.scheduler")
        yield ServedEngine(scheduler, await scheduler.ask(DescribeModel()), subject.adapter)
    finally:
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(NoSuchActor):  # it crashed, and whoever asked it was told
                await actor.node.stop(engine.address, 1.0)


async def _served(actor: Actor[Any]) -> list[tuple[Ref, ModelDescription]]:
    """Every scheduler around that says what it serves."""
    infos = await _actors(actor)
    schedulers = [actor.actor(info.address) for info in infos if info.kind == SCHEDULER_KIND]
    described = await asyncio.gather(*map(_describe, schedulers))
    return [(ref, model) for ref, model in zip(schedulers, described, strict=True) if model is not None]


async def _actors(actor: Actor[Any]) -> list[ActorInfo]:
    """Of all nodes. The daemon knows them at once, and a process that has just begun hears of them by and by."""
    links = actor.node.links
    if links is None:
        return [child.info() for child in actor.node.actors.values()]
    names = {actor.node.name, *links.peers.known}
    with contextlib.suppress(NoSuchActor):  # on a bus of somebody's own there is no daemon
        names |= {info.node for info in (await actor.actor(MAIN).ask(ListNodes(), DESCRIBE_TIMEOUT_S)).nodes}
    return await actors_of(actor.node, names)


async def _describe(scheduler: Ref) -> ModelDescription | None:
    try:
        return await scheduler.ask(DescribeModel(), timeout=DESCRIBE_TIMEOUT_S)
    except (NoSuchActor, ActorStopped, DeadlineExceeded, NotUnderstood):
        return None  # it ended since it was listed, or is stuck


async def _served_subject(
    store: ModelStore, name: str, scheduler: Ref, model: ModelDescription, adapter: str
) -> Subject:
    path = ""
    if adapter:
        adapters = (await scheduler.ask(ListAdapters(), DESCRIBE_TIMEOUT_S)).adapters
        path = next((one.path for one in adapters if one.name == adapter), "")

    def digest() -> str:
        try:
            found = model_digest(store, model.model)
            return adapted(found, folder_digest(Path(path))) if path else found
        except (NoSuchModel, OSError):  # its files are on another machine: it is known by the life of its engine
            return f"{model.model}, {adapter}, served since {model.started}"

    return Subject(
        name=name,
        digest=await anyio.to_thread.run_sync(digest),
        dtype=model.dtype,
        compute_dtype=model.compute_dtype,
        kv_cache=model.kv_cache,
        context_length=model.context_length,
        scheduler=scheduler,
        adapter=adapter,
    )


def _local_subject(store: ModelStore, name: str, options: str) -> Subject:
    """Of a model that is to be served for this; what its engine will say of it."""
    try:
        asked = msgspec.json.decode(options, type=EngineOptions)
    except msgspec.DecodeError as error:
        raise ConfigError(f"[engine] does not fit: {error}", hint="see the table [engine] of the settings") from error
    base = base_of(store, Path(name)) if is_adapter(name) else ""
    path = store.path(base or name)
    # What is heavy comes after what is mostly wrong.
    from ..models.formats import resolve
    from ..models.loading import load_config
    from ..models.served import ModelOptions

    kept = resolve(path, ModelOptions(dtype=asked.dtype, weights=asked.weights, kv=asked.kv_cache, device=asked.device))
    most = load_config(path).context_length
    return Subject(
        name=name,
        digest=model_digest(store, name),
        dtype=kept.weights,
        compute_dtype=kept.dtype,
        kv_cache=kept.kv,
        context_length=min(asked.context_length or most, most),
        adapter=_ADAPTER_NAME if base else "",
        base=base,
    )
