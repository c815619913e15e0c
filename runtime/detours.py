"""Messages over the server's limit: their bytes go into a blob, and a few bytes on the bus say which.

A detour starts with a byte that no MessagePack does. So it is found where decoding failed, and messages of the usual
size cost nothing more. What the same sender says later waits at the receiver until the detour is through: order holds.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from ..schemas.blob import Blob, Detour
from ..schemas.wire import Envelope
from .calls import Conversation
from .errors import CallboardError, Malformed, NoBlobStore, TooLarge
from .log import log
from .messages import UNDECODABLE

if TYPE_CHECKING:
    from .links import Links

MARK = b"\xc1"
# Both sides say when they are done with the bytes; this is for when one of them cannot.
TTL_S = 300.0
# On the way out, for others to take what is meant for them.
CLOSE_S = 2.0

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Detour)
_sender = msgspec.msgpack.Decoder(Envelope[msgspec.Raw])


class Passage(Conversation):
    """The sender's side of a detour: holds the blob until it was taken, or will not be."""

    def __init__(self, address: str, links: Links, blob: Blob) -> None:
        super().__init__(address, links)
        self.blob = blob

    @property
    def may_repeat(self) -> bool:
        return False

    def receive(self, data: bytes) -> None:
        self.end()

    def fail(self, error: CallboardError) -> None:
        self.end()

    def nobody(self) -> None:
        self.end()

    def expire(self) -> None:
        self.end()

    def end(self) -> None:
        self.links.done(self)
        self.links.detours.ended(self)


class _Line:
    """At the receiver: what must wait until one detour is through."""

    def __init__(self, detour: Detour) -> None:
        self.origins = (detour.node, detour.inbox)
        self.waiting: collections.deque[tuple[str, str, bytes]] = collections.deque()


class Detours:
    """All detours of one node, in both directions."""

    def __init__(self, links: Links) -> None:
        self._links = links
        # Detours on their way to one of our actors, by its address.
        self.lines: dict[str, list[_Line]] = {}
        self._passages: set[Passage] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_ended: asyncio.Event | None = None

    # Sending

    async def pack(self, data: bytes, address: str) -> tuple[bytes, Passage]:
        """Put a message aside and return what to send in its place. Raises TooLarge, BlobNoRoom."""
        links = self._links
        self._check(len(data))
        passage = Passage(address, links, await links.node.blobs.put(data, ttl=TTL_S, inline=False))
        links.begin_detour(passage)
        self._passages.add(passage)
        links.node.deadlines.add(passage, TTL_S)
        return MARK + _encode(Detour(passage.blob, passage.reply, links.node.name, links.bus_name)), passage

    def answer(self, reply: str, data: bytes, refuse: Callable[[CallboardError], None]) -> None:
        """Send an answer that is over the limit. `refuse` sends the error where that cannot be."""

        async def send() -> None:
            try:
                detour, passage = await self.pack(data, "")
            except CallboardError as error:
                refuse(error)
            else:
                self._links.bus.send(reply, detour, passage.reply)

        self._soon(send())

    def ended(self, passage: Passage) -> None:
        if passage in self._passages:
            self._passages.discard(passage)
            self._links.soon(self._links.node.blobs.release(passage.blob))
        if self._all_ended is not None and not self._passages:
            self._all_ended.set()

    # Receiving a message for an actor

    def is_behind(self, address: str, subject: str, reply: str, data: bytes) -> bool:
        """Whether a message has to wait for a detour of the same sender. It is then kept here."""
        lines = self.lines.get(address)
        if lines is None:
            return False
        sender = reply.split(".", 2)[1] if reply.startswith("inbox.") else ""
        if not sender:
            with contextlib.suppress(*UNDECODABLE):
                sender = _sender.decode(data).sender
        for line in reversed(lines):
            if sender in line.origins:
                line.waiting.append((subject, reply, data))
                return True
        return False

    def take(self, address: str, subject: str, reply: str, data: bytes) -> None:
        """Fetch a message for one of our actors. Raises one of `UNDECODABLE` for what is no detour."""
        detour = _decoder.decode(data[1:])
        line = _Line(detour)
        self.lines.setdefault(address, []).append(line)
        self._soon(self._deliver(address, subject, "" if reply == detour.taken else reply, detour, line))

    async def _deliver(self, address: str, subject: str, reply: str, detour: Detour, line: _Line) -> None:
        inbound = self._links.inbound
        whole = b""
        try:
            whole = await self._fetch(detour)
        except CallboardError as error:
            if not reply:
                log.warning("a message for %s was lost: %s", address, error)
            inbound.refuse(reply, error.to_info(), False)
        finally:
            lines = self.lines[address]
            lines.remove(line)
            if not lines:
                del self.lines[address]
        if whole:
            inbound.receive(subject, reply, whole)
        for waiting in line.waiting:
            inbound.receive(*waiting)

    # Receiving an answer

    def answered(self, conversation: Conversation | None, reply: str, data: bytes) -> None:
        """An answer took a detour, or comes after one that is not through yet."""
        if conversation is None:
            with contextlib.suppress(*UNDECODABLE):
                self._links.bus.send(_decoder.decode(data[1:]).taken, b"")
        elif conversation.behind is not None:
            conversation.behind.append((reply, data))
        else:
            conversation.behind = collections.deque([(reply, data)])
            self._soon(self._hear(conversation, conversation.behind))

    async def _hear(self, conversation: Conversation, frames: collections.deque[tuple[str, bytes]]) -> None:
        while frames:
            reply, data = frames.popleft()
            try:
                if data[:1] == MARK:
                    detour = _decoder.decode(data[1:])
                    reply = "" if reply == detour.taken else reply
                    data = await self._fetch(detour)
            except UNDECODABLE as error:
                conversation.fail(Malformed(f"what {conversation.address} answered does not decode: {error}"))
            except CallboardError as error:
                conversation.fail(error)
                self._links.cancel(conversation)
            else:
                conversation.more_follows = bool(reply)
                conversation.receive(data)
        conversation.behind = None

    async def _fetch(self, detour: Detour) -> bytes:
        try:
            self._check(detour.blob.size)
            return await self._links.node.blobs.get(detour.blob)
        except NoBlobStore as error:
            raise TooLarge(
                f"a message of {detour.blob.size} bytes is over the limit of the NATS server, which has no JetStream "
                "to take it to another host"
            ) from error
        finally:
            self._links.bus.send(detour.taken, b"")

    def _check(self, size: int) -> None:
        most = self._links.node.blobs.settings.max_message
        if size > most:
            raise TooLarge(
                f"a message of {size} bytes is over the limit of {most}",
                hint="put large values aside as a Blob, or raise the setting blobs.max_message",
            )

    # Going

    async def close(self) -> None:
        """Let others take what is on its way to them, for a bounded time."""
        if self._tasks or self._passages:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    while self._tasks:
                        await asyncio.wait(tuple(self._tasks))
                    self._all_ended = asyncio.Event()
                    if self._passages:
                        await self._all_ended.wait()
        for task in tuple(self._tasks):
            task.cancel()

    def _soon(self, work: Any) -> None:
        task = self._links.node.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
