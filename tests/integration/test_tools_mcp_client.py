"""Tools of real MCP servers as tools of the company: over stdio and HTTP, in both eras of the protocol, well-behaved
and not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from mcp_antics import PIXEL
from own_server import own_server

from callboard.actors.questions.board import Board
from callboard.actors.tools.client import OpenedTool, open_tool
from callboard.actors.tools.directory import Directory
from callboard.actors.tools.errors import ToolArguments, ToolError, ToolResultInvalid, ToolTimeout
from callboard.actors.tools.mcp.config import SamplingPolicy, ServerConfig, write_servers
from callboard.actors.tools.mcp.errors import ToolServerAway, ToolServerFailed
from callboard.actors.tools.mcp.server_actor import McpConfig, McpServer
from callboard.actors.tools.values import Audio, File, Image
from callboard.runtime.actor import Actor, NoConfig, handler
from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.node import Node
from callboard.runtime.processes import dying_with_us
from callboard.schemas.mcp import GetMcpStatus, McpStatus
from callboard.schemas.question import AnswerQuestion, ListQuestions, Outcome, Question
from callboard.schemas.serve import Completion, EngineStats, FinishReason, Generate, GetStats, Timings, Token, Usage
from callboard.schemas.tool import ListTools, ToolList, ToolProgress

pytestmark = pytest.mark.anyio
slow = pytest.mark.slow

ANTICS = str(Path(__file__).with_name("mcp_antics.py"))
KEY = "sesame-open-7"


class Company:
    """A node with a directory, a board and one MCP server under the name `antics`."""

    def __init__(self, node: Node, tmp_path: Path) -> None:
        self.node = node
        self.bus = Client(node)
        self.file = tmp_path / "mcp.json"
        self.diary = tmp_path / "diary"

    async def open(self) -> Company:
        await self.node.spawn(Directory, name="tools")
        await self.node.spawn(Board, name="questions")
        return self

    async def start(self, *flags: str, url: str = "", name: str = "antics", **more: Any) -> McpStatus:
        if url:
            config = ServerConfig(url=url, **more)
        else:
            more.setdefault("env", {"API_KEY": KEY, "REMOTE_SCHEMA": "https://example.com/schema.json"})
            arguments = (ANTICS, "--diary", str(self.diary), *flags)
            config = ServerConfig(command=sys.executable, args=arguments, **more)
        write_servers(self.file, {name: config})
        await self.node.spawn(McpServer, McpConfig(file=str(self.file)), name=name)
        return await self.status(name=name)

    async def status(self, wait_s: float = 20.0, name: str = "antics") -> McpStatus:
        return await self.node.actor(name).ask(GetMcpStatus(wait_s), 30.0)

    @asynccontextmanager
    async def tool(self, name: str) -> AsyncIterator[OpenedTool]:
        async with open_tool(self.bus, f"antics.{name}") as tool:
            yield tool

    async def call(self, name: str, **arguments: Any) -> Any:
        async with self.tool(name) as tool:
            return await tool.call(**arguments)

    async def has_noted(self, text: str, times: int = 1) -> None:
        with anyio.fail_after(20):
            while not self.diary.exists() or self.diary.read_text().splitlines().count(text) < times:
                await anyio.sleep(0.01)

    def pids(self) -> list[int]:
        return [int(line.split()[1]) for line in self.diary.read_text().splitlines() if line.startswith("pid ")]

    async def question(self) -> Question:
        with anyio.fail_after(20):
            while not (found := (await self.node.actor("questions").ask(ListQuestions())).questions):
                await anyio.sleep(0.01)
        return found[0]

    async def no_question(self) -> None:
        with anyio.fail_after(20):
            while (await self.node.actor("questions").ask(ListQuestions())).questions:
                await anyio.sleep(0.01)


@pytest.fixture
async def company(node: Node, tmp_path: Path) -> Company:
    return await Company(node, tmp_path).open()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class OverHttp:
    """Starts the server with HTTP, and ends it."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *flags: str, port: int = 0) -> str:
        """Its URL, once it can be reached."""
        port = port or free_port()
        command = [sys.executable, ANTICS, "--http", str(port), *flags]
        process = subprocess.Popen(dying_with_us(command), env={**os.environ, "API_KEY": KEY})
        self._started.append(process)
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return f"http://127.0.0.1:{port}/mcp"
            except ConnectionRefusedError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.02)

    def stop(self) -> None:
        while self._started:
            process = self._started.pop()
            process.kill()
            process.wait()


@pytest.fixture
def over_http() -> Iterator[OverHttp]:
    servers = OverHttp()
    yield servers
    servers.stop()


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": False}


ERAS = [
    ("stdio", ()),
    pytest.param(("stdio", ("--legacy",)), marks=slow),
    ("http", ()),
    pytest.param(("http", ("--legacy",)), marks=slow),
    pytest.param(("sse", ()), marks=slow),
]


@pytest.fixture(scope="module", params=ERAS, ids=lambda era: "-".join([era[0], *(flag.strip("-") for flag in era[1])]))
async def antics(request: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Company]:
    """The company with the server, over each transport and in each era; one for all tests that do it no harm."""
    transport, flags = request.param
    tmp_path = tmp_path_factory.mktemp("antics")
    http = OverHttp()
    with own_server(tmp_path, "--jetstream", "--store_dir", str(tmp_path / "js")) as server:
        async with Node(bus=BusOptions(server.url)) as node:
            company = await Company(node, tmp_path).open()
            if transport == "stdio":
                status = await company.start(*flags)
            elif transport == "http":
                status = await company.start(url=http.start("--diary", str(company.diary), *flags))
            else:
                url = http.start("--sse", "--diary", str(company.diary)).replace("/mcp", "/sse")
                status = await company.start(url=url, type="sse")
            assert status.connected, status.error
            assert status.implementation == "antics 1.0"
            assert (status.protocol < "2026") == bool(flags)
            yield company
    http.stop()


async def test_its_tools_are_there_with_their_schemas_and_hints_and_work(antics: Company) -> None:
    found = ToolList(())
    with anyio.fail_after(20):
        while not found.tools:
            found = await antics.node.actor("tools").ask(ListTools(names=("antics.*",)))
    infos = {info.name: info for info in found.tools}
    assert set(infos) == set((await antics.status()).tools)
    echo, add = infos["antics.echo"], infos["antics.add"]
    assert echo.description == "Say it again."
    assert json.loads(echo.input_schema)["required"] == ["text"]
    assert json.loads(add.output_schema)["properties"] == {"sum": {"type": "integer"}}
    assert (echo.annotations.read_only, echo.annotations.destructive, echo.annotations.open_world) == (
        True,
        False,
        False,
    )
    assert (add.annotations.read_only, add.annotations.destructive, add.annotations.open_world) == (False, True, True)
    assert "antics.long_name_with_letters" in infos
    assert await antics.call("echo", text="good\nmorning ✓") == "good\nmorning ✓"
    assert await antics.call("add", a=2, b=40) == {"sum": 42}
    assert await antics.call("long_name_with_letters") == "called long.name/with:letters"


async def test_progress_comes_through_as_it_is_made(antics: Company) -> None:
    heard: list[ToolProgress] = []
    async with antics.tool("steps") as tool:
        assert (await tool.request({}, on_progress=heard.append)).value == '"done"'
    assert [(one.done, one.total, one.text) for one in heard] == [(n, 3.0, f"step {n}") for n in (1, 2, 3)]


async def test_a_call_that_is_given_up_is_cancelled_in_the_server(antics: Company) -> None:
    async with antics.tool("slow") as tool:
        with anyio.move_on_after(30) as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tool.request, {})
                await antics.has_noted("slow began")
                tasks.cancel_scope.cancel()
        assert not scope.cancelled_caught
    await antics.has_noted("slow cancelled")
    assert await antics.call("echo", text="still here") == "still here"


async def test_images_sounds_and_resources_come_back_as_media(antics: Company) -> None:
    picture = await antics.call("picture")
    assert isinstance(picture, Image)
    assert picture.bytes() == PIXEL
    assert picture.pil().size == (1, 1)
    async with antics.tool("mixed") as tool:
        outcome = await tool.request({})
    assert outcome.text.startswith("two pictures and a sound\nhello\n[image image-1, image/png")
    value = json.loads(outcome.value)
    assert value["media"] == ["image-1", "image-2", "audio-3", "hello.txt", "a.bin"]
    kinds = [type(outcome.media[name]) for name in value["media"]]
    assert kinds == [Image, Image, Audio, File, File]
    assert outcome.media["a.bin"].bytes() == b"\0\1"
    assert outcome.media["hello.txt"].text() == "hello"


async def test_links_are_read_from_the_server_and_those_that_cannot_be_are_named(antics: Company) -> None:
    async with antics.tool("links") as tool:
        outcome = await tool.request({})
    assert "all is well" in outcome.text
    assert "[resource gone] note:///gone.txt not there any more" in outcome.text
    assert outcome.media["report.txt"].text() == "all is well"


async def test_errors_and_wrong_results_are_told_apart(antics: Company) -> None:
    with pytest.raises(ToolError, match=r"^no such file: x$"):
        await antics.call("fail")
    with pytest.raises(ToolServerFailed, match="not today") as raised:
        await antics.call("error")
    if KEY in antics.file.read_text():  # so it is ours to keep
        assert KEY not in str(raised.value)
    with pytest.raises(ToolResultInvalid, match="sum"):
        await antics.call("wrong")
    with pytest.raises(ToolResultInvalid, match="structured"):
        await antics.call("missing")
    with pytest.raises(ToolResultInvalid, match="base64"):
        await antics.call("bad_media")
    for arguments, words in [({}, "`text` is missing"), ({"text": 7}, "expected string")]:
        with pytest.raises(ToolArguments, match=words):
            await antics.call("echo", **arguments)


async def test_a_changed_list_is_followed_and_the_directory_knows(antics: Company) -> None:
    assert await antics.call("grow") == "grown"
    with anyio.fail_after(20):
        while "antics.grown_0" not in (await antics.status()).tools:
            await anyio.sleep(0.02)
        found = ToolList(())
        while not found.tools:
            found = await antics.node.actor("tools").ask(ListTools(names=("antics.grown_0",)))
    assert await antics.call("grown_0") == "called grown_0"
    assert await antics.call("echo", text="as before") == "as before"


async def test_a_question_of_the_server_is_one_that_any_client_may_answer(antics: Company) -> None:
    heard: list[ToolProgress] = []
    for outcome, value, expected in [
        (Outcome.ACCEPTED, '{"age": 41}', "accept {'age': 41}"),
        (Outcome.REFUSED, "", "decline None"),
        (Outcome.CANCELLED, "", "cancel None"),
    ]:
        async with antics.tool("ask") as tool:
            task = asyncio.ensure_future(tool.request({}, on_progress=heard.append))
            question = await antics.question()
            assert (question.kind, question.asker) == ("elicitation", "antics")
            assert question.text == "The MCP server antics asks: How old?"
            assert json.loads(question.schema)["required"] == ["age"]
            assert question.expires > question.asked
            await antics.node.actor("questions").ask(AnswerQuestion(question.id, outcome, value))
            assert json.loads((await task).value) == expected
    assert any("waits for a person" in one.text for one in heard)


async def test_a_page_to_visit_is_shown_and_only_a_web_page(antics: Company) -> None:
    async with antics.tool("visit") as tool:
        task = asyncio.ensure_future(tool.request({}))
        question = await antics.question()
        assert question.link == "https://example.com/login"
        await antics.node.actor("questions").ask(AnswerQuestion(question.id))
        assert (await task).value == '"accept"'
    with pytest.raises(ToolError, match="http"):
        await antics.call("visit", url="file:///etc/passwd")


async def test_a_question_goes_when_its_call_is_given_up(antics: Company) -> None:
    async with antics.tool("ask") as tool:
        task = asyncio.ensure_future(tool.request({}))
        await antics.question()
        task.cancel()
        await antics.no_question()


# One transport is enough for what follows.


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
