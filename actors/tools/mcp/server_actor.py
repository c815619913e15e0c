"""Kind `tool.mcp`: the tools of one MCP server, each an actor below this one, as those of any other set.

It lives in a process of its own: what comes from a server is parsed there, and a server that floods it harms nobody
else. Its tools come and go as the server says; its calls fail while the server is away, and it is connected again.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from ....runtime.actor import Actor, handler
from ....runtime.errors import CallboardError, ConfigError, MissingExtra, NoSuchActor
from ....runtime.log import log
from ....runtime.supervision import Restart
from ....schemas.mcp import GetMcpStatus, McpStatus, RefusedTool
from ....schemas.tool import ListTools, OfferTools, OpenTool, ToolInfo, ToolList
from ..errors import ToolDefinition
from ..relevance import chosen, newest
from ..tool_actor import OneTool, ToolActor, described
from .config import ServerConfig, default_file, read_server

if TYPE_CHECKING:
    import mcp_types

    from .foreign_tool import ForeignTool
    from .keeper import Keeper

KIND = "tool.mcp"
DIRECTORY = "tools"
OFFER_S = 10.0
# How long the end of a tool waits for its calls, when the server has taken the tool back.
STOP_TOOL_S = 2.0


class McpConfig(msgspec.Struct, frozen=True):
    """`server`: its name in `file` ("": this actor's name). `file`: "" for `mcp.json` in the state folder."""

    server: str = ""
    file: str = ""


class McpServer(Actor[McpConfig]):
    async def started(self) -> None:
        """Raises NoSuchServer, ConfigError, MissingExtra. One that cannot be reached is no error: it is tried again."""
        try:
            from .keeper import Keeper
        except ImportError as error:
            raise MissingExtra.of("mcp", "using MCP servers") from error
        name = self.config.server or self.address
        path = Path(self.config.file) if self.config.file else default_file()
        self._server: ServerConfig = await anyio.to_thread.run_sync(read_server, path, name)
        if self._server.disabled:
            raise ConfigError(f"the MCP server {name} is disabled", hint=f"take `disabled` out of {path}")
        self._tools: dict[str, ForeignTool] = {}
        self._infos: tuple[ToolInfo, ...] = ()
        self._refused: tuple[RefusedTool, ...] = ()
        self._change = asyncio.Lock()
        self._is_there = False
        self._keeper: Keeper = Keeper(name, self._server, self.node, self.address, self._offer)
        self.start_soon(self._keeper.run)
        await self._keeper.settled(self._server.start_s)
        self._is_there = True
        self.start_soon(self._announce)  # the directory asks this actor, as soon as it takes messages

    async def _offer(self, listed: list[mcp_types.Tool]) -> None:
        """Have an actor for each tool that is listed, and for no other."""
        from .foreign_tool import ForeignTool, names_for

        waits = self._server.elicitation_s if self._server.elicitation else 0.0
        wanted: dict[str, ForeignTool] = {}
        refused: list[RefusedTool] = []
        names = names_for((tool.name for tool in listed), self._server.tools)
        for tool in listed:
            name = names.pop(tool.name, None)
            if name is None:  # not to be offered, or listed twice
                continue
            try:
                # In a thread: what a stranger wrote may take a while to look through.
                wanted[name] = await anyio.to_thread.run_sync(
                    lambda tool=tool, name=name: ForeignTool(tool, name, self._server, self._keeper.call, waits=waits)
                )
            except ToolDefinition as error:
                log.warning("MCP server %s: its tool %r is not offered: %s", self._keeper.name, tool.name[:100], error)
                refused.append(RefusedTool(tool.name[:100], error.message))
        async with self._change:
            before = self._infos
            await self._exchange(wanted)
            self._refused = tuple(refused)
            if before != self._infos and self._is_there:
                await self._announce()

    async def _announce(self) -> None:
        """Have the directory look anew."""
        try:
            await self.actor(DIRECTORY).ask(OfferTools(self.address), OFFER_S)
        except NoSuchActor:
            log.debug("there is no directory of tools yet")
        except CallboardError as error:
            log.warning("the directory of tools does not know of changes of %s yet: %s", self.address, error)

    async def _exchange(self, wanted: dict[str, ForeignTool]) -> None:
        for name in [name for name, tool in self._tools.items() if not _same(tool, wanted.get(name))]:
            del self._tools[name]
            with contextlib.suppress(NoSuchActor):
                await self.node.stop(f"{self.address}.{name}", STOP_TOOL_S)
        for name, tool in wanted.items():
            if name not in self._tools:
                place = OneTool(tool, f"{self.address}.{name}")
                await self.spawn(ToolActor, place, name=name, restart=Restart.PERMANENT)
                self._tools[name] = tool
        self._infos = tuple(
            described(tool, f"{self.address}.{name}", "", f"{self.address}.{name}")
            for name, tool in self._tools.items()
        )

    @handler(concurrent=True)
    async def list_tools(self, message: ListTools) -> ToolList:
        return chosen(self._infos, message)

    @handler(concurrent=True)
    async def open_tool(self, message: OpenTool) -> ToolInfo:
        return newest(self._infos, message.name)

    @handler(concurrent=True)
    async def status(self, message: GetMcpStatus) -> McpStatus:
        if message.wait_s > 0:
            await self._keeper.settled(message.wait_s)
        return McpStatus(
            name=self._keeper.name,
            connected=self._keeper.connected,
            error="" if self._keeper.connected else str(self._keeper.why or "it is being connected"),
            implementation=self._keeper.implementation,
            protocol=self._keeper.protocol,
            connections=self._keeper.connections,
            tools=tuple(info.name for info in self._infos),
            refused=self._refused,
        )


def _same(one: ForeignTool, other: ForeignTool | None) -> bool:
    return other is not None and one.theirs == other.theirs and one.info == other.info
