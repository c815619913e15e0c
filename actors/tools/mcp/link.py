"""One connection to an MCP server: opened, its tools listed, called, and known to be broken when it is.

A thin layer over the SDK's client. It lives in one task from beginning to end, as the SDK demands; calls come from any.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import anyio
import httpx2
import mcp_types
from mcp.client.client import Client
from mcp.client.session import IncomingMessage
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from .... import __version__
from ....runtime.errors import CallboardError
from ....runtime.log import log
from .config import ServerConfig, Transport, without_secrets
from .errors import ToolServerAway, ToolServerFailed
from .schema_stash import stash_output_schemas
from .stdio import StdioServer

# Of one listing: a server that never comes to its end is cut off.
MAX_PAGES = 100
MAX_TOOLS = 2000
# Between a listing and the next, however often a server says that it has changed.
LIST_PAUSE_S = 0.25
HTTP_TIMEOUT_S = 30.0
# What an HTTP server says of a session that it has forgotten.
_SESSION_OVER = "Session terminated"
# They print whole messages and URLs, which may hold keys.
_TALKATIVE = ("mcp", "client", "httpx2", "httpcore2", "httpx", "httpcore")


# What the SDK and its transports raise when a connection fails, and when it cannot be made.
_OF_THE_CONNECTION = (CallboardError, OSError, httpx2.HTTPError)
_OF_THE_HANDSHAKE = (MCPError, TimeoutError, ValidationError, RuntimeError)


class Callbacks(Protocol):
    """What a server may ask of its client. Both answer with the SDK's own types."""

    async def elicit(self, params: mcp_types.ElicitRequestParams) -> mcp_types.ElicitResult | mcp_types.ErrorData: ...
    async def sample(
        self, params: mcp_types.CreateMessageRequestParams
    ) -> mcp_types.CreateMessageResult | mcp_types.ErrorData: ...


class Link:
    """`async with Link.open(...) as link`: connected. `broken` is set when it is no more; `why` says what happened."""

    def __init__(self, name: str, config: ServerConfig) -> None:
        self.name = name
        self.config = config
        self.broken = asyncio.Event()
        self.why: Exception | None = None
        # Set when the server has said that its tools are others now.
        self.changed = asyncio.Event()
        self._stdio: StdioServer | None = None
        self._refused_by = 0
        self._client: Client | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str, config: ServerConfig, callbacks: Callbacks) -> AsyncIterator[Link]:
        """`config` with its variables filled in. Raises ToolServerAway, ToolServerFailed."""
        for logger in _TALKATIVE:
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        link = cls(name, config)
        try:
            async with link._connected(callbacks):
                async with anyio.create_task_group() as tasks:
                    if link.client.protocol_version in MODERN_PROTOCOL_VERSIONS:
                        tasks.start_soon(link._follow_changes)
                    try:
                        yield link
                    finally:
                        tasks.cancel_scope.cancel()
        finally:
            link._break(None)

    @asynccontextmanager
    async def _connected(self, callbacks: Callbacks) -> AsyncIterator[None]:
        async def elicit(context: Any, params: Any) -> Any:
            return await callbacks.elicit(params)

        async def sample(context: Any, params: Any) -> Any:
            return await callbacks.sample(params)

        client = Client(
            self._watched(self._transport()),
            client_info=mcp_types.Implementation(name="callboard", version=__version__),
            elicitation_callback=elicit if self.config.elicitation else None,
            sampling_callback=sample if self.config.sampling.value != "refuse" else None,
            message_handler=self._heard,
            cache=None,
        )
        is_open = False
        try:
            with anyio.fail_after(self.config.start_s) as starting:
                async with client:
                    starting.deadline = math.inf
                    self._client = client
                    is_open = True
                    yield
        except Exception as raised:
            # What several tasks have come to is in groups; one error of them says what it was.
            error = _first(raised)
            if isinstance(error, CallboardError) and not isinstance(raised, BaseExceptionGroup):
                raise
            if isinstance(error, _OF_THE_CONNECTION if is_open else (*_OF_THE_CONNECTION, *_OF_THE_HANDSHAKE)):
                raise self._as_error(error) from raised
            raise

    def _as_error(self, error: BaseException) -> Exception:
        if self._stdio is not None and self._stdio.why is not None:
            return self._stdio.why
        if isinstance(error, CallboardError):
            return error
        name = f"MCP server {self.name}"
        if isinstance(error, TimeoutError):
            return ToolServerAway(f"{name} did not answer within {self.config.start_s:g} s")
        if isinstance(error, httpx2.HTTPStatusError):
            return ToolServerAway(f"{name} answered with HTTP status {error.response.status_code}")
        if isinstance(error, (OSError, httpx2.HTTPError)):
            return ToolServerAway(f"{name} cannot be reached at {self.config.shown}: {type(error).__name__}")
        if self._refused_by:
            return ToolServerAway(
                f"{name} does not let us in: HTTP status {self._refused_by}", hint="see to its `headers`"
            )
        if isinstance(error, MCPError):
            return ToolServerFailed(f"{name} refused the connection: {self.blotted(error.message)}")
        return ToolServerFailed(f"{name} does not keep to the protocol: {self.blotted(str(error))[:300]}")

    def _transport(self) -> AbstractAsyncContextManager[Any]:
        config = self.config
        if config.transport is Transport.STDIO:
            self._stdio = StdioServer(
                *(self.name, config.command, config.args, config.env, config.cwd, config.max_message),
                config.secrets(),
            )
            return self._stdio.connect()
        if config.transport is Transport.SSE:
            return sse_client(
                config.url,
                headers=dict(config.headers),
                timeout=HTTP_TIMEOUT_S,
                sse_read_timeout=float("inf"),
                httpx_client_factory=_http_client,
            )
        return self._http()

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[Any]:
        # How long a call may take is the call's own business.
        timeout = httpx2.Timeout(HTTP_TIMEOUT_S, read=None)
        hooks: Any = {"response": [self._answered]}
        async with httpx2.AsyncClient(headers=dict(self.config.headers), timeout=timeout, event_hooks=hooks) as http:
            async with streamable_http_client(
                self.config.url, http_client=http, max_sse_event_size=self.config.max_message
            ) as streams:
                yield streams

    async def _answered(self, response: httpx2.Response) -> None:
        """What the SDK does not pass on: with which status a server refuses."""
        if response.status_code in (401, 403):
            self._refused_by = response.status_code

    @asynccontextmanager
    async def _watched(self, transport: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        """The transport, with the end of what it reads noticed."""
        try:
            async with transport as (read_stream, write_stream):
                yield _Noticed(read_stream, self._break), write_stream
        finally:
            self._break(None)

    def _break(self, why: Exception | None) -> None:
        if self.why is None:
            self.why = why or (self._stdio.why if self._stdio is not None else None)
        self.broken.set()

    # What the server says

    async def _heard(self, message: IncomingMessage) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self.changed.set()

    async def _follow_changes(self) -> None:
        """Servers of the later protocol tell of changes to those alone that asked for it."""
        while True:
            try:
                async with self.client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        self.changed.set()
                return
            except SubscriptionLost:
                self.changed.set()  # what was said meanwhile is not said again
                await anyio.sleep(LIST_PAUSE_S)
            except (MCPError, TimeoutError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
                log.debug("MCP server %s tells of no changes: %s", self.name, error)
                return

    # Asking the server

    @property
    def client(self) -> Client:
        assert self._client is not None, "used before it was open"
        return self._client

    async def list_tools(self) -> list[mcp_types.Tool]:
        """All pages. Raises ToolServerAway, ToolServerFailed."""
        self.changed.clear()
        found: list[mcp_types.Tool] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await self.asked(lambda cursor=cursor: self.client.list_tools(cursor=cursor), self.config.start_s)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None:
                break
        if len(found) > MAX_TOOLS or cursor is not None:
            log.warning("MCP server %s lists more tools than are taken: the first %d are", self.name, MAX_TOOLS)
        return found[:MAX_TOOLS]

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any],
        on_progress: Callable[[float, float | None, str | None], Awaitable[None]],
    ) -> mcp_types.CallToolResult:
        """No time limit: cancelling it is told to the server. Raises ToolServerAway, ToolServerFailed."""

        async def heard(progress: float, total: float | None, message: str | None) -> None:
            await on_progress(progress, total, message)

        return await self.asked(lambda: self.client.call_tool(name, arguments, progress_callback=heard), None)

    async def read_resource(self, uri: str) -> mcp_types.ReadResourceResult:
        return await self.asked(lambda: self.client.read_resource(uri), self.config.start_s)

    async def asked(self, call: Callable[[], Awaitable[Any]], seconds: float | None) -> Any:
        """Any of the SDK's calls, with its errors as ours."""
        name = f"MCP server {self.name}"
        try:
            with anyio.fail_after(seconds):
                return await call()
        except TimeoutError:
            raise ToolServerAway(f"{name} did not answer within {seconds:g} s") from None
        except MCPError as error:
            if error.code == mcp_types.CONNECTION_CLOSED or error.message == _SESSION_OVER:
                self._break(ToolServerAway(f"{name}: {error.message}"))
                raise self._gone() from error
            raise ToolServerFailed(f"{name}: {self.blotted(error.message)[:2000]}", hint="") from error
        except (anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            self._break(None)
            raise self._gone() from error
        except (ValidationError, RuntimeError) as error:
            raise ToolServerFailed(f"{name}: {self.blotted(_told(error))}") from error

    def _gone(self) -> Exception:
        if isinstance(self.why, CallboardError):
            return type(self.why)(self.why.message, hint=self.why.hint)
        return ToolServerAway(f"the connection to MCP server {self.name} broke")

    def blotted(self, text: str) -> str:
        """Without the values that the configuration gave the server."""
        for secret in self.config.secrets():
            text = text.replace(secret, "•••")
        return text.replace(self.config.url, without_secrets(self.config.url)) if self.config.url else text


class _Noticed:
    """A read stream whose end is noticed, and in which the schemas of results are moved aside."""

    def __init__(self, stream: Any, ended: Callable[[Exception | None], None]) -> None:
        self._stream = stream
        self._ended = ended

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        try:
            message = await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._ended(None)
            raise
        stash_output_schemas(message)
        return message

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        self._stream.close()

    def __aiter__(self) -> _Noticed:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> _Noticed:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _http_client(headers: Any = None, timeout: Any = None, auth: Any = None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(headers=headers, timeout=timeout, auth=auth)


def _first(error: BaseException) -> BaseException:
    """The error that tells most of a group's: one of ours, or else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = [_first(inner) for inner in error.exceptions]
    return next((inner for inner in found if isinstance(inner, CallboardError)), found[0])


def _told(error: Exception) -> str:
    """A validator's many lines, cut."""
    return str(error)[:500]
