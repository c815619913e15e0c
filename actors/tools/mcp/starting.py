"""Starts the actors of the MCP servers that are configured: all of them when the directory of tools starts, and one
that was added meanwhile when it is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio

from ....runtime.actor import Actor
from ....runtime.errors import CallboardError, NameTaken, NoSuchActor
from ....runtime.log import log
from ....runtime.node import MAIN
from ....runtime.placement import Process
from ....runtime.supervision import Restart
from ....schemas.runtime import Spawn
from .asking import BOARD, BOARD_KIND
from .config import SamplingPolicy, ServerConfig, default_file, read_servers
from .sampling import ENGINE
from .server_actor import DIRECTORY, KIND, McpConfig

# Beyond the time that a server has to connect: its process starts, and imports the SDK.
START_TIMEOUT_S = 120.0


async def start_configured(spawner: Actor[Any]) -> None:
    """Start an actor for each server of `mcp.json` that is not disabled and does not run. What fails is logged."""
    path = default_file()
    try:
        servers = await anyio.to_thread.run_sync(read_servers, path)
    except CallboardError as error:
        log.error("no MCP server is started: %s", error)
        return

    async def start(name: str) -> None:
        try:
            await _start(spawner, name, servers[name], path)
        except NameTaken:
            log.debug("%s runs already", name)
        except CallboardError as error:
            log.error("MCP server %s is not started: %s", name, error)

    await asyncio.gather(*(start(name) for name, server in servers.items() if not server.disabled))


async def start_one(spawner: Actor[Any], name: str) -> bool:
    """Start the actor of that server, where one of that name is configured. Whether it was.

    Raises what its `started` does, NameTaken, ConfigError.
    """
    path = default_file()
    server = (await anyio.to_thread.run_sync(read_servers, path)).get(name)
    if server is None:
        return False
    await _start(spawner, name, server, path)
    return True


def asks_of(server: ServerConfig) -> tuple[str, ...]:
    """The actors that the process of that server may ask: the directory, to say that its tools have changed, and what
    the configuration allows the server to turn to."""
    asks_people = server.elicitation or server.sampling is SamplingPolicy.ASK
    board = (BOARD,) if asks_people else ()
    engine = (ENGINE,) if server.sampling is not SamplingPolicy.REFUSE else ()
    return (DIRECTORY, *board, *engine)


async def _start(spawner: Actor[Any], name: str, server: ServerConfig, path: Path) -> None:
    asks = asks_of(server)
    if BOARD in asks:
        await _start_board(spawner)  # a process of the role `tool` may not
    where = Process(role="tool", asks=asks, ready_timeout=server.start_s + START_TIMEOUT_S)
    await spawner.spawn(KIND, McpConfig(name, str(path)), name=name, where=where, restart=Restart.PERMANENT)


async def _start_board(spawner: Actor[Any]) -> None:
    try:
        await spawner.actor(f"node.{MAIN}").ask(Spawn(BOARD_KIND, BOARD))
    except NameTaken:
        pass  # it is there, or about to be
    except NoSuchActor:
        log.warning("MCP servers cannot ask people: there is no daemon that starts the board of questions")
