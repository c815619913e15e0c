"""Actors and messages that the tests of the runtime share. A process of its own loads this file by its path.

What an actor lives through goes to `DIARY`, which a test in the same process can wait on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import msgspec

from callboard.runtime.actor import Actor, handler
from callboard.runtime.errors import RequestInvalid
from callboard.runtime.placement import Process
from callboard.runtime.supervision import Restart
from callboard.schemas.base import Message, Request, StreamRequest
from callboard.schemas.runtime import Terminated

THIS_FILE = str(Path(__file__))


class Diary:
    """What happened, in order. Tests wait for entries."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self._news = anyio.Event()

    def add(self, entry: str) -> None:
        self.entries.append(entry)
        self._news.set()
        self._news = anyio.Event()

    async def has(self, entry: str, times: int = 1) -> None:
        while Counter(self.entries)[entry] < times:
            await self._news.wait()

    def clear(self) -> None:
        self.entries.clear()
        self._news = anyio.Event()


DIARY = Diary()

# The clerks of this process by name, in their present lives.
LIVING: dict[str, Clerk] = {}


class Count(Message, frozen=True, tag="test.count"):
    n: int


class Add(Request[Count], frozen=True, tag="test.add"):
    n: int = 1


class Note(Message, frozen=True, tag="test.note"):
    text: str


class Notes(Message, frozen=True, tag="test.notes"):
    texts: tuple[str, ...]


class GetNotes(Request[Notes], frozen=True, tag="test.get_notes"):
    """Answered with every Note and Add so far, in the order of arrival."""


class Wait(Request[Count], frozen=True, tag="test.wait"):
    """Answered when the actor's `gate` opens."""

    name: str = "wait"


class WaitBeside(Wait, frozen=True, tag="test.wait_beside"):
    """The same by a concurrent handler."""


class Fail(Request[Count], frozen=True, tag="test.fail"):
    """Answered by an error: a typed one, or any other, with so much more to say."""

    typed: bool = False
    size: int = 0


class FailBeside(Fail, frozen=True, tag="test.fail_beside"): ...


class Number(Message, frozen=True, tag="test.number"):
    n: int


class Total(Message, frozen=True, tag="test.total"):
    total: int


class Numbers(StreamRequest[Number, Total], frozen=True, tag="test.numbers"):
    """Streams 0 to `upto - 1`, then their sum; fails after `fail_at` items, waits for the gate after `wait_at`."""

    upto: int
    fail_at: int = -1
    wait_at: int = -1
    name: str = "numbers"


class NumbersBeside(Numbers, frozen=True, tag="test.numbers_beside"): ...


class Forward(Request[Count], frozen=True, tag="test.forward"):
    """Add 1 at another actor and answer with what it answers."""

    address: str


class Bulk(Request[Notes], frozen=True, tag="test.bulk"):
    """Answered with a text of so many characters."""

    size: int


class BulkItems(StreamRequest[Note, None], frozen=True, tag="test.bulk_items"):
    size: int


class Unknown(Request[Count], frozen=True, tag="test.unknown"):
    """Nobody handles it."""


class Open(Message, frozen=True, tag="test.open"):
    """Opens the gate of a clerk."""


class Watch(Request[Count], frozen=True, tag="test.watch"):
    address: str
    link: bool = False


class Unwatch(Request[Count], frozen=True, tag="test.unwatch"):
    address: str


class Seen(Message, frozen=True, tag="test.seen"):
    events: tuple[Terminated, ...]


class GetSeen(Request[Seen], frozen=True, tag="test.get_seen"):
    """The ends that a clerk was told of."""


class Hire(Request[Count], frozen=True, tag="test.hire"):
    """Start a clerk as a child, in a process of its own if `process`. Answered with its process id."""

    name: str
    process: bool = False
    restart: str = "permanent"


class Pid(Request[Count], frozen=True, tag="test.pid"):
    """Answered with the process id."""


class ClerkConfig(msgspec.Struct, frozen=True):
    """With `listens`, a message on `topic.open` opens the gate, also when the clerk takes nothing new any more."""

    name: str = "clerk"
    listens: bool = False


class Clerk(Actor[ClerkConfig]):
    """Does whatever a test asks for."""

    def __init__(self) -> None:
        self.count = 0
        self.noted: list[str] = []
        self.seen: list[Terminated] = []
        self.gate = anyio.Event()

    def diary(self, entry: str) -> None:
        DIARY.add(f"{self.config.name} {entry}")

    async def started(self) -> None:
        LIVING[self.config.name] = self
        self.diary("started")
        if self.config.listens:
            ready = anyio.Event()
            self.start_soon(self._listen, ready)
            await ready.wait()

    async def _listen(self, ready: anyio.Event) -> None:
        async with self.node.listen("topic.open") as opened:
            ready.set()
            async for _ in opened:
                self.gate.set()

    async def stopped(self) -> None:
        self.diary("stopped")

    @handler
    async def add(self, message: Add) -> Count:
        self.count += message.n
        self.noted.append(f"add {message.n}")
        return Count(self.count)

    @handler
    async def note(self, message: Note) -> None:
        self.noted.append(message.text)
        if message.text == "refused":
            raise RequestInvalid("that is not worth noting")
        if message.text.startswith("wait"):
            self.diary(f"{message.text} began")
            await self.gate.wait()

    @handler(concurrent=True)
    async def notes(self, message: GetNotes) -> Notes:
        return Notes(tuple(self.noted))

    @handler(concurrent=True)
    async def open(self, message: Open) -> None:
        self.gate.set()

    async def _wait(self, name: str) -> Count:
        self.diary(f"{name} began")
        try:
            await self.gate.wait()
        except BaseException as error:
            self.diary(f"{name} {type(error).__name__}")
            raise
        self.diary(f"{name} finished")
        return Count(self.count)

    @handler
    async def wait(self, message: Wait) -> Count:
        return await self._wait(message.name)

    @handler(concurrent=True)
    async def wait_beside(self, message: WaitBeside) -> Count:
        return await self._wait(message.name)

    @handler
    async def fail(self, message: Fail) -> Count:
        return self._fail(message)

    @handler(concurrent=True)
    async def fail_beside(self, message: FailBeside) -> Count:
        return self._fail(message)

    def _fail(self, message: Fail) -> Count:
        if message.typed:
            raise RequestInvalid("there is no such thing", hint="ask for another", detail="for developers")
        raise ZeroDivisionError("one over nothing" + "!" * message.size)

    async def _numbers(self, message: Numbers) -> AsyncGenerator[Number | Total]:
        name, total = message.name, 0
        self.diary(f"{name} began")
        try:
            for n in range(message.upto):
                if n == message.fail_at:
                    raise RequestInvalid(f"no number {n}")
                if n == message.wait_at:
                    self.diary(f"{name} waits")
                    await self.gate.wait()
                self.diary(f"{name} {n}")
                total += n
                yield Number(n)
            yield Total(total)
        finally:
            self.diary(f"{name} over")

    @handler
    async def numbers(self, message: Numbers) -> AsyncIterator[Number | Total]:
        async with aclosing(self._numbers(message)) as items:
            async for item in items:
                yield item

    @handler(concurrent=True)
    def numbers_beside(self, message: NumbersBeside) -> AsyncIterator[Number | Total] | Coroutine[Any, Any, Total]:
        return self._numbers(message) if message.upto else self._no_numbers(message)

    async def _no_numbers(self, message: Numbers) -> Total:
        self.diary(f"{message.name} none")
        if message.fail_at == 0:
            raise RequestInvalid("no number 0")
        return Total(0)

    @handler
    async def forward(self, message: Forward) -> Count:
        return await self.actor(message.address).ask(Add(1))

    @handler
    async def bulk(self, message: Bulk) -> Notes:
        return Notes(("x" * message.size,))

    @handler
    async def bulk_items(self, message: BulkItems) -> AsyncIterator[Note]:
        yield Note("x" * message.size)

    @handler
    async def watch_one(self, message: Watch) -> Count:
        await (self.link if message.link else self.watch)(message.address)
        return Count(0)

    @handler
    async def unwatch_one(self, message: Unwatch) -> Count:
        await self.unwatch(message.address)
        return Count(0)

    @handler
    async def terminated(self, event: Terminated) -> None:
        self.seen.append(event)
        self.diary(f"saw {event.address} {event.reason.value}")

    @handler(concurrent=True)
    async def get_seen(self, message: GetSeen) -> Seen:
        return Seen(tuple(self.seen))

    @handler
    async def hire(self, message: Hire) -> Count:
        where = Process(load=(THIS_FILE,)) if message.process else None
        kind = "company:Clerk" if message.process else Clerk
        config = ClerkConfig(message.name)
        ref = await self.spawn(kind, config, name=message.name, where=where, restart=Restart(message.restart))
        return await ref.ask(Pid())

    @handler(concurrent=True)
    async def pid(self, message: Pid) -> Count:
        return Count(os.getpid())


class SmallClerk(Clerk):
    """A clerk with room for four messages."""

    mailbox_size = 4
