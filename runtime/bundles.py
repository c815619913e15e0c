"""Messages of a connection that is read a few times a second, taken apart all at once: for who only looks on.

nats-py wakes a task for each message and the event loop for each packet, which at a thousand messages a second is most
of what an onlooker costs. Here the socket is left alone between two looks: what comes meanwhile waits in the kernel and
then in the server, so nothing is lost, and one message costs a few slices of bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

# As much as nats-py asks of its socket at once: less means that nothing more is there yet.
READ_SIZE = 32_768


class Bundles:
    """Stands where nats-py's client has its parser: `parse` returns when it is time to read again.

    `receivers` get `(subject, reply, data)` by the number of their subscription. What is no message for one of them
    (pings, errors, other subscriptions) goes on to nats-py. `every_s` is how long the socket rests; 0: not at all.
    """

    def __init__(self, client: Any, parser: Any) -> None:
        self._client = client
        self._parser = parser
        self.every_s = 0.0
        self.receivers: dict[bytes, Callable[[str, str, bytes], None]] = {}
        self._parts: list[bytes] = []
        self._missing = 0

    def reset(self) -> None:
        """A new connection begins."""
        self._parser.reset()
        self._parts, self._missing = [], 0

    async def parse(self, data: bytes = b"") -> None:
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing <= 0:
            whole = b"".join(self._parts) if len(self._parts) > 1 else data
            taken, self._missing = await self._take(whole)
            self._parts = [whole[taken:]] if taken < len(whole) else []
        if self.every_s and len(data) < READ_SIZE:
            await self._rest()

    async def _take(self, data: bytes) -> tuple[int, int]:
        """Hand on all that is whole. Returns where the rest begins, and how much of it is known to be missing."""
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            words = data[at:end].split()
            headers = words[0] == b"HMSG" if words else False
            if headers or (words and words[0] == b"MSG"):
                start, size = end + 2, int(words[-1])
                after = start + size + 2
                if after > len(data):
                    return at, after - len(data)
                receive = self.receivers.get(words[2])
                if receive is not None:
                    reply = words[3].decode() if len(words) == (6 if headers else 5) else ""
                    receive(words[1].decode(), reply, data[start + (int(words[-2]) if headers else 0) : after - 2])
                    at = after
                    continue
                end = after - 2
            await self._parser.parse(data[at : end + 2])
            at = end + 2
        return at, 1

    async def _rest(self) -> None:
        writer = getattr(self._client._transport, "_io_writer", None)  # a web socket has none, and is never paused
        if writer is not None:
            writer.transport.pause_reading()
        try:
            await asyncio.sleep(self.every_s)
        finally:
            if writer is not None:
                writer.transport.resume_reading()
