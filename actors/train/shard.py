"""A trainer shard: one rank of a group, in a process of its own, which computes in a thread so that its actor answers.

It lives for one group. When its coordinator ends, so does it, in the middle of whatever it does: what it had not
finished writing does not count.
"""

from __future__ import annotations

import asyncio
import collections
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio

from ...runtime.actor import Actor, NoConfig, handler
from ...runtime.errors import ActorStopped, RequestInvalid
from ...schemas.train import (
    AskShardPlace,
    RunShard,
    ShardEnd,
    ShardEnded,
    ShardPlace,
    ShardReady,
    StartShard,
    StopShard,
    TrainEvent,
)
from .shard_run import ShardRun, TrainLoop, build_trainer

T = TypeVar("T")

# Events that are kept for a coordinator which is away while the bus is: minutes of the fastest steps. All are in the
# job's file in any case.
KEPT_EVENTS = 4096


class Shard(Actor[NoConfig]):
    """Raises what `ShardRun` does; RequestInvalid where it is asked out of turn."""

    async def started(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="train")
        self._run: ShardRun | None = None
        self._start: asyncio.Future[ShardReady] | None = None
        self._end: asyncio.Future[ShardEnd] | None = None
        self._stop: StopShard | None = None
        self._events: collections.deque[TrainEvent] = collections.deque(maxlen=KEPT_EVENTS)
        self._num_events = 0
        self._news = anyio.Event()
        self._ending = anyio.Event()

    def build(self, order: StartShard) -> TrainLoop:
        """Called in the shard's thread."""
        return build_trainer(order)

    @handler(concurrent=True)
    async def place(self, message: AskShardPlace) -> ShardPlace:
        host = _own_address(self.node.require_links().options.url)
        with socket.create_server((host, 0)) as free:
            port = free.getsockname()[1]
        return ShardPlace(host, port, socket.gethostname())

    @handler(concurrent=True)
    async def start(self, message: StartShard) -> ShardReady:
        if self._start is None:
            self._run = ShardRun(message, self.build)
            self._start = asyncio.get_running_loop().run_in_executor(self._thread, self._run.start)
        return await self._until_done(self._start)

    @handler(concurrent=True)
    async def run(self, message: RunShard) -> AsyncIterator[TrainEvent | ShardEnded]:
        if self._run is None or self._start is None or not self._start.done():
            raise RequestInvalid("a shard runs once it is started")
        if self._end is None:
            loop = asyncio.get_running_loop()
            run = self._run

            def report(event: TrainEvent) -> None:
                loop.call_soon_threadsafe(self._hear, event)

            self._end = loop.run_in_executor(self._thread, lambda: run.run(report, lambda: self._stop))
        told = message.after
        while True:
            told = max(told, self._num_events - len(self._events))  # what is not kept any more is in the job's file
            while told < self._num_events:
                yield self._events[told - self._num_events]
                told += 1
            if self._end.done():
                break
            news = self._news
            await self._until_any(self._end, asyncio.ensure_future(news.wait()))
        # What the thread reported before it ended was scheduled before its end was.
        yield ShardEnded(self._end.result(), self._run.step)

    @handler(concurrent=True)
    async def stop(self, message: StopShard) -> None:
        self._stop = message

    def draining(self) -> None:
        self._ending.set()
        self._tell()

    def _hear(self, event: TrainEvent) -> None:
        self._events.append(event)
        self._num_events += 1
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    async def _until_done(self, future: asyncio.Future[T]) -> T:
        """The thread goes on whoever waits for it. Raises ActorStopped when this shard is to end."""
        ending = asyncio.ensure_future(self._ending.wait())
        await self._until_any(future, ending)
        if not future.done():
            raise ActorStopped(f"{self.address} ended before it had started")
        return future.result()

    async def _until_any(self, future: asyncio.Future[T], news: asyncio.Future[Any]) -> None:
        try:
            await asyncio.wait([future, news], return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
        if self._ending.is_set():
            raise ActorStopped(f"{self.address} is ended by its coordinator, or with it")


def _own_address(server: str) -> str:
    """The address of this machine that who reaches the same NATS server is likely to reach too."""
    host = urlsplit(server if "//" in server else f"nats://{server}").hostname or "127.0.0.1"
    family, kind, protocol, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing: it only picks the way
        return str(probe.getsockname()[0])
