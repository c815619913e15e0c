"""`callboard tool` against a daemon that runs as users run it: tools that packages announce, and that a file serves."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
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


def served(board: Board, path: Path, *arguments: str) -> subprocess.Popen[str]:
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
    assert [info.version for info in await list_tools(bus, names=("versions.which",))] == ["1"]
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
    from callboard.runtime.identity import read_creds

    creds = next(daemon.paths.state.rglob("box.creds"))
    identity = read_creds(str(creds))
    assert identity.role == "tool"
    assert identity.may_publish("actor.box")
    assert not identity.may_publish("actor.tools")
    assert not identity.may_publish("topic.news")


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
        if not line.startswith("tool serve"):
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
