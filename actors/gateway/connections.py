"""Connections that hold up nobody else: one that takes too long to say what it wants is closed, one that does not take
its answer, and those that come when far too many are open.

Uvicorn bounds how long a connection may be idle between requests, but not how long the head of a request may take, nor
how long an answer may wait for its client; who sends a byte now and then
(https://en.wikipedia.org/wiki/Slowloris_(cyber_attack)), or never reads, would hold it for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ...runtime.log import log

# Beyond the connections that are served, so many times as many are kept open for as long as a refusal takes.
CROWD = 2
# How often in its time a client that takes nothing is looked at: what it has may be longer by one part in so many.
_LOOKS = 8
_HEAD = b"HTTP/1."


class Outlet:
    """A transport that sends the head of an answer with the first of its body, which is written right after it: one
    call of the system, and one packet for the client to wake for. It knows what of all that its client has taken.
    """

    __slots__ = ("_head", "_loop", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(_HEAD):
            self._head = data
            self._loop.call_soon(self._flush)  # where nothing follows at once
            return
        self._written += len(data)
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._written += len(head)
            self._transport.write(head)

    @property
    def taken(self) -> int:
        """Of what was written, what is no longer kept here."""
        return self._written - self._transport.get_write_buffer_size()


def guarded(header_timeout_s: float, max_connections: int) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, whichever parser is installed, with these bounds."""
    base: Any = AutoHTTPProtocol

    class Guarded(base):
        _timer: asyncio.TimerHandle | None = None
        _taken = 0
        _taken_at = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.transport = Outlet(transport, self.loop)
            if len(self.connections) > CROWD * max_connections:
                log.warning("%d connections are open: one more is closed at once", len(self.connections) - 1)
                transport.abort()
                return
            self._arm()

        def look_whether_taken(self, now: float, limit_s: float, *, excused: bool = False) -> None:
            """Give up a client that has taken nothing for so long, though there was something for it. `excused`: the
            time since the last look is not held against it."""
            taken = self.transport.taken
            if excused or taken != self._taken or not self.transport.get_write_buffer_size():
                self._taken, self._taken_at = taken, now
            elif now - self._taken_at >= limit_s:
                log.info("a connection is closed: its client took nothing of an answer for %g s", limit_s)
                self.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()  # what came meanwhile may have been the next request

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """The head of a request is awaited unless one is being answered."""
            cycle = self.cycle
            if cycle is not None and not cycle.response_complete:
                self._disarm()
            elif self.timeout_keep_alive_task is None:  # bytes have come, and they are no whole head yet
                self._arm()
            else:
                self._disarm()

        def _arm(self) -> None:
            if self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(header_timeout_s, self._give_up)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            self._timer = None
            log.info("a connection is closed: no request came on it within %g s", header_timeout_s)
            self.transport.abort()

    return Guarded


async def give_up_those_that_do_not_read(connections: Iterable[Any], limit_s: float) -> None:
    """Look after connections (those that `guarded` made) for ever: whoever takes nothing of its answer for `limit_s`
    loses its connection, and with it what is asked over it."""
    loop = asyncio.get_running_loop()
    now, every_s = loop.time(), limit_s / _LOOKS
    while True:
        await asyncio.sleep(every_s)  # the time itself is what is waited for
        last, now = now, loop.time()
        held_up = now - last > 2 * every_s  # this process stood still, so nobody could be seen to take anything
        for connection in tuple(connections):
            connection.look_whether_taken(now, limit_s, excused=held_up)
