"""A client of HTTP on asyncio's plain streams: what a benchmark adds to the path is to be as little as can be.

It knows what an answer of a gateway can be, a length or chunks, and no more of HTTP than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from .errors import BenchFailed

DONE = b"data: [DONE]"


class Connection:
    """One connection, kept open between requests. Leaving the block closes it, in the midst of an answer too."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._length: int | None = None
        self.headers: dict[str, str] = {}

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Gone without a word: what the other side still sends meets nobody."""
        self._writer.transport.abort()

    async def post(self, path: str, body: bytes, sent: float = 1.0) -> int:
        """The status of the answer. `sent`: which share of the body is sent, where the client is to go in its midst;
        then there is no answer, and this is 0."""
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body[: round(len(body) * sent)])
        if sent < 1:
            await self._writer.drain()
            return 0
        status = await self._reader.readline()
        if not status.startswith(b"HTTP/1.1 "):
            raise BenchFailed(f"the gateway answers with {status[:40]!r}, which is no HTTP")
        self.headers = await self._read_headers()
        if "chunked" in self.headers.get("transfer-encoding", ""):
            self._length = None
        else:
            self._length = int(self.headers.get("content-length", "0"))
        return int(status.split()[1])

    async def _read_headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        while (line := (await self._reader.readline()).strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return headers

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, as it comes: a chunk each, or all of it. To be read to its end before the next request."""
        if self._length is not None:
            yield await self._reader.readexactly(self._length)
            return
        while size := int(await self._reader.readline(), 16):
            yield await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readline()
