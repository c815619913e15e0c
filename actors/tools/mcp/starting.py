"""Starts the MCP servers that are configured, when the directory of tools starts: who added one finds it there."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio

from ....runtime.actor import Actor
from ....runtime.errors import CallboardError, NameTaken
from ....runtime.log import log
from ....runtime.placement import Process
from ....runtime.supervision import Restart
from .config import default_file, read_servers
from .server_actor import KIND, McpConfig


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
            config = McpConfig(name, str(path))
            await spawner.spawn(KIND, config, name=name, where=Process(), restart=Restart.PERMANENT)
        except NameTaken:
            log.debug("%s runs already", name)
        except CallboardError as error:
            log.error("MCP server %s is not started: %s", name, error)

    await asyncio.gather(*(start(name) for name, server in servers.items() if not server.disabled))
