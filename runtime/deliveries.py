"""A message on its way through a mailbox, and who waits for what comes of it.

The mailbox and the handlers see one interface; the local path answers a future or a buffer, the bus path (links.py)
answers by publishing frames.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from ..schemas.base import Message
from .errors import CallboardError, Cancelled, DeadlineExceeded
from .log import log
from .messages import tag_of

if TYPE_CHECKING:
    from .cell import Cell
    from .deadlines import Expiring
    from .tracing import Trace


class Delivery:
    """What mailboxes and handlers see of any message on its way.

    `cell` is where it goes, set before it is put there. `abandoned` says that its sender gave it up; a queued one is
    then skipped and a running one is cancelled. `wants_items` says whether what a stream handler yields goes anywhere.
    `slot` belongs to the deadline wheel. `trace` is the traced request that it is a part of, if it is of one.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        message: Message
        sender: str
        abandoned: bool
        cell: Cell | None
        task: asyncio.Task[None] | None
        slot: set[Expiring] | None
        trace: Trace | None

    wants_items: ClassVar[bool] = False

    def resolve(self, value: Any) -> None:
        """The handler returned."""

    def fail(self, error: CallboardError) -> None:
        """The handler raised, or never ran."""

    async def send(self, item: Any) -> None:
        """A stream handler yielded an item; returns when there is room for the next. Cancelled if nobody reads."""

    def abandon(self) -> None:
        """The sender gave it up. Safe to call at any time, more than once."""
        if not self.abandoned:
            self.abandoned = True
            if self.cell is not None:
                self.cell.interrupt(self)


# The next two are made for every message of the process. Structs are made in C, in half the time of a class here; what
# is known when they are made goes into the call, since setting a field of one afterwards costs three times as much.


class Told(Delivery, msgspec.Struct, eq=False):
    """A plain message; nobody waits for it."""

    message: Message
    sender: str
    cell: Any
    trace: Any = None
    abandoned: bool = False
    task: Any = None
    slot: Any = None

    def fail(self, error: CallboardError) -> None:
        log.warning("%s from %s: %s", tag_of(self.message), self.sender or "outside", error)


class LocalAsk(Delivery, msgspec.Struct, eq=False):
    """An ask within the process: `future` gets the answer."""

    message: Message
    sender: str
    future: Any
    cell: Any
    slot: Any
    trace: Any
    abandoned: bool = False
    task: Any = None

    def resolve(self, value: Any) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def fail(self, error: CallboardError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        self.fail(DeadlineExceeded(f"no answer to {type(self.message).__name__} in time"))
        self.abandon()


class Answered(Delivery):
    """A message whose sender waits, and that keeps more about it than the hot path has time for."""

    def __init__(self, message: Message, sender: str) -> None:
        self.message = message
        self.sender = sender
        self.abandoned = False
        self.cell: Cell | None = None
        self.task: asyncio.Task[None] | None = None
        self.slot: set[Expiring] | None = None
        self.trace: Trace | None = None


class LocalStream(Answered):
    """A stream within the process: a bounded buffer between one producing handler and one reader."""

    wants_items: ClassVar[bool] = True

    def __init__(self, message: Message, sender: str, loop: asyncio.AbstractEventLoop, window: int) -> None:
        super().__init__(message, sender)
        self.items: collections.deque[Any] = collections.deque()
        self.result: Any = None
        self.error: CallboardError | None = None
        self.ended = False
        self._loop = loop
        self._window = window
        self._room: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None

    async def send(self, item: Any) -> None:
        while len(self.items) >= self._window and not self.ended:
            self._room = self._loop.create_future()
            await self._room
        if self.ended:  # and the handler took no notice of being cancelled
            raise Cancelled("nobody reads the stream any more")
        self.items.append(item)
        _wake(self._news)

    def resolve(self, value: Any) -> None:
        self.result = value
        self.ended = True
        _wake(self._news)

    def fail(self, error: CallboardError) -> None:
        if not self.ended:
            self.error = error
            self.ended = True
            _wake(self._news)

    def expire(self) -> None:
        self.fail(DeadlineExceeded(f"the stream of {type(self.message).__name__} did not end in time"))
        self.abandon()

    async def receive_item(self) -> Any:
        """The next item; StopAsyncIteration at the end. Raises the handler's error after the items before it."""
        while not self.items:
            if self.ended:
                if self.error is not None:
                    raise self.error
                raise StopAsyncIteration
            self._news = self._loop.create_future()
            await self._news
        item = self.items.popleft()
        _wake(self._room)
        return item

    async def receive_items(self) -> list[Any]:
        """All that is there, and nothing at the end. Raises as `receive_item` does."""
        try:
            items = [await self.receive_item()]
        except StopAsyncIteration:
            return []
        items += self.items
        self.items.clear()
        return items

    @property
    def is_over(self) -> bool:
        return self.ended and not self.items and self.error is None

    def close(self) -> None:
        """The reader is gone."""
        if not self.ended:
            self.fail(Cancelled("the stream was closed by its reader"))
            self.abandon()


class CheckedAsk(LocalAsk, kw_only=True, eq=False):
    """The same for a node with a `round_trip`: the answer takes it too."""

    round_trip: Callable[[Any], Any]

    def resolve(self, value: Any) -> None:
        super().resolve(self.round_trip(value))


class CheckedStream(LocalStream):
    """The same for a node with a `round_trip`: items and result take it too."""

    def __init__(
        self,
        message: Message,
        sender: str,
        loop: asyncio.AbstractEventLoop,
        window: int,
        round_trip: Callable[[Any], Any],
    ) -> None:
        super().__init__(message, sender, loop, window)
        self._round_trip = round_trip

    async def send(self, item: Any) -> None:
        await super().send(self._round_trip(item))

    def resolve(self, value: Any) -> None:
        super().resolve(self._round_trip(value))


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
