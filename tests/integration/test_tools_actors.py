"""Tools as actors: a real server, a set in a process of its own, and everything that goes wrong with a call."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil
import pytest
from greedy import THIS_FILE as GREEDY
from nats.aio.client import Client as Nats
from own_server import OwnServer
from toolbox import THIS_FILE

from callboard import Audio, File, Image
from callboard.actors.tools.client import OpenedTool
from callboard.actors.tools.errors import (
    NoSuchTool,
    ToolArguments,
    ToolBusy,
    ToolError,
    ToolFailed,
    ToolOverLimit,
    ToolResultInvalid,
    ToolSetupFailed,
    ToolTimeout,
)
from callboard.actors.tools.limits import limits_of
from callboard.actors.tools.tool_set import ToolSetConfig
from callboard.runtime.blobs import INLINE_MAX
from callboard.runtime.errors import ActorStopped, NoSuchActor
from callboard.runtime.node import Node
from callboard.runtime.placement import Process
from callboard.runtime.refs import Ref
from callboard.runtime.supervision import Restart
from callboard.schemas.tool import CallTool, DescribeTool, ListTools, ToolPiece, ToolProgress

pytestmark = pytest.mark.anyio


async def offer(node: Node, name: str = "box", load: str = "toolbox", **config: Any) -> Ref:
    """A set in a process of its own, which comes back when it dies."""
    where = Process(load=(THIS_FILE,), role="tool")
    config_ = ToolSetConfig(load, alone=True, **config)
    return await node.spawn("tool.set", config_, name=name, where=where, restart=Restart.PERMANENT)


@pytest.fixture
async def box(node: Node) -> dict[str, OpenedTool]:
    """The toolbox's tools by their names."""
    ref = await offer(node)
    found = await ref.ask(ListTools())
    return {info.name.partition(".")[2]: OpenedTool(node, info, info.name) for info in found.tools}


async def there(path: Path) -> None:
    with anyio.fail_after(10):
        while not await anyio.Path(path).exists():
            await anyio.sleep(0.01)  # another process makes it


def node_of(tool: OpenedTool) -> Ref:
    return tool._node.actor(tool.info.address)


async def called_again(tool: OpenedTool, **arguments: Any) -> Any:
    """What it answers once its process is back."""
    with anyio.fail_after(20):
        while True:
            try:
                return msgspec.json.decode(
                    (await node_of(tool).ask(CallTool(msgspec.json.encode(arguments).decode()), 10.0)).value
                )
            except (NoSuchActor, ActorStopped):
                await anyio.sleep(0.05)  # nothing tells when it is


async def test_a_call_over_the_bus_takes_values_and_gives_values(box: dict[str, OpenedTool]) -> None:
    assert await box["add"].call(a=2, b=3) == 5
    assert await box["add_in_thread"].call(a=2) == 3
    info = box["add"].info
    assert (info.name, info.address) == ("box.add", "box.add")
    assert await box["pid"].call() != os.getpid()


async def test_a_set_of_one_tool_is_that_tool(node: Node) -> None:
    ref = await offer(node, "calculator", "toolbox:calculator")
    info = await ref.ask(DescribeTool())
    assert (info.name, info.address) == ("calculator", "calculator")
    assert await OpenedTool(node, info, info.name).call(a=1, b=2) == 3
    pair = await offer(node, "pair", "toolbox:PAIR")
    assert [info.name for info in (await pair.ask(ListTools())).tools] == ["pair.add", "pair.pid"]
    with pytest.raises(NoSuchTool, match="set of tools"):
        await pair.ask(CallTool("{}"))


async def test_arguments_that_do_not_fit_come_back_as_an_error_to_mend(box: dict[str, OpenedTool]) -> None:
    with pytest.raises(ToolArguments, match=r"`a`: expected integer, got \"x\"") as raised:
        await box["add"].call(a="x")
    assert msgspec.json.decode(raised.value.detail)[0]["path"] == "$.a"
    with pytest.raises(ToolArguments, match=r"`a` is missing.*no argument `bb`, did you mean `b`"):
        await box["add"].call(bb=1)
    with pytest.raises(ToolArguments, match="no JSON"):
        await box["add"].request('{"a": ')


async def test_results_and_failures_are_told_apart(box: dict[str, OpenedTool]) -> None:
    with pytest.raises(ToolResultInvalid, match="int"):
        await box["lie"].call()
    with pytest.raises(ToolError, match="no: because") as said:
        await box["refuse"].call(reason="because")
    assert (said.value.code, said.value.hint) == ("tool", "ask for something else")
    with pytest.raises(ToolError, match="own way") as own:
        await box["refuse_in_its_own_way"].call()
    assert (own.value.to_info().code, own.value.hint) == ("tool.toolbox.own", "ask otherwise")
    with pytest.raises(ToolFailed, match="ZeroDivisionError") as failed:
        await box["fail"].call()
    assert "toolbox.py" in failed.value.detail


async def test_a_tool_that_dies_in_mid_call_fails_the_call_and_comes_back(box: dict[str, OpenedTool]) -> None:
    before = await box["pid"].call()
    with anyio.fail_after(10):
        with pytest.raises(ActorStopped, match="box"):
            await box["die"].call()
    assert await called_again(box["pid"]) != before


async def test_a_function_that_hangs_times_out_and_leaves_the_others_alone(box: dict[str, OpenedTool]) -> None:
    before = await box["pid"].call()
    with pytest.raises(ToolTimeout, match=r"0\.3 s"):
        await box["hang"].call()
    assert await box["add"].call(a=1) == 2
    assert await box["pid"].call() == before


async def test_a_tool_that_hangs_in_all_its_calls_takes_its_process_along_and_is_there_again(
    box: dict[str, OpenedTool], node: Node
) -> None:
    before = await box["pid"].call()
    results = await asyncio.gather(*(box["hang"].call() for _ in range(2)), return_exceptions=True)
    assert all(isinstance(result, ToolTimeout | ActorStopped) for result in results)
    with anyio.fail_after(20):
        while await called_again(box["pid"]) == before:
            await anyio.sleep(0.02)  # until it is noticed
    with pytest.raises(ToolTimeout):
        await box["hang"].call()


async def test_a_coroutine_that_blocks_the_loop_is_ended_by_the_watchdog(node: Node, tmp_path: Path) -> None:
    ref = await offer(node, "blocked", "toolbox:block")
    tool = OpenedTool(node, await ref.ask(DescribeTool()), "blocked")
    with anyio.fail_after(20):
        with pytest.raises(ActorStopped):
            await tool.call()


async def test_who_goes_away_cancels_the_call(box: dict[str, OpenedTool], tmp_path: Path) -> None:
    for name in ("wait_for", "wait_on_loop"):
        path = tmp_path / name
        async with anyio.create_task_group() as group:
            group.start_soon(box[name].request, {"path": str(path)})
            await there(Path(f"{path}.began"))
            group.cancel_scope.cancel()
        await there(Path(f"{path}.over"))
        with anyio.fail_after(15):
            while await anyio.Path(f"{path}.over").read_text() != "cancelled":
                await anyio.sleep(0.01)  # it is being written


async def test_a_call_that_comes_twice_under_one_key_is_run_once(box: dict[str, OpenedTool], tmp_path: Path) -> None:
    path = tmp_path / "once"
    call = {"path": str(path)}
    results: list[str] = []

    async def ask() -> None:
        results.append((await box["tally"].request(call, key="step-1")).data)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await there(Path(f"{path}.began"))
        group.start_soon(ask)
        path.touch()
    await ask()
    assert results == ["1"] * 3
    assert (await box["tally"].request(call, key="step-2")).data == "2"
    assert await box["tally"].call(**call) == "3"
    with pytest.raises(ToolFailed):
        await box["fail"].request({}, key="step-1")
    with pytest.raises(ToolFailed):
        await box["fail"].request({}, key="step-1")


async def test_a_call_under_a_key_that_was_given_up_is_run_by_the_next(
    box: dict[str, OpenedTool], tmp_path: Path
) -> None:
    path = tmp_path / "once"
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: box["tally"].request({"path": str(path)}, key="step-1"))
        await there(Path(f"{path}.began"))
        group.cancel_scope.cancel()
    await there(Path(f"{path}.over"))  # it is told that nobody wants it any more, and does not end by itself before
    path.touch()
    assert (await box["tally"].request({"path": str(path)}, key="step-1")).data == "2"


async def test_calls_beyond_the_limit_wait_and_beyond_that_are_refused(
    box: dict[str, OpenedTool], tmp_path: Path
) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    refused: list[Exception] = []
    async with anyio.create_task_group() as group:
        for path in paths:
            group.start_soon(box["wait_for"].request, {"path": str(path)})
        await there(Path(f"{paths[0]}.began"))
        await there(Path(f"{paths[1]}.began"))

        async def one_more() -> None:
            try:
                await box["wait_for"].call(path=str(tmp_path / "more"))
            except ToolBusy as error:
                refused.append(error)
                group.cancel_scope.cancel()

        for _ in range(40):
            group.start_soon(one_more)
    assert refused
    assert not await anyio.Path(f"{paths[2]}.began").exists()


async def test_what_waits_runs_when_there_is_room(box: dict[str, OpenedTool], tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    done: list[str] = []

    async def wait(path: Path) -> None:
        done.append(await box["wait_for"].call(path=str(path)))

    async with anyio.create_task_group() as group:
        for path in paths:
            group.start_soon(wait, path)
            if path != paths[2]:
                await there(Path(f"{path}.began"))
        paths[0].touch()
        await there(Path(f"{paths[2]}.began"))
        paths[1].touch()
        paths[2].touch()
    assert done == ["done"] * 3


async def test_media_are_pieces_too_of_whatever_size(box: dict[str, OpenedTool]) -> None:
    heard: list[File] = []

    def on_piece(piece: ToolPiece, media: Mapping[str, File]) -> None:
        assert piece.text == ""
        heard.extend(media.values())

    await box["show"].request({"n": 2}, on_piece=on_piece)
    assert [type(file) for file in heard] == [Image, Image, Audio, File]
    first, second, sound, last = heard
    assert isinstance(first, Image)
    assert isinstance(second, Image)
    assert isinstance(sound, Audio)
    assert (first.pil().size, second.pil().size) == ((8, 4), (16, 4))
    assert (sound.rate, sound.array().shape) == (8000, (100_000,))
    assert sound.size > INLINE_MAX
    assert (last.text(), last.mime) == ("the end", "text/plain")


async def test_progress_and_pieces_come_before_the_result(box: dict[str, OpenedTool]) -> None:
    progress: list[ToolProgress] = []
    pieces: list[str] = []
    outcome = await box["count"].request(
        {"n": 100}, on_progress=progress.append, on_piece=lambda piece, media: pieces.append(piece.text)
    )
    assert outcome.data == "".join(f"{n} " for n in range(100)) == "".join(pieces)
    assert progress[-1] == ToolProgress(100, 100, "at 99")
    later: list[str] = []
    await box["count_on_loop"].request({"n": 9}, on_piece=lambda piece, media: later.append(piece.text))
    assert len(later) == 9


async def test_a_reader_that_stops_early_ends_the_tool(box: dict[str, OpenedTool], node: Node) -> None:
    async with node.actor("box.count").stream(CallTool('{"n": 1000000000}')) as said:
        async for item in said:
            if isinstance(item, ToolPiece):
                break
    with anyio.fail_after(15):
        assert await box["count"].call(n=2) == "0 1 "


async def test_sixteen_mebibytes_of_text_come_back(box: dict[str, OpenedTool]) -> None:
    assert len(await box["large"].call(size=16 << 20)) == 16 << 20


async def test_large_images_go_through_as_blobs(box: dict[str, OpenedTool]) -> None:
    data = b"\x89PNG\r\n\x1a\n" + os.urandom(16 << 20)
    back = await box["mirror"].call(image=data)
    assert isinstance(back, Image)
    assert (back.bytes(), back.mime, back.name) == (data, "image/png", "back")


async def test_images_and_files_arrive_as_what_they_are(box: dict[str, OpenedTool], tmp_path: Path) -> None:
    import PIL.Image

    grey = await box["grey"].call(image=PIL.Image.new("RGB", (30, 20), (255, 0, 0)))
    assert (grey.pil().size, grey.pil().mode) == ((30, 20), "L")
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_bytes(b"1234")
    second.write_bytes(b"x" * 100_000)
    found = await box["sizes"].call(files=[first, second])
    assert found["sizes"] == [4, 100_000]
    with anyio.fail_after(15):
        while await anyio.Path(found["scratch"]).exists():
            await anyio.sleep(0.01)  # it goes when the call is over there
    written = await box["report"].call(text="all is well")
    assert written.text() == "all is well"


async def test_setup_that_fails_is_told_and_tried_again(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = tmp_path / "ready"
    monkeypatch.setenv("TOOLBOX_SETUP", str(ready))
    ref = await offer(node, "model", "toolbox:Model")
    model = OpenedTool(node, await ref.ask(DescribeTool()), "model")
    with pytest.raises(ToolSetupFailed, match="weights are not there"):
        await model.call(text="a")
    ready.touch()
    first, second = await model.call(text="a"), await model.call(text="a")
    assert first == second


async def test_any_program_calls_a_tool_in_json(box: dict[str, OpenedTool], server: OwnServer) -> None:
    client = Nats()
    await client.connect(server.url)
    try:
        call = msgspec.json.encode({"type": "tool.call", "arguments": '{"a": 20, "b": 22}'})
        answer = msgspec.json.decode((await client.request("actor.box.add", call, timeout=10)).data)
        assert (answer["type"], answer["value"]) == ("tool.result", "42")
        wrong = msgspec.json.encode({"type": "tool.call", "arguments": "{}"})
        answer = msgspec.json.decode((await client.request("actor.box.add", wrong, timeout=10)).data)
        assert (answer["type"], answer["code"]) == ("error", "tool.arguments")
    finally:
        await client.close()


async def test_tools_of_a_set_end_with_it(box: dict[str, OpenedTool], node: Node) -> None:
    process = psutil.Process(await box["pid"].call())
    await node.stop("box")
    assert not process.is_running()
    with pytest.raises(NoSuchActor):
        await node.actor("box.add").ask(CallTool('{"a": 1}'))


# Limits of its process


@pytest.fixture
async def greedy(node: Node) -> dict[str, OpenedTool]:
    """The tools of greedy.py by their names, held to 512 MiB and 20 processes."""
    where = Process(load=(GREEDY,), role="tool")
    config = ToolSetConfig("greedy", alone=True, limits=limits_of("512MiB", 20))
    ref = await node.spawn("tool.set", config, name="greedy", where=where, restart=Restart.PERMANENT)
    found = await ref.ask(ListTools())
    return {info.name.partition(".")[2]: OpenedTool(node, info, info.name) for info in found.tools}


def session_of(pid: int) -> list[int]:
    found: list[int] = []
    for other in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(other) == pid and psutil.Process(other).status() != psutil.STATUS_ZOMBIE:
                found.append(other)
    return found


async def started_anew(pid: OpenedTool, before: int) -> bool:
    """Whether another process answers; the old one may, until it has ended."""
    with anyio.fail_after(20):
        while await called_again(pid) == before:
            await anyio.sleep(0.05)
    return True


async def test_a_tool_that_fills_memory_is_refused_it_and_goes_on(greedy: dict[str, OpenedTool]) -> None:
    before = await greedy["pid"].call()
    assert await greedy["fill"].call(mib=50) == 50
    with pytest.raises(ToolOverLimit, match="needs more memory") as raised:
        await greedy["fill"].call(mib=2000)
    assert raised.value.code == "tool.limit"
    assert await greedy["fill"].call(mib=50) == 50
    assert await greedy["pid"].call() == before


async def test_what_a_tool_starts_fills_memory_together_and_all_of_it_is_ended_and_there_again(
    greedy: dict[str, OpenedTool],
) -> None:
    before = await greedy["pid"].call()
    waiting = asyncio.create_task(greedy["wait"].call())
    with pytest.raises(ToolOverLimit, match=r"may have 512\.0 MiB"):
        await greedy["fill_below"].call(processes=4, mib=200)
    with pytest.raises(ToolOverLimit):  # the others of the set are told why too
        await waiting
    assert await started_anew(greedy["pid"], before)
    assert session_of(before) == []


async def test_a_tool_that_forks_without_end_is_ended_with_all_of_them_and_there_again(
    greedy: dict[str, OpenedTool],
) -> None:
    before = await greedy["pid"].call()
    assert await greedy["some"].call(count=15) == 15
    with pytest.raises(ToolOverLimit, match="processes of its own, and may have 20"):
        await greedy["bomb"].call()
    assert await started_anew(greedy["pid"], before)
    assert session_of(before) == []
