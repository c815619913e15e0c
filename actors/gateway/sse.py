"""Server-sent events: an answer that is sent as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
# A client that does not read holds back its events, and so the engine, once so many bytes wait for it.
_MOST_WAITING = 1 << 16


def event(data: bytes, name: str = "") -> bytes:
    """One event. JSON has no line breaks of its own, so a line is enough."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data) if name else b"data: %s\n\n" % data


# In the place of the one value that a template leaves open. No JSON has this byte.
HOLE = msgspec.Raw(b"\0")


class Template:
    """An event that comes again and again with another value in one place (`HOLE`): the rest is encoded once."""

    __slots__ = ("_after", "_before")

    def __init__(self, value: object, name: str = "") -> None:
        self._before, self._after = event(msgspec.json.encode(value), name).split(bytes(HOLE))

    def event(self, value: object) -> bytes:
        return b"%s%s%s" % (self._before, msgspec.json.encode(value), self._after)


class EventStream(Response):
    """Sends `events` as they come; those that are there together go into one write. Whatever ends it, the client going
    away too, `events` is closed at once."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self.status_code = 200
        self.background = None
        # Proxies are to pass each piece on as it comes.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        written = _Written()
        reading = asyncio.ensure_future(_read(self._events, written))
        leaving = asyncio.ensure_future(_leave(receive, written))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while events := await written.take():
                await send({"type": "http.response.body", "body": events, "more_body": True})
        finally:
            leaving.cancel()
            reading.cancel()
            await asyncio.wait([leaving, reading])
            await self._events.aclose()
        if not written.unwanted:
            reading.result()  # to raise what ended it
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Written:
    """What waits to be sent, between who makes it and who sends it."""

    def __init__(self) -> None:
        self.unwanted = False
        self._events: list[bytes] = []
        self._size = 0
        self._ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, events: bytes) -> None:
        while self._size > _MOST_WAITING:
            self._room.clear()
            await self._room.wait()
        self._events.append(events)
        self._size += len(events)
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    def give_up(self) -> None:
        self.unwanted = True
        self._news.set()

    async def take(self) -> bytes:
        """All that waits, as soon as there is some; nothing once it has ended, or nobody wants it any more."""
        while not self._events and not self._ended and not self.unwanted:
            self._news.clear()
            await self._news.wait()
        if self.unwanted:
            return b""
        events = b"".join(self._events)
        self._events.clear()
        self._size = 0
        self._room.set()
        return events


async def _read(events: AsyncGenerator[bytes, None], written: _Written) -> None:
    try:
        async for each in events:
            await written.put(each)
    finally:
        written.end()


async def _leave(receive: Receive, written: _Written) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    written.give_up()
