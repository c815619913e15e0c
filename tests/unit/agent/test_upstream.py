"""A model behind HTTP: what is sent, and what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from endpoint import (
    DONE,
    Endpoint,
    Play,
    anthropic_events,
    call_block,
    chunk,
    openai_text,
    text_block,
    usage_chunk,
)
from upstream_play import HELLO, KEY, streamed, upstream

from callboard.actors.agent.upstream.config import Api
from callboard.runtime.errors import RequestInvalid
from callboard.runtime.node import Node
from callboard.schemas.serve import (
    ChatMessage,
    FinishReason,
    Generate,
    Grammar,
    GrammarKind,
    ModelToolCall,
    OfferedTool,
)
from callboard.schemas.upstream import GetUpstreamStats

pytestmark = pytest.mark.anyio

SCHEMA = (
    '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'
)


async def test_an_answer_is_streamed_and_summed_up(node: Node, endpoint: Endpoint) -> None:
    endpoint.plays = [openai_text("Hel", "lo", prompt=1000, completion=200, cached=400)]
    model = await upstream(node, endpoint, prompt_price=2.0, cached_price=0.5, completion_price=10.0)
    pieces, completion = await streamed(model)
    assert pieces == ["Hel", "lo"]
    assert (completion.text, completion.finish_reason) == ("Hello", FinishReason.STOP)
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (1000, 200, 400)
    assert completion.cost == pytest.approx((600 * 2.0 + 400 * 0.5 + 200 * 10.0) / 1e6)
    assert completion.timings.ttft_ms > 0
    stats = await model.ask(GetUpstreamStats())
    assert (stats.requests, stats.prompt_tokens, stats.unmetered, stats.running) == (1, 1000, 0, 0)
    assert stats.cost == pytest.approx(completion.cost)


async def test_what_the_request_says_is_sent_in_openai_s_words(node: Node, endpoint: Endpoint) -> None:
    endpoint.plays = [openai_text("ok")]
    model = await upstream(node, endpoint, extra={"reasoning_effort": "low"}, omit=("temperature",), models=("m2",))
    await model.ask(
        Generate(
            messages=(ChatMessage("system", "s"), ChatMessage("user", "u")),
            model="m2",
            max_tokens=9,
            temperature=0.5,
            top_p=0.9,
            seed=0,
            stop=("a", "b"),
            presence_penalty=0.25,
            logit_bias=((17, -5.0),),
            session="s1",
            client="c",
        )
    )
    assert endpoint.came[0].path == "/v1/chat/completions"
    assert endpoint.came[0].body == {
        "model": "m2",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_p": 0.9,
        "seed": 0,
        "stop": ["a", "b"],
        "presence_penalty": 0.25,
        "logit_bias": {"17": -5.0},
        "max_completion_tokens": 9,
        "reasoning_effort": "low",
    }


async def test_several_answers_keep_their_index(node: Node, endpoint: Endpoint) -> None:
    pieces = (
        chunk({"content": "a"}, index=1),
        chunk({"content": "b"}, index=0),
        chunk(finish="length", index=0),
        chunk(finish="stop", index=1),
        usage_chunk(1, 2),
        DONE,
    )
    endpoint.plays = [Play(pieces=pieces)]
    model = await upstream(node, endpoint)
    completion = await model.ask(Generate(messages=HELLO.messages, n=2))
    assert [choice.text for choice in completion.choices] == ["b", "a"]
    assert completion.finish_reason is FinishReason.LENGTH


async def test_tool_calls_go_both_ways_under_names_that_the_endpoint_takes(node: Node, endpoint: Endpoint) -> None:
    pieces = (
        chunk({"role": "assistant", "content": None}),
        chunk({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "files_read"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"path"'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ': "ü"}'}}]}),
        chunk({"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "files_read_2", "arguments": ""}}]}),
        chunk(finish="tool_calls"),
        DONE,
    )
    endpoint.plays = [Play(pieces=pieces)]
    model = await upstream(node, endpoint)
    tools = (OfferedTool("files.read", "reads", SCHEMA), OfferedTool("files/read"), OfferedTool("plain"))
    history = (
        ChatMessage("user", "read"),
        ChatMessage("assistant", "", (ModelToolCall("c0", "plain", '{"x": 1}'),)),
        ChatMessage("tool", "found", tool_call_id="c0"),
    )
    completion = await model.ask(Generate(messages=history, tools=tools, tool_choice="files.read"))
    assert completion.tool_calls == (
        ModelToolCall("c1", "files.read", '{"path": "ü"}'),
        ModelToolCall("c2", "files/read", "{}"),
    )
    body = endpoint.came[0].body
    assert [tool["function"]["name"] for tool in body["tools"]] == ["files_read", "files_read_2", "plain"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "files_read"}}
    assert body["messages"][1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c0", "type": "function", "function": {"name": "plain", "arguments": '{"x": 1}'}}],
    }
    assert body["messages"][2] == {"role": "tool", "tool_call_id": "c0", "content": "found"}
    assert (await model.ask(GetUpstreamStats())).unmetered == 1


async def test_anthropic_s_stream_is_read_and_its_cached_tokens_counted(node: Node, endpoint: Endpoint) -> None:
    thinking = [{"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": "hm"}]
    events = anthropic_events(thinking, text_block("Hel", "lo"), call_block("t1", "files_read", '{"a"', ": 1}"))
    endpoint.plays = [Play(pieces=events)]
    model = await upstream(node, endpoint, api=Api.ANTHROPIC)
    request = Generate(messages=HELLO.messages, tools=(OfferedTool("files.read"),))
    pieces, completion = await streamed(model, request)
    assert pieces == ["Hel", "lo"]
    assert completion.tool_calls == (ModelToolCall("t1", "files.read", '{"a": 1}'),)
    usage = completion.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (11, 4, 9)


async def test_what_the_request_says_is_sent_in_anthropic_s_words(
    node: Node, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", f" {KEY}\n")
    endpoint.plays = [Play(pieces=anthropic_events(text_block("ok"), stop="max_tokens"))]
    model = await upstream(node, endpoint, api=Api.ANTHROPIC, key_env="THE_KEY", anthropic_version="2023-06-01")
    messages = (
        ChatMessage("system", "one"),
        ChatMessage("user", "u"),
        ChatMessage("assistant", "", (ModelToolCall("a", "t.x", '{"q": 1}'), ModelToolCall("b", "t.x"))),
        ChatMessage("tool", "ra", tool_call_id="a"),
        ChatMessage("system", "two"),
        ChatMessage("user", "and?"),
        ChatMessage("tool", "rb", tool_call_id="b"),
    )
    request = Generate(
        messages=messages,
        top_k=5,
        stop=("END",),
        tools=(OfferedTool("t.x", "d", '{"type": "object"}'),),
        tool_choice="required",
        grammar=Grammar(GrammarKind.JSON_SCHEMA, SCHEMA),
    )
    assert (await model.ask(request)).finish_reason is FinishReason.LENGTH
    came = endpoint.came[0]
    assert came.path == "/v1/messages"
    assert (came.headers["x-api-key"], came.headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert came.body == {
        "model": "m",
        "max_tokens": 4096,
        "system": "one\n\ntwo",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "a", "name": "t_x", "input": {"q": 1}},
                    {"type": "tool_use", "id": "b", "name": "t_x", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "ra"},
                    {"type": "tool_result", "tool_use_id": "b", "content": "rb"},
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
        "stream": True,
        "temperature": 0.0,
        "top_k": 5,
        "stop_sequences": ["END"],
        "output_config": {"format": {"type": "json_schema", "schema": json.loads(SCHEMA)}},
        "tools": [{"name": "t_x", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any"},
    }


@pytest.mark.parametrize(
    ("api", "grammar", "sent"),
    [
        (
            Api.OPENAI,
            Grammar(GrammarKind.JSON_SCHEMA, SCHEMA),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": json.loads(SCHEMA), "strict": True},
                }
            },
        ),
        (Api.OPENAI, Grammar(GrammarKind.JSON), {"response_format": {"type": "json_object"}}),
        (Api.VLLM, Grammar(GrammarKind.REGEX, "a+"), {"structured_outputs": {"regex": "a+"}}),
        (Api.VLLM, Grammar(GrammarKind.CHOICE, '["a", "b"]'), {"structured_outputs": {"choice": ["a", "b"]}}),
        (Api.VLLM, Grammar(GrammarKind.EBNF, 'root ::= "a"'), {"structured_outputs": {"grammar": 'root ::= "a"'}}),
        (Api.LLAMACPP, Grammar(GrammarKind.EBNF, 'root ::= "a"'), {"grammar": 'root ::= "a"'}),
    ],
)
async def test_a_constraint_is_sent_as_the_endpoint_knows_it(
    node: Node, endpoint: Endpoint, api: Api, grammar: Grammar, sent: dict[str, Any]
) -> None:
    endpoint.plays = [openai_text("ok")]
    model = await upstream(node, endpoint, api=api)
    await model.ask(Generate(messages=HELLO.messages, grammar=grammar))
    assert {name: endpoint.came[0].body[name] for name in sent} == sent


async def test_logprobs_of_vllm_come_with_the_ids_of_their_tokens(node: Node, endpoint: Endpoint) -> None:
    logprob = {
        "token": "token_id:5",
        "logprob": -0.5,
        "top_logprobs": [{"token": "token_id:5", "logprob": -0.5}, {"token": "token_id:9", "logprob": -2.0}],
    }
    pieces = (chunk({"content": "x"}, logprobs={"content": [logprob]}), chunk(finish="stop"), DONE)
    endpoint.plays = [Play(pieces=pieces)]
    model = await upstream(node, endpoint, api=Api.VLLM)
    completion = await model.ask(Generate(messages=HELLO.messages, logprobs=2))
    (one,) = completion.choices[0].logprobs
    assert (one.token_id, one.logprob, one.top) == (5, -0.5, ((5, -0.5), (9, -2.0)))
    assert completion.choices[0].token_ids == (5,)
    assert completion.choices[0].likelihood == -0.5


@pytest.mark.parametrize(
    ("api", "wanted", "said"),
    [
        (Api.OPENAI, {"grammar": Grammar(GrammarKind.REGEX, "a")}, "'regex'"),
        (Api.ANTHROPIC, {"grammar": Grammar(GrammarKind.JSON)}, "'json'"),
        (Api.LLAMACPP, {"grammar": Grammar(GrammarKind.CHOICE, '["a"]')}, "'choice'"),
        (Api.OPENAI, {"grammar": Grammar(GrammarKind.JSON_SCHEMA, "[")}, "schema is no JSON object"),
        (Api.OPENAI, {"logprobs": 1}, "`logprobs`"),
        (Api.OPENAI, {"top_k": 3}, "`top_k`"),
        (Api.ANTHROPIC, {"n": 2}, "`n`"),
        (Api.ANTHROPIC, {"seed": 1, "temperature": 1.0}, "`seed`"),
        (Api.ANTHROPIC, {"temperature": 0.5}, "`temperature` since its version 2026-10-21"),
        (Api.ANTHROPIC, {"top_k": 3}, "`top_k` since"),
        (Api.OPENAI, {"deterministic": True}, "`deterministic`"),
        (Api.OPENAI, {"adapter": "a"}, "`adapter`"),
        (Api.OPENAI, {"messages": (), "prompt": "x"}, "`prompt`"),
        (Api.OPENAI, {"messages": ()}, "needs `messages`"),
        (Api.OPENAI, {"model": "other"}, "'other'"),
        (Api.OPENAI, {"tool_choice": "required"}, "without `tools`"),
        (Api.OPENAI, {"tools": (OfferedTool("a"),), "tool_choice": "b"}, "'b'"),
        (Api.OPENAI, {"tools": (OfferedTool("a", "", "nonsense"),)}, "schema of the tool 'a'"),
        (Api.ANTHROPIC, {"messages": (ChatMessage("system", "s"),)}, "not the system's"),
    ],
)
async def test_what_an_endpoint_cannot_do_is_refused_before_anything_is_sent(
    node: Node, endpoint: Endpoint, api: Api, wanted: dict[str, Any], said: str
) -> None:
    model = await upstream(node, endpoint, api=api)
    with pytest.raises(RequestInvalid, match=said):
        await model.ask(Generate(**{"messages": HELLO.messages, **wanted}))
    assert endpoint.came == []
    assert (await model.ask(GetUpstreamStats())).failures == (("model.request", 1),)
