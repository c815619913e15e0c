"""Who plays in the benchmark of agents: tools that do nothing or take a while, and planners without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from ...runtime.actor import Actor, NoConfig, handler
from ...runtime.bus import BusOptions
from ...runtime.node import Node
from ...runtime.refs import Ref
from ...schemas.agent import AgentRun, AttachRun, RunInfo
from ...schemas.agent_parts import Budget, RunStatus
from ...schemas.tool import CallTool, ListTools, OpenTool, ToolAnnotations, ToolInfo, ToolList, ToolResult
from ..agent.log import RunLog
from ..agent.planner import Call, Decision, Finish, Planner, ToolCalls
from ..agent.runs import Runs
from .errors import AgentsFailed

MODULE = "callboard.actors.bench.agents_company"
TIMEOUT_S = 300.0
# No run of a benchmark ends by its budget.
ENDLESS = Budget(0)
# Past every event of a run, so that nothing but its end is heard.
AT_THE_END = 1 << 40

_QUERY = '{"type":"object","properties":{"query":{"type":"string"}},"required":["query"]}'
_TEXT = '{"type":"string"}'
# What LangGraph promises of a node: it may run again when its process died before the next checkpoint.
_REPEATABLE = ToolAnnotations(read_only=True, destructive=False, idempotent=True, open_world=False)
TOOLS = {
    name: ToolInfo(name, text, _QUERY, _TEXT, _REPEATABLE, f"tools.{name}", concurrency=1024)
    for name, text in (("nothing", "Does nothing."), ("search", "Searches for a text."))
}

SEARCH_S = 0.4
# A result is about as long as a snippet that a search engine shows, however long the question was.
FOUND_WORDS = 20
SUBJECT_CHARACTERS = 18


def found(query: str) -> str:
    """What the search finds: always the same for the same words."""
    subject = query[:SUBJECT_CHARACTERS]
    return f"About {subject}: " + " ".join(f"{subject}-{number}" for number in range(FOUND_WORDS))


class Tools(Actor[NoConfig]):
    """The directory, and above its tools."""

    async def started(self) -> None:
        await self.spawn(Nothing, name="nothing")
        await self.spawn(Search, name="search")

    @handler(concurrent=True)
    async def list_all(self, message: ListTools) -> ToolList:
        return ToolList(tuple(TOOLS.values()))

    @handler(concurrent=True)
    async def open(self, message: OpenTool) -> ToolInfo:
        return TOOLS[message.name]


class Nothing(Actor[NoConfig]):
    @handler(concurrent=True)
    async def call(self, message: CallTool) -> AsyncIterator[ToolResult]:
        yield ToolResult('""', "")


class Search(Actor[NoConfig]):
    """Takes `SEARCH_S`, as something far away would."""

    @handler(concurrent=True)
    async def call(self, message: CallTool) -> AsyncIterator[ToolResult]:
        query = msgspec.json.decode(message.arguments, type=dict[str, str])["query"]
        await asyncio.sleep(SEARCH_S)
        text = found(query)
        yield ToolResult(msgspec.json.encode(text).decode(), text)


class Count(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    steps: int


class Loop(Planner):
    """A tool call after the other, so many times."""

    options = Count

    def decide(self, log: RunLog) -> Decision:
        done = len(log.steps)
        if done >= log.options(Count).steps:
            return Finish(str(done))
        return ToolCalls((Call("nothing", f'{{"query":"{done}"}}'),))


class Asks(Planner):
    """One tool call that a person is to approve."""

    def decide(self, log: RunLog) -> Decision:
        return Finish("") if log.steps else ToolCalls((Call("nothing", '{"query":"x"}', ask=True),))


def looping(steps: int) -> AgentRun:
    options = msgspec.json.encode(Count(steps)).decode()
    return AgentRun(
        planner=f"{MODULE}:Loop", task="count", tools=("nothing",), budget=ENDLESS, options=options, detach=True
    )


def asking() -> AgentRun:
    return AgentRun(planner=f"{MODULE}:Asks", task="ask", tools=("nothing",), detach=True)


@asynccontextmanager
async def company(url: str) -> AsyncIterator[Node]:
    """A node with the tools and the actor `agents`, all in this process, as LangGraph's steps are in its own."""
    async with Node("bench-agents", bus=BusOptions(url), allow=(MODULE,)) as node:
        await node.spawn(Tools, name="tools")
        await node.spawn(Runs, name="agents")
        yield node


async def until_over(agents: Ref, request: AgentRun) -> RunInfo:
    """Start it, and hear of nothing but its end. Raises AgentsFailed for any end but a finish."""
    begun = await agents.ask(request, TIMEOUT_S)
    info = await agents.ask(AttachRun(begun.run, AT_THE_END), TIMEOUT_S)
    if info.status is not RunStatus.FINISHED:
        raise AgentsFailed(f"the run {info.run} ended as {info.status}: {info.why}")
    return info


async def loop_for(agents: Ref, steps: int) -> RunInfo:
    """A run of so many steps, all of them done."""
    info = await until_over(agents, looping(steps))
    if info.spent.steps != steps or info.answer != str(steps):
        raise AgentsFailed(f"{info.spent.steps} of {steps} steps were done")
    return info
