"""A model behind HTTP: what becomes of every fault on the way, of keys, and of too many requests."""

from __future__ import annotations

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
    chunk,
    openai_text,
    sse,
    text_block,
)
from upstream_play import HELLO, KEY, streamed, upstream

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
from callboard.runtime.errors import ConfigError
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.serve import (
    Generate,
    Token,
)
from callboard.schemas.upstream import GetUpstreamStats

pytestmark = pytest.mark.anyio

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
