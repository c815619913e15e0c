"""The actor of one tool: it answers `tool.call` and `tool.describe`, as many calls at once as the tool takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.log import log
from ...schemas.tool import (
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
from .errors import ToolTimeout
from .in_hand import InHand
from .runner import ToolRunner
from .tool import Tool

Said = ToolProgress | ToolPiece | ToolResult


class OneTool(msgspec.Struct, frozen=True):
    """`tool` is the object itself: the actor lives where it was loaded. `alone`: see `ToolSetConfig`. `in_hand`: an
    `InHand`, of the whole set."""

    tool: Any
    name: str
    version: str = ""
    alone: bool = False
    in_hand: Any = None


class AnswersCalls(ABC):
    """What an actor that offers one tool answers, beside its description. `calls` is what runs them."""

    @abstractmethod
    def calls(self) -> ToolRunner: ...

    @handler(concurrent=True)
    def call(self, message: CallTool) -> AsyncIterator[Said] | Coroutine[Any, Any, ToolResult]:
        runner = self.calls()
        if message.key:
            return runner.run_once(message)
        return runner.run_plain(message) if runner.is_plain(message) else runner.run(message)

    @handler(concurrent=True)
    async def taken(self, message: MediaTaken) -> None:
        await self.calls().taken(message)

    @handler(concurrent=True)
    async def put_media(self, message: PutMedia) -> MediaPut:
        return await self.calls().put(message)

    @handler(concurrent=True)
    async def get_media(self, message: GetMedia) -> AsyncIterator[MediaPart]:
        async with aclosing(self.calls().get(message)) as said:
            async for part in said:
                yield part


class ToolActor(AnswersCalls, Actor[OneTool]):
    """One tool under its own address. A call that is over gives its place to the next at once; one whose function does
    not return is written off, and when that is so of all that may run, the process is what gets restarted."""

    async def started(self) -> None:
        tool: Tool = self.config.tool
        self.info = described(tool, self.config.name, self.config.version, self.address)
        self.runner = runner_for(self, tool, self.config.name, alone=self.config.alone, in_hand=self.config.in_hand)

    async def stopped(self) -> None:
        await self.runner.close()

    def calls(self) -> ToolRunner:
        return self.runner

    @handler(concurrent=True)
    async def describe(self, message: DescribeTool) -> ToolInfo:
        return self.info


def described(tool: Tool, name: str, version: str, address: str) -> ToolInfo:
    """What the company is told of a tool that runs at `address`."""
    return msgspec.structs.replace(tool.info, name=name, version=version or tool.info.version, address=address)


def runner_for(actor: Actor[Any], tool: Tool, name: str, *, alone: bool, in_hand: InHand | None = None) -> ToolRunner:
    """What runs the calls of a tool that this actor offers."""

    def stuck() -> None:
        error = ToolTimeout(f"the tool {name} hangs in every call that it may work on")
        if alone:
            actor._cell.crash(error)  # pyright: ignore[reportPrivateUsage]
        else:
            log.error("%s; it takes no more until one of them ends", error)

    return ToolRunner(tool, name, actor.node, stuck, in_hand)
