"""An agent whose model is behind HTTP: by the model's own tool calls, through its faults, and as spans afterwards."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from agent_play import Shown, Tools, events_of, until_over
from own_server import OwnServer
from unit_helpers import unit_helper

from callboard.actors.agent.following import show
from callboard.actors.agent.runs import Runs
from callboard.actors.agent.upstream.actor import Upstream
from callboard.actors.agent.upstream.config import Api, UpstreamConfig
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.schemas.agent import AgentRun
from callboard.schemas.agent_log import ModelFailed
from callboard.schemas.agent_parts import Effect, PolicyRule, RunStatus
from callboard.schemas.upstream import GetUpstreamStats

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def http() -> ModuleType:
    """The tests' own HTTP endpoint."""
    return unit_helper("agent/endpoint.py")


@pytest.fixture
def endpoint(http: ModuleType) -> Iterator[Any]:
    with http.serving() as web:
        yield web.fresh()


@pytest.fixture
async def node(server: OwnServer, tmp_path: Path) -> AsyncIterator[Node]:
    async with Node(bus=BusOptions(server.url)) as node:
        await node.spawn(Tools, Shown(str(tmp_path / "witness")), name="tools")
        await node.spawn(Runs, name="agents")
        yield node


def react(**options: object) -> AgentRun:
    return AgentRun(
        planner="react",
        task="look around",
        model_address="gpt",
        tools=("look",),
        options=json.dumps(options),
        rules=(PolicyRule(effect=Effect.ALLOW),),
    )


@pytest.mark.parametrize("api", [Api.OPENAI, Api.ANTHROPIC])
async def test_react_by_native_tool_calls_through_a_fault(
    node: Node, endpoint: Any, http: ModuleType, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    if api is Api.OPENAI:
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"n": 7}'}}
        asks = http.Play(pieces=(http.chunk({"tool_calls": [call]}), http.chunk(finish="tool_calls"), http.DONE))
        answers = http.openai_text("I saw ", "it.", prompt=50, completion=5)
    else:
        asks = http.Play(pieces=http.anthropic_events(http.call_block("c1", "look", '{"n": 7}'), stop="tool_use"))
        answers = http.Play(pieces=http.anthropic_events(http.text_block("I saw ", "it.")))
    endpoint.plays = [asks, http.Play(503, body="busy"), answers]
    config = UpstreamConfig(model="m", base_url=endpoint.url, api=api, backoff_s=0.01, completion_price=1e6)
    model = await node.spawn(Upstream, config, name="gpt")
    info = await until_over(node, react(native=True))
    assert (info.status, info.answer) == (RunStatus.FINISHED, "I saw it.")
    stats = await model.ask(GetUpstreamStats())
    assert stats.retries == 1
    assert info.spent.cost == pytest.approx(stats.cost)
    assert info.spent.completion_tokens == stats.completion_tokens > 0
    # What the tool gave went back as the answer to the model's own call.
    said = json.dumps(endpoint.came[-1].body["messages"])
    assert "look 7" in said
    assert "c1" in said
    endpoint.plays = [http.Play(body={})]
    assert await show(node.actor("agents"), info.run, False, True, endpoint.url.removesuffix("/v1")) == 0
    assert "4 spans sent" in capsys.readouterr().err
    spans = endpoint.came[-1].body["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert [span["name"] for span in spans] == ["invoke_agent react", "chat gpt", "execute_tool look", "chat gpt"]
    # The prompts are made again from the run's events.
    (asked,) = [one["value"]["stringValue"] for one in spans[1]["attributes"] if one["key"] == "gen_ai.input.messages"]
    assert "look around" in asked


@pytest.mark.parametrize("api", [Api.OPENAI, Api.ANTHROPIC, Api.VLLM])
async def test_planners_ask_a_model_for_nothing_that_its_api_cannot_do(
    node: Node, endpoint: Any, http: ModuleType, api: Api
) -> None:
    def says(text: str) -> Any:
        if api is Api.ANTHROPIC:
            return http.Play(pieces=http.anthropic_events(http.text_block(text)))
        return http.openai_text(text)

    await node.spawn(Upstream, UpstreamConfig(model="m", base_url=endpoint.url, api=api), name="gpt")
    by_text = api is Api.VLLM  # which takes any grammar
    endpoint.plays = [says("Thought: easy\nFinal Answer: done" if by_text else "done")]
    info = await until_over(node, react())
    assert (info.status, info.answer) == (RunStatus.FINISHED, "done")
    body = endpoint.came[-1].body
    assert ("tools" in body, "structured_outputs" in body) == (not by_text, by_text)
    turn = '{"thoughts": {"text": "easy"}, "command": {"name": "finish", "args": {"answer": "done"}}}'
    endpoint.plays = [says(turn)]
    info = await until_over(node, msgspec.structs.replace(react(), planner="autogpt"))
    assert (info.status, info.answer) == (RunStatus.FINISHED, "done")
    body = endpoint.came[-1].body
    assert body.get("response_format") == ({"type": "json_object"} if api is Api.OPENAI else None)
    endpoint.plays = [says('Plan: look\n#E1 = look[{"n": 1}]\n'), says("seen")]
    info = await until_over(node, msgspec.structs.replace(react(), planner="rewoo"))
    assert (info.status, info.answer) == (RunStatus.FINISHED, "seen")


async def test_a_model_that_cannot_be_asked_ends_the_run_with_its_reason(
    node: Node, endpoint: Any, http: ModuleType
) -> None:
    endpoint.plays = [http.Play(401, body={"error": {"message": "bad key"}})]
    await node.spawn(Upstream, UpstreamConfig(model="m", base_url=endpoint.url), name="gpt")
    info = await until_over(node, react(native=True))
    assert info.status is RunStatus.FAILED
    assert "bad key" in info.why
    failed = next(event for event in await events_of(node, info.run) if isinstance(event, ModelFailed))
    assert failed.code == "upstream.auth"
    assert failed.hint
    # A grammar that this API cannot hold an answer to is refused, and says what to do.
    info = await until_over(node, msgspec.structs.replace(react(constrained=True), task="by text"))
    assert info.status is RunStatus.FAILED
    assert "grammar" in info.why
