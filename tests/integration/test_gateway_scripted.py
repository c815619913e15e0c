"""What a model writes and a small one does not: thoughts, several calls at once, errors that pass. OpenAI's client
and Anthropic's hear of it as from their own servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from gateways import gateway

from callboard.actors.agent.scripted import Scripted, ScriptedConfig
from callboard.runtime.actor import handler
from callboard.runtime.node import Node
from callboard.schemas.scripted import CallOutcome, GetScriptedCalls, ScriptedAnswer
from callboard.schemas.serve import DescribeModel, ModelDescription, ModelToolCall

pytestmark = pytest.mark.anyio

SAY: Any = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CALLS = tuple(
    ModelToolCall(f"call_{n}", "weather", json.dumps({"city": city})) for n, city in enumerate(("Oslo", "Delft"))
)
THOUGHT = "<think>\nIt is a greeting.\n</think>\n\nGood day."


class Described(Scripted):
    """A script that a gateway finds as it finds an engine."""

    @handler(concurrent=True)
    async def describe(self, message: DescribeModel) -> ModelDescription:
        return ModelDescription(
            model="scripted", dtype="float32", context_length=4096, default_max_tokens=512, vocab_size=256,
            has_chat_template=True, tool_format="hermes", eos_id=None, adapters=(), started=0.0,
        )  # fmt: skip


async def scripted(node: Node, *answers: ScriptedAnswer) -> None:
    await node.spawn(Described, ScriptedConfig(answers=answers, piece_characters=3), name="model")


@pytest.fixture
async def url(node: Node) -> AsyncIterator[str]:
    async with gateway(node, models={"scripted": "model"}) as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2, timeout=30) as client:
        yield client


async def test_what_a_model_thinks_aloud_is_no_part_of_its_answer(node: Node, client: openai.AsyncOpenAI) -> None:
    await scripted(node, ScriptedAnswer(text=THOUGHT, times=0))
    whole = await client.chat.completions.create(model="scripted", messages=SAY)
    message: Any = whole.choices[0].message
    assert (message.reasoning_content.strip(), message.content) == ("It is a greeting.", "Good day.")
    thoughts = content = ""
    async for chunk in await client.chat.completions.create(model="scripted", messages=SAY, stream=True):
        for choice in chunk.choices:
            delta: Any = choice.delta
            thoughts += getattr(delta, "reasoning_content", None) or ""
            content += delta.content or ""
    assert (thoughts.strip(), content) == ("It is a greeting.", "Good day.")


async def test_several_tools_are_called_at_once_unless_that_is_not_wanted(
    node: Node, client: openai.AsyncOpenAI
) -> None:
    await scripted(node, ScriptedAnswer(tool_calls=CALLS, times=0))
    options: Any = {"model": "scripted", "messages": SAY, "tools": [WEATHER]}
    whole = await client.chat.completions.create(**options)
    assert whole.choices[0].finish_reason == "tool_calls"
    assert [(call.id, call.type) for call in whole.choices[0].message.tool_calls or ()] == [
        ("call_0", "function"),
        ("call_1", "function"),
    ]
    async with client.chat.completions.stream(**options) as events:  # the client itself puts the pieces together
        final = await events.get_final_completion()
    cities = [json.loads(call.function.arguments)["city"] for call in final.choices[0].message.tool_calls or ()]
    assert cities == ["Oslo", "Delft"]
    one = await client.chat.completions.create(**options, parallel_tool_calls=False)
    assert [call.id for call in one.choices[0].message.tool_calls or ()] == ["call_0"]


async def test_what_passes_is_asked_again_by_the_clients_themselves(
    node: Node, client: openai.AsyncOpenAI, url: str
) -> None:
    full = ScriptedAnswer(error="serve.overloaded", text="the queue is full")
    await scripted(node, full, ScriptedAnswer(text="now"), full, ScriptedAnswer(text="now too"), full, full, full)
    said = await client.chat.completions.create(model="scripted", messages=SAY)
    assert said.choices[0].message.content == "now"
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=2, timeout=30) as other:
        message = await other.messages.create(model="scripted", messages=SAY, max_tokens=9)
        assert message.content[0].type == "text"
        assert message.content[0].text == "now too"
    with pytest.raises(openai.RateLimitError, match="the queue is full") as refused:
        await client.chat.completions.create(model="scripted", messages=SAY)
    assert float(refused.value.response.headers["retry-after"]) > 0
    assert (await node.actor("model").ask(GetScriptedCalls())).total == 7


CUT = ScriptedAnswer(pieces=("Begun ", "and never ended"), hold="never")
# Of each API: its path, what is asked, and where in an event's data the text grows.
STREAMS: dict[str, tuple[str, dict[str, Any], Callable[[Any], str]]] = {
    "chat": (
        "/v1/chat/completions",
        {"model": "scripted", "messages": SAY, "stream": True},
        lambda data: "".join(choice["delta"].get("content") or "" for choice in data["choices"]),
    ),
    "completions": (
        "/v1/completions",
        {"model": "scripted", "prompt": "hello", "stream": True},
        lambda data: "".join(choice["text"] for choice in data["choices"]),
    ),
    "messages": (
        "/v1/messages",
        {"model": "scripted", "messages": SAY, "max_tokens": 99, "stream": True},
        lambda data: data.get("delta", {}).get("text", ""),
    ),
    "kserve": ("/v2/models/scripted/generate_stream", {"text_input": "hello"}, lambda data: data["text_output"]),
}


@pytest.mark.parametrize("api", list(STREAMS))
async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(node: Node, url: str, api: str) -> None:
    await scripted(node, CUT)
    path, body, grown = STREAMS[api]
    events: list[tuple[str, Any]] = []  # the name and the data of each
    heard = name = ""
    async with httpx2.AsyncClient(base_url=url, timeout=30) as http:
        # A connection that is cut instead of ended raises here.
        async with http.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line:
                    events.append((name, json.loads(line.removeprefix("data: "))))  # [DONE] is no JSON
                    name = ""
                    if not heard and (heard := grown(events[-1][1])):
                        await node.stop("model", timeout=0)
    *before, (name, last) = events
    assert heard == "".join(grown(data) for _, data in before) == "Begun "
    assert not any("error" in (kind, *data) for kind, data in before)
    if api == "messages":
        assert (name, last["type"], last["error"]["type"]) == ("error", "error", "overloaded_error")
        assert set(last["error"]) == {"type", "message"}
        assert "model" in last["error"]["message"]
    elif api == "kserve":
        assert (name, set(last)) == ("", {"error"})
        assert "model" in last["error"]
    else:
        assert (name, set(last)) == ("", {"error"})
        assert set(last["error"]) == {"message", "type", "param", "code"}
        assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "actor.stopped")


async def test_the_sdks_raise_an_error_in_the_middle_of_a_stream(
    node: Node, client: openai.AsyncOpenAI, url: str
) -> None:
    await scripted(node, CUT)
    heard: list[str] = []

    async def follow() -> None:
        async for chunk in await client.chat.completions.create(model="scripted", messages=SAY, stream=True):
            heard.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)
            if heard:
                await node.stop("model", timeout=0)

    with pytest.raises(openai.APIError) as failed:
        await follow()
    assert type(failed.value) is openai.APIError  # no APIConnectionError, as a cut connection would be
    assert failed.value.code == "actor.stopped"
    assert "".join(heard) == "Begun "

    await scripted(node, CUT)
    heard.clear()

    async def follow_other(other: anthropic.AsyncAnthropic) -> None:
        async with other.messages.stream(model="scripted", messages=SAY, max_tokens=99) as stream:
            async for text in stream.text_stream:
                heard.append(text)
                await node.stop("model", timeout=0)

    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, timeout=30) as other:
        with pytest.raises(anthropic.APIStatusError) as told:
            await follow_other(other)
    body: Any = told.value.body
    assert body["error"]["type"] == "overloaded_error"
    assert "".join(heard) == "Begun "


async def test_an_answer_that_takes_too_long_is_given_up(node: Node) -> None:
    """As `request_timeout_s` says. A stream has begun by then, so its last event says it."""
    await scripted(node, ScriptedAnswer(pieces=("Begun ", "and never ended"), hold="never", times=0))
    async with gateway(node, models={"scripted": "model"}, request_timeout_s=0.5) as url:
        async with httpx2.AsyncClient(base_url=url, timeout=30) as http:
            for api, (path, body, _) in STREAMS.items():
                whole = {name: value for name, value in body.items() if name != "stream"}
                answer = await http.post(path.removesuffix("_stream"), json=whole)
                assert answer.status_code == 504, (api, answer.text)
                assert "retry-after" not in answer.headers
                assert "error" in answer.json()
                streamed = await http.post(path, json=body)
                assert streamed.status_code == 200
                last = json.loads(streamed.text.split("\n\n")[-2].rpartition("data: ")[2])
                assert "error" in last, (api, streamed.text)
            chat = await http.post("/v1/chat/completions", json={"model": "scripted", "messages": SAY})
            assert chat.json()["error"]["code"] == "deadline"
            message = await http.post("/v1/messages", json={"model": "scripted", "messages": SAY, "max_tokens": 9})
            assert message.json()["error"]["type"] == "api_error"
    calls = (await node.actor("model").ask(GetScriptedCalls())).calls
    assert {call.outcome for call in calls} == {CallOutcome.CANCELLED}  # nothing goes on that nobody waits for
