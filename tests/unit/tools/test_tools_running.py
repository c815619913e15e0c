"""What bounds a tool's calls: threads that are used again or written off, slots, and sets with options."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from callboard import File, Image, ToolError, tool
from callboard.actors.tools.describe import Wanted, describe
from callboard.actors.tools.errors import NoSuchTool, ToolBusy, ToolDefinition
from callboard.actors.tools.load import load_tools, tools_of
from callboard.actors.tools.media_json import with_media, without_media
from callboard.actors.tools.slots import WAITING_PER_SLOT, Slots
from callboard.actors.tools.threads import Threads, Worker
from callboard.runtime.errors import ConfigError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_threads_are_used_again_and_errors_are_the_callers() -> None:
    threads = Threads("t")
    first = await threads.run(threading.get_ident)
    assert await threads.run(threading.get_ident) == first
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(lambda: next(iter(())))
    with pytest.raises(RuntimeError, match="SystemExit"):
        await threads.run(sys.exit)
    assert await threads.run(threading.get_ident) == first
    threads.close()


async def test_a_thread_whose_call_was_given_up_is_busy_until_it_returns() -> None:
    threads, gate, taken = Threads("t"), threading.Event(), list[Worker]()
    with anyio.move_on_after(0.05):
        await threads.run(gate.wait, taken.append)
    assert taken[0].busy
    other = await threads.run(threading.get_ident)
    free = anyio.Event()
    taken[0].on_free = free.set
    gate.set()
    with anyio.fail_after(15):
        await free.wait()
    assert not taken[0].busy
    assert await threads.run(threading.get_ident) != other or not taken[0].busy
    threads.close()


async def test_slots_are_given_in_turn_and_the_queue_has_an_end() -> None:
    slots = Slots("t", 1, lambda: None)
    order: list[int] = []

    async def take(number: int) -> None:
        await slots.take()
        order.append(number)

    await slots.take()
    async with anyio.create_task_group() as group:
        for number in range(WAITING_PER_SLOT):
            group.start_soon(take, number)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ToolBusy):
            await slots.take()
        for _ in range(WAITING_PER_SLOT):
            slots.give_back()
    assert order == list(range(WAITING_PER_SLOT))


async def test_a_slot_is_not_lost_with_who_waited_for_it() -> None:
    slots = Slots("t", 1, lambda: None)
    await slots.take()
    waits = asyncio.create_task(slots.take())
    await anyio.wait_all_tasks_blocked()
    slots.give_back()  # it is its now, and it is never to know
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert slots.free == 1


async def test_a_slot_comes_back_with_its_thread_or_is_written_off() -> None:
    stuck: list[bool] = []
    slots, threads, gate, taken = Slots("t", 1, lambda: stuck.append(True)), Threads("t"), threading.Event(), []
    await slots.take()
    with anyio.move_on_after(0.02):
        await threads.run(gate.wait, taken.append)
    slots.give_back_after(taken[0], 0.05)
    with pytest.raises(ToolBusy, match="hangs"):
        await slots.take()  # it waits, and is told when there is nothing to wait for
    assert (stuck, slots.stuck) == ([True], 1)
    gate.set()
    with anyio.fail_after(15):
        while slots.stuck:
            await anyio.sleep(0.001)  # until the thread has said that it is free
    await slots.take()
    threads.close()


class Roots(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    roots: tuple[str, ...] = ("/",)


@tool
def one(text: str) -> str:
    """Say it."""
    return text


def rooted(options: Roots) -> list[Any]:
    return [one.named(f"root-{number}") for number in range(len(options.roots))]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    made = types.ModuleType("tools_for_tests")
    vars(made).update(one=one, rooted=rooted, pair=[one, one], nothing=5, empty=[])
    monkeypatch.setitem(sys.modules, "tools_for_tests", made)
    return "tools_for_tests"


async def test_a_set_is_made_with_its_options(module: str) -> None:
    tools, single = load_tools(f"{module}:rooted", '{"roots": ["/a", "/b"]}', (module,))
    assert ([each.info.name for each in tools], single) == (["root-0", "root-1"], False)
    assert load_tools(f"{module}:one", "", (module,)) == ([one], True)
    with pytest.raises(ConfigError, match="rots"):
        load_tools(f"{module}:rooted", '{"rots": []}', (module,))
    with pytest.raises(ConfigError, match="no options"):
        load_tools(f"{module}:one", '{"a": 1}', (module,))


@pytest.mark.parametrize(
    ("attribute", "said"),
    [("pair", "two tools"), ("nothing", "no tool"), ("empty", "no tool"), ("oen", "has no 'oen'")],
)
async def test_what_is_no_set_of_tools_is_told(module: str, attribute: str, said: str) -> None:
    with pytest.raises(ToolDefinition, match=said):
        load_tools(f"{module}:{attribute}", "", (module,))


async def test_only_what_is_announced_or_allowed_is_loaded(module: str) -> None:
    with pytest.raises(NoSuchTool):
        load_tools(f"{module}:one")
    with pytest.raises(NoSuchTool):
        load_tools("os:path")


async def test_a_module_offers_the_tools_that_it_defines() -> None:
    assert [each.info.name for each in tools_of(sys.modules[__name__])] == ["one"]


async def test_what_cannot_be_described_is_told_beside_the_others() -> None:
    (found,) = await describe([Wanted("nobody-announces-this")])
    assert found.error is not None
    assert found.error.code == "tool.none"


async def test_media_in_arguments_take_any_of_their_forms(tmp_path: Path) -> None:
    schema = {
        "properties": {
            "photo": {"anyOf": [{"type": "string", "format": "image"}, {"type": "null"}]},
            "more": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
        },
        "$defs": {"Part": {"type": "object", "properties": {"file": {"type": "string", "format": "file"}}}},
    }
    path = tmp_path / "a.txt"
    path.write_text("hello")
    shared = File.from_bytes(b"1", name="same")
    media: dict[str, File] = {}
    given = {"photo": b"\x89PNG\r\n\x1a\n", "more": [{"file": path}, {"file": shared}, {"file": shared}]}
    text = without_media(given, schema, media)
    assert msgspec.json.decode(text) == {
        "photo": "image-1",
        "more": [{"file": "a.txt"}, {"file": "same"}, {"file": "same"}],
    }
    assert isinstance(media["image-1"], Image)
    back = with_media(msgspec.json.decode(text), schema, media)
    assert back["more"][0]["file"].text() == "hello"
    assert back["photo"] is media["image-1"]
    assert without_media({"photo": None}, schema, media) == '{"photo":null}'
    with pytest.raises(ToolError, match="no form in JSON"):
        without_media({"photo": object()}, schema, media)
