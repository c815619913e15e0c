"""A model behind HTTP: what is sent, what comes back, and what becomes of every fault on the way."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from endpoint import (
    DONE,
    Endpoint,
    Play,
    anthropic_events,
    call_block,
    chunk,
    openai_text,
    sse,
    text_block,
    usage_chunk,
)

from callboard.actors.agent.upstream.actor import Upstream
from callboard.actors.agent.upstream.config import Api, UpstreamConfig
from callboard.actors.agent.upstream.errors import (
    UpstreamAuth,
    UpstreamBusy,
    UpstreamCutOff,
    UpstreamDown,
    UpstreamError,
    UpstreamFiltered,
    UpstreamGarbled,
    UpstreamLimited,
    UpstreamLost,
    UpstreamQuota,
    UpstreamRefused,
    UpstreamTimeout,
)
from callboard.runtime.errors import ConfigError, RequestInvalid
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.serve import (
    ChatMessage,
    FinishReason,
    Generate,
    Grammar,
    GrammarKind,
    ModelToolCall,
    OfferedTool,
    Token,
)
from callboard.schemas.upstream import GetUpstreamStats

pytestmark = pytest.mark.anyio

KEY = "sk-very-secret-0123456789"
HELLO = Generate(messages=(ChatMessage("user", "hello"),), max_tokens=20)
SCHEMA = (
    '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'
)


async def upstream(node: Node, endpoint: Endpoint, **options: Any) -> Ref:
    settings = {"backoff_s": 0.001, "retries": 3, **options}
    return await node.spawn(Upstream, UpstreamConfig(model="m", base_url=endpoint.url, **settings), name="gpt")


async def streamed(model: Ref, request: Generate = HELLO) -> tuple[list[str], Any]:
    async with model.stream(request) as items:
        pieces = [token.text async for token in items if isinstance(token, Token)]
    return pieces, items.result


# What comes back


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


# Faults


@pytest.mark.parametrize(
    ("play", "error"),
    [
        (Play(401, body={"error": {"message": "bad key", "type": "invalid_request_error"}}), UpstreamAuth),
        (Play(403, body={"type": "error", "error": {"type": "permission_error", "message": "no"}}), UpstreamAuth),
        (Play(400, body={"error": {"message": "max_tokens is not supported"}}), UpstreamRefused),
        (Play(404, body="not here"), UpstreamRefused),
        (Play(422, body={"detail": [{"loc": ["body"], "msg": "missing"}]}), UpstreamRefused),
        (Play(307, {"location": "http://elsewhere/v1?key=1"}, body=""), UpstreamRefused),
        (Play(429, body={"error": {"message": "pay", "code": "insufficient_quota"}}), UpstreamQuota),
        (Play(429, {"retry-after": "3600"}, body={"error": {"message": "slow down"}}), UpstreamLimited),
        (Play(200, body={"choices": []}), UpstreamGarbled),
        (Play(pieces=(sse("{not json"),)), UpstreamGarbled),
        (Play(pieces=(sse({"choices": [{"index": 3, "delta": {"content": "x"}}]}),)), UpstreamGarbled),
        (Play(pieces=(b"data: \xff\xfe\n\n",)), UpstreamGarbled),
        (Play(pieces=(chunk(finish="content_filter"), DONE)), UpstreamFiltered),
        (Play(pieces=(chunk({"refusal": "I will not"}), chunk(finish="stop"), DONE)), UpstreamFiltered),
        (Play(pieces=(chunk(finish="flu"), DONE)), UpstreamGarbled),
    ],
)
async def test_a_fault_that_asking_again_cannot_mend_is_said_at_once(
    node: Node, endpoint: Endpoint, play: Play, error: type[UpstreamError]
) -> None:
    endpoint.plays = [play]
    model = await upstream(node, endpoint)
    with pytest.raises(error) as failed:
        await model.ask(HELLO)
    assert failed.value.code == error.code
    assert failed.value.hint
    assert "key=1" not in failed.value.hint
    assert len(endpoint.came) == 1
    assert (await model.ask(GetUpstreamStats())).failures == ((error.code, 1),)


@pytest.mark.parametrize(
    "play",
    [
        Play(500, body={"error": {"message": "oops"}}),
        Play(503, body="<html>busy</html>"),
        Play(529, body={"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        Play(429, {"retry-after": "0.01"}, body={"error": {"message": "slow down"}}),
        Play(429, {"retry-after-ms": "5"}, body={}),
        Play(pieces=(sse({"error": {"message": "overloaded", "type": "server_error"}}),)),
        Play(pieces=(b": ping\n\n", DONE), cut_at=1),
        Play(pieces=(chunk({"role": "assistant"}),)),
    ],
)
async def test_a_fault_that_may_pass_is_tried_again_until_it_has(node: Node, endpoint: Endpoint, play: Play) -> None:
    endpoint.plays = [play, play, openai_text("at ", "last")]
    model = await upstream(node, endpoint)
    pieces, completion = await streamed(model)
    assert pieces == ["at ", "last"]
    assert completion.text == "at last"
    assert len(endpoint.came) == 3
    assert (await model.ask(GetUpstreamStats())).retries == 2


async def test_tries_are_bounded_and_the_last_error_is_the_answer(node: Node, endpoint: Endpoint) -> None:
    endpoint.plays = [Play(500, body={"error": {"message": "oops, again"}})]
    model = await upstream(node, endpoint, retries=2)
    with pytest.raises(UpstreamDown, match=r"status 500\): oops, again"):
        await model.ask(HELLO)
    assert len(endpoint.came) == 3


async def test_an_answer_that_was_begun_is_not_begun_again(node: Node, endpoint: Endpoint) -> None:
    endpoint.plays = [Play(pieces=(chunk({"content": "half"}), DONE), cut_at=1), openai_text("other")]
    model = await upstream(node, endpoint)
    pieces: list[str] = []

    async def read() -> None:
        async with model.stream(HELLO) as items:
            async for token in items:
                assert isinstance(token, Token)
                pieces.append(token.text)

    with pytest.raises(UpstreamCutOff):
        await read()
    assert pieces == ["half"]
    assert len(endpoint.came) == 1


async def test_an_endpoint_s_wish_to_wait_holds_for_all_requests(node: Node, endpoint: Endpoint) -> None:
    endpoint.plays = [Play(429, {"retry-after": "0.3"}, body={}), openai_text("ok")]
    model = await upstream(node, endpoint)
    times: list[float] = []
    refused = threading.Event()

    def came() -> None:
        times.append(time.monotonic())
        refused.set()

    endpoint.on_request = came
    async with anyio.create_task_group() as group:
        group.start_soon(model.ask, HELLO)
        await anyio.to_thread.run_sync(refused.wait)
        while (await model.ask(GetUpstreamStats())).retries == 0:
            await anyio.sleep(0.001)
        group.start_soon(model.ask, HELLO)
    assert len(times) == 3
    assert min(times[1:]) - times[0] >= 0.29


@pytest.mark.parametrize("hang", [Play(hang_before=True), Play(pieces=(b": hello\n\n", DONE), hang_at=1)])
async def test_an_endpoint_that_says_nothing_is_left(node: Node, endpoint: Endpoint, hang: Play) -> None:
    endpoint.plays = [hang, openai_text("ok")]
    model = await upstream(node, endpoint, connect_s=0.1, first_byte_s=0.2, chunk_s=0.2)
    assert (await model.ask(HELLO)).text == "ok"
    await anyio.to_thread.run_sync(endpoint.gone.wait)
    endpoint.plays = [hang]
    with pytest.raises(UpstreamTimeout):
        await (await _spawn_other(node, endpoint)).ask(HELLO)


async def _spawn_other(node: Node, endpoint: Endpoint) -> Ref:
    config = UpstreamConfig(model="m", base_url=endpoint.url, retries=0, connect_s=0.1, first_byte_s=0.2, chunk_s=0.2)
    return await node.spawn(Upstream, config, name="impatient")


async def test_nobody_at_the_address_is_said_after_the_tries(node: Node, endpoint: Endpoint) -> None:
    config = UpstreamConfig(model="m", base_url="http://127.0.0.1:1/v1", retries=1, backoff_s=0.001)
    model = await node.spawn(Upstream, config, name="gpt")
    with pytest.raises(UpstreamLost):
        await model.ask(HELLO)
    assert (await model.ask(GetUpstreamStats())).retries == 1


async def test_a_caller_that_leaves_closes_the_connection(node: Node, endpoint: Endpoint) -> None:
    endpoint.plays = [Play(pieces=(chunk({"content": "a"}), DONE), hang_at=1)]
    model = await upstream(node, endpoint)
    async with model.stream(HELLO) as items:
        async for _ in items:
            break
    with anyio.fail_after(10):
        await anyio.to_thread.run_sync(endpoint.gone.wait)
        while (await model.ask(GetUpstreamStats())).running:
            await anyio.sleep(0.001)


async def test_characters_lines_and_events_may_be_split_anywhere(node: Node, endpoint: Endpoint) -> None:
    whole = b"".join(openai_text("naïve ", "日本語\u2028", "🎭 end").pieces).replace(b"\n", b"\r\n")
    endpoint.plays = [Play(pieces=[whole[i : i + 1] for i in range(len(whole))])]
    model = await upstream(node, endpoint)
    pieces, completion = await streamed(model)
    assert pieces == ["naïve ", "日本語\u2028", "🎭 end"]
    assert completion.text == "naïve 日本語\u2028🎭 end"


async def test_a_server_without_a_last_mark_or_usage_is_understood(node: Node, endpoint: Endpoint) -> None:
    endpoint.plays = [Play(pieces=(chunk({"content": "twelve bytes"}), chunk(finish="stop")))]
    model = await upstream(node, endpoint)
    completion = await model.ask(HELLO)
    assert (completion.text, completion.usage.completion_tokens) == ("twelve bytes", 3)
    assert (await model.ask(GetUpstreamStats())).unmetered == 1


async def test_anthropic_s_newest_version_is_told_nothing_of_how_to_draw(node: Node, endpoint: Endpoint) -> None:
    endpoint.plays = [Play(pieces=anthropic_events(text_block("ok")))]
    model = await upstream(node, endpoint, api=Api.ANTHROPIC, omit=("temperature",))
    await model.ask(Generate(messages=HELLO.messages, temperature=0.7))
    assert endpoint.came[0].headers["anthropic-version"] == "2026-10-21"
    assert not {"temperature", "top_p", "top_k"} & set(endpoint.came[0].body)


@pytest.mark.parametrize("kind", ["overloaded_error", "rate_limit_error", "api_error"])
async def test_an_error_event_of_anthropic_is_tried_again(node: Node, endpoint: Endpoint, kind: str) -> None:
    fault = sse({"type": "error", "error": {"type": kind, "message": "Overloaded"}}, "error")
    endpoint.plays = [Play(pieces=(fault,)), Play(pieces=anthropic_events(text_block("ok")))]
    model = await upstream(node, endpoint, api=Api.ANTHROPIC)
    assert (await model.ask(HELLO)).text == "ok"


@pytest.mark.parametrize(("stop", "error"), [("refusal", UpstreamFiltered), ("pause_turn", UpstreamGarbled)])
async def test_an_end_of_anthropic_s_that_is_no_answer_is_an_error(
    node: Node, endpoint: Endpoint, stop: str, error: type[UpstreamError]
) -> None:
    endpoint.plays = [Play(pieces=anthropic_events(text_block(), stop=stop))]
    model = await upstream(node, endpoint, api=Api.ANTHROPIC)
    with pytest.raises(error):
        await model.ask(HELLO)


# Keys


async def test_the_key_is_in_no_error_and_in_no_log(
    node: Node, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("THE_KEY", KEY)
    endpoint.plays = [
        Play(500, body={"error": {"message": f"oops {KEY}"}}),
        Play(401, body={"error": {"message": f"Incorrect API key provided: {KEY}"}}),
    ]
    model = await upstream(node, endpoint, key_env="THE_KEY")
    with pytest.raises(UpstreamAuth) as failed:
        await model.ask(HELLO)
    assert endpoint.came[0].headers["authorization"] == f"Bearer {KEY}"
    info = failed.value.to_info()
    assert KEY not in repr(info)
    assert "[key]" in info.message
    assert "asking again" in caplog.text
    assert KEY not in caplog.text


async def test_a_key_that_was_changed_in_its_file_is_used(node: Node, endpoint: Endpoint, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old\n")
    endpoint.plays = [Play(401, body={}), openai_text("ok")]
    model = await upstream(node, endpoint, key_file=str(file), key_header="api-key")
    file.write_text("new\n")
    assert (await model.ask(HELLO)).text == "ok"
    assert [came.headers["api-key"] for came in endpoint.came] == ["old", "new"]


@pytest.mark.parametrize(
    "options",
    [
        {"key_env": "NOT_SET_ANYWHERE"},
        {"key_file": "/nowhere/key"},
        {"key_env": "A", "key_file": "b"},
        {"base_url": "https://user:pass@host/v1"},
        {"base_url": "https://host/v1?api-key=abc"},
        {"base_url": "ftp://host"},
        {"base_url": "", "api": Api.VLLM},
        {"ca_file": "/nowhere/ca.pem"},
    ],
)
async def test_a_configuration_that_cannot_work_fails_the_start(node: Node, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as failed:
        await node.spawn(Upstream, UpstreamConfig(**{"model": "m", "base_url": "http://h/v1", **options}), name="gpt")
    assert "pass" not in str(failed.value).replace("password", "")
    assert "abc" not in str(failed.value)


async def test_a_key_of_several_lines_is_refused_without_showing_it(node: Node, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("se\ncret")
    config = UpstreamConfig(model="m", base_url="http://h/v1", key_file=str(tmp_path / "key"))
    with pytest.raises(ConfigError) as failed:
        await node.spawn(Upstream, config, name="gpt")
    assert "cret" not in str(failed.value).replace("secret", "")


# Bounds


async def test_no_more_requests_are_under_way_than_allowed_and_too_many_are_refused(
    node: Node, endpoint: Endpoint
) -> None:
    endpoint.plays = [Play(pieces=(chunk({"content": "a"}), DONE), hang_at=1)]
    model = await upstream(node, endpoint, concurrency=2, max_waiting=1)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(model.ask, HELLO)
        while True:
            stats = await model.ask(GetUpstreamStats())
            if (stats.running, stats.waiting) == (2, 1) and endpoint.running == 2:
                break
            await anyio.sleep(0.001)
        with pytest.raises(UpstreamBusy):
            await model.ask(HELLO)
        assert endpoint.most_running == 2
        group.cancel_scope.cancel()
