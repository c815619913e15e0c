"""MCP servers that die, are away, say too much or ask for the model, over the one transport that is enough for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import ClassVar

import anyio
import pytest
from mcp_antics import PIXEL
from mcp_company import KEY, Company, OverHttp, company, free_port, over_http

from callboard.actors.tools.errors import ToolError, ToolTimeout
from callboard.actors.tools.mcp.config import SamplingPolicy
from callboard.actors.tools.mcp.errors import ToolServerAway, ToolServerFailed
from callboard.actors.tools.values import Image
from callboard.runtime.actor import Actor, NoConfig, handler
from callboard.schemas.question import AnswerQuestion, Outcome
from callboard.schemas.serve import Completion, FinishReason, Generate, Timings, Token, Usage
from callboard.schemas.serve_stats import EngineStats, GetStats

__all__ = ["company", "over_http"]  # fixtures
pytestmark = pytest.mark.anyio
slow = pytest.mark.slow


async def test_the_clock_of_a_call_stands_still_while_a_person_is_asked(company: Company) -> None:
    await company.start(timeout_s=0.6)
    async with company.tool("ask") as tool:
        task = asyncio.ensure_future(tool.request({}))
        question = await company.question()
        await anyio.sleep(1.0)  # longer than the call may take
        await company.node.actor("questions").ask(AnswerQuestion(question.id, value='{"age": 1}'))
        assert json.loads((await task).value).startswith("accept")
    with pytest.raises(ToolTimeout, match=r"0\.6 s"):
        await company.call("slow")
    await company.has_noted("slow cancelled")


async def test_it_is_started_again_when_it_dies_and_calls_in_flight_fail_clearly(company: Company) -> None:
    await company.start()
    slow = asyncio.ensure_future(company.call("slow"))
    await company.has_noted("slow began")
    with pytest.raises(ToolServerAway, match="has ended"):
        await company.call("crash")
    with pytest.raises(ToolServerAway, match="has ended"):
        await slow
    with anyio.fail_after(20):
        while (status := await company.status()).connections < 2 or not status.connected:
            await anyio.sleep(0.02)
    assert await company.call("echo", text="back") == "back"
    os.kill(company.pids()[-1], signal.SIGKILL)
    with anyio.fail_after(20):
        while (await company.status(0)).connections < 3:
            await anyio.sleep(0.02)
    assert await company.call("echo", text="again") == "again"
    assert len(set(company.pids())) == 3


@slow
async def test_an_http_server_that_was_away_is_found_again(company: Company, over_http: OverHttp) -> None:
    port = free_port()
    status = await company.start(url=f"http://127.0.0.1:{port}/mcp?key={KEY}")
    assert not status.connected
    assert "cannot be reached" in status.error
    assert KEY not in status.error
    over_http.start(port=port)
    with anyio.fail_after(30):
        while not (await company.status(0)).connected:
            await anyio.sleep(0.05)
    assert await company.call("echo", text="there") == "there"
    over_http.stop()
    over_http.start(port=port)
    with anyio.fail_after(30):
        while True:
            try:
                assert await company.call("echo", text="anew") == "anew"
                break
            except ToolServerAway:
                await anyio.sleep(0.05)


@slow
async def test_headers_are_sent_and_their_lack_is_said(company: Company, over_http: OverHttp) -> None:
    url = over_http.start("--token", KEY)
    status = await company.start(url=url, name="without")
    assert not status.connected
    assert "HTTP status 401" in status.error
    status = await company.start(url=url, headers={"Authorization": f"Bearer {KEY}"})
    assert status.connected, status.error
    assert await company.call("echo", text="let in") == "let in"


@slow
async def test_garbage_on_standard_output_costs_nothing_and_a_flood_of_it_the_connection(
    company: Company, caplog: pytest.LogCaptureFixture
) -> None:
    await company.start()
    assert await company.call("garbage", lines=50) == "after the noise"
    said = [record.getMessage() for record in caplog.records if "is no message" in record.getMessage()]
    assert 1 <= len(said) <= 8  # of 53 lines
    with pytest.raises(ToolServerFailed, match="no message"):
        await company.call("garbage", lines=1500)
    with anyio.fail_after(20):
        while not (await company.status(0)).connected:
            await anyio.sleep(0.02)


@slow
async def test_messages_are_bounded(company: Company) -> None:
    await company.start(max_message=1 << 20)
    assert len(await company.call("huge_answer", size=500_000)) == 500_000
    with pytest.raises(ToolServerFailed, match="more than 1048576 bytes"):
        await company.call("huge_answer", size=2_000_000)


async def test_hostile_schemas_are_refused_or_harmless_and_nothing_is_fetched(company: Company) -> None:
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                try:
                    trap.accept()[0].close()
                    asked.set()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            url = f"http://127.0.0.1:{trap.getsockname()[1]}/schema.json"
            status = await company.start("--hostile", env={"REMOTE_SCHEMA": url})
            assert status.connected, status.error
            why = {one.name: one.why for one in status.refused}
            assert set(why) == {"huge", "deep", "remote", "doubling", "no_schema"}
            assert "never fetched" in why["remote"]
            began = time.monotonic()
            with pytest.raises(ToolError, match="without an end"):
                await company.call("endless", x=1)
            assert await company.call("slow_pattern", x="a" * 64 + "!") == "called slow_pattern"
            assert await company.call("slow_result") == {"x": "a" * 64 + "!"}
            assert time.monotonic() - began < 10
            assert await company.call("echo", text="well") == "well"
        finally:
            over.set()
            thread.join()
    assert not asked.is_set()


async def test_it_gets_its_own_environment_and_its_keys_get_into_no_log(
    company: Company, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_SECRET", "not for servers")
    monkeypatch.setenv("KEY_OF_THEIRS", KEY)
    caplog.set_level("DEBUG")
    await company.start(env={"API_KEY": "${KEY_OF_THEIRS}"})
    names = (await company.call("env")).split()
    assert "API_KEY" in names
    assert "OUR_SECRET" not in names
    assert not [name for name in names if name.startswith("CALLBOARD_")]
    with pytest.raises(ToolServerFailed) as raised:
        await company.call("error")
    assert KEY not in str(raised.value)
    with anyio.fail_after(10):
        while "mcp antics: my key is •••" not in caplog.text:
            await anyio.sleep(0.01)
    assert KEY not in caplog.text


@slow
async def test_what_it_may_not_offer_and_what_its_hints_are_not_believed_for(company: Company) -> None:
    status = await company.start(tools=("e*", "add"), hints=False)
    assert set(status.tools) == {"antics.echo", "antics.error", "antics.env", "antics.add"}
    async with company.tool("echo") as tool:
        assert tool.info.annotations.destructive
        assert not tool.info.annotations.read_only


@slow
async def test_media_are_sent_to_it_as_json_has_them(company: Company) -> None:
    await company.start()
    async with company.tool("echo") as tool:
        outcome = await tool.request({"text": "photo"}, media={"photo": Image.from_bytes(PIXEL, "image/png")})
    assert json.loads(outcome.value).startswith("data:image/png;base64,iVBOR")


class FakeEngine(Actor[NoConfig]):
    """Stands for the engine's scheduler, which needs a model: says what it was asked."""

    asked: ClassVar[list[Generate]] = []

    @handler
    async def stats(self, message: GetStats) -> EngineStats:
        numbers = dict.fromkeys(EngineStats.__struct_fields__, 0)
        return EngineStats(**{**numbers, "model": "tiny", "dtype": "float32"})  # type: ignore[arg-type]

    @handler
    async def generate(self, message: Generate) -> AsyncIterator[Token | Completion]:
        self.asked.append(message)
        text = f"{len(message.messages)} messages, {message.max_tokens} tokens"
        yield Completion(text, FinishReason.STOP, Usage(1, 1), Timings(1.0, 1.0))


class Rooted(Actor[NoConfig]):
    """The root `engine`, with the scheduler below it."""

    async def started(self) -> None:
        await self.spawn(FakeEngine, name="scheduler")


@slow
@pytest.mark.parametrize("flags", [(), ("--legacy",)], ids=["modern", "legacy"])
async def test_the_model_is_for_servers_that_the_configuration_names(company: Company, flags: tuple[str, ...]) -> None:
    FakeEngine.asked.clear()
    await company.node.spawn(Rooted, name="engine")
    await company.start(*flags)
    with pytest.raises(ToolError):
        await company.call("sample")
    assert not FakeEngine.asked
    await company.node.stop("antics")

    await company.start(*flags, sampling=SamplingPolicy.ALLOW, sampling_max_tokens=100)
    assert await company.call("sample", max_tokens=5000) == "2 messages, 100 tokens"
    assert [(one.role, one.content) for one in FakeEngine.asked[0].messages] == [
        ("system", "You are brief."),
        ("user", "Say something."),
    ]
    await company.node.stop("antics")

    await company.start(*flags, sampling=SamplingPolicy.ASK)
    for outcome in (Outcome.REFUSED, Outcome.ACCEPTED):
        task = asyncio.ensure_future(company.call("sample"))
        question = await company.question()
        assert question.kind == "sampling"
        assert "Say something." in question.details
        await company.node.actor("questions").ask(AnswerQuestion(question.id, outcome))
        if outcome is Outcome.REFUSED:
            with pytest.raises(ToolError, match="refused"):
                await task
        else:
            assert await task == "2 messages, 5 tokens"


@slow
async def test_the_server_ends_with_its_actor(company: Company) -> None:
    await company.start()
    pid = company.pids()[0]
    await company.node.stop("antics")
    with anyio.fail_after(10):
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                break
            await anyio.sleep(0.01)
