"""Event logs: what agent runs, training and queues are made of. One subject a log, in one stream for all.

Appends that wait together travel as one message, so a synced write is paid once for all of them. Each message says
which sequence its subject must be at, which makes a write whose acknowledgement was lost safe to repeat, orders all
writers of a log, and keeps out an owner that was taken over.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from ..schemas.store import LogBatch, Mark
from .errors import ConfigError, Conflict, Disconnected, Fenced, StoreError, StoreUnavailable, TooLarge, Truncated
from .jetstream import JetStream, Stored, WrongSequence
from .log_reading import Event, Following, batch_of, find_batch, read_batches

if TYPE_CHECKING:
    from .node import Node

T = TypeVar("T")

STREAM = "CALLBOARD_LOG"
SUBJECTS = "callboard.log."
CONFIG: dict[str, Any] = {
    "name": STREAM,
    "subjects": [f"{SUBJECTS}>"],
    "allow_direct": True,
    "discard": "new",
    "storage": "file",
}
# A message of more than this is no cheaper for each event; and a reader decodes it in one go.
BATCH_BYTES = 256 << 10
BATCH_EVENTS = 4096

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True)
class Appended:
    """The numbers of the events of one append. `duplicate`: they were there already, under the same key."""

    first: int
    last: int
    duplicate: bool = False


@dataclass(eq=False)
class _Append:
    """One append that waits for its turn."""

    events: list[msgspec.Raw]
    key: str
    expected: int | None
    alone: bool
    done: asyncio.Future[Appended]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.events))


class EventLog(Generic[T]):
    """A log of events of type `T` (a Struct, a union of tagged ones, or bytes), numbered from 1 without gaps.

    Made by `open`. Any number may append to a log and read it. With `own=True` the opener becomes its owner: the owner
    before it gets `Fenced` from its next append, for good; those that never owned it may still append.
    """

    def __init__(self, jetstream: JetStream, name: str, type_: Any, patience: float) -> None:
        self.name = name
        self._jetstream = jetstream
        self._subject = SUBJECTS + name
        self._decoder = msgspec.msgpack.Decoder(type_)
        self._patience = patience
        self._owner = b""
        self._tail = LogBatch(0, b"", b"", 1)
        self._tail_seq = 0
        self._keys: dict[str, Mark] | None = None
        self._waiting: list[_Append] = []
        self._writing: asyncio.Task[None] | None = None
        self._fenced: Fenced | None = None
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, node: Node, name: str, type: Any = bytes, *, own: bool = False) -> EventLog[Any]:
        """The log of that name, empty if it is new. Raises NoStore, StoreUnavailable, ConfigError for a bad name."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"'{name}' is no name for a log: it is names joined by dots, 'run.17' say")
        log = cls(node.jetstream, name, type, node.ask_timeout)
        await log._jetstream.ensure(CONFIG)
        if (last := await log._jetstream.last(STREAM, log._subject)) is not None:
            log._adopt(last)
        if own:
            await log._take_over()
        return log

    @property
    def last(self) -> int:
        """The number of the last event known here, 0 for none."""
        return self._tail.first + len(self._tail.events) - 1

    @property
    def room(self) -> int:
        """How many bytes the events of one append may have together, encoded."""
        return self._jetstream.max_payload - 1024

    @property
    def epoch(self) -> int:
        """How many owners the log has had."""
        return self._tail.epoch

    # Writing

    async def append(self, *events: T, key: str = "", expected: int | None = None) -> Appended:
        """Add events, in order and side by side; returns when they are on the disk.

        With `key`, an append of the same key whose events are still in the log is not repeated: its numbers come
        back. With `expected`, the log's last event must have that number: else Conflict, and nothing is written.
        Raises Fenced, StoreFull and TooLarge: not written; StoreUnavailable: it may have been, and the same append
        with its key is safe to repeat. Cancelling does not take back what is under way.
        """
        return await self._append(events, key, expected, alone=False)

    async def _append(self, events: tuple[T, ...], key: str, expected: int | None, *, alone: bool) -> Appended:
        if self._fenced is not None:
            raise self._fenced
        if key and self._keys is None:
            await self._load_keys()
        done: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        entry = _Append([msgspec.Raw(_encode(event)) for event in events], key, expected, alone, done)
        if entry.size > self.room:
            raise TooLarge(f"an append of {entry.size} bytes is over the limit of {self.room} for one message")
        self._waiting.append(entry)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_all())
        return await done

    async def _write_all(self) -> None:
        group: list[_Append] = []
        try:
            while self._waiting:
                group = self._next_group()
                await self._write(group)
        except (StoreError, TooLarge) as error:
            # Those behind it may build on what was not written.
            failed, self._waiting = [*group, *self._waiting], []
            for entry in failed:
                if not entry.done.done():
                    entry.done.set_exception(error)
        except BaseException:
            for entry in [*group, *self._waiting]:
                entry.done.cancel()
            self._waiting.clear()
            raise
        finally:
            self._writing = None

    def _next_group(self) -> list[_Append]:
        """As many of those that wait as go into one message."""
        count, size, events = 1, self._waiting[0].size, len(self._waiting[0].events)
        if not self._waiting[0].alone:
            for entry in self._waiting[1:]:
                size += entry.size
                events += len(entry.events)
                if entry.alone or size > BATCH_BYTES or events > BATCH_EVENTS:
                    break
                count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group

    async def _write(self, group: list[_Append]) -> None:
        async with self._lock:
            id_ = secrets.token_bytes(8)
            try:
                async with asyncio.timeout(self._patience):
                    while True:
                        batch, answers = self._compose(group, id_)
                        if not batch.events or await self._publish(batch):
                            break
            except TimeoutError:
                raise StoreUnavailable(
                    f"the log {self.name} could not be written within {self._patience:g} s"
                ) from None
        for entry, answer in answers:
            if entry.done.done():
                continue
            if isinstance(answer, Appended):
                entry.done.set_result(answer)
            else:
                entry.done.set_exception(answer)

    def _compose(self, group: list[_Append], id_: bytes) -> tuple[LogBatch, list[tuple[_Append, Appended | Conflict]]]:
        """The message for a group at the log's present end, and what each of its appends is told if it is written."""
        number = first = self.last + 1
        events: list[msgspec.Raw] = []
        marks: dict[str, Mark] = {}
        answers: list[tuple[_Append, Appended | Conflict]] = []
        for entry in group:
            known = entry.key and ((self._keys or {}).get(entry.key) or marks.get(entry.key))
            if known:
                answers.append((entry, Appended(known.first, known.first + known.count - 1, duplicate=True)))
            elif entry.expected is not None and entry.expected != number - 1:
                words = f"the log {self.name} is at event {number - 1}, not {entry.expected}"
                answers.append((entry, Conflict(words)))
            else:
                if entry.key:
                    marks[entry.key] = Mark(entry.key, number, len(entry.events))
                answers.append((entry, Appended(number, number + len(entry.events) - 1)))
                events += entry.events
                number += len(entry.events)
        tail = self._tail
        return LogBatch(tail.epoch, tail.owner, id_, first, tuple(events), tuple(marks.values())), answers

    async def _publish(self, batch: LogBatch) -> bool:
        """Whether the batch is there now; if not, the log has moved on, and `_tail` with it."""
        try:
            seq = await self._jetstream.publish(CONFIG, self._subject, _encode(batch), self._tail_seq)
        except WrongSequence:
            return await self._catch_up(batch.id)
        except (Disconnected, TimeoutError):
            return False  # it may have been written: the next attempt tells
        self._tail, self._tail_seq = batch, seq
        if self._keys is not None:
            self._keys.update((mark.key, mark) for mark in batch.marks)
        return True

    async def _catch_up(self, id_: bytes) -> bool:
        """Take in what was written meanwhile; whether the batch of that id is among it."""
        found = False
        async for seq, batch, _ in read_batches(self._jetstream, STREAM, self._subject, self._tail_seq + 1):
            if self._keys is not None:
                if batch.first <= self.last:  # an import put an earlier state of the log back: what was is no more
                    self._keys.clear()
                self._keys.update((mark.key, mark) for mark in batch.marks)
            self._tail, self._tail_seq = batch, seq
            found = found or batch.id == id_
        last = await self._jetstream.last(STREAM, self._subject)
        if last is None:
            self._tail, self._tail_seq = LogBatch(0, b"", b"", 1), 0
        if self._owner and self._tail.owner != self._owner:
            self._fenced = Fenced(f"the log {self.name} has another owner now, in epoch {self.epoch}")
            raise self._fenced
        return found

    async def _take_over(self) -> None:
        owner = secrets.token_bytes(8)
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    batch = LogBatch(self.epoch + 1, owner, secrets.token_bytes(8), self.last + 1)
                    if await self._publish(batch) or self._tail.owner == owner:
                        break
        except TimeoutError:
            raise StoreUnavailable(f"the log {self.name} could not be taken over within {self._patience:g} s") from None
        self._owner = owner

    def _adopt(self, stored: Stored) -> None:
        self._tail, self._tail_seq = batch_of(stored), stored.seq

    async def _load_keys(self) -> None:
        async with self._lock:
            if self._keys is None:
                keys: dict[str, Mark] = {}
                async for seq, batch, _ in read_batches(self._jetstream, STREAM, self._subject, 1):
                    keys.update((mark.key, mark) for mark in batch.marks)
                    if seq > self._tail_seq:
                        self._tail, self._tail_seq = batch, seq
                self._keys = keys

    # Reading

    async def read(self, after: int | None = None) -> AsyncGenerator[Event[T]]:
        """The events after number `after` that are there now, in order and without gaps; by default from the first
        that is kept. Raises Truncated where some of those asked for were removed."""
        position = await self._position(after)
        number = 0 if after is None else after
        async for _, batch, at in read_batches(self._jetstream, STREAM, self._subject, position):
            for event in self._events(batch, at, number, check=after is not None or number > 0):
                number = event.number
                yield event

    async def follow(self, after: int | None = None) -> AsyncGenerator[Event[T]]:
        """`read`, and then each event as it is written, until the reader stops (close it: `contextlib.aclosing`).

        It goes on by itself when the server was away; nothing is left out and nothing comes twice.
        """
        position = await self._position(after)
        number = 0 if after is None else after
        async with Following(self._jetstream, STREAM, self._subject, position) as following:
            while True:
                for batch, at in await following.next():
                    for event in self._events(batch, at, number, check=after is not None or number > 0):
                        number = event.number
                        yield event

    async def _position(self, after: int | None) -> int:
        return 1 if not after else await find_batch(self._jetstream, STREAM, self._subject, after + 1)

    def _events(self, batch: LogBatch, at: str, after: int, *, check: bool) -> list[Event[T]]:
        if check and batch.first > after + 1:
            raise Truncated(f"events {after + 1} to {batch.first - 1} of the log {self.name} were removed")
        return [
            Event(number, batch.at or at, self._decoder.decode(raw))
            for number, raw in enumerate(batch.events, batch.first)
            if number > after
        ]

    # Removing

    async def truncate(self, before: int) -> None:
        """Remove events before that number, as far as they do not lie in one message with later ones.

        The log's end stays, so numbers go on. Keys of removed events are forgotten.
        """
        seq = await find_batch(self._jetstream, STREAM, self._subject, before)
        last = await self._jetstream.last(STREAM, self._subject)
        if last is not None:
            await self._jetstream.purge(STREAM, self._subject, min(seq, last.seq))

    async def compact(self, snapshot: T) -> int:
        """Append an event that stands for all before it, remove those, and return its number."""
        number = (await self._append((snapshot,), "", None, alone=True)).first
        await self.truncate(number)
        return number

    async def delete(self) -> None:
        """Remove the log; its owner, if it has one, is fenced off."""
        await self._jetstream.purge(STREAM, self._subject)


async def list_logs(node: Node) -> dict[str, int]:
    """The logs on the bus, with how many messages each is kept in."""
    found = await node.jetstream.subjects(STREAM, f"{SUBJECTS}>")
    return {subject.removeprefix(SUBJECTS): count for subject, count in sorted(found.items())}
