"""What goes to subjects rather than to actors: published messages, and the raw bytes of clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from ..schemas.base import Message
from .calls import RawCall, RawStream
from .context import current_place
from .errors import NoSuchActor, NotReachable
from .topics import check_subject
from .tracing import marked

if TYPE_CHECKING:
    from .links import Links

# How many families of subjects are remembered as allowed, before they are asked for anew.
MAX_ALLOWED = 4096

_encode = msgspec.msgpack.Encoder().encode


class Publisher:
    """Publishes for one node, and asks in bytes for its clients."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._allowed: set[str] = set()

    async def publish(self, subject: str, message: Message) -> None:
        self._links.bus.check()
        data = _encode(message)
        if not subject.startswith("nodes."):
            data = marked(data, current_place.get().trace)
        self._links.check_size(data)
        if self._links.bus.is_full:
            await self._links.bus.room(self._links.node.ask_timeout)
        if subject in self._links.refused:
            raise self._links.forbidden(f"publish to {subject}")
        self._links.bus.send(subject, data)
        await self._hear_refusal(subject)
        if subject.startswith("nodes."):
            self._links.peers.receive(subject, "", data)  # the server does not echo, and it is for this node too

    async def _hear_refusal(self, subject: str) -> None:
        """Raises Forbidden where the server refuses what was just sent. Waits for its word once for each two first
        tokens, since that is a round trip and whole families of subjects are allowed or not."""
        family = ".".join(subject.split(".", 2)[:2])
        if family not in self._allowed and self._links.bus.is_up:
            await self._links.bus.flush()
            if subject in self._links.refused:
                raise self._links.forbidden(f"publish to {subject}")
            if len(self._allowed) >= MAX_ALLOWED:
                self._allowed.clear()
            self._allowed.add(family)

    async def publish_raw(self, subject: str, data: bytes) -> None:
        check_subject(subject)
        self._links.check_size(data)
        self._links.bus.check()
        root = subject.removeprefix("actor.")
        if root != subject and not await self._links.names.answers(root):
            raise NoSuchActor(f"there is no actor {root}")
        self._links.refused.discard(subject)
        self._links.bus.send(subject, data)
        await self._links.bus.flush()
        if subject in self._links.refused:
            raise self._links.forbidden(f"publish to {subject}")

    async def request_raw(self, subject: str, data: bytes, timeout: float | None) -> bytes:
        check_subject(subject)
        self._links.check_size(data)
        call = RawCall(subject.removeprefix("actor."), self._links.node.loop.create_future(), self._links)
        self._links.begin(call, data)
        self._links.node.deadlines.add(call, self._links.node.ask_timeout if timeout is None else timeout)
        try:
            return await call.future
        except asyncio.CancelledError:
            self._links.cancel(call)
            raise
        finally:
            self._links.done(call)

    async def exchange(self, subject: str, data: bytes, timeout: float) -> bytes:
        """One request beyond the actors and its answer, as bytes. Raises NotReachable where nobody takes it."""
        call = RawCall(subject, self._links.node.loop.create_future(), self._links)
        self._links.bus.check()
        call.reply = reply = f"{self._links.inbox}{next(self._links.numbers)}"
        self._links.conversations[reply] = call
        self._links.bus.send(subject, data, reply)
        try:
            async with asyncio.timeout(timeout):
                return await call.future
        except (TimeoutError, NoSuchActor):
            raise NotReachable(f"no daemon is on the bus at {self._links.options.url}") from None
        finally:
            self._links.done(call)

    async def stream_raw(self, subject: str, data: bytes, timeout: float | None) -> AsyncIterator[bytes]:
        check_subject(subject)
        self._links.check_size(data)
        call = RawStream(subject.removeprefix("actor."), self._links)
        self._links.begin(call, data)
        try:
            while True:
                yield await call.next(self._links.node.ask_timeout if timeout is None else timeout)
                if call.ended:
                    return
        finally:
            if not call.ended:
                self._links.cancel(call)
            self._links.done(call)
