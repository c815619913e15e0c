"""Kind `tool.directory`, the actor `tools`: who offers which tools, and the starting of those that nobody runs yet.

It knows what installed packages announce, and finds the sets of tools that run anywhere on the bus. A caller asks it
once, and from then on the tool itself, so it costs a call nothing, however many tools there are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.census import seen_by
from ...runtime.errors import (
    ActorStopped,
    BusError,
    CallboardError,
    DeadlineExceeded,
    NameTaken,
    NoSuchActor,
    NotUnderstood,
)
from ...runtime.log import log
from ...runtime.placement import Process
from ...runtime.registry import TOOLS, registry
from ...runtime.settings import load_settings
from ...runtime.supervision import Restart, Supervision
from ...schemas.runtime import ActorInfo, Terminated
from ...schemas.tool import ListTools, OfferTools, OpenTool, ToolInfo, ToolList
from .describe import Described, Wanted, describe
from .errors import NoSuchTool, ToolDefinition
from .limits import ProcessLimits, split_limits
from .mcp.starting import start_configured, start_one
from .relevance import Ranking, chosen, newest, parse_name
from .sandbox.keeper import KeeperConfig, SessionKeeper
from .tool_set import ToolSetConfig, asks_of

KIND = "tool.directory"
ADDRESS = "tools"
SANDBOX, SESSIONS = "sandbox", "sessions"
# Roots of such a kind are asked for their tools.
_KINDS = "tool."
# Sets in processes of their own, started on other nodes, are announced by nobody: so often everybody is looked at.
LOOK_EVERY_S = 5.0
ASK_TIMEOUT_S = 5.0
# A set that is started again is back within this time, or is looked for as if it were new; nothing tells when it is.
COME_BACK_S = 60.0
COME_BACK_EVERY_S = 0.1
CHECK_TIMEOUT_S = 1.0
START_TIMEOUT_S = 120.0
_AWAY = (NoSuchActor, ActorStopped, DeadlineExceeded, BusError)


class DirectoryConfig(msgspec.Struct, frozen=True):
    """`options` of sets by their names, over those of the settings' tables `[tools.NAME]`. In both, `process` has the
    limits of a set's process (limits.py), and the rest is the set's own.

    With `announced`, it offers what installed packages announce beside what runs.
    """

    options: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    announced: bool = True


class Directory(Actor[DirectoryConfig]):
    # How often a set may crash is its own matter, and no reason for the directory to end.
    supervision = Supervision(max_restarts=1000, period_s=600.0, backoff_s=0.2, backoff_max_s=30.0)

    async def started(self) -> None:
        self._sets: dict[str, tuple[ToolInfo, ...]] = {}
        self._described: asyncio.Task[dict[str, Described]] | None = None
        self._starting: dict[str, asyncio.Task[tuple[ToolInfo, ...]]] = {}
        # Sets that are started anew, by address: what their tools' names begin with, and who waits for them.
        self._coming_back: dict[str, tuple[set[str], asyncio.Task[None]]] = {}
        self._learning: set[str] = set()
        # The sets that this directory started, by their names: the addresses.
        self._own: dict[str, str] = {}
        self._ranking: Ranking | None = None
        self._looked = False
        given = {**(self.node.settings or load_settings()).tools, **self.config.options}
        split = {name: split_limits(name, value) for name, value in given.items()}
        self._limits = {name: limits for name, (limits, _) in split.items()}
        options = {name: own for name, (_, own) in split.items()}
        if self.config.announced:
            options[SANDBOX] = await self._keeping_sessions(options.get(SANDBOX, {}))
        self._options = {name: msgspec.json.encode(value).decode() for name, value in options.items()}
        self._asks = {name: asks_of(value) for name, value in options.items()}
        self._entries = registry().entries(TOOLS) if self.config.announced else {}
        self.start_soon(self._follow)
        if self.config.announced:
            self.start_soon(start_configured, self)

    async def _keeping_sessions(self, options: dict[str, Any]) -> dict[str, Any]:
        """Those of the sandbox, with an actor that keeps its sessions for all nodes where they say nothing of that."""
        if {"keeper", "sessions", "keep_sessions"} & options.keys() or self.node.links is None:
            return options
        days = options.get("forget_days")
        config = KeeperConfig() if days is None else KeeperConfig(forget_days=float(days))
        keeper = await self.spawn(SessionKeeper, config, name=SESSIONS)
        return {**options, "keeper": keeper.address}

    async def stopped(self) -> None:
        back = (task for _, task in self._coming_back.values())
        for task in (self._described, *self._starting.values(), *back):
            if task is not None:
                task.cancel()

    # Asking

    @handler(concurrent=True)
    async def list_tools(self, message: ListTools) -> ToolList:
        if not self._looked:
            await self._look_around()
        await self._check(self._sets)
        tools = await self._all()
        if not message.query:
            return chosen(tools, message)
        if self._ranking is None or self._ranking.tools != tools:
            self._ranking = Ranking(tools)
        return chosen(tools, message, self._ranking)

    @handler(concurrent=True)
    async def open_tool(self, message: OpenTool) -> ToolInfo:
        """Raises NoSuchTool, and what the start of its set does."""
        name = parse_name(message.name)[0]
        own = name.partition(".")[0]
        for names, task in tuple(self._coming_back.values()):
            if own in names:
                await asyncio.shield(task)
        with contextlib.suppress(NoSuchTool):
            return await self._found(message.name)
        if "@" in message.name and own in self._sets:  # a set may run in several versions and list one
            with contextlib.suppress(NoSuchTool, NotUnderstood, *_AWAY):
                return await self.actor(own).ask(OpenTool(message.name), timeout=ASK_TIMEOUT_S)
        if own in self._entries:
            with contextlib.suppress(NoSuchTool):
                return newest(await self._start(own), message.name)
        await self._look_around()  # it may have come this moment
        with contextlib.suppress(NoSuchTool):
            return await self._found(message.name)
        return newest(await self._all(), message.name)  # which says what there is

    @handler(concurrent=True)
    async def offer(self, message: OfferTools) -> ToolList:
        """An MCP server that is configured and does not run is started. Raises ToolDefinition where nobody answers
        there, and what that start does."""
        await self._learn(message.address)
        if message.address not in self._sets and self.config.announced:
            with contextlib.suppress(NameTaken):  # it is about to be there
                await start_one(self, message.address)
            await self._learn(message.address)
        if message.address not in self._sets:
            raise ToolDefinition(f"nobody at {message.address} says which tools it has")
        return ToolList(self._sets[message.address], len(self._sets[message.address]))

    @handler
    async def terminated(self, event: Terminated) -> None:
        """What ends is offered no more, from this moment on."""
        known = self._sets.pop(event.address, ())
        if event.restarting and event.address not in self._coming_back:
            names = {event.address, *(info.name.partition(".")[0] for info in known)}
            task = asyncio.get_running_loop().create_task(self._come_back(event.address))
            self._coming_back[event.address] = names, task
            task.add_done_callback(lambda _: self._coming_back.pop(event.address, None))

    async def _found(self, name: str) -> ToolInfo:
        """One that runs and answers. Raises NoSuchTool."""
        while True:
            info = newest(self._running(), name)
            holders = [address for address, tools in self._sets.items() if info in tools]
            await self._check(holders)
            if any(info in self._sets.get(address, ()) for address in holders):
                return info

    async def _check(self, addresses: Iterable[str]) -> None:
        """See that sets are still there, and which tools they have by now.

        A process that nobody supervises and that was killed says nothing of its end, and is missed only after a while.
        """
        await asyncio.gather(*map(self._check_one, tuple(addresses)))

    async def _check_one(self, address: str) -> None:
        try:
            found = await self.actor(address).ask(ListTools(), timeout=CHECK_TIMEOUT_S)
        except (NoSuchActor, ActorStopped):
            self._sets.pop(address, None)
        except CallboardError as error:  # it may only be busy
            log.debug("whether %s is there is not known: %s", address, error)
        else:
            if address in self._sets:
                self._sets[address] = found.tools

    def _running(self) -> list[ToolInfo]:
        return [info for address in sorted(self._sets) for info in self._sets[address]]

    async def _all(self) -> tuple[ToolInfo, ...]:
        """What runs, and what is announced and would be started."""
        running = self._running()
        there = {(info.name, info.version) for info in running}
        announced = [info for found in (await self._announced()).values() for info in found.tools]
        more = [info for info in announced if (info.name, info.version) not in there]
        return tuple(sorted([*running, *more], key=lambda info: (info.name, info.version, info.address)))

    async def _announced(self) -> dict[str, Described]:
        """By the name of the set. They are described once, by a process that loads them all."""
        if self._described is None:
            self._described = asyncio.get_running_loop().create_task(self._describe())
        return await asyncio.shield(self._described)

    async def _describe(self) -> dict[str, Described]:
        found = await describe([Wanted(name, self._options.get(name, "")) for name in self._entries])
        for each in found:
            if each.error is not None:
                log.warning("the tools '%s' are not offered: %s", each.name, each.error.message)
        return {each.name: each for each in found}

    # Starting

    async def _start(self, name: str) -> tuple[ToolInfo, ...]:
        """Start an announced set, once for all who ask for it meanwhile."""
        task = self._starting.get(name)
        if task is None:
            task = self._starting[name] = asyncio.get_running_loop().create_task(self._start_one(name))
            task.add_done_callback(lambda _: self._starting.pop(name, None))
        return await asyncio.shield(task)

    async def _start_one(self, name: str) -> tuple[ToolInfo, ...]:
        own = self._own.get(name)
        if own is not None and own in self.node.actors:  # it is on its way back from a crash
            await self._come_back(own)
            return self._sets.get(own, ())
        limits = self._limits.get(name, ProcessLimits())
        config = ToolSetConfig(name, name, options=self._options.get(name, ""), alone=True, limits=limits)
        where = Process(role="tool", ready_timeout=START_TIMEOUT_S, asks=self._asks.get(name, ()))
        try:
            ref = await self.spawn("tool.set", config, name=name, where=where, restart=Restart.PERMANENT)
        except NameTaken:
            # Some other actor of the company has that name; the tools keep theirs.
            ref = await self.spawn("tool.set", config, name=f"tool-{name}", where=where, restart=Restart.PERMANENT)
        self._own[name] = ref.address
        await self._learn(ref.address)
        return self._sets.get(ref.address, ())

    # Finding

    async def _follow(self) -> None:
        """Look at each node that comes or changes, and at all of them now and then."""
        seen: dict[str, tuple[int, tuple[str, ...]]] = {}
        all_at = float("-inf")
        loop = asyncio.get_running_loop()
        while True:
            links = self.node.links
            known = self._nodes()
            if loop.time() - all_at >= LOOK_EVERY_S:
                all_at = loop.time()
                await self._look_around()
            else:
                await asyncio.gather(*(self._look_at(node) for node in known if seen.get(node) != known[node]))
            seen = known
            if links is None:
                await asyncio.sleep(LOOK_EVERY_S)  # its own period: a node that is alone has no news
            elif self._nodes() == seen:  # else there was news meanwhile
                await links.peers.news(LOOK_EVERY_S)

    def _nodes(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """The other nodes, as they last said: process and roots."""
        links = self.node.links
        return {n: (h.info.pid, h.info.roots) for n, h in (links.peers.known if links is not None else {}).items()}

    async def _look_around(self) -> None:
        links = self.node.links
        nodes = tuple(links.peers.known) if links is not None else ()
        await asyncio.gather(self._look_here(), *(self._look_at(node) for node in nodes))
        self._looked = True

    async def _look_here(self) -> None:
        await self._learn_all([child.info() for child in tuple(self.node.actors.values())])

    async def _look_at(self, node: str) -> None:
        with contextlib.suppress(BusError):
            await self._learn_all(await seen_by(self.node, (node,)))

    async def _learn_all(self, actors: list[ActorInfo]) -> None:
        new = {
            info.address: info.state
            for info in actors
            if info.kind.startswith(_KINDS)
            and info.kind != KIND
            and "." not in info.address
            and info.address not in self._sets
        }
        for address, state in new.items():
            # It answers once it is there, and nobody is to wait for that.
            if state == "starting" and address not in self._learning:
                self.start_soon(self._learn, address)
        # Asked of those that somebody else is just asking too: who looks for a tool is to find it afterwards.
        await asyncio.gather(*(self._learn(address) for address, state in new.items() if state == "running"))

    async def _learn(self, address: str) -> None:
        """Ask for the tools of a set, and watch it."""
        self._learning.add(address)
        try:
            found = await self.actor(address).ask(ListTools(), timeout=ASK_TIMEOUT_S)
        except CallboardError as error:
            if isinstance(error, (NoSuchActor, ActorStopped)):
                self._sets.pop(address, None)
            log.debug("what tools %s has is not known: %s", address, error)
            return
        finally:
            self._learning.discard(address)
        self._sets[address] = found.tools
        await self.watch(address)

    async def _come_back(self, address: str) -> None:
        until = asyncio.get_running_loop().time() + COME_BACK_S
        while address not in self._sets and asyncio.get_running_loop().time() < until:
            await self._learn(address)
            if address not in self._sets:
                await asyncio.sleep(COME_BACK_EVERY_S)  # nothing tells when it is there
