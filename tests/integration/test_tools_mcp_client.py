"""Tools of real MCP servers as tools of the company: over stdio and HTTP, in both eras of the protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from mcp_antics import PIXEL
from mcp_company import KEY, Company, OverHttp
from own_server import own_server

from callboard.actors.tools.errors import ToolArguments, ToolError, ToolResultInvalid
from callboard.actors.tools.mcp.errors import ToolServerFailed
from callboard.actors.tools.values import Audio, File, Image
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.schemas.question import AnswerQuestion, Outcome
from callboard.schemas.tool import ListTools, ToolList, ToolProgress

pytestmark = pytest.mark.anyio
slow = pytest.mark.slow


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
