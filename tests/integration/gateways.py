"""A gateway with an engine behind it, on a real bus, for tests that bring their own clients."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from callboard.actors.gateway.config import GatewayConfig
from callboard.actors.gateway.gateway import Gateway
from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.runtime.node import Node
from callboard.schemas.gateway import AskGateway
from callboard.schemas.serve import Generate
from callboard.schemas.serve_stats import EngineStats, GetStats


async def start_engine(node: Node, model: Path, name: str = "engine", **options: Any) -> None:
    config = {"num_blocks": 300, "block_size": 4, "threads": 1, "max_batch_tokens": 64, "max_running": 64, **options}
    await node.spawn(Engine, EngineConfig(model=str(model), **config), name=name)


@asynccontextmanager
async def gateway(node: Node, **options: Any) -> AsyncIterator[str]:
    """Yields its address; in the end nothing that was asked through it is under way."""
    ref = await node.spawn(Gateway, GatewayConfig(**options), name="http")
    url = (await ref.ask(AskGateway())).url
    yield url
    with anyio.fail_after(10):
        while (await ref.ask(AskGateway())).open:
            await anyio.sleep(0.01)  # a connection that its client closed is found out in a moment


async def idle(node: Node, engine: str = "engine") -> EngineStats:
    """The engine's statistics once nothing runs or waits."""
    with anyio.fail_after(10):
        while True:
            stats = await node.actor(engine).ask(GetStats())
            if not stats.running and not stats.waiting:
                assert stats.free_blocks == stats.num_blocks
                return stats
            await anyio.sleep(0.01)


async def push_out(node: Node, engine: str = "engine") -> None:
    """Others ask the engine of `start_engine` so much that it keeps only what a session pins."""
    for token in (40, 41):
        await node.actor(engine).ask(Generate(prompt_ids=(token,) * 1000, max_tokens=1))


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, asyncio.Queue[tuple[bytes, Any]]]]:
    """A collector of OpenTelemetry: its address, and the first line and body of each request that it gets."""
    came: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length
        came.put_nowait((head.split(b"\r\n")[0], json.loads(await reader.readexactly(int(length[1])))))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(collect, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", came


def spans_of(body: Any) -> list[Any]:
    """In what a collector got."""
    return [span for part in body["resourceSpans"] for scope in part["scopeSpans"] for span in scope["spans"]]


@pytest.fixture
async def url(node: Node, long_path: Path) -> AsyncIterator[str]:
    """Of a gateway before the engine of a tiny model."""
    await start_engine(node, long_path)
    async with gateway(node) as url:
        yield url
    await idle(node)
