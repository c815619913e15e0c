"""`callboard tool` against a daemon that runs as users run it: tools that packages announce, and that a file serves."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import PIL.Image
import psutil
import pytest
from board import Board, install_toolbox, running

import callboard
from callboard.actors.tools.client import OpenedTool, list_tools
from callboard.actors.tools.errors import NoSuchTool
from callboard.actors.tools.tool_set import ToolSetConfig
from callboard.runtime.client import Client
from callboard.runtime.errors import ActorStopped
from callboard.runtime.files import write_private
from callboard.runtime.identity import read_creds
from callboard.runtime.joining import redeem
from callboard.runtime.placement import Process
from callboard.schemas.tool import ListTools

SERVED = '''
from callboard import tool

@tool(read_only=True)
def greet(name: str, times: int = 1) -> str:
    """Say hello to somebody."""
    return " ".join([f"hello {name}"] * times)

@tool
def which() -> str:
    """Say which version this is."""
    return "one"
'''


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    base = tmp_path_factory.mktemp("tools")
    site = install_toolbox(base / "site", "adder = toolbox:calculator", "broken = toolbox_broken:tools")
    (site / "toolbox_broken.py").write_text("raise RuntimeError('this package is broken')\n")
    with running(base, PYTHONPATH=str(site)) as board:
        yield board


@pytest.fixture
async def bus(daemon: Board, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    for name, value in daemon.environment.items():
        monkeypatch.setenv(name, value)
    async with callboard.connect() as bus:
        yield bus


def out(board: Board, *arguments: str) -> str:
    done = board.run("tool", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


ASKING = '''
from callboard import ToolContext, tool
from callboard.schemas.tool import ListTools
import msgspec

class Options(msgspec.Struct):
    engine: str = ""

@tool
def total(context: ToolContext, address: str = "tools") -> int:
    """Say how many tools there are."""
    return context.ask(address, ListTools()).total

def tools(options: Options):
    return [total]
'''
TOOL_SPY = Path(__file__).parent / "tool_spy.py"
TOOLBOX = Path(__file__).parent / "toolbox.py"


def served(board: Board, path: Path | str, *arguments: str) -> subprocess.Popen[str]:
    process = board.start("tool", "serve", str(path), *arguments)
    assert process.stderr is not None
    for line in process.stderr:
        if "Ctrl-C" in line:
            return process
    raise AssertionError("it did not come")


def test_what_packages_announce_is_listed_without_being_started(daemon: Board) -> None:
    listed = {info["name"]: info for info in json.loads(out(daemon, "list", "--json"))}
    assert listed["adder"]["address"] == ""
    assert listed["adder"]["input_schema"]["properties"]["a"]["description"] == "the first"
    assert listed["box.refuse"]["annotations"]["destructive"] is True
    assert not any(name.startswith("broken") for name in listed)
    best = json.loads(out(daemon, "list", "make a picture grey", "--json", "-n", "1"))
    assert [info["name"] for info in best] == ["box.grey"]
    assert "Make an image grey." in out(daemon, "list", "grey")


@pytest.mark.slow
def test_show_says_what_a_tool_takes_and_gives(daemon: Board) -> None:
    text = out(daemon, "show", "adder")
    assert "a: integer\n      the first" in text
    assert "b: integer, may be left out, default 1" in text
    assert "gives:       integer" in text
    done = daemon.run("tool", "show", "addder")
    assert done.returncode == 1
    assert "did you mean 'adder'" in done.stderr


def test_call_starts_the_tool_and_reads_values_by_its_schema(daemon: Board) -> None:
    assert out(daemon, "call", "adder", "a=20", "b=22") == "42\n"
    assert json.loads(out(daemon, "call", "adder", "1", "--json"))["value"] == 2
    assert out(daemon, "call", "box.count", "n=3") == "0 1 2 \n"
    wrong = daemon.run("tool", "call", "adder", "a=many")
    assert wrong.returncode == 1
    assert '`a`: expected integer, got "many"' in wrong.stderr
    assert "its arguments are: a, b?" in wrong.stderr


@pytest.mark.slow
def test_media_come_from_files_and_go_to_files(daemon: Board, tmp_path: Path) -> None:
    photo, grey = tmp_path / "photo.png", tmp_path / "grey.png"
    PIL.Image.new("RGB", (30, 20), (255, 0, 0)).save(photo)
    found = json.loads(out(daemon, "call", "box.grey", f"image=@{photo}", "-o", str(grey), "--json"))
    assert [media["mime"] for media in found["media"]] == ["image/png"]
    with PIL.Image.open(grey) as image:
        assert (image.size, image.mode) == ((30, 20), "L")
    sizes = json.loads(out(daemon, "call", "box.sizes", f"files=@{photo}", f"files=@{grey}", "--json"))
    assert sizes["value"]["sizes"] == [photo.stat().st_size, grey.stat().st_size]
    assert daemon.run("tool", "call", "box.grey", "image=@/nowhere.png").returncode == 1


def test_a_file_is_served_until_its_process_is_told_to_go(daemon: Board, tmp_path: Path) -> None:
    path = tmp_path / "my_tools.py"
    path.write_text(SERVED)
    process = served(daemon, path)
    assert out(daemon, "call", "my_tools.greet", "name=Ada", "times=2") == "hello Ada hello Ada\n"
    listed = {info["name"]: info["address"] for info in json.loads(out(daemon, "list", "--json"))}
    assert listed["my_tools.greet"] == "my_tools.greet"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert "my_tools.greet" not in [info["name"] for info in json.loads(out(daemon, "list", "--json"))]
    done = daemon.run("tool", "call", "my_tools.greet", "name=Ada")
    assert done.returncode == 1
    assert "nobody offers" in done.stderr


@pytest.mark.anyio
async def test_two_versions_of_a_tool_are_there_at_once(daemon: Board, bus: Client, tmp_path: Path) -> None:
    first, second = tmp_path / "versions.py", tmp_path / "new" / "versions.py"
    second.parent.mkdir()
    first.write_text(SERVED)
    second.write_text(SERVED.replace('"one"', '"two"'))
    processes = [served(daemon, first, "--version", "1"), served(daemon, second, "--version", "1.10")]
    for name, said in (("versions.which@1", "one"), ("versions.which@1.10", "two"), ("versions.which", "two")):
        async with callboard.open_tool(bus, name) as tool:
            assert await tool.call() == said
    versions = [info.version for info in await list_tools(bus, names=("versions.which",))]
    assert versions == ["1", "1.10"]
    with pytest.raises(NoSuchTool, match="no version 3"):
        async with callboard.open_tool(bus, "versions.which@3"):
            pass
    processes[1].kill()
    processes[1].wait()
    with anyio.fail_after(20):  # the tools' own process sees that, and goes too
        while [info.version for info in await list_tools(bus, names=("versions.which",))] != ["1"]:
            await anyio.sleep(0.02)
    async with callboard.open_tool(bus, "versions.which") as tool:
        assert await tool.call() == "one"


@pytest.mark.anyio
async def test_a_set_that_is_killed_is_gone_at_once_and_comes_back(daemon: Board, bus: Client) -> None:
    async with callboard.open_tool(bus, "box.pid") as tool:
        before = await tool.call()
        psutil.Process(before).kill()
        with anyio.fail_after(20):
            while True:
                try:
                    after = await tool.call()
                    break
                except callboard.CallboardError:
                    continue  # the call that was under way when it died
        assert after != before


@pytest.mark.anyio
async def test_a_tools_process_may_do_nothing_on_the_bus_but_answer(daemon: Board, bus: Client) -> None:
    async with callboard.open_tool(bus, "box.add") as tool:
        assert await tool.call(a=1) == 2
    (info,) = [info for info in await bus.actors("box") if info.address == "box"]
    environment = psutil.Process(info.pid).environ()
    assert (info.kind, info.place) == ("tool.set", "process")
    assert not any("nkey" in value.lower() for value in environment.values())
    creds = next(daemon.paths.state.rglob("box.creds"))
    identity = read_creds(str(creds))
    assert identity.role == "tool"
    assert identity.may_publish("actor.box")
    assert not identity.may_publish("actor.tools")
    assert not identity.may_publish("topic.news")


@pytest.mark.anyio
async def test_served_tools_may_do_nothing_on_the_bus_but_answer(daemon: Board, bus: Client) -> None:
    served(daemon, TOOL_SPY)
    other = f"inbox.{bus.node.require_links().bus_name}.>"
    async with callboard.open_tool(bus, "tool_spy.through_the_runtime") as spy:
        by_runtime = await spy.call(other_inbox=other)
    assert {what: code for what, code in by_runtime.items() if code != "bus.forbidden"} == {}
    assert len(by_runtime) == 10
    async with callboard.open_tool(bus, "tool_spy.with_its_own_credentials") as spy:
        by_client = await spy.call(other_inbox=other)
    assert len(by_client) == 12
    assert all("permissions violation" in " ".join(refused).lower() for refused in by_client.values()), by_client


@pytest.mark.anyio
async def test_served_tools_may_ask_the_engine_that_their_options_name(
    daemon: Board, bus: Client, tmp_path: Path
) -> None:
    path = tmp_path / "asking.py"
    path.write_text(ASKING)
    served(daemon, f"{path}:tools", "--options", '{"engine": "tools"}')
    async with callboard.open_tool(bus, "asking.total") as total:
        assert await total.call() > 0
        with pytest.raises(callboard.CallboardError, match="role tool"):
            await total.call(address="deployments")


@pytest.mark.anyio
async def test_served_tools_are_whole_and_come_back_when_they_die(daemon: Board, bus: Client, tmp_path: Path) -> None:
    server = served(daemon, TOOLBOX, "--name", "bench")
    data = b"\x89PNG\r\n\x1a\n" + os.urandom(4 << 20)
    async with callboard.open_tool(bus, "bench.mirror") as mirror:
        assert (await mirror.call(image=data)).bytes() == data
    async with callboard.open_tool(bus, "bench.count") as count:
        progress: list[float] = []
        pieces: list[str] = []
        await count.request(
            {"n": 3},
            on_progress=lambda said: progress.append(said.done),
            on_piece=lambda piece, media: pieces.append(piece.text),
        )
        assert (progress, pieces) == ([1.0, 2.0, 3.0], ["0 ", "1 ", "2 "])
    async with callboard.open_tool(bus, "bench.wait_on_loop") as waiting:
        over = tmp_path / "file.over"
        with anyio.move_on_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: waiting.call(path=str(tmp_path / "file")))
                while not (tmp_path / "file.began").exists():
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
        with anyio.fail_after(10):
            while not over.exists():
                await anyio.sleep(0.01)
    async with callboard.open_tool(bus, "bench.pid") as pid:
        before = await pid.call()
        assert before != server.pid
        async with callboard.open_tool(bus, "bench.die") as die:
            with pytest.raises(ActorStopped):
                await die.call()
        with anyio.fail_after(20):
            while True:
                try:
                    assert await pid.call() != before
                    break
                except callboard.CallboardError:
                    continue
    server.send_signal(signal.SIGINT)
    assert server.wait(20) == 0


@pytest.mark.anyio
async def test_a_machine_that_joined_serves_tools_as_a_user_of_the_role_tool(
    daemon: Board, bus: Client, tmp_path: Path
) -> None:
    token = json.loads(daemon.run("creds", "token", "--json").stdout)["token"]
    file, path = tmp_path / "afar.creds", tmp_path / "distant.py"
    write_private(file, await redeem(daemon.info().url, token, "afar"))
    path.write_text(SERVED)
    served(daemon, path, "--nats", daemon.info().url, "--creds", str(file))
    async with callboard.open_tool(bus, "distant.greet") as greet:
        assert await greet.call(name="Ada") == "hello Ada"
    (own,) = file.parent.glob("afar-processes/*/distant.creds")
    identity = read_creds(own)
    assert (identity.role, identity.may_ask) == ("tool", frozenset())


def test_a_name_that_is_taken_is_not_served_and_costs_its_owner_nothing(daemon: Board, tmp_path: Path) -> None:
    creds = daemon.paths.state / "creds" / "main.creds"
    before = creds.read_text()
    path = tmp_path / "main.py"
    path.write_text(SERVED)
    done = daemon.run("tool", "serve", str(path))
    assert done.returncode == 1
    assert "--name" in done.stderr
    assert creds.read_text() == before


def test_a_file_that_cannot_be_loaded_is_not_served(daemon: Board, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    assert "there is no file" in daemon.run("tool", "serve", str(path)).stderr
    path.write_text("raise RuntimeError('not today')\n")
    done = daemon.run("tool", "serve", str(path))
    assert done.returncode == 1
    assert "not today" in done.stderr
    done = daemon.run("tool", "serve", str(path), "--options", "[1]")
    assert done.returncode == 2
    assert "--options" in done.stderr


def test_served_tools_are_found_again_when_server_and_daemon_come_back(tmp_path: Path) -> None:
    path = tmp_path / "my_tools.py"
    path.write_text(SERVED)
    with running(tmp_path / "company") as board:

        def is_found() -> None:
            """Within seconds: until all processes are back on the bus, the directory may miss it for a moment."""
            until = time.monotonic() + 50
            while (done := board.run("tool", "call", "my_tools.greet", "name=Ada")).returncode != 0:
                assert time.monotonic() < until, done.stderr
            assert done.stdout == "hello Ada\n"

        process = served(board, path)
        is_found()
        board.server().kill()
        is_found()
        os.kill(board.info().daemon_pid, signal.SIGKILL)
        is_found()
        assert process.poll() is None


@pytest.mark.anyio
async def test_large_media_reach_a_process_that_may_only_answer(daemon: Board, bus: Client) -> None:
    data = b"\x89PNG\r\n\x1a\n" + os.urandom(4 << 20)
    async with callboard.open_tool(bus, "box.mirror") as tool:
        back = await tool.call(image=data)
        assert back.bytes() == data
    async with callboard.open_tool(bus, "box.large") as tool:
        assert len(await tool.call(size=16 << 20)) == 16 << 20


@pytest.mark.anyio
async def test_large_media_go_to_a_tool_on_another_host_and_back_by_way_of_the_tool(
    daemon: Board, bus: Client, tmp_path: Path
) -> None:
    """Its folder of blobs is another one, as on another host, and its role lets it ask nobody."""
    where = Process(role="tool", env={"CALLBOARD_CACHE_DIR": str(tmp_path / "cache")})
    ref = await bus.node.spawn("tool.set", ToolSetConfig("box", alone=True), name="far", where=where)
    infos = {info.name: info for info in (await ref.ask(ListTools())).tools}
    mirror = OpenedTool(bus.node, infos["far.mirror"], "far.mirror")
    data = b"\x89PNG\r\n\x1a\n" + os.urandom((3 << 20) + 7)
    for _ in range(2):
        assert (await mirror.call(image=data)).bytes() == data
    sizes = OpenedTool(bus.node, infos["far.sizes"], "far.sizes")
    found = await sizes.call(files=[callboard.File.from_bytes(data), callboard.File.from_bytes(b"small")])
    assert found["sizes"] == [len(data), 5]
    blobs = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]
    assert blobs == []


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_ten_lines_of_the_page_are_a_tool(
    daemon: Board, bus: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first program of docs/tools.md, served and called as the page says."""
    page = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_tools.py").write_text(programs[0])
    PIL.Image.new("RGB", (64, 48), (255, 0, 0)).save("photo.png")
    served(daemon, tmp_path / "my_tools.py")
    shell = [line.removeprefix("$ callboard ") for line in page.splitlines() if line.startswith("$ callboard tool")]
    for line in shell:
        if not line.startswith(("tool serve", "tool deploy")):  # a node for the latter is in test_tools_deploy.py
            done = daemon.run(*shlex.split(line))
            assert done.returncode == 0, done.stderr
    with PIL.Image.open("small.png") as small:
        assert small.size == (32, 24)
    async with callboard.open_tool(bus, "my_tools.thumbnail") as thumbnail:
        assert (await thumbnail.call(image=Path("photo.png"), width=16)).pil().size == (16, 12)
    for number, program in enumerate(programs[1:3]):
        (tmp_path / f"more_{number}.py").write_text(program)
        served(daemon, tmp_path / f"more_{number}.py")
    async with callboard.open_tool(bus, "more_0.convert") as convert:
        assert await convert.call(pages=["a", "b"]) == "done"
        with pytest.raises(callboard.ToolError, match="page 1 is empty"):
            await convert.call(pages=["a", ""])
    async with callboard.open_tool(bus, "more_1.answer") as answer:
        assert await answer.call(question="life") == "42"
