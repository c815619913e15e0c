"""A gateway with an engine behind it, on a real bus, for tests that bring their own clients."""

from __future__ import annotations

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


@pytest.fixture
async def url(node: Node, long_path: Path) -> AsyncIterator[str]:
    """Of a gateway before the engine of a tiny model."""
    await start_engine(node, long_path)
    async with gateway(node) as url:
        yield url
    await idle(node)
