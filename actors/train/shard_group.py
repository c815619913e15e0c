"""The shards of one attempt, as their coordinator sees them: placed, started together, heard, ended together."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio

from ...runtime.actor import Actor
from ...runtime.errors import ActorStopped, CallboardError, Disconnected, NameTaken, NoNodeFits, NoSuchActor
from ...runtime.exception_groups import leaves
from ...runtime.log import log
from ...runtime.placement import OnNode, Process, Where
from ...runtime.refs import Ref
from ...runtime.supervision import Restart
from ...schemas.train import (
    AskShardPlace,
    RunShard,
    ShardEnded,
    ShardPlace,
    ShardReady,
    ShardSettings,
    StartShard,
    StopShard,
    TrainConfig,
    TrainEvent,
)
from .errors import ShardFailed, passes

T = TypeVar("T")

# A shard of an earlier group sees within this time that its parent is gone, and its name is free.
NAME_PATIENCE_S = 30.0
NAME_RETRY_S = 0.1
READY_TIMEOUT_S = 120.0
# After a first failure, how long to wait for what the others say: whoever broke the collective knows why.
VERDICT_S = 2.0
# When rank 0 has ended well, how long the others may take to say so too.
LAST_WORD_S = 10.0
# A shard has nothing to finish when it is ended: checkpoints are there whole or not at all.
END_TIMEOUT_S = 0.2

Hear = Callable[[TrainEvent], Awaitable[None]]


class ShardGroup:
    """Used by one task: `gather`, `start`, `run`, and in any case `end`. `stop` may be called beside `run`."""

    def __init__(self, actor: Actor[Any], kind: str, job: str, config: TrainConfig, patience_s: float) -> None:
        """`patience_s`: how long a shard waits for a node that fits."""
        self._actor = actor
        self._kind = kind
        self._job = job
        self._config = config
        self._patience_s = patience_s
        self._shards: list[Ref] = []
        self.is_running = False

    def __len__(self) -> int:
        return len(self._shards)

    async def gather(self) -> None:
        """Place as many shards as are wanted; on nodes, as many as find one, if that is enough.

        Raises NoNodeFits where it is not, and what starting a process raises.
        """
        settings = self._config.shards
        found = await asyncio.gather(*map(self._place, range(settings.count)), return_exceptions=True)
        self._shards = [ref for ref in found if isinstance(ref, Ref)]
        errors = [error for error in found if isinstance(error, BaseException)]
        for error in errors:
            if not isinstance(error, NoNodeFits):
                raise error
        usable = usable_count(len(self._shards), settings)
        if not usable:
            raise errors[0]
        surplus = self._shards[usable:]
        await self._end(surplus)
        self._shards = self._shards[:usable]

    async def start(self, folder: Path, attempt: int, checkpoint: Path | None) -> ShardReady:
        """Raises what keeps any of them from starting."""
        places = await together([self._asked(ref, AskShardPlace()) for ref in self._shards])
        orders = [
            StartShard(
                config=self._config,
                job=self._job,
                folder=str(folder),
                rank=rank,
                world_size=len(places),
                host=places[0].host,
                port=places[0].port,
                checkpoint="" if checkpoint is None else str(checkpoint),
                attempt=attempt,
                local_rank=local_rank,
                local_count=local_count,
            )
            for rank, (local_rank, local_count) in enumerate(local_ranks(places))
        ]
        ready = await together([self._asked(ref, order) for ref, order in zip(self._shards, orders, strict=True)])
        return ready[0]

    async def run(self, hear: Hear) -> ShardEnded:
        """Returns how rank 0 ended. Raises as soon as one of them is gone, or fails."""
        self.is_running = True
        tasks = [asyncio.ensure_future(self._run_one(rank, hear)) for rank in range(len(self._shards))]
        try:
            return (await settled(tasks, first_alone=True))[0]
        finally:
            self.is_running = False
            await _cancelled(tasks)

    async def stop(self, *, checkpoint: bool) -> None:
        """Have them end together after the step in hand."""
        await self._shards[0].tell(StopShard(checkpoint))

    async def end(self) -> None:
        """End their processes, whatever they do. Bounded."""
        shards, self._shards = self._shards, []
        await self._end(shards)

    async def _end(self, shards: Sequence[Ref]) -> None:
        async def end(ref: Ref) -> None:
            with contextlib.suppress(NoSuchActor):  # it is gone already
                await self._actor.node.stop(ref.address, END_TIMEOUT_S)

        async with anyio.create_task_group() as tasks:
            for ref in shards:
                tasks.start_soon(end, ref)

    async def _place(self, index: int) -> Ref:
        settings = self._config.shards
        where: Where = Process(ready_timeout=READY_TIMEOUT_S)
        if settings.labels:
            where = OnNode(
                labels=settings.labels,
                cpus=cpus_of(self._config),
                process=True,
                patience=self._patience_s,
                ready_timeout=READY_TIMEOUT_S,
            )
        name = f"{self._actor.address}-{index}"
        with anyio.move_on_after(NAME_PATIENCE_S + self._patience_s):
            while True:
                try:
                    return await self._actor.spawn(self._kind, name=name, where=where, restart=Restart.TEMPORARY)
                except NameTaken as error:
                    log.debug("%s is not free yet: %s", name, error)
                await anyio.sleep(NAME_RETRY_S)  # nothing tells when the earlier one has gone
        raise NameTaken(f"a process of an earlier group is {name} still")

    async def _asked(self, ref: Ref, message: Any) -> Any:
        """Asked again after the bus was away: a shard answers the same. A process that dies ends the wait."""
        while True:
            try:
                return await ref.ask(message, timeout=math.inf)
            except Disconnected:
                log.info("%s is asked again: the bus was away", ref)

    async def _run_one(self, rank: int, hear: Hear) -> ShardEnded:
        ref, heard = self._shards[rank], 0
        while True:
            try:
                async with ref.stream(RunShard(after=heard)) as events:
                    async for event in events:
                        heard += 1
                        await hear(event)
                    return events.result
            except Disconnected:
                log.info("%s is listened to again: the bus was away", ref)


def usable_count(placed: int, settings: ShardSettings) -> int:
    """How many of those that found a place can work together; 0 where they are too few."""
    usable = min(placed, settings.count)
    usable -= usable % settings.sequence_parallel
    return usable if usable >= settings.min_count else 0


def cpus_of(config: TrainConfig) -> float:
    return float(max(1, config.compute.threads))


def free_places(actor: Actor[Any], config: TrainConfig) -> int:
    """How many more shards the nodes on the bus have room for, as far as is known."""
    labels, cpus = set(config.shards.labels), cpus_of(config)
    infos = [hello.info for hello in actor.node.require_links().peers.known.values()]
    return sum(int(info.cpus // cpus) for info in infos if info.accepts and labels <= set(info.labels))


def local_ranks(places: Sequence[ShardPlace]) -> list[tuple[int, int]]:
    """(which of the shards of its machine, how many those are), for each."""
    counts = collections.Counter(place.machine for place in places)
    before: collections.Counter[str] = collections.Counter()
    ranks: list[tuple[int, int]] = []
    for place in places:
        ranks.append((before[place.machine], counts[place.machine]))
        before[place.machine] += 1
    return ranks


async def together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, or the error that tells most about why there are none."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await settled(tasks)
    finally:
        await _cancelled(tasks)


async def settled(tasks: Sequence[asyncio.Task[T]], *, first_alone: bool = False) -> list[T]:
    """Wait for all. With `first_alone`, the first one's good end is the end: the others get a moment to end too."""
    waiting: set[asyncio.Task[T]] = set(tasks)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if first_alone and tasks[0] in done and tasks[0].exception() is None:
            if waiting:
                await asyncio.wait(waiting, timeout=LAST_WORD_S)
            return [tasks[0].result()]
        if any(task.exception() is not None for task in done):
            if waiting:
                await asyncio.wait(waiting, timeout=VERDICT_S)
            errors = [task.exception() for task in tasks if task.done()]
            raise min(filter(None, errors), key=_how_little_it_tells)
    return [task.result() for task in tasks]


def _how_little_it_tells(error: BaseException) -> int:
    """What is wrong with data or settings explains all; a death explains why the others' collectives broke."""
    single = next(leaves(error))
    if not isinstance(single, CallboardError) or not passes(single, has_checkpoint=True):
        return 0
    return 1 if isinstance(single, ActorStopped) else 3 if isinstance(single, ShardFailed) else 2


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
