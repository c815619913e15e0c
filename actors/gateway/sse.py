"""Server-sent events: an answer that is sent as it grows."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from anyio import CancelScope
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"


def event(data: bytes, name: str = "") -> bytes:
    """One event. JSON has no line breaks of its own, so a line is enough."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data) if name else b"data: %s\n\n" % data


class EventStream(StreamingResponse):
    """Sends `events` as they come. Whatever ends it, the client's going away too, `events` is closed at once."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        # Proxies are to pass each piece on as it comes.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                await self._events.aclose()
