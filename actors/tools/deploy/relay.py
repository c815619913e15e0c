"""A tool of a deployed set as its callers see it: passes calls on to the tool's process, and their media with them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import cached_property
from typing import Generic, TypeVar

import msgspec

from ....runtime.actor import Actor, handler
from ....runtime.errors import ActorError, NoSuchActor
from ....schemas.tool import (
    CallTool,
    DescribeTool,
    GetMedia,
    MediaPart,
    MediaPut,
    MediaTaken,
    PutMedia,
    ToolInfo,
    ToolPiece,
    ToolProgress,
    ToolResult,
)
from ..carrying import parts
from ..errors import NoSuchTool
from .courier import Courier

C = TypeVar("C", bound=msgspec.Struct)


class Route(msgspec.Struct):
    """Where calls go at present: a tool in its process. Changed by the relay's parent, never by a message."""

    target: ToolInfo


class RelayConfig(msgspec.Struct, frozen=True):
    route: Route


class Relaying(Actor[C], Generic[C]):
    """Answers for a tool as its `route` says. Any number of calls at once: the tool itself has the limit.

    Who derives from it derives from `Actor[Config]` too: that is where a configuration is read from.
    """

    route: Route | None = None

    @handler(concurrent=True)
    async def describe(self, message: DescribeTool) -> ToolInfo:
        return msgspec.structs.replace(self._target(), address=self.address)

    @handler(concurrent=True)
    async def call(self, message: CallTool) -> AsyncIterator[ToolProgress | ToolPiece | ToolResult]:
        async with self._courier.brought(message.media), aclosing(self._answers(message)) as answers:
            async for answer in answers:
                yield await self._courier.adopted(answer)

    @handler(concurrent=True)
    async def get_media(self, message: GetMedia) -> AsyncIterator[MediaPart]:
        async with aclosing(parts(self.blobs, self._courier.adopted_blob(message.id))) as found:
            async for part in found:
                yield part

    @handler(concurrent=True)
    async def put_media(self, message: PutMedia) -> MediaPut:
        return await self.actor(self._target().address).ask(message)

    @handler(concurrent=True)
    async def taken(self, message: MediaTaken) -> None:
        await self._courier.let_go(message.ids)
        if self.route is not None:
            with contextlib.suppress(ActorError):  # it has ended, and what it held with it
                await self.actor(self.route.target.address).tell(message)

    @cached_property
    def _courier(self) -> Courier:
        return Courier(self.node)

    def _target(self) -> ToolInfo:
        if self.route is None:
            raise NoSuchTool(f"{self.address} is a set of tools, not a tool", hint="`callboard tool list` shows them")
        return self.route.target

    async def _answers(self, message: CallTool) -> AsyncGenerator[ToolProgress | ToolPiece | ToolResult]:
        """What the tool says. Where its version was switched away before it was reached, its successor is asked."""
        while True:
            target = self._target().address
            try:
                async with self.actor(target).stream(message) as items:
                    async for item in items:
                        yield item
                    yield items.result
                return
            except NoSuchActor:
                if self._target().address == target:
                    raise


class ToolRelay(Relaying[RelayConfig], Actor[RelayConfig]):
    """One tool of several."""

    async def started(self) -> None:
        self.route = self.config.route
