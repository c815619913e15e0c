"""Calling tools from Python: `async with open_tool(bus, "calculator") as t: await t.call(expression="1+1")`.

Values go in and come out as Python has them: paths, PIL images and bytes become blobs, media come back as `Image`,
`Audio`, `File`. The directory is asked once; the calls go to the tool itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import anyio
import msgspec

from ...runtime.blobs import INLINE_MAX
from ...runtime.client import Client
from ...runtime.errors import CallboardError, NameTaken, NoSuchActor, RemoteError
from ...runtime.node import Node
from ...schemas.base import Request
from ...schemas.tool import (
    CallTool,
    ListTools,
    Media,
    MediaTaken,
    OpenTool,
    ToolInfo,
    ToolPiece,
    ToolProgress,
    ToolResult,
)
from .carrying import send
from .directory import ADDRESS, KIND
from .errors import MediaAway, NoSuchTool, as_tool_error
from .media_blobs import media_out, media_read
from .media_json import without_media
from .outcome import Outcome
from .values import File

R = TypeVar("R")

# Beyond the tool's own time limit: for its `setup`, which may load a model, and for waiting behind other calls.
PATIENCE_S = 300.0
# Starting a set of tools imports its modules.
OPEN_TIMEOUT_S = 150.0
# What a call sends stays for so long at most, should this process die before it lets go.
ARGUMENTS_TTL_S = 3600.0
DIRECTORY_PATIENCE_S = 10.0

_NO_MEDIA: Mapping[str, File] = {}
LOOK_AGAIN_S = 0.05


class HasNode(Protocol):
    """A client, or an actor."""

    @property
    def node(self) -> Node: ...


class _Request(NamedTuple):
    """One call as its caller has it."""

    arguments: str
    media: Mapping[str, File]
    session: str
    key: str
    timeout: float
    on_progress: Callable[[ToolProgress], None] | None
    on_piece: Callable[[ToolPiece, Mapping[str, File]], None] | None


class OpenedTool:
    """A tool that runs. Calls may go on at once; the tool decides how many of them it works on."""

    def __init__(self, node: Node, info: ToolInfo, name: str) -> None:
        self.info = info
        self._node = node
        self._name = name
        self._is_away = False
        self._read(info)

    def _read(self, info: ToolInfo) -> None:
        self.info = info
        self._ref = self._node.actor(info.address)
        self._inputs: Any = msgspec.json.decode(info.input_schema or "{}")
        self._outputs: Any = msgspec.json.decode(info.output_schema or "{}")

    async def call(self, **arguments: Any) -> Any:
        """Call it with arguments by name, and return its value with media in their places. Raises ToolError."""
        return (await self.request(arguments)).data

    async def request(
        self,
        arguments: Mapping[str, Any] | str,
        *,
        media: Mapping[str, File] | None = None,
        session: str = "",
        key: str = "",
        timeout: float | None = None,
        on_progress: Callable[[ToolProgress], None] | None = None,
        on_piece: Callable[[ToolPiece, Mapping[str, File]], None] | None = None,
    ) -> Outcome:
        """The same with all that a call can have. `arguments` as a text are JSON, as a model writes them.

        `timeout` is in seconds (default: the tool's own, and time for its setup). Cancelling this gives the call up.
        Raises ToolError; ActorStopped where the tool's process died: the call may or may not have been carried out.
        """
        sent: dict[str, File] = dict(media) if media else {}
        text = arguments if isinstance(arguments, str) else without_media(arguments, self._inputs, sent)
        seconds = self.info.timeout + PATIENCE_S if timeout is None else timeout
        call = _Request(text, sent, session, key, seconds, on_progress, on_piece)
        try:
            return await self._send(call)
        except NoSuchActor:
            # It was not delivered: the tool's process was started anew elsewhere, or is about to be.
            self._read(await _opened(self._node, self._name))
        except MediaAway:
            self._is_away = True  # nothing was run: from now on, media go to it in pieces
        return await self._send(call)

    async def _send(self, call: _Request) -> Outcome:
        blobs = await self._blobs(call.media) if call.media else ()
        message = CallTool(call.arguments, blobs, call.session, call.key)
        try:
            if call.on_progress is None and call.on_piece is None:
                result = await self._ref.ask(message, call.timeout)
            else:
                result = await self._listen(message, call)
            media = await self._media(result.media) if result.media else _NO_MEDIA
            return Outcome(result.value, result.text, media, self._outputs)
        except RemoteError as error:
            raise as_tool_error(error) from error
        finally:
            for each in blobs:
                await self._node.blobs.release(each.blob)

    async def _blobs(self, media: Mapping[str, File]) -> tuple[Media, ...]:
        if not self._is_away:
            return await media_out(self._node.blobs, media, ARGUMENTS_TTL_S)
        small = {name: file for name, file in media.items() if file.size <= INLINE_MAX}
        large = [
            Media(name, file.kind, file.mime, await send(self._ref, file.view))
            for name, file in media.items()
            if name not in small
        ]
        return (*await media_out(self._node.blobs, small, ARGUMENTS_TTL_S), *large)

    async def _listen(self, message: CallTool, call: _Request) -> ToolResult:
        async with self._ref.stream(message, call.timeout) as said:
            async for item in said:
                if isinstance(item, ToolProgress):
                    if call.on_progress is not None:
                        call.on_progress(item)
                elif call.on_piece is not None:
                    call.on_piece(item, await self._media(item.media))
        return said.result

    async def _media(self, media: tuple[Media, ...]) -> dict[str, File]:
        if not media:
            return {}
        read = await media_read(self._node.blobs, media, self._ref)
        if ids := tuple(each.blob.id for each in media if each.blob.id):
            with contextlib.suppress(CallboardError):  # then they go when their time is over
                await self._ref.tell(MediaTaken(ids))
        return read


@asynccontextmanager
async def open_tool(bus: HasNode | Node, name: str) -> AsyncIterator[OpenedTool]:
    """A tool of the company by its name, `files.read` or `files.read@2`; it is started where nobody runs it yet.

    `bus` is a client, an actor or a node. Raises NoSuchTool, and what starting it raises.
    """
    node = node_of(bus)
    yield OpenedTool(node, await _opened(node, name), name)


async def list_tools(
    bus: HasNode | Node, query: str = "", names: tuple[str, ...] = (), limit: int = 0
) -> tuple[ToolInfo, ...]:
    """What tools there are, those that fit `query` best first. None of them is started."""
    return (await ask_directory(node_of(bus), ListTools(query, names, limit))).tools


def node_of(bus: HasNode | Node) -> Node:
    return bus if isinstance(bus, Node) else bus.node


async def _opened(node: Node, name: str) -> ToolInfo:
    info = await ask_directory(node, OpenTool(name))
    if not info.address:
        raise NoSuchTool(f"nobody runs the tool {name}")
    return info


async def ask_directory(node: Node, message: Request[R]) -> R:
    """Ask the directory, which the daemon starts where there is none. Raises NotReachable where there is no daemon."""
    directory = node.actor(ADDRESS)
    # Of the directory alone: what it is asked to start may take longer.
    until = anyio.current_time() + DIRECTORY_PATIENCE_S
    while True:
        try:
            return await directory.ask(message, OPEN_TIMEOUT_S)
        except NoSuchActor as error:
            if node.links is None:
                raise
            if anyio.current_time() >= until:
                raise NoSuchActor(
                    f"the directory of tools ({ADDRESS}) does not start", hint="`callboard logs` says why"
                ) from error
        with contextlib.suppress(NameTaken):  # somebody was faster, and it is about to answer
            await Client(node).spawn(KIND, name=ADDRESS)
            continue
        await anyio.sleep(LOOK_AGAIN_S)  # nothing tells when it is there
