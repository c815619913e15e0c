"""Two nodes on a server of a test's own, one of which hosts a clerk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from company import DIARY, Clerk, ClerkConfig
from own_server import OwnServer, own_server

from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    DIARY.clear()
    with own_server(tmp_path) as server:
        yield server


@pytest.fixture
async def home(server: OwnServer) -> AsyncIterator[Node]:
    """Hosts a clerk."""
    async with Node(bus=BusOptions(server.url), drain_timeout=1.0) as node:
        await node.spawn(Clerk, ClerkConfig("clerk"), name="clerk")
        yield node


@pytest.fixture
async def away(server: OwnServer) -> AsyncIterator[Node]:
    async with Node(bus=BusOptions(server.url), drain_timeout=1.0) as node:
        yield node


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life go five times as often as in earnest, and are missed as much sooner. To be named first."""
    monkeypatch.setattr("callboard.runtime.links.BEAT_EVERY_S", 0.2)
    monkeypatch.setattr("callboard.runtime.peers.HELLO_EVERY_S", 0.2)
    monkeypatch.setattr("callboard.runtime.peers.SILENT_NODE_S", 0.8)
    monkeypatch.setattr("callboard.runtime.calls.SILENCE_S", 0.8)


def is_up(node: Node) -> bool:
    assert node.links is not None
    return node.links.bus.is_up
