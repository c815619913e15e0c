"""The work queue: an actor that keeps items until somebody has done them. Each is done at least once, or is dead.

Nothing is answered before it is on the disk, in an event log of the queue's own. Handlers run beside each other, so
that those that wait together share a write. Consumers have an item under a lease, and are told where they lost it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..schemas.queue import (
    DeadItem,
    DeadItems,
    DropItems,
    ExtendLease,
    FailItem,
    FinishItem,
    GetQueueStats,
    ItemsChanged,
    ItemSettled,
    ItemsPut,
    ItemsTaken,
    LeasedItem,
    LeaseExtended,
    ListDeadItems,
    PutItems,
    QueueStats,
    RequeueItems,
    ReturnItem,
    TakeItems,
)
from ..schemas.queue_log import Back, BackEvent, DoneEvent, DroppedEvent, ExtendedEvent, RequeuedEvent
from .actor import Actor, handler
from .errors import Fenced, LeaseLost, StoreError
from .event_log import EventLog
from .log import log
from .queue_journal import Batch, Journal
from .queue_state import AGAIN, DEAD, DELAYED, DONE, LEASED, READY, QueueConfig, QueueEvent, QueueState

# What one answer to a `take` holds at most, unless its first item alone is larger.
TAKE_BYTES = 1 << 20
# After the log could not be read: what says that it can be again is that it is tried.
RETRY_S = 1.0
# The wall clock may be set while a lease is waited for.
LOOK_AGAIN_S = 10.0


class Queue(Actor[QueueConfig]):
    """Errors of every request: a StoreError, when it was not, or may not have been, written."""

    _journal: Journal

    async def started(self) -> None:
        self.config.check()
        name = self.config.log or f"queue.{self.address}"
        events = await EventLog.open(self.node, name, QueueEvent, own=True)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._over = False
        self._news = asyncio.Event()
        self._next_look = 0.0
        self._journal = Journal(events, lambda: QueueState(self.config), self.config.compact_bytes, self._news.set)
        await self._journal.ready()
        self.start_soon(self._journal.run)
        self.start_soon(self._keep_time)

    def draining(self) -> None:
        self._over = True
        while self._waiting:
            _wake(self._waiting.popleft())

    async def _state(self) -> QueueState:
        """To be used before the next await."""
        await self._journal.ready()
        return self._journal.state

    def _commit(self, state: QueueState, *events: Any) -> Batch:
        """Have events written, and let those know that wait for items or for a time."""
        batch = self._journal.commit(events)
        self._wake_takers(state)
        at = state.next_time()
        if at is not None and at < self._next_look:
            self._news.set()
        return batch

    def _commit_each(self, state: QueueState, events: Sequence[Any]) -> Batch:
        """The same for any number of events, which need not be written side by side."""
        for event in events:
            self._journal.commit((event,))
        return self._commit(state)

    # Producers

    @handler(concurrent=True)
    async def put(self, message: PutItems) -> ItemsPut:
        state = await self._state()
        events, ids, known = state.put(message.items, time.time())
        self._journal.check(events)
        await self._commit(state, *events).confirmed()
        return ItemsPut(tuple(ids), tuple(known))

    # Consumers

    @handler(concurrent=True)
    async def take(self, message: TakeItems) -> ItemsTaken:
        until = time.monotonic() + message.wait_s
        turn: asyncio.Future[None] | None = None
        while True:
            state = await self._state()
            # Those that wait already come first.
            given = self._give(state, message) if turn is not None or not self._waiting else []
            if given:
                break
            left = until - time.monotonic()
            if left <= 0 or self._over:
                return ItemsTaken(())
            turn = await self._turn(left, first=turn is not None)
        batch = self._journal.commit(())
        try:
            await batch.confirmed()
        except asyncio.CancelledError:
            self._take_back(state, given)
            raise
        return ItemsTaken(tuple(given))

    def _give(self, state: QueueState, message: TakeItems) -> list[LeasedItem]:
        given: list[LeasedItem] = []
        size, now = 0, time.time()
        while len(given) < message.limit and (event := state.give(message.lease_s, now)) is not None:
            item = state.items[event.id]
            size += len(item.payload)
            if given and size > TAKE_BYTES:
                break
            self._commit(state, event)
            given.append(LeasedItem(item.id, event.lease, item.payload, item.attempt, event.until, item.key))
        return given

    async def _turn(self, left: float, *, first: bool) -> asyncio.Future[None]:
        """Wait for news of an item, `left` seconds at most; `first` for one whose turn came in vain."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if first:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            async with asyncio.timeout(left):
                await turn
        except TimeoutError:
            pass  # the caller looks a last time
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            raise
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
        return turn

    def _wake_takers(self, state: QueueState) -> None:
        ready = state.counts[READY]
        while ready > 0 and self._waiting:
            ready -= 1
            _wake(self._waiting.popleft())

    def _pass_on(self) -> None:
        """Somebody who was woken is gone."""
        if self._waiting:
            _wake(self._waiting.popleft())

    def _take_back(self, state: QueueState, given: list[LeasedItem]) -> None:
        """Whoever asked for them is gone, and has not got them."""
        if self._journal.lost or self._journal.state is not state:
            return
        for leased in given:
            item = state.items.get(leased.id)
            if item is not None and item.phase == LEASED and item.lease == leased.lease:
                self._commit(state, BackEvent(item.id, item.lease, time.time(), Back.RETURNED))

    @handler(concurrent=True)
    async def finish_item(self, message: FinishItem) -> ItemSettled:
        state = await self._state()
        past = state.settled(message.id, message.lease)
        if past is None:
            event = DoneEvent(message.id, message.lease, time.time())
            await self._commit(state, event).confirmed()
        else:
            if past.outcome != DONE:
                raise LeaseLost(f"item {message.id} was given back with that lease")
            await self._journal.commit(()).confirmed()
        return ItemSettled(message.id)

    @handler(concurrent=True)
    async def fail_item(self, message: FailItem) -> ItemSettled:
        return await self._come_back(
            message.id,
            message.lease,
            Back.FAILED,
            error=message.error,
            retry_after_s=message.retry_after_s,
            dead=message.dead,
        )

    @handler(concurrent=True)
    async def return_item(self, message: ReturnItem) -> ItemSettled:
        return await self._come_back(message.id, message.lease, Back.RETURNED)

    async def _come_back(
        self,
        id_: int,
        lease: int,
        why: Back,
        *,
        error: str = "",
        retry_after_s: float | None = None,
        dead: bool = False,
    ) -> ItemSettled:
        state = await self._state()
        past = state.settled(id_, lease)
        if past is not None:
            if past.outcome not in ((Back.RETURNED,) if why is Back.RETURNED else (AGAIN, DEAD)):
                raise LeaseLost(f"item {id_} was settled with that lease: {past.outcome}")
            await self._journal.commit(()).confirmed()
            return ItemSettled(id_, past.outcome == DEAD, past.not_before)
        if state.items[id_].phase == DEAD:
            raise LeaseLost(f"item {id_} is a dead letter: the lease {lease} passed, and was its last")
        event = state.fail(id_, time.time(), error=error, retry_after_s=retry_after_s, dead=dead, why=why)
        await self._commit(state, event).confirmed()
        return ItemSettled(id_, event.dead, event.not_before)

    @handler(concurrent=True)
    async def extend(self, message: ExtendLease) -> LeaseExtended:
        state = await self._state()
        past = state.settled(message.id, message.lease)
        if past is not None:
            raise LeaseLost(f"item {message.id} was settled with that lease: {past.outcome}")
        if state.items[message.id].phase == DEAD:
            raise LeaseLost(f"item {message.id} is a dead letter: the lease {message.lease} passed, and was its last")
        event = ExtendedEvent(message.id, message.lease, time.time() + message.lease_s)
        await self._commit(state, event).confirmed()
        return LeaseExtended(event.until)

    # Whoever looks after it

    @handler(concurrent=True)
    async def list_dead(self, message: ListDeadItems) -> DeadItems:
        state = await self._state()
        dead = state.dead()
        some = [item for item in dead if item.id > message.after][: message.limit]
        found = tuple(
            DeadItem(item.id, item.payload, item.attempt, item.error, item.died_at, item.key) for item in some
        )
        await self._journal.commit(()).confirmed()
        return DeadItems(found, len(dead))

    @handler(concurrent=True)
    async def requeue(self, message: RequeueItems) -> ItemsChanged:
        state = await self._state()
        wanted = set(message.ids)
        ids = [item.id for item in state.dead() if message.all or item.id in wanted]
        now = time.time()
        await self._commit_each(state, [RequeuedEvent(id_, now) for id_ in ids]).confirmed()
        return ItemsChanged(tuple(ids))

    @handler(concurrent=True)
    async def drop(self, message: DropItems) -> ItemsChanged:
        state = await self._state()
        wanted = dict.fromkeys(message.ids)
        if message.all:
            wanted |= dict.fromkeys(item.id for item in state.dead())
        ids = [id_ for id_ in wanted if (item := state.items.get(id_)) is not None and item.phase != LEASED]
        now = time.time()
        await self._commit_each(state, [DroppedEvent(id_, now) for id_ in ids]).confirmed()
        return ItemsChanged(tuple(ids))

    @handler(concurrent=True)
    async def stats(self, message: GetQueueStats) -> QueueStats:
        state = await self._state()
        oldest = state.oldest_ready()
        counts = state.counts
        return QueueStats(
            ready=counts[READY],
            delayed=counts[DELAYED],
            leased=counts[LEASED],
            dead=counts[DEAD],
            bytes=state.bytes,
            oldest_s=0.0 if oldest is None else max(0.0, time.time() - oldest),
            waiting=len(self._waiting),
            totals=state.totals,
        )

    # Time

    async def _keep_time(self) -> None:
        """Give out again what was not done in time. Raises Fenced, like the journal's own task."""
        while True:
            self._news.clear()
            try:
                state = await self._state()
            except Fenced:
                raise
            except StoreError as error:
                log.warning("%s cannot read its log: %s", self.address, error)
                await asyncio.sleep(RETRY_S)
                continue
            now = time.time()
            self._next_look = now + LOOK_AGAIN_S
            for event in state.passed(now):
                self._journal.commit((event,))
            self._wake_takers(state)
            at = state.next_time()
            if at is not None:
                self._next_look = min(at, self._next_look)
            try:
                async with asyncio.timeout(max(0.0, self._next_look - now)):
                    await self._news.wait()
            except TimeoutError:
                continue


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
