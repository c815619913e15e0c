"""Server-sent events: an answer that is sent as it grows."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .asking import ClientGone, Presence

DONE = b"data: [DONE]\n\n"
encode = msgspec.json.Encoder().encode


def event(data: bytes, name: str = "") -> bytes:
    """One event. JSON has no line breaks of its own, so a line is enough."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data) if name else b"data: %s\n\n" % data


# In the place of a value that a template leaves open. No JSON has this byte.
HOLE = msgspec.Raw(b"\0")


class Template:
    """An event that comes again and again with other values in some places (`HOLE`): the rest is encoded once."""

    __slots__ = ("_parts",)

    def __init__(self, value: object, name: str = "") -> None:
        self._parts = event(msgspec.json.encode(value), name).split(bytes(HOLE))

    def event(self, *values: object) -> bytes:
        """`values`: one for each hole, in order."""
        filled = self._parts[:1]
        for value, after in zip(values, self._parts[1:], strict=True):
            filled += (encode(value), after)
        return b"".join(filled)


class EventStream(Response):
    """Sends each of `events` in one write, as it comes. Whatever ends it, the client going away too, `events` is closed
    at once. A client that does not read holds back its events, and so the engine."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self.status_code = 200
        self.background = None
        # Proxies are to pass each piece on as it comes.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            try:
                async with Presence(receive):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    async for each in self._events:
                        await send({"type": "http.response.body", "body": each, "more_body": True})
            except ClientGone:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
