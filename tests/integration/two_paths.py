"""A company whose actors are spoken to in one process or over the bus, for what must hold on both paths."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from company import DIARY, Clerk, ClerkConfig

from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


def through_the_wire(value: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))


@dataclass
class Company:
    """The node that hosts the actors, and the one that speaks to them: the same one on the local path."""

    home: Node
    away: Node

    async def clerk(self, name: str = "clerk", kind: type[Clerk] = Clerk, **options: Any) -> Ref:
        """Starts a clerk at home; the reference is for use from away."""
        await self.home.spawn(kind, ClerkConfig(name), name=name, **options)
        return self.away.actor(name)


@pytest.fixture(params=["local", "bus"])
async def company(request: pytest.FixtureRequest, nats_server: Any) -> AsyncIterator[Company]:
    DIARY.clear()
    async with Node(bus=BusOptions(nats_server.url), round_trip=through_the_wire, drain_timeout=2.0) as home:
        if request.param == "local":
            yield Company(home, home)
        else:
            async with Node(bus=BusOptions(nats_server.url), drain_timeout=2.0) as away:
                yield Company(home, away)
