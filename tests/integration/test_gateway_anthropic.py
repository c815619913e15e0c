"""Anthropic's own client, unmodified, talks with a model of the company."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import jsonschema
import pytest
from gateways import url

from callboard.runtime.node import Node
from callboard.schemas.serve import ChatMessage, Generate

__all__ = ["url"]  # a fixture
pytestmark = pytest.mark.anyio

SAY: Any = [{"role": "user", "content": "hello"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Delft", "Oslo"]}}, "required": ["city"]}
WEATHER: Any = {"name": "weather", "description": "d", "input_schema": CITY}


@pytest.fixture
async def client(url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


async def test_a_message_is_what_the_bus_answers(client: anthropic.AsyncAnthropic, node: Node, long_path: Path) -> None:
    told: Any = [{"type": "text", "text": "be kind"}]
    message = await client.messages.create(
        model=str(long_path), messages=SAY, system=told, max_tokens=12, extra_body={"temperature": 0}
    )
    turns = (ChatMessage("system", "be kind"), ChatMessage("user", "hello"))
    said = await node.actor("engine").ask(Generate(messages=turns, max_tokens=12))
    (block,) = message.content
    assert block.type == "text"
    assert block.text == said.text
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 12)
    counted = await client.messages.count_tokens(model=str(long_path), messages=SAY, system="be kind")
    assert counted.input_tokens == said.usage.prompt_tokens


async def test_a_stream_adds_up_to_the_whole_message(client: anthropic.AsyncAnthropic, long_path: Path) -> None:
    options: Any = {"model": str(long_path), "messages": SAY, "max_tokens": 20, "extra_body": {"temperature": 0}}
    whole = await client.messages.create(**options)
    async with client.messages.stream(**options) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["text"]
    assert text == whole.content[0].text == final.content[0].text  # pyright: ignore[reportAttributeAccessIssue]
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 20)


async def test_a_stop_sequence_is_named(client: anthropic.AsyncAnthropic, long_path: Path) -> None:
    options: Any = {"model": str(long_path), "messages": SAY, "max_tokens": 40, "extra_body": {"temperature": 0}}
    text = (await client.messages.create(**options)).content[0].text  # pyright: ignore[reportAttributeAccessIssue]
    stop = text[8:10]
    message = await client.messages.create(**options, stop_sequences=["never said", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
async def test_a_tool_is_called_and_its_result_is_read(
    client: anthropic.AsyncAnthropic, long_path: Path, choice: Any
) -> None:
    options: Any = {"model": str(long_path), "max_tokens": 100, "tools": [WEATHER]}
    message = await client.messages.create(messages=SAY, tool_choice=choice, **options)
    assert message.stop_reason == "tool_use"
    (block,) = message.content
    assert block.type == "tool_use"
    assert block.name == "weather"
    jsonschema.validate(block.input, CITY)

    async with client.messages.stream(messages=SAY, tool_choice=choice, **options) as stream:
        (streamed,) = (await stream.get_final_message()).content
    assert streamed.type == "tool_use"
    jsonschema.validate(streamed.input, CITY)

    result: Any = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "It rains."}]}
    turns: Any = [
        *SAY,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True)]},
        {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
    ]
    after = await client.messages.create(messages=turns, **{**options, "max_tokens": 4})
    before = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    assert after.usage.input_tokens + (after.usage.cache_read_input_tokens or 0) > before


@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        ({"model": "", "messages": SAY}, 400, "invalid_request_error", "missing required field `max_tokens`"),
        ({"model": "", "messages": SAY, "max_tokens": 0}, 400, "invalid_request_error", "max_tokens: expected `int`"),
        ({"model": "", "messages": [], "max_tokens": 4}, 400, "invalid_request_error", "messages: there are none"),
        (
            {"model": "", "messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 4},
            *(400, "invalid_request_error", "messages[0].content[0].type: the model reads texts, no 'image'"),
        ),
        (
            {"model": "", "messages": SAY, "max_tokens": 4, "tools": [{**WEATHER, "type": "bash_20250124"}]},
            *(400, "invalid_request_error", "tools[0].type"),
        ),
        ({"model": "claude", "messages": SAY, "max_tokens": 4}, 404, "not_found_error", "there is no model 'claude'"),
        ({"model": "", "messages": SAY, "max_tokens": 10**6}, 400, "invalid_request_error", "at most"),
    ],
)
async def test_what_is_wrong_has_anthropics_shape(url: str, body: Any, status: int, kind: str, said: str) -> None:
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/messages", content=json.dumps(body))
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    error = answer.json()["error"]
    assert error["type"] == kind
    assert said in error["message"]


async def test_the_sdk_knows_the_errors(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="there is no model"):
        await client.messages.create(model="claude", messages=SAY, max_tokens=4)
