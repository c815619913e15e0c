"""The MCP server that the company is to a host: lists what there is, carries calls, tells of changes.

It holds nothing but what it listed last. A call that a host gives up is given up in the company too.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import mcp_types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError

from .... import __version__
from ....runtime.errors import CallboardError
from ....runtime.log import log
from .offered import Offer, Source, host_name
from .offered_models import ModelSource, models_text

if TYPE_CHECKING:
    from mcp.server.models import InitializationOptions

    from ....runtime.client import Client

MODELS_URI = "callboard://models"
# What is said of the company's changes comes in bursts: a process that starts says it several times.
SETTLE_S = 0.3
# Hosts that are told of changes.
MAX_SESSIONS = 256
# Of the text that goes with a word of progress.
MAX_SAID = 500

_INSTRUCTIONS = (
    "Tools, language models and agents of a Callboard company. Tools named ask_... put a question to a model that runs "
    "there. Images, sounds and files come back as content; where a tool takes one, its schema says how it is sent."
)


class HostServer:
    """`run` follows the company's changes, beside whatever transport serves `server`."""

    def __init__(self, bus: Client, sources: Sequence[Source], models: ModelSource | None) -> None:
        self._bus = bus
        self._sources = tuple(sources)
        self._models = models
        self._listed: list[str] = []
        self._offers: dict[str, Offer] = {}
        # Hosts of the earlier protocol are told through their sessions, later ones ask to be told.
        self._sessions: OrderedDict[str, Any] = OrderedDict()
        self._changes = InMemorySubscriptionBus()
        self.server: Server[Any] = Server(
            "callboard",
            version=__version__,
            title="Callboard",
            instructions=_INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_read_resource=self._read_resource,
            on_subscriptions_listen=ListenHandler(self._changes),
        )

    @property
    def options(self) -> InitializationOptions:
        return self.server.create_initialization_options(NotificationOptions(tools_changed=True))

    async def offers(self) -> dict[str, Offer]:
        """By the name that the host calls it by, as things are now."""
        found: dict[str, Offer] = {}
        for source in self._sources:
            for offer in await source.offers():
                found[host_name(offer.tool.name, found)] = offer
        self._offers = found
        return found

    async def _list_tools(self, ctx: Any, params: Any) -> mcp_types.ListToolsResult:
        self._remember(ctx)
        tools = _named(await self.offers())
        self._listed = [tool.model_dump_json() for tool in tools]
        return mcp_types.ListToolsResult(tools=tools)

    async def _call_tool(self, ctx: Any, params: mcp_types.CallToolRequestParams) -> mcp_types.CallToolResult:
        # What was listed knows where it is, and finds itself again where it is no more.
        offer = self._offers.get(params.name) or (await self.offers()).get(params.name)
        if offer is None:
            raise MCPError(mcp_types.INVALID_PARAMS, f"there is no tool {params.name}")
        said = 0.0

        async def say(done: float, total: float, text: str) -> None:
            # The protocol wants each word of progress to be ahead of the last.
            nonlocal said
            said = done if done > said else math.nextafter(said, math.inf)
            await ctx.session.report_progress(said, total or None, text[-MAX_SAID:] or None)

        try:
            return await offer.call(dict(params.arguments or {}), say)
        except CallboardError as error:
            words = f"{error.message}\n{error.hint}" if error.hint else error.message
            return mcp_types.CallToolResult(
                content=[mcp_types.TextContent(text=words)],
                is_error=True,
                _meta={"callboard/code": error.to_info().code},
            )

    async def _list_resources(self, ctx: Any, params: Any) -> mcp_types.ListResourcesResult:
        if self._models is None:
            return mcp_types.ListResourcesResult(resources=[])
        about = mcp_types.Resource(
            name="models", uri=MODELS_URI, description="The models that run here.", mime_type="application/json"
        )
        return mcp_types.ListResourcesResult(resources=[about])

    async def _read_resource(self, ctx: Any, params: Any) -> mcp_types.ReadResourceResult:
        if self._models is None or str(params.uri) != MODELS_URI:
            raise MCPError(mcp_types.INVALID_PARAMS, f"there is no resource {params.uri}")
        text = models_text(await self._models.running())
        content = mcp_types.TextResourceContents(uri=MODELS_URI, text=text, mime_type="application/json")
        return mcp_types.ReadResourceResult(contents=[content])

    # Changes

    def _remember(self, ctx: Any) -> None:
        """The way to tell this host of changes. Over stdio there is one host, over HTTP each session has an id."""
        id = ctx.request.headers.get("mcp-session-id", "") if ctx.request is not None else ""
        self._sessions[id] = ctx.session
        self._sessions.move_to_end(id)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Within it, hosts are told when other tools are there than they were shown."""
        async with self._bus.listen("nodes.*") as news, anyio.create_task_group() as tasks:
            heard = asyncio.Event()
            tasks.start_soon(self._hear, news, heard)
            tasks.start_soon(self._follow, heard)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def _hear(self, news: Any, heard: asyncio.Event) -> None:
        async for _ in news:
            heard.set()

    async def _follow(self, heard: asyncio.Event) -> None:
        while True:
            await heard.wait()
            await anyio.sleep(SETTLE_S)
            heard.clear()
            try:
                now = [tool.model_dump_json() for tool in _named(await self.offers())]
            except CallboardError as error:
                log.debug("what is offered cannot be looked at: %s", error)
                continue
            if now != self._listed:
                self._listed = now
                await self._tell()

    async def _tell(self) -> None:
        await self._changes.publish(ToolsListChanged())
        for id, session in tuple(self._sessions.items()):
            try:
                await session.send_tool_list_changed()
            except (MCPError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
                log.debug("a host is not told: %s", error)
                self._sessions.pop(id, None)


def _named(offers: dict[str, Offer]) -> list[mcp_types.Tool]:
    return [offer.tool.model_copy(update={"name": name}) for name, offer in offers.items()]
