"""Anthropic's own client, unmodified, talks with a model of the company."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import anyio.to_thread
import httpx2
import jsonschema
import pydantic
import pytest
from gateways import push_out, url

from callboard.runtime.node import Node
from callboard.schemas.serve import ChatMessage, Generate, ListSessions

__all__ = ["url"]  # a fixture
pytestmark = pytest.mark.anyio

SAY: Any = [{"role": "user", "content": "hello"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Delft", "Oslo"]}}, "required": ["city"]}
WEATHER: Any = {"name": "weather", "description": "d", "input_schema": CITY}
FORMAT: Any = {"type": "json_schema", "schema": CITY}
NONSENSE: Any = {"type": "json_schema", "schema": {"type": "nonsense"}}
BOTH: Any = {"model": "", "messages": SAY, "max_tokens": 4, "output_format": FORMAT}


@pytest.fixture
async def client(url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def plain(url: str) -> Iterator[anthropic.Anthropic]:
    """The client that blocks: to be used in threads."""
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


class Place(pydantic.BaseModel):
    city: Literal["Delft", "Oslo"]
    visits: Literal[1, 2]


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


@pytest.mark.parametrize("session", ["mine", None])
async def test_a_follow_up_of_a_session_computes_only_what_is_new(
    client: anthropic.AsyncAnthropic, node: Node, long_path: Path, session: str | None
) -> None:
    more: Any = {"temperature": 0} | ({"session_id": session, "session_ttl_s": 50} if session else {})
    options: Any = {"model": str(long_path), "system": "be kind " * 20, "max_tokens": 4, "extra_body": more}
    first = await client.messages.create(messages=SAY, **options)
    await push_out(node)
    said = first.content[0].text  # pyright: ignore[reportAttributeAccessIssue]
    turns = [*SAY, {"role": "assistant", "content": said}, {"role": "user", "content": "and now?"}]
    async with client.messages.stream(messages=turns, **options) as stream:
        usage = (await stream.get_final_message()).usage
    counted = await client.messages.count_tokens(model=str(long_path), messages=turns, system=options["system"])
    cached = usage.cache_read_input_tokens or 0
    assert cached + usage.input_tokens == counted.input_tokens
    if session is None:  # others have pushed it out
        assert cached < 8
    else:  # all blocks that the first turn filled
        assert cached > first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0) - 4
    kept = (await node.actor("engine.scheduler").ask(ListSessions())).sessions
    assert [(one.session, 40 < one.expires_in_s <= 50) for one in kept] == ([("mine", True)] if session else [])


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


async def test_an_answer_is_parsed_as_the_type_that_was_asked_for(
    client: anthropic.AsyncAnthropic, long_path: Path
) -> None:
    options: Any = {"model": str(long_path), "messages": SAY, "max_tokens": 400}
    for api in (client.messages, client.beta.messages):
        message = await api.parse(**options, output_format=Place)
        assert message.stop_reason == "end_turn"
        assert isinstance(message.parsed_output, Place)
        async with api.stream(**options, output_format=Place) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        assert isinstance(final.parsed_output, Place)
        assert Place.model_validate_json(text) == final.parsed_output
    beside_tools = await client.messages.parse(**options, tools=[WEATHER], output_format=Place)
    assert isinstance(beside_tools.parsed_output, Place)
    for wanted in ({"output_config": {"format": FORMAT}}, {"output_format": FORMAT}):  # as betas of the API say it
        (block,) = (await client.messages.create(**options, extra_body=wanted)).content
        assert block.type == "text"
        jsonschema.validate(json.loads(block.text), CITY)


async def test_the_client_that_blocks_has_the_same_answers(
    client: anthropic.AsyncAnthropic, plain: anthropic.Anthropic, long_path: Path
) -> None:
    greedy: Any = {"temperature": 0}
    options: Any = {"model": str(long_path), "messages": SAY, "max_tokens": 20, "extra_body": greedy}
    typed = {**options, "max_tokens": 400, "output_format": Place}

    def ask() -> tuple[anthropic.types.Message, str, anthropic.types.Message, Place | None, Place | None, int]:
        whole = plain.messages.create(**options)
        with plain.messages.stream(**options) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        parsed = plain.messages.parse(**typed).parsed_output
        with plain.messages.stream(**typed) as typed_stream:
            streamed = typed_stream.get_final_message().parsed_output
        counted = plain.messages.count_tokens(model=str(long_path), messages=SAY).input_tokens
        with pytest.raises(anthropic.NotFoundError, match="there is no model"):
            plain.messages.create(model="claude", messages=SAY, max_tokens=4)
        return whole, text, final, parsed, streamed, counted

    whole, text, final, parsed, streamed, counted = await anyio.to_thread.run_sync(ask)
    assert isinstance(parsed, Place)
    assert parsed == streamed == (await client.messages.parse(**typed)).parsed_output
    expected = await client.messages.create(**options)
    assert whole.content == expected.content
    assert [block.type for block in final.content] == ["text"]
    assert text == whole.content[0].text == final.content[0].text  # pyright: ignore[reportAttributeAccessIssue]
    assert whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0) == counted


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
        (
            {"model": "", "messages": SAY, "max_tokens": 4, "output_config": {"format": {"type": "json_schema"}}},
            *(400, "invalid_request_error", "output_config.format: object missing required field `schema`"),
        ),
        (
            {"model": "", "messages": SAY, "max_tokens": 4, "output_config": {"format": FORMAT | {"type": "xml"}}},
            *(400, "invalid_request_error", "output_config.format.type: invalid enum value 'xml'"),
        ),
        (
            {"model": "", "messages": SAY, "max_tokens": 4, "output_config": {"format": NONSENSE}},
            *(400, "invalid_request_error", "output_config.format.schema (json_schema) cannot be used"),
        ),
        (
            {"model": "", "messages": SAY, "max_tokens": 4, "output_config": {"format": NONSENSE}, "stream": True},
            *(400, "invalid_request_error", "output_config.format.schema (json_schema) cannot be used"),
        ),
        (
            {"model": "", "messages": SAY, "max_tokens": 4, "output_format": NONSENSE},
            *(400, "invalid_request_error", "output_format.schema (json_schema) cannot be used"),
        ),
        (
            {**BOTH, "output_config": {"format": FORMAT}},
            *(400, "invalid_request_error", "output_format: it is there beside `output_config.format`"),
        ),
        (
            {**BOTH, "tools": [WEATHER], "tool_choice": {"type": "any"}},
            *(400, "invalid_request_error", "output_format: a tool must be called"),
        ),
        (
            {"model": "", "messages": SAY, "max_tokens": 4, "session_id": "x" * 300},
            *(400, "invalid_request_error", "session_id "),
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
