"""Conversations that this node began over the bus: what it waits for, and how each may end."""

from __future__ import annotations

import asyncio
import collections
import math
from typing import TYPE_CHECKING, Any

import msgspec

from ..schemas.base import ErrorInfo
from ..schemas.runtime import Ended, Terminated
from ..schemas.wire import Frame, Mark, Op
from .channels import Channel
from .errors import (
    ActorStopped,
    CallboardError,
    Cancelled,
    DeadlineExceeded,
    Disconnected,
    MailboxFull,
    Malformed,
    NoSuchActor,
    from_info,
)
from .messages import UNDECODABLE, Answers

if TYPE_CHECKING:
    from .deadlines import Expiring
    from .detours import Passage
    from .links import Links

# A stream whose producer gives no sign of life for so long is taken for dead. It gives one every second.
SILENCE_S = 10.0

_OK, _ERROR, _ITEM, _END, _GRANT = (int(m) for m in (Mark.OK, Mark.ERROR, Mark.ITEM, Mark.END, Mark.GRANT))
_UNKNOWN = ErrorInfo("error", "the other side failed and did not say why")


class Conversation:
    """One request under way. `reply` is its name: the subject that answers come to.

    `more_follows` says whether the message that `receive` gets names a reply subject, as an item of a stream does.
    """

    slot: set[Expiring] | None = None
    reply: str = ""
    more_follows = False
    request: bytes = b""
    # Over the limit: who keeps a request's bytes; what has to wait until an answer's bytes are here.
    passage: Passage | None = None
    behind: collections.deque[tuple[str, bytes]] | None = None

    def __init__(self, address: str, links: Links) -> None:
        self.address = address
        self.links = links

    @property
    def may_repeat(self) -> bool:
        """Whether a request that reached nobody may be sent again: the other side may be about to return."""
        return True

    def receive(self, data: bytes) -> None:
        """A frame came for it."""

    def fail(self, error: CallboardError) -> None:
        """It can no longer be answered."""

    def nobody(self) -> None:
        """The server says that nobody listens at its address."""
        self.fail(NoSuchActor(f"there is no actor {self.address}"))

    def expire(self) -> None:
        self.links.expired(self)

    def check(self, now: float) -> None:
        """Called every second."""


class Call(Conversation):
    """An ask: one answer."""

    def __init__(
        self,
        address: str,
        decoder: msgspec.msgpack.Decoder[Frame[Any]],
        future: asyncio.Future[Any],
        links: Links,
    ) -> None:
        self.address = address
        self.links = links
        self.future = future
        self._decoder = decoder

    def receive(self, data: bytes) -> None:
        future = self.future
        if future.done():
            return
        try:
            frame = self._decoder.decode(data)
        except UNDECODABLE as error:
            self.fail(self._malformed(data, error))
            return
        if frame.mark == _OK:
            future.set_result(frame.body)
        elif frame.mark == _ERROR:
            future.set_exception(from_info(frame.error or _UNKNOWN))

    def _malformed(self, data: bytes, error: Exception) -> CallboardError:
        return malformed_answer(self.address, data, error)

    def fail(self, error: CallboardError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class RawCall(Call):
    """A request in somebody else's words: its answer is handed on as it came."""

    def __init__(self, address: str, future: asyncio.Future[Any], links: Links) -> None:
        super().__init__(address, msgspec.msgpack.Decoder(Frame[Any]), future, links)

    def receive(self, data: bytes) -> None:
        if not self.future.done():
            self.future.set_result(data)


class RawStream(Conversation):
    """A request in somebody else's words that any number of messages may answer. They are handed on as they came."""

    def __init__(self, address: str, links: Links) -> None:
        super().__init__(address, links)
        self.ended = False
        self._news: asyncio.Queue[tuple[bytes, bool] | CallboardError] = asyncio.Queue()
        self._heard = False

    @property
    def may_repeat(self) -> bool:
        return not self._heard

    def receive(self, data: bytes) -> None:
        self._heard = True
        self._news.put_nowait((data, self.more_follows))

    def fail(self, error: CallboardError) -> None:
        self._news.put_nowait(error)

    async def next(self, timeout: float) -> bytes:
        """The next answer; `ended` then says whether it was the last. Raises DeadlineExceeded after `timeout` s."""
        try:
            async with asyncio.timeout(None if timeout == math.inf else timeout):
                news = await self._news.get()
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from {self.address} in time") from None
        if isinstance(news, CallboardError):
            self.ended = True
            raise news
        data, more_follow = news
        self.ended = not more_follow
        return data


class GrantCall(Conversation):
    """A request for credit. `future` ends when there is an answer; nobody need wait for it."""

    _decoder = msgspec.msgpack.Decoder(Frame[None])

    def __init__(self, channel: Channel, links: Links, timeout: float) -> None:
        super().__init__(channel.address, links)
        self.future: asyncio.Future[None] = links.node.loop.create_future()
        self.timeout = timeout
        self.begun = links.node.loop.time()
        self._channel = channel

    def receive(self, data: bytes) -> None:
        frame = self._decoder.decode(data)
        if frame.mark == _GRANT:
            self._channel.grant(frame.seq, self.links.node.loop.time())
            self._end(None)
        elif frame.mark == _ERROR:
            self._end(from_info(frame.error or _UNKNOWN))

    def fail(self, error: CallboardError) -> None:
        self._end(error)

    def _end(self, error: CallboardError | None) -> None:
        if self._channel.asking is self:
            self._channel.asking = None
        if error is not None and not isinstance(error, MailboxFull):
            self._channel.reset()  # so that the next tell asks, and hears it too
        self.links.done(self)
        if not self.future.done():
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)
                self.future.exception()  # seen: when nobody waits, the next tell meets the same answer


class PingCall(Conversation):
    """Is anybody there? `future` says; who listens but is too busy to answer is there, and `silent`."""

    @property
    def may_repeat(self) -> bool:
        return False

    _decoder = msgspec.msgpack.Decoder(Frame[Any])

    def __init__(self, address: str, links: Links) -> None:
        super().__init__(address, links)
        self.future: asyncio.Future[bool] = links.node.loop.create_future()
        self.silent = False

    def receive(self, data: bytes) -> None:
        if not self.future.done():
            self.future.set_result(self._decoder.decode(data).mark == _OK)

    def nobody(self) -> None:
        if not self.future.done():
            self.future.set_result(False)

    def fail(self, error: CallboardError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        if not self.links.bus.is_up:
            self.links.expired(self)
        elif not self.future.done():
            self.silent = True
            self.future.set_result(True)


class WatchCall(Conversation):
    """A watch on an actor elsewhere: open until it ends, or cannot be seen any more."""

    _decoder = msgspec.msgpack.Decoder(Frame[Terminated])

    def __init__(self, links: Links, watcher: str, target: str, *, linked: bool) -> None:
        super().__init__(target, links)
        self.watcher = watcher
        self.linked = linked

    def receive(self, data: bytes) -> None:
        frame = self._decoder.decode(data)
        if frame.mark == _END and frame.body is not None:
            self.links.watch_ended(self, frame.body)
        elif frame.mark == _ERROR:
            self.fail(from_info(frame.error or _UNKNOWN))

    def fail(self, error: CallboardError) -> None:
        if isinstance(error, Disconnected):
            return  # the watch is taken up again when the bus is back
        reason = Ended.NODE_DOWN if isinstance(error, ActorStopped) else Ended.NOT_THERE
        self.links.watch_ended(self, Terminated(self.address, reason, error.to_info()))


class RemoteStream(Conversation):
    """The reader's side of a stream over the bus: a buffer that its credit keeps bounded."""

    def __init__(self, address: str, answers: Answers, links: Links, window: int) -> None:
        super().__init__(address, links)
        self.result: Any = None
        self.ended = False
        self._decoder = answers.decoder
        self._window = window
        self._items: collections.deque[Any] = collections.deque()
        self._expected = 0
        self._taken = 0
        self._error: CallboardError | None = None
        self._news: asyncio.Future[None] | None = None
        self._heard = self._opened = links.node.loop.time()

    @property
    def may_repeat(self) -> bool:
        return self._heard == self._opened

    def receive(self, data: bytes) -> None:
        if self.ended:
            return
        try:
            frame = self._decoder.decode(data)
        except UNDECODABLE as error:
            self.links.cancel(self)
            self.fail(malformed_answer(self.address, data, error))
            return
        self._heard = self.links.node.loop.time()
        mark = frame.mark
        if mark in (_ITEM, _END):
            if frame.seq != self._expected:
                self.links.cancel(self)
                self.fail(Disconnected(f"items of the stream from {self.address} were lost on the way"))
                return
            if mark == _ITEM:
                self._expected += len(frame.batch)
                self._items.extend(frame.batch)
            else:
                self.result = frame.body
                self._end()
        elif mark == _ERROR:
            self.fail(from_info(frame.error or _UNKNOWN))
        news = self._news
        if news is not None and not news.done():
            news.set_result(None)

    def fail(self, error: CallboardError) -> None:
        if not self.ended:
            self._error = error
            self._end()
            if self._news is not None and not self._news.done():
                self._news.set_result(None)

    def nobody(self) -> None:
        if self.may_repeat:
            super().nobody()
        else:
            self.fail(ActorStopped(f"{self.address} ended before the stream did"))

    def check(self, now: float) -> None:
        if not self.ended and now - self._heard > SILENCE_S and self.behind is None:
            self.links.cancel(self)
            self.fail(ActorStopped(f"{self.address} has given no sign of life for {SILENCE_S:g} s"))

    async def receive_item(self) -> Any:
        """The next item; StopAsyncIteration at the end. An error comes after the items that came before it."""
        items = self._items
        while not items:
            if self.ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news = self.links.node.loop.create_future()
            await self._news
        self._took(1)
        return items.popleft()

    async def receive_items(self) -> list[Any]:
        """All that is there, and nothing at the end. Raises as `receive_item` does."""
        try:
            items = [await self.receive_item()]
        except StopAsyncIteration:
            return []
        if self._items:
            self._took(len(self._items))
            items += self._items
            self._items.clear()
        return items

    def _took(self, count: int) -> None:
        """The producer may send as many more, and is told now and then."""
        self._taken += count
        if self._taken >= self._window // 2 and not self.ended:
            self.links.control(self, Op.CREDIT, self._taken)
            self._taken = 0

    @property
    def is_over(self) -> bool:
        return self.ended and not self._items and self._error is None

    def close(self) -> None:
        """The reader is gone."""
        if not self.ended:
            self.links.cancel(self)
            self.fail(Cancelled("the stream was closed by its reader"))

    def _end(self) -> None:
        self.ended = True
        self.links.done(self)


def malformed_answer(address: str, data: bytes, error: Exception) -> CallboardError:
    """An error frame says what went wrong even where the rest does not decode."""
    try:
        frame = msgspec.msgpack.decode(data, type=Frame[Any])
        if frame.mark == _ERROR and frame.error is not None:
            return from_info(frame.error)
    except UNDECODABLE:
        pass
    return Malformed(
        f"the answer of {address} does not decode: {error}", hint="both sides must agree on what the message means"
    )
