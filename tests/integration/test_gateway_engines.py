"""What a gateway knows of engines: no request waits for it, and it is right soon after something changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from gateways import gateway, idle, start_engine
from own_server import OwnServer

from callboard.actors.gateway import engines as looking
from callboard.actors.gateway.engines import Engine, Engines
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node

pytestmark = pytest.mark.anyio

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


def engines_of(node: Node) -> Engines:
    """Those of the gateway on that node."""
    cell: Any = node.actors["http"]
    return cell._instance._site.engines


def serves(engines: Engines) -> bool:
    return engines._found is not None and bool(engines._found.engines)


def found_at_once(engines: Engines, name: str) -> Engine:
    """Raises AssertionError where a request would have to wait for anything."""
    finding: Any = engines.find(name)
    try:
        finding.send(None)
    except StopIteration as found:
        return found.value
    finding.close()
    raise AssertionError(f"looking for {name} waits")


async def test_no_request_waits_while_engines_are_looked_up_again(
    node: Node, long_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "KNOWN_FOR_S", 0.05)
    await start_engine(node, long_path)
    looks = 0
    look = looking.Engines._look

    async def counted(self: looking.Engines) -> Any:
        nonlocal looks
        looks += 1
        return await look(self)

    monkeypatch.setattr(looking.Engines, "_look", counted)
    async with gateway(node):
        engines = engines_of(node)
        await eventually(lambda: serves(engines))
        before = looks
        while looks < before + 3:  # each is begun because the one before is old, and never by the request
            assert found_at_once(engines, str(long_path)).scheduler.address == "engine.scheduler"
            await anyio.lowlevel.checkpoint()
    await idle(node)


async def test_what_comes_and_goes_on_other_nodes_is_known_by_their_own_word(
    server: OwnServer, long_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KNOWN_FOR_S", "IDLE_FOR_S"):
        monkeypatch.setattr(looking, name, 1e6)  # nothing but the announcements
    bus = BusOptions(server.url)
    async with Node("near", bus=bus) as near, gateway(near):
        engines = engines_of(near)
        async with Node("far", bus=bus) as far:
            await start_engine(far, long_path)
            async with Node("late", bus=bus):  # announces itself once the engine is there
                await eventually(lambda: serves(engines))
            assert found_at_once(engines, str(long_path)).model.model == str(long_path)
        await eventually(lambda: not serves(engines))
