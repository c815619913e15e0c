"""OpenAI's own client, unmodified, has responses made, kept, followed up and cancelled."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import jsonschema
import openai
import pytest
from gateways import gateway, idle, start_engine, url
from own_server import own_server

from callboard.actors.gateway.config import GatewayConfig
from callboard.actors.gateway.gateway import Gateway
from callboard.actors.serve.replica import Replica
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.schemas.gateway import AskGateway
from callboard.schemas.serve import ChatMessage, Generate

__all__ = ["url"]  # a fixture
pytestmark = pytest.mark.anyio

CITY = {"type": "object", "properties": {"city": {"enum": ["Delft", "Oslo"]}}, "required": ["city"]}
LONG: Any = {"ignore_eos": True}
WEATHER: Any = {"type": "function", "name": "weather", "description": "d", "parameters": CITY, "strict": True}


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=8)


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(url) as client:
        yield client


async def test_a_response_is_what_the_bus_answers_and_is_kept(
    client: openai.AsyncOpenAI, node: Node, long_path: Path
) -> None:
    made = await client.responses.create(
        model=str(long_path),
        input="hello",
        instructions="Be brief.",
        max_output_tokens=12,
        temperature=0.9,
        metadata={"for": "a test"},
        extra_body={"seed": 4},
    )
    said = await node.actor("engine").ask(
        Generate(
            messages=(ChatMessage("system", "Be brief."), ChatMessage("user", "hello")),
            max_tokens=12,
            temperature=0.9,
            seed=4,
        )
    )
    assert made.output_text == said.text
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (said.usage.prompt_tokens, 12)
    assert await client.responses.retrieve(made.id) == made
    (item,) = (await client.responses.input_items.list(made.id)).data
    assert item.type == "message"
    assert item.content[0].to_dict() == {"type": "input_text", "text": "hello"}
    await client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError, match=made.id):
        await client.responses.retrieve(made.id)


async def test_what_is_not_to_be_stored_is_not_there(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(input="hello", max_output_tokens=2, store=False, model="")
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)


async def test_the_events_of_a_stream_add_up_to_the_response(client: openai.AsyncOpenAI, long_path: Path) -> None:
    options: Any = {"model": str(long_path), "input": "hello", "max_output_tokens": 12, "extra_body": {"seed": 4}}
    whole = await client.responses.create(**options)
    events = [event async for event in await client.responses.create(**options, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 1
    assert kinds == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
        *["response.output_text.delta"] * deltas,
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
        "response.incomplete",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == whole.output_text
    assert await client.responses.retrieve(last.response.id) == last.response


async def test_a_conversation_goes_on_from_the_response_before(
    client: openai.AsyncOpenAI, node: Node, long_path: Path
) -> None:
    first = await client.responses.create(
        model="", input="hello", instructions="Shout.", max_output_tokens=6, temperature=0
    )
    second = await client.responses.create(
        model="", input="and now?", previous_response_id=first.id, max_output_tokens=6, temperature=0
    )
    third: Any = await client.responses.create(
        model="", input=[{"role": "user", "content": "more"}], previous_response_id=second.id, max_output_tokens=6,
        temperature=0, stream=True,
    )  # fmt: skip
    texts = [event.response.output_text async for event in third if event.type == "response.incomplete"]
    turns = [ChatMessage("user", "hello"), ChatMessage("assistant", first.output_text), ChatMessage("user", "and now?")]
    said = await node.actor("engine").ask(Generate(messages=tuple(turns), max_tokens=6))
    assert second.output_text == said.text
    turns += [ChatMessage("assistant", second.output_text), ChatMessage("user", "more")]
    assert texts == [(await node.actor("engine").ask(Generate(messages=tuple(turns), max_tokens=6))).text]
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="", input="x", previous_response_id="resp_" + "0" * 32)
    assert refused.value.param == "previous_response_id"


async def test_a_tool_is_called_and_its_answer_goes_back(client: openai.AsyncOpenAI) -> None:
    options: Any = {"model": "", "input": "hello", "tools": [WEATHER], "max_output_tokens": 100}
    whole = await client.responses.create(**options, tool_choice="required", extra_body={"seed": 1})
    (call,) = whole.output
    assert call.type == "function_call"
    assert call.name == "weather"
    jsonschema.validate(json.loads(call.arguments), CITY)
    assert whole.status == "completed"

    named: Any = {"type": "function", "name": "weather"}
    events = [event async for event in await client.responses.create(**options, tool_choice=named, stream=True)]
    assert [event.type for event in events] == [
        *("response.created", "response.in_progress", "response.output_item.added"),
        *("response.function_call_arguments.delta", "response.function_call_arguments.done"),
        *("response.output_item.done", "response.completed"),
    ]
    (arguments,) = [event.arguments for event in events if event.type == "response.function_call_arguments.done"]
    jsonschema.validate(json.loads(arguments), CITY)

    answered: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "It rains."}]
    after = await client.responses.create(
        model="", input=answered, previous_response_id=whole.id, tools=[WEATHER], max_output_tokens=4
    )
    assert after.usage is not None
    assert whole.usage is not None
    assert after.usage.input_tokens > whole.usage.input_tokens + len("It rains.") / 4
    allowed: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    (again,) = (await client.responses.create(**options, tool_choice=allowed)).output
    assert again.type == "function_call"


async def test_an_answer_fits_its_schema_and_tells_its_tokens(client: openai.AsyncOpenAI) -> None:
    options: Any = {
        "model": "",
        "input": "hello",
        "text": {"format": {"type": "json_schema", "name": "city", "schema": CITY}},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "max_output_tokens": 400,
        "extra_body": {"seed": 3},
    }
    made = await client.responses.create(**options)
    assert made.status == "completed"
    async with client.responses.stream(**options) as stream:  # the client puts the pieces together and checks them
        async for _ in stream:
            pass
        streamed = await stream.get_final_response()
    assert streamed.output_text == made.output_text
    (last,) = streamed.output
    assert last.type == "message"
    assert last.content[0].to_dict().keys() >= {"text", "logprobs"}
    jsonschema.validate(json.loads(made.output_text), CITY)
    (item,) = made.output
    assert item.type == "message"
    (part,) = item.content
    assert part.type == "output_text"
    assert b"".join(bytes(one.bytes) for one in part.logprobs or ()).decode().startswith(made.output_text)
    assert all(len(one.top_logprobs) == 2 for one in part.logprobs or ())


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_response_in_the_background_is_cancelled_by_any_gateway(
    client: openai.AsyncOpenAI, node: Node, elsewhere: bool
) -> None:
    made = await client.responses.create(
        model="", input="hello", background=True, max_output_tokens=1000, extra_body=LONG
    )
    assert made.status == "queued"
    other = await node.spawn(Gateway, GatewayConfig(), name="other")
    async with client_of((await other.ask(AskGateway())).url) as second:
        asking = second if elsewhere else client
        assert (await asking.responses.retrieve(made.id)).status in ("queued", "in_progress")
        cancelled = await asking.responses.cancel(made.id)
        assert cancelled.status == "cancelled"
        assert await client.responses.retrieve(made.id) == cancelled
    stats = await idle(node)
    assert stats.generated_tokens < 1000


async def test_a_response_in_the_background_is_there_when_it_is_over(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model="", input="hello", background=True, max_output_tokens=5, temperature=0)
    with anyio.fail_after(10):
        while (now := await client.responses.retrieve(made.id)).status in ("queued", "in_progress"):
            await anyio.sleep(0.01)  # the API has no other way
    assert now.status == "incomplete"
    assert now.usage is not None
    assert now.usage.output_tokens == 5
    slow = await client.responses.create(
        model="", input="hello", background=True, max_output_tokens=1000, extra_body=LONG
    )
    with pytest.raises(openai.BadRequestError, match="not over"):
        await client.responses.create(model="", input="x", previous_response_id=slow.id)
    await client.responses.delete(slow.id)


async def test_a_response_whose_gateway_is_gone_has_failed(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path)
    other = await node.spawn(Gateway, GatewayConfig(), name="other")
    async with client_of((await other.ask(AskGateway())).url) as client:
        made = await client.responses.create(
            model="", input="hello", background=True, max_output_tokens=1000, extra_body=LONG
        )
    await node.stop("other")
    async with gateway(node) as url, client_of(url) as client:
        found = await client.responses.retrieve(made.id)
        assert found.status == "failed"
        assert found.error is not None
        assert "ended" in found.error.message
    await idle(node)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": []}, "input", "there is none"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", "computer_call"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing required field `content`"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "input_image",
        ),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice", "no `tools`"),
        ({"input": "x", "truncation": "auto"}, "truncation", "disabled"),
        ({"input": "x", "background": True, "stream": True}, "background", "stream: false"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "expected `int` >= 1"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema", "needed"),
        ({"input": "x", "metadata": {"a": 1}}, "metadata[...]", "expected `str`"),
        ({"input": "x" * 900_000}, None, "store: false"),
    ],
)
async def test_a_body_that_is_wrong_is_refused_with_its_path(url: str, body: Any, param: str | None, said: str) -> None:
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/responses", json=body)
    assert answer.status_code in (400, 413)
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert said in error["message"]


async def test_a_client_that_goes_away_takes_its_response_with_it(url: str, node: Node) -> None:
    body = {"input": "hello", "max_output_tokens": 1000, "stream": True, **LONG}
    async with httpx2.AsyncClient() as http, http.stream("POST", f"{url}/v1/responses", json=body) as answer:
        async for line in answer.aiter_lines():
            if "output_text.delta" in line:
                break
    assert (await idle(node)).aborted == 1


async def test_an_engine_that_goes_in_the_middle_of_a_stream_fails_the_response(
    node: Node, long_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_thread = Replica._in_thread
    computed = 0

    async def stops_on_its_way(replica: Replica, work: Any) -> Any:
        nonlocal computed
        computed += 1
        if computed > 200:  # on a busy machine all would be computed before the reader has the first of it
            await anyio.sleep_forever()
        return await in_thread(replica, work)

    monkeypatch.setattr(Replica, "_in_thread", stops_on_its_way)
    await start_engine(node, long_path, num_blocks=512)
    async with gateway(node) as url, client_of(url) as client:
        stream = await client.responses.create(
            model="", input="hello", stream=True, max_output_tokens=1900, extra_body=LONG
        )
        events: list[Any] = []
        async for event in stream:
            events.append(event)
            if len(events) == 5:
                await node.stop("engine", timeout=0)
        last = events[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.code == "server_error"
        assert last.response.output[0].status == "incomplete"
        assert await client.responses.retrieve(last.response.id) == last.response


async def test_without_a_store_only_what_needs_none_is_made(tmp_path: Path, long_path: Path) -> None:
    with own_server(tmp_path) as server:
        async with Node(bus=BusOptions(server.url), ask_timeout=4) as node:
            await start_engine(node, long_path)
            async with gateway(node) as url, client_of(url) as client:
                with pytest.raises(openai.InternalServerError, match="JetStream") as refused:
                    await client.responses.create(model="", input="hello", max_output_tokens=2)
                assert refused.value.status_code == 503
                made = await client.responses.create(model="", input="hello", max_output_tokens=2, store=False)
                assert made.usage is not None


async def test_what_a_response_would_read_is_counted(client: openai.AsyncOpenAI) -> None:
    options: Any = {"model": "", "input": "hello there", "instructions": "Be brief.", "tools": [WEATHER]}
    made = await client.responses.create(**options, max_output_tokens=1)
    assert made.usage is not None
    assert (await client.responses.input_tokens.count(**options)).input_tokens == made.usage.input_tokens
    after: Any = {"model": "", "input": "more", "previous_response_id": made.id}
    second = await client.responses.create(**after, max_output_tokens=1)
    assert second.usage is not None
    assert (await client.responses.input_tokens.count(**after)).input_tokens == second.usage.input_tokens


async def test_the_client_without_async_works_too(url: str) -> None:
    def talk() -> str:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as client:
            made = client.responses.create(model="", input="hello", max_output_tokens=3)
            kinds = [
                event.type
                for event in client.responses.create(
                    model="", input="hello", max_output_tokens=3, temperature=0, stream=True
                )
            ]
            assert kinds[-1] == "response.incomplete"
            return client.responses.retrieve(made.id).id

    assert (await anyio.to_thread.run_sync(talk)).startswith("resp_")
