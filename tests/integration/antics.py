"""Actors of a package that somebody else wrote, for daemons that the tests start; `install` in board.py lays it down.

The daemon that has it finds its folder in `PYTHONPATH`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import anyio
import msgspec

from callboard import Actor, Message, Request, StreamRequest, handler
from callboard.runtime.actor import NoConfig


class Begun(Message, frozen=True, tag="antics.begun"):
    number: int = 0


class Done(Message, frozen=True, tag="antics.done"):
    count: int = 0


class Hold(StreamRequest[Begun, Done], frozen=True, tag="antics.hold"):
    """Begun at once, and Done when `gate` is there, a file."""

    gate: str


class Open(Request[Done], frozen=True, tag="antics.open"):
    """Answered with how many Hold are under way, once that is `count`."""

    count: int


class Narrow(Actor[NoConfig]):
    """Holds on to a message, and has room for one more."""

    mailbox_size = 1

    @handler
    async def hold(self, message: Hold) -> AsyncIterator[Begun | Done]:
        yield Begun()
        while not await anyio.Path(message.gate).exists():
            await anyio.sleep(0.02)  # a file says nothing when it comes
        yield Done()


class Wide(Actor[NoConfig]):
    """Holds on to many at once, and knows how many."""

    under_way = 0

    async def started(self) -> None:
        self.change = anyio.Condition()

    @handler(concurrent=True)
    async def hold(self, message: Hold) -> AsyncIterator[Begun | Done]:
        await self._count(1)
        try:
            yield Begun(self.under_way)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self._count(-1)

    async def _count(self, change: int) -> None:
        async with self.change:
            self.under_way += change
            self.change.notify_all()

    @handler(concurrent=True)
    async def open(self, message: Open) -> Done:
        async with self.change:
            while self.under_way != message.count:
                await self.change.wait()
        return Done(self.under_way)


class FragileConfig(msgspec.Struct, frozen=True):
    needs: str
    patience: float = 1.0


class Fragile(Actor[FragileConfig]):
    """Starts only where the file is that it needs."""

    async def started(self) -> None:
        if not await anyio.Path(self.config.needs).exists():
            raise ValueError(f"{self.config.needs} is not there")


class Gated(Actor[FragileConfig]):
    """Its start takes until the file is there that it needs."""

    async def started(self) -> None:
        while not await anyio.Path(self.config.needs).exists():
            await anyio.sleep(0.02)  # a file says nothing when it comes


class Stuck(Message, frozen=True, tag="antics.stuck"):
    """Has the actor block its whole process for so many seconds."""

    seconds: float


class Blocker(Actor[NoConfig]):
    @handler
    async def stuck(self, message: Stuck) -> None:
        time.sleep(message.seconds)  # noqa: ASYNC251 the fault that this actor is for
