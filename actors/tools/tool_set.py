"""Kind `tool.set`: the tools of an entry point or a module, each an actor below this one: `files`, `files.read`.

It is one process as a rule, with the role `tool` on the bus: it answers under its own name and can do nothing else
there. A set that is one tool has it under its own address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.supervision import Restart, Supervision
from ...schemas.tool import DescribeTool, ListTools, OpenTool, ToolInfo, ToolList
from .errors import NoSuchTool, ToolOverLimit
from .in_hand import InHand
from .limits import Overseer, ProcessLimits, hold
from .load import load_tools
from .relevance import chosen, newest
from .runner import ToolRunner
from .tool_actor import AnswersCalls, OneTool, ToolActor, described, runner_for
from .watchdog import Watchdog

# For the answers of calls that are ended, before the process is.
TELL_S = 2.0


class ToolSetConfig(msgspec.Struct, frozen=True):
    """What to load, and how it is offered.

    `load` is the name of an entry point of the group `callboard.tools`, or `module` or `module:attribute` of a module
    that the node may load. `options` is JSON for the function that makes the set, where there is one. `name` is what
    its tools are called by, where it is not the set's address: two versions of a set have two addresses and one name.
    `alone`: the process is this set's own, held to `limits`, and to be ended when a tool of it hangs for good.
    """

    load: str
    name: str = ""
    version: str = ""
    options: str = ""
    alone: bool = False
    limits: ProcessLimits = ProcessLimits()


def asks_of(options: Mapping[str, object]) -> tuple[str, ...]:
    """The actors that the process of a set with these options may ask: the options that all sets have in common, an
    `engine` and a `keeper` of sessions."""
    found = (options.get("engine"), options.get("keeper"))
    return tuple(one for one in found if isinstance(one, str) and one)


class ToolSet(AnswersCalls, Actor[ToolSetConfig]):
    async def started(self) -> None:
        config = self.config
        name = config.name or self.address
        in_hand = InHand()
        if config.alone:
            hold(config.limits)  # before anything of the tools is loaded
        tools, is_single = load_tools(config.load, config.options, self.node.allow)
        self.runner: ToolRunner | None = None
        self._watchdog: Watchdog | None = None
        self._overseer: Overseer | None = None
        if config.alone:
            # What hangs in a process goes only with it: a child that crashes is to take the process along.
            self.supervision = Supervision(max_restarts=0)
        self.infos: tuple[ToolInfo, ...] = ()
        for tool in tools:
            called = name if is_single else f"{name}.{tool.info.name}"
            place = OneTool(tool, called, config.version, config.alone, in_hand)
            if is_single:
                self.infos = (described(tool, called, config.version, self.address),)
                self.runner = runner_for(self, tool, called, alone=config.alone, in_hand=in_hand)
            else:
                ref = await self.spawn(ToolActor, place, name=tool.info.name, restart=Restart.PERMANENT)
                self.infos += (described(tool, called, config.version, ref.address),)
        if config.alone:
            self._watchdog = Watchdog(max(info.timeout for info in self.infos))
            loop = asyncio.get_running_loop()

            def over(error: ToolOverLimit) -> None:  # in the overseer's thread
                loop.call_soon_threadsafe(self.start_soon, self._end_over_limit, in_hand, error)

            self._overseer = Overseer(config.limits, lambda: bool(in_hand.tasks), over)

    async def _end_over_limit(self, in_hand: InHand, error: ToolOverLimit) -> None:
        """Those who wait are told why; then the process goes, and its supervisor starts it again."""
        in_hand.end_all(error)
        await in_hand.none_left(TELL_S)
        raise error

    async def stopped(self) -> None:
        if self._overseer is not None:
            self._overseer.end()
        if self._watchdog is not None:
            self._watchdog.end()
        if self.runner is not None:
            await self.runner.close()

    @handler(concurrent=True)
    async def describe(self, message: DescribeTool) -> ToolInfo:
        self.calls()
        return self.infos[0]

    def calls(self) -> ToolRunner:
        if self.runner is None:
            there = ", ".join(info.address for info in self.infos)
            raise NoSuchTool(f"{self.address} is a set of tools", hint=f"ask one of them: {there}")
        return self.runner

    @handler(concurrent=True)
    async def list_tools(self, message: ListTools) -> ToolList:
        return chosen(self.infos, message)

    @handler(concurrent=True)
    async def open_tool(self, message: OpenTool) -> ToolInfo:
        return newest(self.infos, message.name)
