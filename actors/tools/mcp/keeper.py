"""Keeps one MCP server connected, and carries calls to it: what `tool.mcp` does, without the actor.

Connections break and servers are started anew; a call that was under way then fails, since nobody knows how far it
came, and the next one waits for the new connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ....runtime.errors import CallboardError
from ....runtime.log import log
from ....schemas.question import Answered, AskQuestion
from ..context import ToolContext
from ..errors import ToolTimeout
from ..outcome import Outcome
from .asking import Board, elicitation, elicited
from .config import ServerConfig
from .content import outcome_of
from .errors import ToolServerAway
from .link import LIST_PAUSE_S, Link
from .sampling import refused, sample

if TYPE_CHECKING:
    import mcp_types

    from ....runtime.node import Node

# Between attempts to connect: twice as long each time.
FIRST_PAUSE_S = 0.2
LAST_PAUSE_S = 30.0
# A connection that held so long was a good one.
GOOD_S = 10.0

OnTools = Callable[["list[mcp_types.Tool]"], Awaitable[None]]


class Keeper:
    """`run` it in a task of its own. `on_tools` is called with what the server lists, first and after each change.

    `config` as it is in the file: variables are filled in for each connection.
    """

    def __init__(self, name: str, config: ServerConfig, node: Node, asker: str, on_tools: OnTools) -> None:
        self.name = name
        self.config = config
        self.why: Exception | None = None
        self.connections = 0
        self._node = node
        self._asker = asker
        self._on_tools = on_tools
        self._board = Board(node, asker)
        self._link: Link | None = None
        self._settled = asyncio.Event()
        self._clocks: set[_Clock] = set()
        self._questions = 0
        self._samples = 0
        self._keys = itertools.count(1)
        # Questions of an earlier life are never meant by those of this one.
        self._life = secrets.token_hex(4)

    @property
    def connected(self) -> bool:
        return self._link is not None and not self._link.broken.is_set()

    @property
    def protocol(self) -> str:
        return self._link.client.protocol_version if self._link is not None else ""

    @property
    def implementation(self) -> str:
        info = self._link.client.server_info if self._link is not None else None
        return f"{info.name} {info.version}".strip()[:200] if info is not None else ""

    async def settled(self, seconds: float) -> None:
        """Returns when it is connected or an attempt has failed, after so many seconds in any case."""
        with anyio.move_on_after(seconds):
            await self._settled.wait()

    async def run(self) -> None:
        """Connect, and again whenever the connection has broken, until cancelled."""
        await self._board.clear()
        pause = FIRST_PAUSE_S
        while True:
            began = anyio.current_time()
            try:
                await self._one_life()
            except CallboardError as error:
                self.why = error
            self._link = None
            if anyio.current_time() - began > GOOD_S:
                pause = FIRST_PAUSE_S
            log.warning("MCP server %s: %s; it is tried again in %.1f s", self.name, self.why, pause)
            self._settled.set()  # those that wait are told why
            await anyio.sleep(pause)
            self._settled.clear()
            pause = min(LAST_PAUSE_S, pause * 2)

    async def _one_life(self) -> None:
        async with Link.open(self.name, self.config.expanded(self.name), self) as link:
            await self._on_tools(await link.list_tools())
            self._link, self.why = link, None
            self.connections += 1
            self._settled.set()
            while not link.broken.is_set():
                await _first_of(link.broken, link.changed)
                if link.changed.is_set() and not link.broken.is_set():
                    await self._on_tools(await link.list_tools())
                    await anyio.sleep(LIST_PAUSE_S)  # whatever it says meanwhile is one more listing
            self._settled.clear()
            self.why = link.why or ToolServerAway(f"the connection to MCP server {self.name} broke")

    # Calling

    async def call(self, name: str, arguments: dict[str, Any], context: ToolContext, has_schema: bool) -> Outcome:
        """Raises ToolServerAway, ToolServerFailed, ToolTimeout, and what the tool itself says."""
        link = await self._ready()

        async def progress(done: float, total: float | None, text: str | None) -> None:
            context.progress(done, total or 0.0, link.blotted(text or ""))

        async with self._clock(context):
            result = await link.call_tool(name, arguments, progress)
            return await outcome_of(result, link.read_resource, has_schema=has_schema)

    async def _ready(self) -> Link:
        """The connection, or the one that is being made."""
        await self.settled(self.config.start_s)
        link = self._link
        if link is None or link.broken.is_set():
            why = f": {self.why}" if self.why is not None else ""
            raise ToolServerAway(f"MCP server {self.name} is not connected{why}")
        return link

    @asynccontextmanager
    async def _clock(self, context: ToolContext) -> AsyncIterator[None]:
        """Bounds a call by the server's time, which stands still while a person is asked.

        Which of several calls a question belongs to, the protocol does not say: all of them wait.
        """
        with anyio.CancelScope() as scope:
            clock = _Clock(scope, self.config.timeout_s, context)
            if not self._questions:
                clock.go_on()
            self._clocks.add(clock)
            try:
                yield
            finally:
                self._clocks.discard(clock)
                if not self._clocks:
                    self._samples = 0
        if scope.cancelled_caught:
            raise ToolTimeout(f"MCP server {self.name} did not answer within {self.config.timeout_s:g} s")

    # What the server asks for

    async def elicit(self, params: Any) -> Any:
        question = elicitation(params, self._asker, self.name, self.config.elicitation_s, "")
        if isinstance(question, str):
            return refused(question)
        try:
            answered = await self._ask(question)
        except CallboardError as error:
            return refused(error.message)
        return elicited(answered, is_form=not question.link)

    async def sample(self, params: Any) -> Any:
        self._samples += 1
        if not self._clocks:
            return refused("the model may be asked for while a call is under way, not otherwise")
        if self._samples > self.config.sampling_calls:
            return refused(f"the model may be asked {self.config.sampling_calls} times for a call")
        try:
            return await sample(self._node, params, self.config, self.name, self._asker, self._ask)
        except CallboardError as error:
            return refused(error.message)

    async def _ask(self, question: AskQuestion) -> Answered:
        question = msgspec.structs.replace(
            question, key=f"{self._life}-{next(self._keys)}", ttl=question.ttl or self.config.elicitation_s
        )
        self._questions += 1
        for clock in self._clocks:
            clock.stop(question.text)
        try:
            return await self._board.ask(question)
        finally:
            self._questions -= 1
            if not self._questions:
                for clock in self._clocks:
                    clock.go_on()


class _Clock:
    """What is left of one call's time."""

    def __init__(self, scope: anyio.CancelScope, seconds: float, context: ToolContext) -> None:
        self._scope = scope
        self._left = seconds
        self._context = context

    def stop(self, why: str) -> None:
        if self._scope.deadline != float("inf"):
            self._left = max(0.0, self._scope.deadline - anyio.current_time())
            self._scope.deadline = float("inf")
        self._context.progress(0.0, 0.0, f"waits for a person: {why}")

    def go_on(self) -> None:
        self._scope.deadline = anyio.current_time() + self._left


async def _first_of(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        for task in waiting:
            with contextlib.suppress(asyncio.CancelledError):
                await task
