"""What we send, and what our tests' endpoint answers, held against the types of the official SDKs: neither side of
these tests may invent the protocol."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from endpoint import Endpoint, Play, anthropic_events, call_block, chunk, openai_text, text_block

from callboard.actors.agent.upstream.actor import Upstream
from callboard.actors.agent.upstream.config import Api, UpstreamConfig
from callboard.runtime.node import Node
from callboard.schemas.serve import ChatMessage, Generate, Grammar, GrammarKind, ModelToolCall, OfferedTool

pytestmark = pytest.mark.anyio

SCHEMA = (
    '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'
)
FULL = Generate(
    messages=(
        ChatMessage("system", "s"),
        ChatMessage("user", "u"),
        ChatMessage("assistant", "calling", (ModelToolCall("c0", "files.read", '{"path": "x"}'),)),
        ChatMessage("tool", "found", tool_call_id="c0"),
        ChatMessage("user", "go on"),
    ),
    max_tokens=50,
    temperature=0.3,
    top_p=0.5,
    stop=("END",),
    tools=(OfferedTool("files.read", "reads a file", SCHEMA),),
    tool_choice="files.read",
    grammar=Grammar(GrammarKind.JSON_SCHEMA, SCHEMA),
)


def validate(kind: Any, body: dict[str, Any]) -> None:
    """By the SDK's own TypedDict. Its validator passes over fields that it does not know; here they fail.

    Lists in their types are iterables, which a validator reads only when somebody iterates, so items go one by one.
    """
    import pydantic

    unknown = set(body) - (kind.__required_keys__ | kind.__optional_keys__)
    assert not unknown, "fields that the API does not have"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydantic.TypeAdapter(kind).validate_python(body)


async def asked(node: Node, endpoint: Endpoint, api: Api, play: Play) -> tuple[dict[str, Any], Any]:
    endpoint.plays = [play]
    omit = ("temperature", "top_p") if api is Api.ANTHROPIC else ()
    config = UpstreamConfig(model="m", base_url=endpoint.url, api=api, omit=omit)
    model = await node.spawn(Upstream, config, name="model")
    completion = await model.ask(FULL)
    return endpoint.came[0].body, completion


async def test_openai_s_own_types_take_our_request_and_our_endpoint_s_answer(node: Node, endpoint: Endpoint) -> None:
    pytest.importorskip("openai")
    from openai.types.chat import (
        ChatCompletionAssistantMessageParam,
        ChatCompletionChunk,
        ChatCompletionFunctionToolParam,
        ChatCompletionMessageFunctionToolCallParam,
        ChatCompletionNamedToolChoiceParam,
        ChatCompletionSystemMessageParam,
        ChatCompletionToolMessageParam,
        ChatCompletionUserMessageParam,
    )
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
    from openai.types.shared_params import ResponseFormatJSONSchema

    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "files_read", "arguments": "{}"}}
    first = openai_text("Hel", "lo")
    play = Play(pieces=(*first.pieces[:3], chunk({"tool_calls": [call]}), *first.pieces[3:]))
    body, completion = await asked(node, endpoint, Api.OPENAI, play)
    validate(CompletionCreateParamsStreaming, body)
    roles = {
        "system": ChatCompletionSystemMessageParam,
        "user": ChatCompletionUserMessageParam,
        "assistant": ChatCompletionAssistantMessageParam,
        "tool": ChatCompletionToolMessageParam,
    }
    for message in body["messages"]:
        validate(roles[message["role"]], message)
        for made in message.get("tool_calls", ()):
            validate(ChatCompletionMessageFunctionToolCallParam, made)
    validate(ChatCompletionFunctionToolParam, body["tools"][0])
    validate(ChatCompletionNamedToolChoiceParam, body["tool_choice"])
    validate(ResponseFormatJSONSchema, body["response_format"])
    pieces = [piece.decode().removeprefix("data: ").strip() for piece in play.pieces]
    chunks = [ChatCompletionChunk.model_validate_json(piece) for piece in pieces if piece != "[DONE]"]
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == completion.text == "Hello"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == completion.usage.prompt_tokens
    assert completion.tool_calls == (ModelToolCall("c1", "files.read", "{}"),)


async def test_openai_s_own_client_reads_the_same_from_our_endpoint(node: Node, endpoint: Endpoint) -> None:
    openai = pytest.importorskip("openai")
    _, completion = await asked(node, endpoint, Api.OPENAI, openai_text("Hel", "lo"))
    async with openai.AsyncOpenAI(base_url=endpoint.url, api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "u"}], stream=True
        )
        texts = [one.choices[0].delta.content or "" async for one in stream if one.choices]
    assert "".join(texts) == completion.text


async def test_anthropic_s_own_types_take_our_request_and_their_client_our_endpoint_s_answer(
    node: Node, endpoint: Endpoint
) -> None:
    anthropic = pytest.importorskip("anthropic")
    from anthropic.types import (
        AssistantMessageParam,
        JSONOutputFormatParam,
        OutputConfigParam,
        TextBlockParam,
        ToolChoiceToolParam,
        ToolParam,
        ToolResultBlockParam,
        ToolUseBlockParam,
        UserMessageParam,
    )
    from anthropic.types.message_create_params import MessageCreateParamsStreaming

    play = Play(pieces=anthropic_events(text_block("Hel", "lo"), call_block("t1", "files_read", '{"a"', ": 1}")))
    body, completion = await asked(node, endpoint, Api.ANTHROPIC, play)
    validate(MessageCreateParamsStreaming, body)
    blocks = {"text": TextBlockParam, "tool_use": ToolUseBlockParam, "tool_result": ToolResultBlockParam}
    roles = {"user": UserMessageParam, "assistant": AssistantMessageParam}
    for turn in body["messages"]:
        validate(roles[turn["role"]], turn)
        for block in turn["content"]:
            validate(blocks[block["type"]], block)
    validate(ToolParam, body["tools"][0])
    validate(ToolChoiceToolParam, body["tool_choice"])
    validate(OutputConfigParam, body["output_config"])
    validate(JSONOutputFormatParam, body["output_config"]["format"])
    base = endpoint.url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=base, api_key="k", max_retries=0) as client:
        async with client.messages.stream(
            model="m", max_tokens=5, messages=[{"role": "user", "content": "u"}]
        ) as stream:
            message = await stream.get_final_message()
    assert message.content[0].text == completion.text == "Hello"
    assert message.content[1].input == json.loads(completion.tool_calls[0].arguments) == {"a": 1}
    assert message.usage.output_tokens == completion.usage.completion_tokens
