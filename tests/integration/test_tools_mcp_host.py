"""The company as an MCP server: the SDK's own client as the host, over real stdio and real HTTP, against a daemon."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import mcp_types
import psutil
import pytest
from board import COMMAND, Board, install_toolbox, running
from mcp.client.client import Client as Host
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_antics import PIXEL

import callboard
from callboard.actors.models.store import ModelStore
from callboard.actors.tools.mcp import asking
from callboard.runtime.credentials import mint_user
from callboard.runtime.errors import BusError, CallboardError, Forbidden, NameTaken
from callboard.runtime.files import write_private
from callboard.runtime.identity import read_creds
from callboard.runtime.roles import process_role
from callboard.schemas.question import AnswerQuestion, AskQuestion, ListQuestions

pytestmark = pytest.mark.anyio
slow = pytest.mark.slow

ANTICS = str(Path(__file__).with_name("mcp_antics.py"))
URI = "data:image/png;base64," + base64.b64encode(PIXEL).decode()


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    base = tmp_path_factory.mktemp("mcp")
    with running(base, PYTHONPATH=str(install_toolbox(base / "site"))) as board:
        yield board


@asynccontextmanager
async def over_stdio(board: Board, *flags: str, **options: Any) -> AsyncIterator[Host]:
    parameters = StdioServerParameters(
        command=COMMAND[0],
        args=[*COMMAND[1:], "tool", "mcp", "serve", *flags],
        env={**os.environ, **board.environment},
    )
    async with Host(parameters, **options) as host:
        yield host


@asynccontextmanager
async def serving_http(board: Board, *flags: str) -> AsyncIterator[str]:
    """The URL of `callboard tool mcp serve --http`."""
    process = board.start("tool", "mcp", "serve", "--http", "127.0.0.1:0", *flags)
    assert process.stdout is not None
    url = (await anyio.to_thread.run_sync(process.stdout.readline)).strip()
    assert url, process.communicate()[1]
    try:
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        await anyio.to_thread.run_sync(process.wait)
        assert process.returncode in (0, 130), process.communicate()


@asynccontextmanager
async def over_http(url: str, token: str, **options: Any) -> AsyncIterator[Host]:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http:
        async with Host(streamable_http_client(url, http_client=http), **options) as host:
            yield host


def token(board: Board) -> str:
    return (board.paths.state / "mcp.token").read_text().strip()


WAYS = ["stdio", *(pytest.param(way, marks=slow) for way in ("stdio-legacy", "http", "http-legacy"))]


@pytest.fixture(scope="module", params=WAYS)
async def host(request: Any, daemon: Board) -> AsyncIterator[Host]:
    transport, _, era = request.param.partition("-")
    mode = era or "auto"
    if transport == "stdio":
        async with over_stdio(daemon, mode=mode) as host:
            yield host
    else:
        async with serving_http(daemon) as url, over_http(url, token(daemon), mode=mode) as host:
            yield host


async def test_a_host_sees_the_companys_tools_with_schemas_and_hints(host: Host) -> None:
    tools = {tool.name: tool for tool in (await host.list_tools()).tools}
    add = tools["box_add"]
    assert add.description == "Add two numbers."
    assert add.input_schema["properties"]["a"] == {"type": "integer", "description": "the first"}
    assert add.input_schema["required"] == ["a"]
    assert add.output_schema == {
        "type": "object",
        "properties": {"result": {"type": "integer"}},
        "required": ["result"],
    }
    assert add.annotations is not None
    assert (add.annotations.read_only_hint, add.annotations.destructive_hint) == (True, False)
    assert "data: URI" in tools["box_mirror"].input_schema["properties"]["image"]["description"]
    assert all(len(name) <= 64 and name.replace("_", "").replace("-", "").isalnum() for name in tools)
    assert host.server_info is not None
    assert (host.server_info.name, host.server_info.version) == ("callboard", callboard.__version__)


async def test_it_calls_them_and_reads_value_and_text(host: Host) -> None:
    result = await host.call_tool("box_add", {"a": 40, "b": 2})
    assert result.structured_content == {"result": 42}
    assert said(result) == "42"
    several = await asyncio.gather(*(host.call_tool("box_add", {"a": number}) for number in range(20)))
    assert [one.structured_content["result"] for one in several] == list(range(1, 21))


async def test_its_model_reads_what_was_wrong(host: Host) -> None:
    wrong = await host.call_tool("box_add", {"a": "many", "c": 1})
    assert wrong.is_error
    assert "`a`: expected integer" in said(wrong)
    assert "there is no argument `c`" in said(wrong)
    refused = await host.call_tool("box_refuse", {"reason": "why not"})
    assert refused.is_error
    assert said(refused) == "no: why not\nask for something else"
    assert (await host.call_tool("box_fail", {})).is_error
    with pytest.raises(MCPError, match="no tool nothing"):
        await host.call_tool("nothing", {})


async def test_media_go_both_ways(host: Host) -> None:
    result = await host.call_tool("box_mirror", {"image": URI})
    (image,) = [block for block in result.content if isinstance(block, mcp_types.ImageContent)]
    assert (image.mime_type, base64.b64decode(image.data)) == ("image/png", PIXEL)
    grey = await host.call_tool("box_grey", {"image": URI})
    (image,) = [block for block in grey.content if isinstance(block, mcp_types.ImageContent)]
    assert base64.b64decode(image.data).startswith(b"\x89PNG")
    report = await host.call_tool("box_report", {"text": "all is well"})
    (embedded,) = [block for block in report.content if isinstance(block, mcp_types.EmbeddedResource)]
    assert isinstance(embedded.resource, mcp_types.BlobResourceContents)
    assert base64.b64decode(embedded.resource.blob) == b"all is well"
    assert embedded.resource.uri.endswith("/report.txt")
    sizes = await host.call_tool("box_sizes", {"files": ["data:text/plain,four", URI]})
    assert json.loads(said(sizes))["sizes"] == [4, len(PIXEL)]
    for bad in ("/etc/passwd", "file:///etc/passwd", "data:image/png;base64,!!", "data:nothing"):
        wrong = await host.call_tool("box_mirror", {"image": bad})
        assert wrong.is_error
        assert "$.image" in said(wrong)


async def test_progress_and_pieces_come_as_progress_that_only_grows(host: Host) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    result = await host.call_tool("box_count", {"n": 3}, progress_callback=progress)
    assert said(result) == "0 1 2 "
    amounts = [amount for amount, _, _ in heard]
    assert amounts == sorted(set(amounts))
    messages = [message for _, _, message in heard]
    assert {"0 ", "1 ", "2 "} <= set(messages)
    assert any(message and message.startswith("at ") and total == 3 for _, total, message in heard)


async def test_what_a_host_gives_up_is_given_up_in_the_company(host: Host, tmp_path: Path) -> None:
    path, began, over = tmp_path / "marker", tmp_path / "marker.began", tmp_path / "marker.over"
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(host.call_tool, "box_wait_on_loop", {"path": str(path)})
            while not began.exists():
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        while not over.exists():
            await anyio.sleep(0.01)
    assert over.read_text() == "cancelled"


async def test_models_are_a_resource(host: Host) -> None:
    (resource,) = (await host.list_resources()).resources
    found = await host.read_resource(resource.uri)
    assert isinstance(found.contents[0], mcp_types.TextResourceContents)
    assert json.loads(found.contents[0].text) == []
    with pytest.raises(MCPError):
        await host.read_resource("callboard://nothing")


def said(result: mcp_types.CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, mcp_types.TextContent))


# One way in is enough for what follows.


async def test_over_http_the_token_is_what_lets_in(daemon: Board) -> None:
    async with serving_http(daemon) as url:
        assert (daemon.paths.state / "mcp.token").stat().st_mode & 0o777 == 0o600
        async with httpx2.AsyncClient() as http:
            for shown in ("", "Bearer wrong", token(daemon)):
                answer = await http.post(url, json={}, headers={"Authorization": shown})
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
            # A page of another origin, whose name was turned on this machine.
            headers = {"Authorization": f"Bearer {token(daemon)}", "Host": "evil.example"}
            assert (await http.post(url, json={}, headers=headers)).status_code in (400, 403, 421)


@slow
async def test_tools_are_not_offered_to_the_network_without_a_token(daemon: Board) -> None:
    done = await anyio.to_thread.run_sync(lambda: daemon.run("tool", "mcp", "serve", "--http", "0.0.0.0:0", "--open"))
    assert done.returncode == 2
    assert "without a token" in done.stderr


async def test_only_what_is_to_be_offered_is_and_files_of_named_folders_can_be_sent(
    daemon: Board, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "pixel.png").write_bytes(PIXEL)
    (tmp_path / "secret.png").write_bytes(PIXEL)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    async with over_stdio(daemon, "--tools", "box.mirror", "--tools", "box.add", "--files", str(folder)) as host:
        assert {tool.name for tool in (await host.list_tools()).tools} == {"box_mirror", "box_add"}
        with pytest.raises(MCPError):
            await host.call_tool("box_pid", {})
        result = await host.call_tool("box_mirror", {"image": str(folder / "pixel.png")})
        assert not result.is_error, said(result)
        (image,) = [block for block in result.content if isinstance(block, mcp_types.ImageContent)]
        assert base64.b64decode(image.data) == PIXEL
        for path in (tmp_path / "secret.png", folder / "link.png", folder / ".." / "secret.png", folder):
            assert (await host.call_tool("box_mirror", {"image": str(path)})).is_error
    async with over_stdio(daemon, "--read-only", "--no-models", "--tools", "box.*") as host:
        assert {tool.name for tool in (await host.list_tools()).tools} == {"box_add", "box_calculator"}


@slow
async def test_servers_are_added_listed_followed_and_removed_and_hosts_are_told(daemon: Board) -> None:
    """The whole circle: a host sees, through the company, the tools of another server that was just added."""
    changed = asyncio.Event()

    async def heard(message: Any) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            changed.set()

    def tool_mcp(*arguments: str) -> subprocess.CompletedProcess[str]:
        return daemon.run("tool", "mcp", *arguments)

    async with over_stdio(daemon, mode="legacy", message_handler=heard) as host:
        before = {tool.name for tool in (await host.list_tools()).tools}
        assert not any(name.startswith("antics") for name in before)
        added = await anyio.to_thread.run_sync(
            lambda: tool_mcp("add", "antics", "--env", "API_KEY=very-secret-7", "--", sys.executable, ANTICS)
        )
        assert added.returncode == 0, added.stderr
        assert "antics.echo" in added.stdout.splitlines()
        assert "very-secret-7" not in added.stdout + added.stderr
        with anyio.fail_after(30):
            await changed.wait()
            while "antics_echo" not in {tool.name for tool in (await host.list_tools()).tools}:
                await anyio.sleep(0.05)
        assert said(await host.call_tool("antics_echo", {"text": "through two servers"})) == "through two servers"
        picture = await host.call_tool("antics_picture", {})
        (image,) = [block for block in picture.content if isinstance(block, mcp_types.ImageContent)]
        assert base64.b64decode(image.data) == PIXEL

        called = await anyio.to_thread.run_sync(
            lambda: daemon.run("tool", "call", "antics.add", "a=1", "b=2", "--json")
        )
        assert called.returncode == 0, called.stderr
        (listed,) = json.loads(tool_mcp("list", "--json").stdout)
        assert listed["status"]["connected"]
        assert listed["status"]["implementation"] == "antics 1.0"
        shown = tool_mcp("list")
        assert "connected" in shown.stdout
        assert "very-secret-7" not in shown.stdout + json.dumps(listed)
        file = daemon.paths.state / "mcp.json"
        assert file.stat().st_mode & 0o777 == 0o600

        again = tool_mcp("add", "antics", "--", sys.executable, ANTICS)
        assert again.returncode == 2
        assert "--replace" in again.stderr
        removed = await anyio.to_thread.run_sync(lambda: tool_mcp("remove", "antics"))
        assert removed.returncode == 0, removed.stderr
        assert json.loads(tool_mcp("list", "--json").stdout) == []
        with anyio.fail_after(30):
            while any(tool.name.startswith("antics") for tool in (await host.list_tools()).tools):
                await anyio.sleep(0.05)
    everywhere = [path for path in daemon.paths.state.rglob("*") if path.is_file() and path.name != "mcp.json"]
    assert not [path for path in everywhere if b"very-secret-7" in path.read_bytes()]


@slow
async def test_a_server_of_a_file_of_ones_own_may_do_no_more_on_the_bus_than_the_companys(
    daemon: Board, tmp_path: Path
) -> None:
    file = str(tmp_path / "mine.json")
    added = daemon.run("tool", "mcp", "add", "mine", "--file", file, "--", sys.executable, ANTICS)
    assert added.returncode == 0, added.stderr
    (creds,) = daemon.paths.state.rglob("mine.creds")
    identity = read_creds(creds)
    may = ("actor.tools", "actor.questions", "actor.mine")
    may_not = ("actor.node.main", "actor.engine", "actor.engine.scheduler", "actor.box", "topic.any", "$JS.API.INFO")
    assert [subject for subject in (*may, *may_not) if identity.may_publish(subject)] == list(may)
    called = daemon.run("tool", "call", "mine.add", "a=1", "b=2", "--json")
    assert called.returncode == 0, called.stderr
    assert daemon.run("tool", "mcp", "stop", "mine", "--file", file).returncode == 0


@slow
async def test_a_question_of_a_server_is_answered_on_the_command_line(daemon: Board, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    added = daemon.run("tool", "mcp", "add", "asker", "--", sys.executable, ANTICS, "--diary", str(diary))
    assert added.returncode == 0, added.stderr
    watching = daemon.start("questions", "watch")
    assert watching.stderr is not None
    watching.stderr.readline()
    calling = daemon.start("tool", "call", "asker.ask", "--json")
    assert watching.stdout is not None
    opened = await anyio.to_thread.run_sync(watching.stdout.readline)
    assert "How old?" in opened
    id = opened.split()[0]
    wrong = daemon.run("questions", "answer", id, "age=old")
    assert wrong.returncode == 1
    assert "$.age" in wrong.stderr
    listed = daemon.run("questions")
    assert id in listed.stdout
    shown = daemon.run("questions", "show", id)
    assert "asked by" in shown.stdout
    answered = daemon.run("questions", "answer", id, "age=41", "--by", "me")
    assert answered.returncode == 0, answered.stderr
    out, err = await anyio.to_thread.run_sync(calling.communicate)
    assert calling.returncode == 0, err
    assert "accept {'age': 41}" in out
    closed = await anyio.to_thread.run_sync(watching.stdout.readline)
    assert closed.split() == [id, "accepted", "me"]
    assert "accepted" in daemon.run("questions", "--all").stdout
    daemon.run("tool", "mcp", "remove", "asker")


@slow
async def test_who_may_not_start_the_board_waits_for_it_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the process of an MCP server, which may ask the board and nobody else."""
    question = AskQuestion("May I?", "x", schema='{"type": "boolean"}', key="one")
    with running(tmp_path / "company") as board:
        file = tmp_path / "x.creds"
        account = Path(board.info().account)
        seed = (await anyio.Path(account).read_text()).strip()
        write_private(file, mint_user(seed, "x", "x", process_role("tool", ("questions",))))
        async with (
            callboard.connect(board.info().url, str(file), name="x") as asker,
            callboard.connect(state_dir=str(board.paths.state)) as other,
        ):
            questions = asking.Board(asker.node, "x")
            with monkeypatch.context() as patch:
                patch.setattr(asking, "BACK_S", 0.5)
                with pytest.raises(Forbidden, match="role tool"):
                    await questions.ask(question)
            asked = asyncio.ensure_future(questions.ask(question))
            await anyio.sleep(2 * asking.AGAIN_S)
            await other.spawn("question.board", name="questions")
            with anyio.fail_after(20):
                while not (found := (await other.actor("questions").ask(ListQuestions("x"))).questions):
                    await anyio.sleep(0.02)
                await other.actor("questions").ask(AnswerQuestion(found[0].id, value="true"))
                assert (await asked).value == "true"


@slow
async def test_a_question_outlives_a_daemon_that_is_killed(daemon: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in daemon.environment.items():
        monkeypatch.setenv(name, value)
    message = AskQuestion("May I?", "somebody", schema='{"type": "boolean"}', key="one")
    async with callboard.connect() as bus:
        with contextlib.suppress(NameTaken):
            await bus.spawn("question.board", name="questions")
        asked = asyncio.ensure_future(bus.actor("questions").ask(message, math.inf))
        with anyio.fail_after(20):
            while not (found := (await bus.actor("questions").ask(ListQuestions("somebody"))).questions):
                await anyio.sleep(0.02)
        os.kill(daemon.info().daemon_pid, signal.SIGKILL)
        with pytest.raises(CallboardError):
            await asked
        with anyio.fail_after(50):
            while True:
                answered = await anyio.to_thread.run_sync(
                    lambda: daemon.run("questions", "answer", found[0].id, "true")
                )
                if answered.returncode == 0:
                    break
                await anyio.sleep(0.2)
            while True:
                try:
                    assert (await bus.actor("questions").ask(message)).value == "true"
                    break
                except BusError:
                    await anyio.sleep(0.2)


@slow
async def test_a_server_that_was_added_is_there_after_a_restart_of_everything(tmp_path: Path) -> None:
    board = Board.at(tmp_path)
    try:
        added = board.run("tool", "mcp", "add", "antics", "--", sys.executable, ANTICS)
        assert added.returncode == 0, added.stderr
        assert "does not run" in added.stderr
        for _ in range(2):
            board.up()
            with anyio.fail_after(50):
                while "antics.echo" not in board.run("tool", "list", "--json").stdout:
                    await anyio.sleep(0.2)
            assert board.run("tool", "call", "antics.echo", "text=here").stdout.strip() == "here"
            assert board.run("down").returncode == 0
    finally:
        board.close()


@slow
async def test_a_killed_process_takes_its_server_along_and_both_come_back(daemon: Board, tmp_path: Path) -> None:
    diary = tmp_path / "diary"

    def pids() -> list[int]:
        return [int(line.split()[1]) for line in diary.read_text().splitlines() if line.startswith("pid ")]

    command = ("--", sys.executable, ANTICS, "--diary", str(diary))
    added = daemon.run("tool", "mcp", "add", "mortal", *command)
    assert added.returncode == 0, added.stderr
    (server,) = pids()
    identity = read_creds(daemon.paths.state / "creds" / "mortal.creds")
    assert (identity.role, identity.may_ask) == ("tool", {"tools", "questions"})
    assert not identity.may_publish("topic.news")
    assert not identity.may_publish("actor.node.main")
    assert not identity.may_subscribe("topic.news")
    actors = json.loads(daemon.run("actors", "mortal", "--json").stdout)
    os.kill(next(actor["pid"] for actor in actors if actor["address"] == "mortal"), signal.SIGKILL)
    with anyio.fail_after(40):
        while psutil.pid_exists(server) and psutil.Process(server).status() != psutil.STATUS_ZOMBIE:
            await anyio.sleep(0.02)
        while (called := daemon.run("tool", "call", "mortal.echo", "text=risen")).returncode != 0:
            await anyio.sleep(0.1)
    assert called.stdout.strip() == "risen"
    assert len(pids()) == 2
    assert daemon.run("tool", "mcp", "remove", "mortal").returncode == 0


async def test_agents_are_tools_and_a_run_can_be_looked_at_again(daemon: Board) -> None:
    script = [
        {"text": 'Thought: I add.\nAction: box.add_in_thread\nAction Input: {"a": 2, "b": 3}\n'},
        {"text": "Thought: done.\nFinal Answer: It is 5.\n"},
    ]
    async with over_stdio(daemon) as host:
        assert not [tool.name for tool in (await host.list_tools()).tools if tool.name.startswith("agent_")]
    for kind, name, config in (
        ("agent.scripted", "engine", json.dumps({"answers": script})),
        ("agent.runs", "agents", "{}"),
    ):
        spawned = daemon.run("spawn", kind, "--name", name, "--config", config)
        assert spawned.returncode == 0, spawned.stderr
    try:
        heard: list[str] = []

        async def hear(progress: float, total: float | None, message: str | None) -> None:
            heard.append(message or "")

        async with over_stdio(daemon) as host:
            tools = {tool.name for tool in (await host.list_tools()).tools}
            assert tools >= {"agent_react", "agent_rewoo", "agent_autogpt", "agent_run"}
            asked = {"task": "2 + 3?", "tools": ["box.add_in_thread"]}
            running = asyncio.ensure_future(host.call_tool("agent_react", asked, progress_callback=hear))
            with anyio.fail_after(20):
                while not any("waits for a person" in words for words in heard):
                    await anyio.sleep(0.02)
            (waiting,) = json.loads(daemon.run("approvals", "--json").stdout)
            approved = daemon.run("approve", waiting["id"])
            assert approved.returncode == 0, approved.stderr
            result = await running
            assert said(result) == "It is 5."
            run = result.structured_content["run"]
            assert any(run in words for words in heard)
            again = await host.call_tool("agent_run", {"run": run})
            assert again.structured_content == result.structured_content
            unknown = await host.call_tool("agent_run", {"run": "nobody"})
            assert unknown.is_error
        async with over_stdio(daemon, "--no-agents") as host:
            assert not [tool.name for tool in (await host.list_tools()).tools if tool.name.startswith("agent_")]
    finally:
        for name in ("agents", "engine"):
            daemon.run("stop", name)


@slow
@pytest.mark.timeout(240)
async def test_a_model_that_runs_is_a_tool(tmp_path: Path) -> None:
    data = Path.home() / ".cache" / "callboard-test"
    await anyio.to_thread.run_sync(lambda: ModelStore(data / "models").pull("smollm2"))
    board = Board.at(tmp_path)
    board.environment["CALLBOARD_DATA_DIR"] = str(data)
    board.up()
    try:
        question = "What is the capital of France? Answer in one sentence."
        chatting = board.start("chat", "-p", question, "--max-tokens", "12", "--temperature", "0", "--json")
        answer, trouble = await anyio.to_thread.run_sync(chatting.communicate)
        assert chatting.returncode == 0, trouble
        async with over_stdio(board) as host:
            tools = {tool.name: tool for tool in (await host.list_tools()).tools}
            (name,) = [name for name in tools if name.startswith("ask_smollm2")]
            result = await host.call_tool(name, {"prompt": question, "max_tokens": 12, "temperature": 0})
            assert said(result) == json.loads(answer)["text"]
            assert result.structured_content["finish_reason"] in ("stop", "length")
            wrong = await host.call_tool(name, {"prompt": question, "max_tokens": 0})
            assert wrong.is_error
            (resource,) = (await host.list_resources()).resources
            found = await host.read_resource(resource.uri)
            assert isinstance(found.contents[0], mcp_types.TextResourceContents)
            assert json.loads(found.contents[0].text)[0]["engine"] == "engine"
        async with over_stdio(board, "--no-models") as host:
            assert not [tool for tool in (await host.list_tools()).tools if tool.name.startswith("ask_smollm2")]
    finally:
        board.close()
