"""What a model writes and a small one does not: thoughts, several calls at once, errors that pass. OpenAI's client
and Anthropic's hear of it as from their own servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from gateways import gateway

from callboard.actors.agent.scripted import Scripted, ScriptedConfig
from callboard.runtime.actor import handler
from callboard.runtime.node import Node
from callboard.schemas.scripted import GetScriptedCalls, ScriptedAnswer
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


async def test_an_error_in_the_middle_of_a_stream_is_an_error_to_the_client(
    node: Node, client: openai.AsyncOpenAI
) -> None:
    await scripted(node, ScriptedAnswer(pieces=("Begun ", "and never ended"), hold="never"))
    heard: list[str] = []

    async def follow() -> None:
        async for chunk in await client.chat.completions.create(model="scripted", messages=SAY, stream=True):
            heard.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)
            if heard:
                await node.stop("model", timeout=0)

    with pytest.raises(openai.APIError):
        await follow()
    assert "".join(heard) == "Begun "
