"""Connections that hold up nobody else: one that takes too long to say what it wants is closed, and so are those that
come when far too many are open.

Uvicorn bounds how long a connection may be idle between requests, but not how long the head of a request may take; who
sends a byte now and then (https://en.wikipedia.org/wiki/Slowloris_(cyber_attack)) would hold it for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ...runtime.log import log

# Beyond the connections that are served, so many times as many are kept open for as long as a refusal takes.
CROWD = 2


def guarded(header_timeout_s: float, max_connections: int) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, whichever parser is installed, with these bounds."""
    base: Any = AutoHTTPProtocol

    class Guarded(base):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > CROWD * max_connections:
                log.warning("%d connections are open: one more is closed at once", len(self.connections) - 1)
                transport.abort()
                return
            self._arm()

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
