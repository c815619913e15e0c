"""How a work queue's events get to its log: applied at once, written in order, confirmed together.

What is decided next may build on events that are still on their way, since it is written behind them and confirmed
after them. Where a write fails, all of those fail with it, and the state is read from the log again before anything
else is decided: it is never ahead of what is stored.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..schemas.queue_log import CheckedEvent, PastEvent
from .errors import CallboardError, Disconnected, Fenced, StateMismatch, StoreError, StoreFull, TooLarge
from .event_log import EventLog
from .log import log
from .messages import UNDECODABLE
from .queue_state import OVERHEAD, QueueState

BATCH_BYTES = 256 << 10
# A compaction goes on beside the work, so much of it with each write.
CHUNK_BYTES = 128 << 10
# What is remembered goes into events of so many.
PAST_PER_EVENT = 1000


class Batch:
    """Events that are written as one append. Those of a compaction are by themselves: they change nothing."""

    def __init__(self, compaction: _Compaction | None = None) -> None:
        self.events: list[Any] = []
        self.size = 0
        self.compaction = compaction
        self._error: CallboardError | None = None
        self._over = asyncio.Event()

    def add(self, events: Sequence[Any], size: int) -> None:
        self.events += events
        self.size += size

    def settle(self, error: CallboardError | None = None) -> None:
        self._error = error
        self._over.set()

    async def confirmed(self) -> None:
        """Returns when it is on the disk, and all before it. Raises why it is not."""
        await self._over.wait()
        if self._error is not None:
            raise type(self._error)(str(self._error), hint=self._error.hint)


class Journal:
    """`commit` may be called between an `await ready()` and the next await. `run` is a task that ends only in errors.

    `state` is replaced when it is read anew; `on_lost` is called when it has to be.
    """

    def __init__(
        self, events: EventLog[Any], empty: Callable[[], QueueState], compact_bytes: int, on_lost: Callable[[], None]
    ) -> None:
        self._log = events
        self._empty = empty
        self._compact_bytes = compact_bytes
        self._on_lost = on_lost
        self._batches: deque[Batch] = deque()
        self._last = _written_already()
        self._work = asyncio.Event()
        self._reading = asyncio.Lock()
        # How many bytes the log has, roughly, and how many are worth a compaction.
        self._written = 0
        self._compact_over = compact_bytes
        self._compaction: _Compaction | None = None
        self.lost = True
        self._unsure = False
        self.state = empty()

    async def ready(self) -> None:
        """Returns when `state` is what the log says, or will say. Raises StoreError."""
        if self.lost:
            async with self._reading:
                if self.lost:
                    await self._read()

    async def _read(self) -> None:
        if self._unsure:
            # Behind this, what was on its way is there or never will be: it named the place that this has taken.
            await self._log.append(CheckedEvent())
            self._unsure = False
        end = self._log.last
        state, written = self._empty(), 0
        try:
            async for event in self._log.read():
                if event.number > end:
                    break
                state.apply(event.value)
                written += size_of(event.value)
        except UNDECODABLE as error:
            raise StateMismatch(f"the log {self._log.name} holds what is no event of a queue: {error}") from error
        state.whole()
        self._last = _written_already()
        self.state, self._written, self._compaction, self.lost = state, written, None, False
        self._compact_over = self._compact_bytes + 3 * state.weight

    def commit(self, events: Sequence[Any]) -> Batch:
        """Apply events, and have them written, side by side. Without any: the batch of the last ones."""
        if not events:
            return self._last
        size = sum(map(size_of, events))
        last = self._batches[-1] if self._batches else None
        if last is None or last.compaction is not None or last.size + size > min(BATCH_BYTES, self._log.room):
            last = self._add(Batch())
        last.add(events, size)
        for event in events:
            self.state.apply(event)
        self._last = last
        return last

    def _add(self, batch: Batch) -> Batch:
        self._batches.append(batch)
        self._work.set()
        return batch

    def check(self, events: Sequence[Any]) -> None:
        """Raises TooLarge where they do not fit into one message."""
        size = sum(map(size_of, events))
        if size > self._log.room:
            raise TooLarge(
                f"{size} bytes are over the limit of {self._log.room} for one write",
                hint="put fewer at once, or a reference to what is large",
            )

    async def run(self) -> None:
        """Write. Raises Fenced, when another owner has the log."""
        while True:
            while not self._batches:
                self._work.clear()
                await self._work.wait()
            batch = self._batches.popleft()
            try:
                first = (await self._log.append(*batch.events)).first
            except Fenced as error:
                self._fail(batch, error)
                raise
            except StoreFull as error:
                if batch.compaction is None:
                    self._fail(batch, error)
                else:
                    self._give_up_compaction()
            except (StoreError, TooLarge, Disconnected) as error:
                self._fail(batch, error)
            except BaseException:
                self._fail(batch, Disconnected("the queue ended before it was written"))
                raise
            else:
                batch.settle()
                self._written += batch.size
                await self._compact(batch, first)

    def _fail(self, batch: Batch, error: CallboardError) -> None:
        """All that may build on the batch fails with it."""
        self.lost = True
        self._unsure = self._unsure or not isinstance(error, StoreFull | TooLarge)
        self._compaction = None
        batch.settle(error)
        while self._batches:
            self._batches.popleft().settle(error)
        self._on_lost()

    def _give_up_compaction(self) -> None:
        log.warning("there is no room for a compaction of the log %s", self._log.name)
        self._compaction = None
        self._compact_over = self._written + self._compact_bytes

    async def _compact(self, written: Batch, first: int) -> None:
        """One step: begin, go on behind what is to be written next, or remove what is old."""
        compaction = self._compaction
        if compaction is None:
            if self._written <= self._compact_over:
                return
            compaction = self._compaction = _Compaction(self.state, self._written)
        elif written.compaction is not compaction:
            return
        elif compaction.first == 0:
            compaction.first = first
        if not compaction.over:
            self._add(compaction.chunk(min(CHUNK_BYTES, self._log.room // 2)))
            return
        try:
            await self._log.truncate(compaction.first)
        except CallboardError as error:
            log.warning("the log %s keeps its old events for now: %s", self._log.name, error)
        if self._compaction is compaction:
            self._compaction = None
            self._written -= compaction.before
            self._compact_over = self._compact_bytes + 3 * self.state.weight


class _Compaction:
    """Says again what is there, in chunks. Each is true of its place in the log, so items may change in between.

    `first` is the number of its first event, `before` how many bytes lie before it.
    """

    def __init__(self, state: QueueState, before: int) -> None:
        self.first = 0
        self.before = before
        self.over = False
        self._state = state
        items = [(item.id, item.key) for item in state.items.values()]
        self._events = self._all(items, list(state.past_keys), list(state.past_leases))

    def chunk(self, size: int) -> Batch:
        """A batch for the end of those that wait, of about `size` bytes, or of one event that is larger."""
        batch = Batch(self)
        for event in self._events:
            batch.add((event,), size_of(event))
            if batch.size >= size:
                return batch
        self.over = True
        return batch

    def _all(self, items: list[tuple[int, str]], keys: list[str], leases: list[int]) -> Iterator[Any]:
        state = self._state
        yield state.base()
        for start in range(0, len(keys), PAST_PER_EVENT):
            some = keys[start : start + PAST_PER_EVENT]
            yield PastEvent(keys=tuple(state.past_keys[key] for key in some if key in state.past_keys))
        for start in range(0, len(leases), PAST_PER_EVENT):
            past = leases[start : start + PAST_PER_EVENT]
            yield PastEvent(leases=tuple(state.past_leases[lease] for lease in past if lease in state.past_leases))
        for id_, key in items:
            if (event := state.kept(id_)) is not None:
                yield event
            elif key in state.past_keys:  # it went meanwhile, and with its beginning the log forgets its key
                yield PastEvent(keys=(state.past_keys[key],))


def _written_already() -> Batch:
    batch = Batch()
    batch.settle()
    return batch


def size_of(event: Any) -> int:
    """Bytes of an event in the log, roughly and never less."""
    if isinstance(event, PastEvent):
        return OVERHEAD * (1 + len(event.leases)) + sum(OVERHEAD + 4 * len(key.key) for key in event.keys)
    size = 2 * OVERHEAD
    for name in ("payload", "key", "error"):
        if value := getattr(event, name, None):
            size += len(value) if isinstance(value, bytes) else 4 * len(value)
    return size
