"""Runs as OpenTelemetry spans: the tree, the attributes' names, what is left out, and a collector over real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from endpoint import Endpoint, Play

from callboard.actors.agent.log import RunLog
from callboard.actors.agent.otel import otlp, span_id, spans_of, trace_id
from callboard.actors.agent.otel_export import export_run
from callboard.runtime.actor import Actor, NoConfig, handler
from callboard.runtime.errors import ConfigError
from callboard.runtime.node import Node
from callboard.runtime.otlp_http import ExportFailed, headers_of, traces_url
from callboard.schemas.agent import AttachRun, RunInfo
from callboard.schemas.agent_log import (
    AnyEvent,
    ApprovalAsked,
    ApprovalGiven,
    Entry,
    ModelAnswered,
    ModelCalled,
    ModelFailed,
    ModelRequest,
    RunEnded,
    RunStarted,
    ToolAnswered,
    ToolCalled,
)
from callboard.schemas.agent_parts import ApprovalKind, Outcome, RunStatus, Verdict
from callboard.schemas.serve import ChatMessage, ModelToolCall, Usage

pytestmark = pytest.mark.anyio

# Every name of the conventions that a run may have: whatever else begins with `gen_ai.` is a mistake.
KNOWN = {
    "gen_ai.agent.name",
    "gen_ai.conversation.id",
    "gen_ai.input.messages",
    "gen_ai.operation.name",
    "gen_ai.output.messages",
    "gen_ai.provider.name",
    "gen_ai.request.max_tokens",
    "gen_ai.request.model",
    "gen_ai.request.seed",
    "gen_ai.request.stop_sequences",
    "gen_ai.request.temperature",
    "gen_ai.response.finish_reasons",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.id",
    "gen_ai.tool.call.result",
    "gen_ai.tool.name",
    "gen_ai.tool.type",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
}

EVENTS: tuple[AnyEvent, ...] = (
    RunStarted(at=100.0, planner="react", task="the secret task", model="m", seed=0, session="s"),
    ModelCalled(at=100.5, step="m1"),
    ModelAnswered(at=102.0, step="m1", text="I look", usage=Usage(10, 5, 4), cost=0.25),
    ApprovalAsked(at=102.5, id="a1", step="t2", kind=ApprovalKind.TOOL, tool="files.read", arguments="{}"),
    ApprovalGiven(at=110.0, id="a1", step="t2", verdict=Verdict.APPROVE, by="ann"),
    ToolCalled(at=110.5, step="t2", tool="files.read", arguments='{"path": "x"}', child="r1.t2"),
    ToolAnswered(at=111.0, step="t2", outcome=Outcome.OK, text="the contents", value='"the contents"'),
    ToolAnswered(at=111.5, step="t3", outcome=Outcome.DENIED, text="no", code="denied", tool="wipe", arguments="{}"),
    ModelCalled(at=112.0, step="m4"),
    ModelFailed(at=113.0, step="m4", code="upstream.timeout", text="nobody answered"),
    ToolCalled(at=113.5, step="t5", tool="hang", arguments="{}"),
    RunEnded(at=114.0, status=RunStatus.FAILED, answer="so far", why="the model failed", code="agent.gave_up"),
)


PROMPT = ModelRequest(
    messages=(
        ChatMessage("user", "look"),
        ChatMessage("assistant", "", (ModelToolCall("c", "look"),)),
        ChatMessage("tool", "seen", tool_call_id="c"),
    ),
    stop=("END",),
)


def value(given: dict[str, Any]) -> Any:
    ((kind, inner),) = given.items()
    if kind == "intValue":
        return int(inner)
    return [value(one) for one in inner["values"]] if kind == "arrayValue" else inner


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {one["key"]: value(one["value"]) for one in span["attributes"]}


def test_a_run_is_a_tree_of_spans_with_the_conventions_names() -> None:
    spans = spans_of(RunLog("r1", EVENTS))
    run, model, tool, denied, failed = spans
    assert [span["name"] for span in spans] == [
        "invoke_agent react",
        "chat m",
        "execute_tool files.read",
        "execute_tool wipe",
        "chat m",
    ]
    assert {span["traceId"] for span in spans} == {trace_id("r1")}
    assert len({span["spanId"] for span in spans}) == 5
    assert "parentSpanId" not in run
    assert {span["parentSpanId"] for span in spans[1:]} == {run["spanId"]}
    for span in spans:
        assert {key for key in attributes(span) if key.startswith("gen_ai.")} <= KNOWN
        assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
        assert (len(span["traceId"]), len(span["spanId"])) == (32, 16)
    assert (model["kind"], tool["kind"]) == (3, 1)
    assert (model["startTimeUnixNano"], model["endTimeUnixNano"]) == ("100500000000", "102000000000")
    assert tool["startTimeUnixNano"] == "110500000000"  # a person's time is not the tool's
    said = attributes(model)
    assert said["gen_ai.usage.input_tokens"] == 10
    assert said["gen_ai.usage.cache_read.input_tokens"] == 4
    assert said["gen_ai.response.finish_reasons"] == ["stop"]
    assert (said["gen_ai.request.seed"], said["callboard.cost"]) == (0, 0.25)
    assert attributes(run)["gen_ai.usage.output_tokens"] == 5
    assert attributes(failed)["error.type"] == "upstream.timeout"
    assert failed["status"] == {"code": 2, "message": "nobody answered"}
    assert attributes(denied)["error.type"] == "denied"
    assert (attributes(run)["error.type"], run["status"]["message"]) == ("agent.gave_up", "the model failed")
    assert [event["name"] for event in run["events"]] == [
        "callboard.approval_asked",
        "callboard.approval_given",
        "callboard.ended",
    ]


def test_what_was_said_is_left_out_unless_asked_for() -> None:
    bare = json.dumps(spans_of(RunLog("r1", EVENTS)))
    for words in ("secret task", "I look", "contents", '"x\\"', "so far"):
        assert words not in bare
    run, model, tool, *_ = spans_of(RunLog("r1", EVENTS), content=True, prompts={"m1": PROMPT})
    (message,) = json.loads(attributes(run)["gen_ai.input.messages"])
    assert message == {"role": "user", "parts": [{"type": "text", "content": "the secret task"}]}
    assert json.loads(attributes(model)["gen_ai.output.messages"])[0]["finish_reason"] == "stop"
    assert json.loads(attributes(model)["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "look"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "look", "arguments": "{}"}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": "seen"}]},
    ]
    assert attributes(model)["gen_ai.request.stop_sequences"] == ["END"]
    assert attributes(tool)["gen_ai.tool.call.arguments"] == '{"path": "x"}'
    assert attributes(tool)["gen_ai.tool.call.result"] == '"the contents"'


def test_a_child_run_hangs_below_the_call_that_started_it() -> None:
    child = RunStarted(at=110.6, planner="rewoo", task="part", parent="r1", parent_step="t2")
    (span,) = spans_of(RunLog("r1.t2", [child]))
    assert span["traceId"] == trace_id("r1")
    assert span["parentSpanId"] == span_id("r1", "t2") == spans_of(RunLog("r1", EVENTS))[2]["spanId"]
    assert span["status"] == {"code": 0}
    assert spans_of(RunLog("r2", [])) == []


class Known(Actor[NoConfig]):
    """The runs r1 and its child, as `agents` tells them."""

    @handler(concurrent=True)
    async def attach(self, message: AttachRun) -> AsyncIterator[Entry | RunInfo]:
        child = RunStarted(at=110.6, planner="rewoo", task="part", parent="r1", parent_step="t2")
        for number, event in enumerate(EVENTS if message.run == "r1" else (child,), 1):
            yield Entry(message.run, number, event)
        yield RunInfo(run=message.run, planner="react", task="", status=RunStatus.FAILED)


async def test_a_run_and_its_children_go_to_a_collector(
    node: Node, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b,authorization=Bearer k")
    endpoint.plays = [Play(body={"partialSuccess": {}})]
    agents = await node.spawn(Known, name="agents")
    where = endpoint.url.removesuffix("/v1")
    assert await export_run(agents, "r1", where, version="1.2") == 6
    (came,) = endpoint.came
    assert came.path == "/v1/traces"
    assert (came.headers["x-tenant"], came.headers["content-type"]) == ("a b", "application/json")
    (resource,) = came.body["resourceSpans"]
    (scope,) = resource["scopeSpans"]
    assert scope["scope"] == {"name": "callboard.agent", "version": "1.2"}
    assert scope["spans"] == [*spans_of(RunLog("r1", EVENTS)), scope["spans"][-1]]
    assert came.body == otlp(scope["spans"], "1.2")


@pytest.mark.parametrize(
    "play",
    [
        Play(503, body="busy"),
        Play(body={"partialSuccess": {"rejectedSpans": "2", "errorMessage": "too old"}}),
    ],
)
async def test_a_collector_that_does_not_take_them_is_an_error(node: Node, endpoint: Endpoint, play: Play) -> None:
    endpoint.plays = [play]
    agents = await node.spawn(Known, name="agents")
    with pytest.raises(ExportFailed, match=r"busy|2 spans: too old"):
        await export_run(agents, "r1", endpoint.url.removesuffix("/v1"), headers={})
    with pytest.raises(ExportFailed, match="no answer"):
        await export_run(agents, "r1", "http://127.0.0.1:1", headers={})


def test_a_collector_s_address_and_headers_are_read_as_its_sdks_read_them() -> None:
    assert traces_url("http://h:4318") == "http://h:4318/v1/traces"
    assert traces_url("https://h/otlp/") == "https://h/otlp/v1/traces"
    assert traces_url("https://h/v1/traces") == "https://h/v1/traces"
    with pytest.raises(ConfigError):
        traces_url("localhost:4318")
    assert headers_of({}) == {}
