"""The company's agents, offered to a host: a tool `agent_<planner>` for each way to plan, where agents run.

A run goes on when its host gives the call up, and may wait for a person for longer than any host does. So its id is
said first of all, and `agent_run` tells what has become of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import mcp_types

from ....runtime.errors import NoSuchActor
from ....runtime.foreign_schema import BadSchema, BadValue, ForeignSchema
from ....runtime.registry import PLANNERS, registry
from ....schemas.agent import AgentRun, AttachRun, Entry, GetRun, ListRuns, RunInfo
from ....schemas.agent_log import ApprovalAsked, Thought, ToolAnswered, ToolCalled
from ....schemas.agent_parts import Budget, RunStatus
from ..errors import ToolArguments
from .offered import Offer, Say, host_name

if TYPE_CHECKING:
    from ....runtime.client import Client

AGENTS = "agents"
LOOK_S = 5.0
MAX_STEPS = 100

_RUN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "task": {"type": "string", "description": "What is to be done, with all that the agent must know."},
        "tools": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Names of tools that it may use, as the company knows them; one may end in *.",
        },
        "max_steps": {"type": "integer", "minimum": 1, "maximum": MAX_STEPS, "description": "Calls at most."},
    },
    "required": ["task"],
    "additionalProperties": False,
}
_LOOK: dict[str, Any] = {
    "type": "object",
    "properties": {"run": {"type": "string", "description": "The id that a run was given."}},
    "required": ["run"],
    "additionalProperties": False,
}
_OUTPUT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "run": {"type": "string"},
        "status": {"enum": [status.value for status in RunStatus]},
        "answer": {"type": "string"},
        "why": {"type": "string"},
        "approvals": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["run", "status", "answer"],
}


class AgentSource:
    """Nothing is offered where the actor `agents` does not run: hosts start no agents of their own accord."""

    def __init__(self, bus: Client) -> None:
        self._bus = bus

    async def offers(self) -> list[Offer]:
        agents = self._bus.actor(AGENTS)
        try:
            await agents.ask(ListRuns(limit=1), LOOK_S)
        except NoSuchActor:
            return []
        found: dict[str, Offer] = {}
        for planner in registry().entries(PLANNERS):
            name = host_name(f"agent_{planner}", found)
            found[name] = RunOffer(self._bus, name, planner)
        look = LookOffer(self._bus)
        return [*found.values(), look]


class RunOffer:
    def __init__(self, bus: Client, name: str, planner: str) -> None:
        self._bus = bus
        self._planner = planner
        self.tool = mcp_types.Tool(
            name=name,
            title=f"Agent ({planner})",
            description=f"Give a task to an agent of the company, which plans by {planner} and may use tools. What its "
            "policy does not allow waits for a person. If this takes too long, the run goes on: see agent_run.",
            input_schema=_RUN,
            output_schema=_OUTPUT,
            annotations=mcp_types.ToolAnnotations(
                read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=True
            ),
        )

    async def call(self, arguments: dict[str, Any], say: Say) -> mcp_types.CallToolResult:
        _check(_RUN, arguments)
        request = AgentRun(
            planner=self._planner,
            task=arguments["task"],
            tools=tuple(arguments.get("tools", ())),
            budget=Budget(arguments.get("max_steps", MAX_STEPS)),
            detach=True,
        )
        agents = self._bus.actor(AGENTS)
        begun = await agents.ask(request, math.inf)
        await say(0.0, 0.0, f"run {begun.run}")
        return await follow(self._bus, begun.run, say)


class LookOffer:
    def __init__(self, bus: Client) -> None:
        self._bus = bus
        self.tool = mcp_types.Tool(
            name="agent_run",
            title="How a run of an agent stands",
            description="Look at a run of an agent by its id: whether it is over, its answer, what it waits for.",
            input_schema=_LOOK,
            output_schema=_OUTPUT,
            annotations=mcp_types.ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True),
        )

    async def call(self, arguments: dict[str, Any], say: Say) -> mcp_types.CallToolResult:
        _check(_LOOK, arguments)
        return result(await self._bus.actor(AGENTS).ask(GetRun(arguments["run"])))


async def follow(bus: Client, run: str, say: Say) -> mcp_types.CallToolResult:
    """Tell of a run's steps until it is over."""
    async with bus.actor(AGENTS).stream(AttachRun(run)) as entries:
        async for entry in entries:
            if words := told(entry):
                await say(float(entry.number), 0.0, words)
        return result(entries.result)


def told(entry: Entry) -> str:
    """An event in a line, "" where a host need not hear of it."""
    match entry.event:
        case Thought(text=text):
            return text
        case ToolCalled(tool=tool, arguments=arguments):
            return f"calls {tool} {arguments[:200]}"
        case ToolAnswered(outcome=outcome, text=text):
            return f"{outcome.value}: {text[:200]}"
        case ApprovalAsked(id=approval, tool=tool):
            return f"waits for a person: approval {approval} of {tool or 'a question'} (`callboard approvals`)"
        case _:
            return ""


def result(info: RunInfo) -> mcp_types.CallToolResult:
    structured = {
        "run": info.run,
        "status": info.status.value,
        "answer": info.answer,
        "why": info.why,
        "approvals": list(info.approvals),
    }
    waits = f" It waits for people: {', '.join(info.approvals)}." if info.approvals else ""
    text = info.answer or f"The run {info.run} is {info.status.value}. {info.why}{waits}".strip()
    failed = info.status is RunStatus.FAILED
    return mcp_types.CallToolResult(
        content=[mcp_types.TextContent(text=text)], structured_content=structured, is_error=failed
    )


def _check(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    try:
        ForeignSchema(schema).check(arguments)
    except (BadValue, BadSchema) as error:
        raise ToolArguments(f"the arguments do not fit: {error}") from None
