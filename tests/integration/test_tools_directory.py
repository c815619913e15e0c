"""The directory of tools: what is announced, what runs anywhere, what came and went, and what it starts."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Awaitable
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import psutil
import pytest
from board import install
from nats.aio.client import Client
from nats.aio.msg import Msg
from own_server import OwnServer
from toolbox import THIS_FILE

from callboard import open_tool
from callboard.actors.bench.tools_sample import MANY, TOOLS
from callboard.actors.bench.tools_sample import __name__ as SAMPLE
from callboard.actors.tools.client import OpenedTool, list_tools
from callboard.actors.tools.directory import ADDRESS, Directory, DirectoryConfig
from callboard.actors.tools.errors import NoSuchTool, ToolDefinition
from callboard.actors.tools.tool_set import ToolSet, ToolSetConfig
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import ConfigError
from callboard.runtime.node import Node
from callboard.runtime.placement import Process
from callboard.runtime.refs import Ref
from callboard.runtime.worker import load_file
from callboard.schemas.runtime import ListActors
from callboard.schemas.tool import ListTools, OfferTools, OpenTool

pytestmark = pytest.mark.anyio

GREETER = '''
import msgspec
from callboard import tool

class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    greeting: str = "hello"

def tools(options: Options):
    @tool
    def greet(name: str) -> str:
        """Greet somebody."""
        return f"{options.greeting} {name}"
    return [greet]
'''


@pytest.fixture
async def directory(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ref:
    """With a package that announces three sets, one of which cannot be imported."""
    site = install(tmp_path / "site", "greeter", GREETER)
    shutil.copy(THIS_FILE, site / "box.py")
    (site / "greeter-1.0.dist-info" / "entry_points.txt").write_text(
        "[callboard.tools]\ngreeter = greeter:tools\nbox = box\nbroken = not_there:tools\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("CALLBOARD_CACHE_DIR", str(tmp_path / "cache"))
    return await node.spawn(Directory, DirectoryConfig({"greeter": {"greeting": "good day"}}), name=ADDRESS)


async def test_options_reach_the_set_that_has_them(directory: Ref, node: Node) -> None:
    async with open_tool(node, "greeter.greet") as greet:
        assert await greet.call(name="Ada") == "good day Ada"


async def test_options_that_do_not_fit_are_told_to_who_opens(directory: Ref, node: Node) -> None:
    await node.stop(ADDRESS)
    await node.spawn(Directory, DirectoryConfig({"greeter": {"greting": "x"}}), name=ADDRESS)
    with pytest.raises(ConfigError, match="greting"):
        async with open_tool(node, "greeter.greet"):
            pass
    assert not await list_tools(node, names=("greeter.*",))
    assert await list_tools(node, names=("box.add",))


async def test_a_set_that_cannot_be_loaded_is_no_harm_to_the_others(directory: Ref, node: Node) -> None:
    with pytest.raises(ToolDefinition, match="not_there"):
        async with open_tool(node, "broken.x"):
            pass
    assert {info.name for info in await list_tools(node, names=("greeter.*", "box.add"))} == {
        "greeter.greet",
        "box.add",
    }


async def test_two_who_open_at_once_get_one_process(directory: Ref, node: Node) -> None:
    infos = await asyncio.gather(*(directory.ask(OpenTool(name)) for name in ("box.add", "box.pid", "box.add")))
    assert [info.address for info in infos] == ["box.add", "box.pid", "box.add"]
    actors = await node.actor(f"node.{node.name}").ask(ListActors("box"))
    assert [info.place for info in actors.actors] == ["process"]


async def test_tools_keep_their_name_where_another_actor_has_it(directory: Ref, node: Node) -> None:
    await node.spawn("counter", name="box")
    info = await directory.ask(OpenTool("box.add"))
    assert (info.name, info.address) == ("box.add", "tool-box.add")
    assert (await directory.ask(OpenTool("box.add"))).address == "tool-box.add"


async def test_sets_of_other_nodes_come_and_go_with_them(directory: Ref, node: Node, server: OwnServer) -> None:
    module = load_file(THIS_FILE)
    async with Node("elsewhere", bus=BusOptions(server.url), allow=(module,)) as other:
        await other.spawn(ToolSet, ToolSetConfig(module), name="there")
        with anyio.fail_after(4):  # sooner than everybody is looked at anyway
            while not await list_tools(node, names=("there.add",)):
                await anyio.sleep(0.02)  # the hello is on its way
        async with open_tool(node, "there.add") as add:
            assert await add.call(a=1) == 2
    assert not await list_tools(node, names=("there.add",))
    with pytest.raises(NoSuchTool):
        async with open_tool(node, "there.add"):
            pass


async def test_what_is_offered_is_there_at_once(directory: Ref, node: Node, server: OwnServer) -> None:
    async with Node("elsewhere", bus=BusOptions(server.url)) as other:
        where = Process(load=(THIS_FILE,), role="tool")
        await other.spawn("tool.set", ToolSetConfig("toolbox", alone=True), name="offered", where=where)
        assert len((await directory.ask(OfferTools("offered"))).tools) > 10
        assert await list_tools(node, names=("offered.add",))
        async with open_tool(node, "offered.pid") as pid:
            psutil.Process(await pid.call()).kill()
        with anyio.fail_after(15):
            while await list_tools(node, names=("offered.add",)):
                await anyio.sleep(0.01)  # the word of its end is on its way
    with pytest.raises(ToolDefinition, match="nobody"):
        await directory.ask(OfferTools("nobody"))


async def test_five_hundred_tools_are_one_question(directory: Ref, node: Node, server: OwnServer) -> None:
    module = "callboard.actors.bench.tools_sample"
    async with Node("elsewhere", bus=BusOptions(server.url), allow=(module,)) as other:
        ref = await other.spawn(ToolSet, ToolSetConfig(f"{module}:MANY"), name="many")
        assert len((await ref.ask(ListTools())).tools) == len(MANY) == 500
        await directory.ask(OfferTools("many"))
        found = await directory.ask(ListTools("give a number back", limit=3))
        assert len(found.tools) == 3
        assert found.total >= 500
        async with open_tool(node, "many.nothing-499") as nothing:
            assert await nothing.call(number=7) == 7


async def test_a_call_takes_no_more_messages_and_no_more_steps_among_500_tools(server: OwnServer) -> None:
    """Counted, not timed: messages on the bus, and instructions of Python in caller and tool."""
    said: list[str] = []

    async def hear(message: Msg) -> None:
        said.append(message.subject)

    async def messages(tool: OpenedTool) -> list[str]:
        """The kinds of subjects that one call uses. The first after a subscription may pass by unseen."""
        return max([await seen(tool) for _ in range(3)], key=len)

    async def seen(tool: OpenedTool) -> list[str]:
        said.clear()
        listening = await observer.subscribe(">", cb=hear)  # no longer than that: it looks as if every name were taken
        await observer.flush()
        await tool.call(number=7)
        await observer.publish("topic.over")
        while "topic.over" not in said:
            await observer.flush()
        await listening.unsubscribe()
        return sorted(subject.partition(".")[0] for subject in said if not subject.startswith(("nodes.", "topic.")))

    async def steps(tool: OpenedTool) -> int:
        return min([await counted(tool.call(number=7)) for _ in range(15)])

    observer = Client()
    await observer.connect(server.url)
    bus = BusOptions(server.url)
    async with Node(bus=bus) as caller, Node(bus=bus, allow=(SAMPLE,)) as host:
        few = await host.spawn(ToolSet, ToolSetConfig(f"{SAMPLE}:TOOLS"), name="few")
        alone = next(info for info in (await few.ask(ListTools())).tools if info.name == "few.nothing")
        calling_alone = OpenedTool(caller, alone, alone.name)
        alone_steps, alone_messages = await steps(calling_alone), await messages(calling_alone)
        many = await host.spawn(ToolSet, ToolSetConfig(f"{SAMPLE}:MANY"), name="many")
        await caller.spawn(Directory, DirectoryConfig(announced=False), name=ADDRESS)
        await caller.actor(ADDRESS).ask(OfferTools("many"))
        assert len((await caller.actor(ADDRESS).ask(ListTools())).tools) == len(MANY) + len(TOOLS)
        one = (await many.ask(ListTools())).tools[len(MANY) // 2]
        among_many = OpenedTool(caller, one, one.name)
        assert await messages(among_many) == alone_messages == ["actor", "inbox"]
        # A look at each of them would be more steps than there are tools.
        assert await steps(among_many) < alone_steps + len(MANY) // 2
        assert await steps(calling_alone) < alone_steps + len(MANY) // 2
    await observer.close()


async def counted(call: Awaitable[object]) -> int:
    """Instructions of Python that are carried out in this thread until the call is over."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        await asyncio.ensure_future(call)
    finally:
        sys.settrace(before)
    return count
