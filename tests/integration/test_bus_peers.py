"""Others on the bus misbehave: readers stand still, nodes fall silent, two claim one name. Nothing hangs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from bus_nodes import Eventually, away, home, is_up, quick_beats, server
from company import (
    DIARY,
    LIVING,
    Add,
    Clerk,
    ClerkConfig,
    Count,
    GetSeen,
    Number,
    Numbers,
    NumbersBeside,
    Wait,
    WaitBeside,
    Watch,
)
from own_server import OwnServer

from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import ActorStopped, NameTaken, SlowConsumer
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.runtime import Ended

__all__ = ["away", "home", "quick_beats", "server"]  # fixtures
pytestmark = pytest.mark.anyio


# Readers


READER = """
import sys, asyncio
sys.path.insert(0, sys.argv[2])
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from company import NumbersBeside

async def main():
    async with Node("reader", bus=BusOptions(sys.argv[1])) as node:
        async with node.actor("clerk").stream(NumbersBeside(10**9, wait_at=int(sys.argv[3]))) as numbers:
            await anext(numbers)
            print("reading", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("wait_at", [1, -1], ids=["a quiet producer", "a producer without room"])
async def test_a_reader_that_is_killed_ends_its_stream(server: OwnServer, home: Node, wait_at: int) -> None:
    command = [sys.executable, "-c", READER, server.url, str(Path(__file__).parent), str(wait_at)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        line = await anyio.to_thread.run_sync(reader.stdout.readline)
        assert line == "reading\n"
        await DIARY.has("clerk numbers began")
        reader.kill()
        begun = time.monotonic()
        await DIARY.has("clerk numbers over")
        assert time.monotonic() - begun < 3.0
    await away_from_everything(home)


async def away_from_everything(home: Node) -> None:
    """No stream is left at the producer's node."""
    assert home.links is not None
    assert not home.links.inbound._streams


async def test_a_reader_that_stands_still_loses_its_stream(
    quick_beats: None, home: Node, away: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.runtime.inbound.STALL_LIMIT_S", 0.5)
    seen: list[int] = []
    async with away.actor("clerk").stream(NumbersBeside(10**9)) as numbers:
        await DIARY.has("clerk numbers over")
        with pytest.raises(SlowConsumer):
            await read_all(numbers, seen)
    assert seen == list(range(len(seen)))
    assert len(seen) >= 256


async def read_all(numbers: AsyncIterator[Number], seen: list[int]) -> None:
    async for number in numbers:
        seen.append(number.n)


async def test_a_producer_that_falls_silent_is_taken_for_dead(
    quick_beats: None, home: Node, away: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home.links is not None
    monkeypatch.setattr(home.links.inbound, "beat", lambda now: None)
    async with away.actor("clerk").stream(Numbers(10, wait_at=1)) as numbers:
        await anext(numbers)
        with anyio.fail_after(8), pytest.raises(ActorStopped, match="no sign of life"):
            await anext(numbers)
    await DIARY.has("clerk numbers over")


async def test_a_quiet_stream_lives_on(quick_beats: None, home: Node, away: Node) -> None:
    async with away.actor("clerk").stream(Numbers(3, wait_at=1)) as numbers:
        await anext(numbers)
        with anyio.move_on_after(1.5) as quiet:
            await anyio.sleep_forever()
        assert quiet.cancelled_caught
        LIVING["clerk"].gate.set()
        assert [number.n async for number in numbers] == [1, 2]


async def test_a_node_that_was_held_up_takes_nobody_for_dead(quick_beats: None, home: Node, away: Node) -> None:
    async with away.actor("clerk").stream(Numbers(3, wait_at=1)) as numbers:
        await anext(numbers)
        time.sleep(1.5)  # noqa: ASYNC251 - this is the fault: the event loop runs nothing
        LIVING["clerk"].gate.set()
        assert [number.n async for number in numbers] == [1, 2]


async def test_a_node_that_falls_silent_is_taken_for_gone_and_welcomed_back(
    quick_beats: None, home: Node, away: Node, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    watcher = await away.spawn(Clerk, ClerkConfig("watcher"), name="watcher")
    await watcher.ask(Watch("clerk"))
    assert home.links is not None
    links = away.links
    assert links is not None
    await eventually(lambda: home.name in links.peers.known)
    with monkeypatch.context() as silence:
        silence.setattr(home.links.peers, "say_hello", lambda: None)
        with anyio.fail_after(5), pytest.raises(ActorStopped, match="no sign of life"):
            await away.actor("clerk").ask(Wait())
    await DIARY.has("watcher saw clerk node_down")
    await DIARY.has("clerk wait CancelledError")
    await eventually(lambda: home.name in links.peers.known)
    assert await away.actor("clerk").ask(Add()) == Count(1)


# Names on the bus


async def test_of_two_that_claim_a_name_at_once_one_gets_it(server: OwnServer) -> None:
    options = BusOptions(server.url)
    async with Node(bus=options) as one, Node(bus=options) as other, Node(bus=options) as asker:
        for index in range(20):
            name = f"root-{index}"
            refs: list[Ref] = []
            refused: list[NameTaken] = []

            async def spawn(
                node: Node, name: str = name, refs: list[Ref] = refs, no: list[NameTaken] = refused
            ) -> None:
                try:
                    refs.append(await node.spawn(Clerk, ClerkConfig(name), name=name))
                except NameTaken as error:
                    no.append(error)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(spawn, one)
                tasks.start_soon(spawn, other)
            assert (len(refs), len(refused)) == (1, 1)
            assert await asker.actor(name).ask(Add()) == Count(1)


async def test_two_nodes_of_one_name_are_not_let_on_the_bus(server: OwnServer) -> None:
    options = BusOptions(server.url)
    async with Node("twin", bus=options) as twin:
        with pytest.raises(NameTaken, match="twin"):
            async with Node("twin", bus=options):
                pass
        assert is_up(twin)
    async with Node("twin", bus=options):
        pass


async def test_a_name_whose_holder_is_too_busy_to_answer_is_taken(
    home: Node, away: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home.links is not None
    monkeypatch.setattr(home.links.inbound, "_control", lambda *_: None)
    with pytest.raises(NameTaken):
        await away.spawn(Clerk, name="clerk")


async def test_answers_to_an_earlier_life_are_not_taken_for_ours(server: OwnServer, home: Node) -> None:
    options = BusOptions(server.url)
    async with Node("again", bus=options) as first:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(first.actor("clerk").ask, WaitBeside("old"))
            await DIARY.has("clerk old began", 5)
            tasks.cancel_scope.cancel()
    async with Node("again", bus=options) as second:
        for n in range(1, 6):
            assert await second.actor("clerk").ask(Add()) == Count(n)


async def test_who_leaves_says_so_to_those_who_wait_and_watch(server: OwnServer, away: Node) -> None:
    watcher = await away.spawn(Clerk, ClerkConfig("watcher"), name="watcher")
    async with anyio.create_task_group() as tasks:
        async with Node(bus=BusOptions(server.url), drain_timeout=0.1) as leaving:
            await leaving.spawn(Clerk, ClerkConfig("leaver"), name="leaver")
            await watcher.ask(Watch("leaver"))

            async def ask() -> None:
                with pytest.raises(ActorStopped):
                    await away.actor("leaver").ask(Wait())

            tasks.start_soon(ask)
            await DIARY.has("leaver wait began")
    (event,) = (await watcher.ask(GetSeen())).events
    assert event.reason in (Ended.STOPPED, Ended.NODE_DOWN)
