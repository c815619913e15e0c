"""A TCP proxy between a node and its server that a test can slow down, stall and cut. It never reorders bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """Listens on `url`. `stall` holds all bytes both ways, new connections too, `stall_answers` what the server says;
    `flow` lets them go on; `cut` closes what is open; `delay` is added to each piece, in seconds."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("nats://").partition(":")
        self._target = (host, int(port))
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._answering = asyncio.Event()
        self._answering.set()
        self._links: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self.delay = 0.0
        self.url = ""

    def stall(self) -> None:
        self._flowing.clear()

    def stall_answers(self) -> None:
        self._answering.clear()

    def flow(self) -> None:
        self._flowing.set()
        self._answering.set()

    def cut(self) -> None:
        for writers in self._links.values():
            for writer in writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = (writer,)
        try:
            await self._flowing.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._links[task] = (writer, far_writer)
            try:
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer, self._answering))
            finally:
                far_writer.transport.abort()
        except OSError:
            return  # the server is not there, or one side went: the other learns it by the close
        finally:
            writer.transport.abort()
            del self._links[task]

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event | None = None
    ) -> None:
        """Ends by ConnectionResetError, so that one side's end is the other's."""
        while data := await reader.read(65536):
            await self._flowing.wait()
            if gate is not None:
                await gate.wait()
            if self.delay:
                await asyncio.sleep(self.delay)  # the fault itself
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def close(self) -> None:
        self.flow()
        for task in tuple(self._links):
            task.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)


@asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(url)
    server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
    proxy.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
