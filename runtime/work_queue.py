"""A work queue as its producers and consumers use it: typed messages in, jobs out that look after their own lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import msgspec

from ..schemas.base import Message, Request
from ..schemas.queue import (
    DeadItem,
    DropItems,
    ExtendLease,
    FailItem,
    FinishItem,
    GetQueueStats,
    ItemSettled,
    LeasedItem,
    ListDeadItems,
    NewItem,
    PutItems,
    QueueStats,
    RequeueItems,
    ReturnItem,
    TakeItems,
)
from .errors import (
    ActorStopped,
    DeadlineExceeded,
    Disconnected,
    LeaseLost,
    Malformed,
    NoSuchActor,
    NotReachable,
    StoreUnavailable,
    UsageError,
)
from .log import log
from .messages import UNDECODABLE

if TYPE_CHECKING:
    from types import TracebackType

    from .refs import Ref

M = TypeVar("M", bound=Message)
R = TypeVar("R")

# How long a consumer asks for an item before it asks again.
WAIT_S = 20.0
# Its answer may come so much later than the time that was asked for.
ANSWER_S = 30.0
# A queue that is away (its process restarts, the server does) is waited for so long.
PATIENCE_S = 60.0
RETRY_S = 0.2
# How long a consumer that is cancelled takes to give its item back.
RETURN_S = 2.0

_AWAY = (ActorStopped, NoSuchActor, Disconnected, NotReachable, StoreUnavailable, DeadlineExceeded)


class WorkQueue(Generic[M]):
    """The queue at `ref`, whose items are messages of `types`.

    While the queue is away, what is safe to repeat is repeated for up to a minute: all but a `put` without a key.
    """

    def __init__(self, ref: Ref, *types: type[M]) -> None:
        if not types:
            raise UsageError("a WorkQueue is told the messages that its items are: WorkQueue(ref, Resize)")
        self.ref = ref
        union: Any = types[0]
        for one in types[1:]:
            union |= one
        self._from_msgpack = msgspec.msgpack.Decoder(union)
        self._from_json = msgspec.json.Decoder(union)

    # Producers

    async def put(self, *messages: M, key: str = "", priority: int = 0, delay: float = 0.0) -> tuple[int, ...]:
        """Put messages in, all of them or none; returns their numbers when they are on the disk.

        A `key` makes it safe to repeat: the number of the item that was put with it before comes back, as long as that
        is there, and for the queue's `remember_s` after. Higher `priority` goes first; `delay` is in seconds.
        Raises QueueFull, TooLarge, a StoreError.
        """
        if key and len(messages) != 1:
            raise UsageError("a key is one message's: put them one by one")
        items = tuple(NewItem(msgspec.msgpack.encode(message), key, priority, delay) for message in messages)
        request = PutItems(items)
        answer = await (self.repeated(request) if key else self.ref.ask(request))
        return answer.ids

    # Consumers

    async def take(self, limit: int = 1, *, lease: float = 30.0, wait: float = 0.0) -> list[Job[M]]:
        """Up to `limit` jobs for `lease` seconds; none if there are none within `wait` seconds.

        What is no message of the queue's types becomes a dead letter instead.
        """
        began = asyncio.get_running_loop().time()
        taken = await self.ref.ask(TakeItems(limit, lease, wait), wait + ANSWER_S)
        jobs: list[Job[M]] = []
        for item in taken.items:
            try:
                message = self._decode(item.payload)
            except UNDECODABLE as error:
                await self.repeated(FailItem(item.id, item.lease, f"it cannot be read: {error}", dead=True))
                continue
            # The queue waited no longer than it was asked to: the rest was the way.
            waited = min(asyncio.get_running_loop().time() - began, wait)
            jobs.append(Job(self, item, message, lease, began + waited + lease))
        return jobs

    async def jobs(self, *, lease: float = 30.0) -> AsyncGenerator[Job[M]]:
        """One job after another, without end: `async for job in queue.jobs(): async with job: ...`.

        Raises NoSuchActor where the queue is not there at first, and what else keeps it from answering for a minute.
        """
        known = False
        while True:
            try:
                found = await self.take(lease=lease, wait=WAIT_S)
            except _AWAY as error:
                if not known and isinstance(error, NoSuchActor):
                    raise
                found = await self._patiently(lambda: self.take(lease=lease, wait=WAIT_S))
            known = True
            for job in found:
                yield job

    async def work(
        self, function: Callable[[M], Awaitable[object]], *, concurrency: int = 1, lease: float = 30.0
    ) -> None:
        """Call `function` with each message that comes, `concurrency` at a time, until cancelled.

        What it raises fails the item, which is then tried again or becomes a dead letter; a lost lease cancels it.
        Cancelling gives back what is in hand. Raises as `jobs` does.
        """

        async def one() -> None:
            async for job in self.jobs(lease=lease):
                try:
                    async with job:
                        await function(job.message)
                except Exception as error:
                    log.warning("item %d of %s failed: %r", job.id, self.ref, error, exc_info=error)

        async with anyio.create_task_group() as group:
            for _ in range(concurrency):
                group.start_soon(one)

    def _decode(self, payload: bytes) -> M:
        # No MessagePack of a message begins like a JSON object.
        decoder = self._from_json if payload[:1] == b"{" else self._from_msgpack
        return decoder.decode(payload)

    # Whoever looks after it

    async def stats(self) -> QueueStats:
        return await self.repeated(GetQueueStats())

    async def dead(self) -> list[DeadItem]:
        """All dead letters, in the order of their numbers."""
        found: list[DeadItem] = []
        while True:
            page = await self.repeated(ListDeadItems(found[-1].id if found else 0))
            if not page.items:
                return found
            found += page.items

    def message_of(self, item: DeadItem) -> M:
        """The message that a dead letter is. Raises Malformed where it is none of the queue's types."""
        try:
            return self._decode(item.payload)
        except UNDECODABLE as error:
            raise Malformed(f"item {item.id} is no message of this queue: {error}") from error

    async def requeue(self, *ids: int, all: bool = False) -> tuple[int, ...]:
        """Give these dead letters, or all, their attempts again. The numbers of those that were dead letters."""
        return (await self.repeated(RequeueItems(ids, all))).ids

    async def drop(self, *ids: int, all: bool = False) -> tuple[int, ...]:
        """Remove these items that nobody has at the moment, or all dead letters. The numbers of those removed."""
        return (await self.repeated(DropItems(ids, all))).ids

    async def repeated(self, request: Request[R]) -> R:
        """Ask, again and again while the queue is away: for what may be carried out twice."""
        try:
            return await self.ref.ask(request)
        except _AWAY:
            return await self._patiently(lambda: self.ref.ask(request))

    async def _patiently(self, call: Callable[[], Awaitable[R]]) -> R:
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while True:
            await asyncio.sleep(RETRY_S)  # an address says nothing when somebody has it again
            try:
                return await call()
            except _AWAY:
                if loop.time() > until:
                    raise


class Job(Generic[M]):
    """An item that is this consumer's. As a context manager it keeps the lease while the block runs.

    Leaving the block means done; an exception fails it and goes on its way; being cancelled gives it back. Where the
    lease is lost the block is cancelled, and leaving it raises LeaseLost: somebody else has the item, or may have.
    """

    def __init__(self, queue: WorkQueue[M], item: LeasedItem, message: M, lease_s: float, until: float) -> None:
        self.id = item.id
        self.attempt = item.attempt
        self.key = item.key
        self.message = message
        self._queue = queue
        self._lease = item.lease
        self._lease_s = lease_s
        self._until = until
        self._scope = anyio.CancelScope()
        self._renewal: asyncio.Task[None] | None = None
        self._lost: LeaseLost | None = None
        self._settled = False

    async def done(self) -> None:
        """Safe to repeat. Raises LeaseLost."""
        await self._queue.repeated(FinishItem(self.id, self._lease))
        self._settled = True

    async def fail(self, error: str, *, retry_after: float | None = None, dead: bool = False) -> ItemSettled:
        """It is tried again after a while, or in `retry_after` seconds; or never, with `dead`. Raises LeaseLost."""
        settled = await self._queue.repeated(FailItem(self.id, self._lease, error, retry_after, dead))
        self._settled = True
        return settled

    async def give_back(self) -> None:
        """It was not tried. Raises LeaseLost."""
        await self._queue.repeated(ReturnItem(self.id, self._lease))
        self._settled = True

    async def extend(self, seconds: float | None = None) -> None:
        """The lease ends so many seconds from now (by default as many as it was taken for). Raises LeaseLost."""
        seconds = seconds or self._lease_s
        until = asyncio.get_running_loop().time() + seconds
        await self._queue.ref.ask(ExtendLease(self.id, self._lease, seconds))
        self._until = until

    async def __aenter__(self) -> Job[M]:
        self._scope.__enter__()
        self._renewal = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        assert self._renewal is not None
        self._renewal.cancel()
        swallowed = self._scope.__exit__(kind, error, trace)
        if self._lost is not None:
            raise self._lost
        if swallowed or self._settled:
            return bool(swallowed)
        if error is None:
            await self.done()
        elif isinstance(error, Exception):
            await self.fail(repr(error))
        else:
            with anyio.move_on_after(RETURN_S, shield=True):
                try:
                    await self.give_back()
                except LeaseLost:
                    log.info("item %d of %s is somebody else's by now", self.id, self._queue.ref)
        return False

    async def _renew(self) -> None:
        """Extend the lease at a third of it. What cannot be renewed in time is lost, whoever has it."""
        loop = asyncio.get_running_loop()
        pause = self._lease_s / 3
        while not self._settled:
            await asyncio.sleep(pause)
            pause = self._lease_s / 3
            try:
                async with asyncio.timeout_at(self._until):
                    await self.extend()
            except LeaseLost as error:
                return self._lose(error)
            except TimeoutError:
                return self._lose(LeaseLost(f"the lease of item {self.id} passed, and could not be extended"))
            except _AWAY as error:
                log.info("the lease of item %d of %s is not extended yet: %s", self.id, self._queue.ref, error)
                pause = min(RETRY_S, max(0.0, self._until - loop.time()))

    def _lose(self, error: LeaseLost) -> None:
        if not self._settled:
            self._lost = error
            self._scope.cancel()
