"""The three planners on the real small model. It is weak, so what it answers may be anything; that it cannot leave the
format, that its tools are called as their schemas say, and that each run comes to an end, may not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agent_play import events_of, until_over
from own_server import OwnServer

from callboard.actors.agent.react_text import read_turn
from callboard.actors.agent.runs import Runs
from callboard.actors.models.store import ModelStore
from callboard.actors.serve.engine import Engine, EngineConfig
from callboard.runtime.actor import Actor, NoConfig, handler
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.schemas.agent import AgentRun
from callboard.schemas.agent_log import ModelAnswered, Planned, Thought, ToolAnswered, ToolCalled
from callboard.schemas.agent_parts import Budget, RunStatus
from callboard.schemas.tool import (
    CallTool,
    ListTools,
    OpenTool,
    ToolAnnotations,
    ToolInfo,
    ToolList,
    ToolProgress,
    ToolResult,
)

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(240)]

ADD = ToolInfo(
    "add",
    "Adds two whole numbers.",
    '{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},"required":["a","b"]}',
    '{"type":"integer"}',
    ToolAnnotations(read_only=True, idempotent=True),
    "tools",
)


class Adder(Actor[NoConfig]):
    """The directory, and its one tool."""

    @handler(concurrent=True)
    async def list_all(self, message: ListTools) -> ToolList:
        return ToolList((ADD,))

    @handler(concurrent=True)
    async def open(self, message: OpenTool) -> ToolInfo:
        return ADD

    @handler(concurrent=True)
    async def call(self, message: CallTool) -> AsyncIterator[ToolProgress | ToolResult]:
        numbers: dict[str, Any] = json.loads(message.arguments)
        total = str(numbers["a"] + numbers["b"])
        yield ToolResult(total, total)


@pytest.fixture
async def node(server: OwnServer) -> AsyncIterator[Node]:
    models = Path.home() / ".cache" / "callboard-test" / "models"
    ModelStore(models).pull("smollm2")
    async with Node(bus=BusOptions(server.url)) as node:
        await node.spawn(Adder, name="tools")
        await node.spawn(Engine, EngineConfig(model="smollm2", models_folder=str(models)), name="engine")
        await node.spawn(Runs, name="agents")
        yield node


def request(planner: str, task: str, **options: Any) -> AgentRun:
    return AgentRun(
        planner=planner,
        task=task,
        tools=("add",),
        budget=Budget(6),
        max_tokens=300,
        options=json.dumps(options),
    )


async def test_react(node: Node) -> None:
    info = await until_over(node, request("react", "Add 17 and 25 with the tool, then give the sum."), timeout=200)
    assert info.status in (RunStatus.FINISHED, RunStatus.STOPPED), (info.why, info.answer)
    events = await events_of(node, info.run)
    answers = [event for event in events if isinstance(event, ModelAnswered)]
    assert answers
    for answer in answers:
        turn = read_turn(answer.text)
        assert turn.thought
        assert turn.answer is not None or turn.action == "add"
    called = [event for event in events if isinstance(event, ToolCalled)]
    for event in called:
        assert set(json.loads(event.arguments)) == {"a", "b"}
    assert all(event.outcome.value == "ok" for event in events if isinstance(event, ToolAnswered))


async def test_react_by_the_models_own_tool_calls(node: Node) -> None:
    """The engine takes calls out of the text; a weak model may well make none, or bad ones, which it is told."""
    info = await until_over(node, request("react", "Add 17 and 25 with the tool.", native=True), timeout=200)
    assert info.status in (RunStatus.FINISHED, RunStatus.STOPPED), (info.why, info.answer)
    events = await events_of(node, info.run)
    assert any(isinstance(event, ModelAnswered) for event in events)
    for event in events:
        if isinstance(event, ToolCalled):
            assert set(json.loads(event.arguments)) == {"a", "b"}


async def test_rewoo(node: Node) -> None:
    info = await until_over(node, request("rewoo", "What is 17 + 25? Use add."), timeout=200)
    events = await events_of(node, info.run)
    assert info.status in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.STOPPED), info
    answers = [event for event in events if isinstance(event, ModelAnswered)]
    assert answers[0].text.startswith("Plan: ")
    # A plan may name evidence that there is not, which no grammar rules out; that is said, and bounded.
    planned = any(isinstance(event, Planned) for event in events)
    assert planned or "plan" in info.why


async def test_autogpt(node: Node) -> None:
    info = await until_over(
        node, request("autogpt", "Add 17 and 25.", goals=["Say the sum."], continuous=True), timeout=200
    )
    assert info.status in (RunStatus.FINISHED, RunStatus.STOPPED), (info.why, info.answer)
    events = await events_of(node, info.run)
    kinds = {event.kind for event in events if isinstance(event, Thought)}
    assert kinds >= {"thought", "criticism"}
    for answer in (event for event in events if isinstance(event, ModelAnswered)):
        assert json.loads(answer.text)["command"]["name"] in ("add", "finish")
