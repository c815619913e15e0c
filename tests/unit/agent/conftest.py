"""What the tests of agents share: a node whose messages pass the wire format, and an HTTP endpoint."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from callboard.runtime.node import Node
from callboard.schemas.base import Message

sys.path.insert(0, str(Path(__file__).parent))

from endpoint import Endpoint, Server, serving


def through_the_wire(message: Message) -> Message:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node("test", round_trip=through_the_wire) as node:
        yield node


@pytest.fixture(scope="session")
def _http_server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def endpoint(_http_server: Server, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """One server for all tests, which knows nothing of the last one."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return _http_server.fresh()
