"""The bus fails under load: the server is killed or stands still. Nothing hangs."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from bus_nodes import Eventually, away, home, is_up, server
from company import (
    DIARY,
    LIVING,
    Add,
    Clerk,
    ClerkConfig,
    Count,
    GetNotes,
    GetSeen,
    Note,
    NumbersBeside,
    Wait,
    WaitBeside,
    Watch,
)
from own_server import OwnServer

from callboard.runtime.bus import Bus, BusOptions, Events, _Client
from callboard.runtime.errors import CallboardError, DeadlineExceeded, Disconnected, NoSuchActor, NotReachable
from callboard.runtime.node import Node

__all__ = ["away", "home", "server"]  # fixtures
pytestmark = pytest.mark.anyio


# The server is killed


async def test_requests_under_way_fail_when_the_server_is_killed_and_later_ones_work(
    server: OwnServer, home: Node, away: Node, eventually: Eventually
) -> None:
    clerk = away.actor("clerk")
    outcomes: Counter[str] = Counter()

    async def ask() -> None:
        try:
            await clerk.ask(WaitBeside(), timeout=30)
        except CallboardError as error:
            outcomes[type(error).__name__] += 1

    async def read() -> None:
        try:
            async with clerk.stream(NumbersBeside(10**9)) as numbers:
                async for _ in numbers:
                    pass
        except CallboardError as error:
            outcomes[type(error).__name__] += 1

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
            for _ in range(3):
                tasks.start_soon(read)
            await DIARY.has("clerk wait began", 20)
            await DIARY.has("clerk numbers 1000", 3)
            server.kill()
        assert outcomes == {"Disconnected": 23}
        await DIARY.has("clerk numbers over", 3)
        server.start()
        assert (await clerk.ask(Add())).n >= 1
        async with clerk.stream(NumbersBeside(500)) as numbers:
            assert [number.n async for number in numbers] == list(range(500))
    await eventually(lambda: is_up(home) and is_up(away))


async def test_asks_under_load_all_end_when_the_server_is_killed_again_and_again(
    server: OwnServer, home: Node, away: Node
) -> None:
    clerk = away.actor("clerk")
    outcomes: Counter[str] = Counter()
    stop = anyio.Event()

    async def ask() -> None:
        while not stop.is_set():
            try:
                await clerk.ask(Add(), timeout=20)
                outcomes["answered"] += 1
            except Disconnected:
                outcomes["disconnected"] += 1

    async def tell() -> None:
        while not stop.is_set():
            try:
                await clerk.tell(Note("x"), timeout=20)
            except Disconnected:
                outcomes["told and disconnected"] += 1
            await anyio.lowlevel.checkpoint()

    async def answered(count: int) -> None:
        aim = outcomes["answered"] + count
        while outcomes["answered"] < aim:
            await anyio.sleep(0.01)

    with anyio.fail_after(25):
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(ask)
            tasks.start_soon(tell)
            for _ in range(3):
                await answered(200)
                server.kill()
                server.start()
            await answered(200)
            stop.set()
    assert outcomes["answered"] >= 800
    assert LIVING["clerk"].count >= outcomes["answered"]
    assert DIARY.entries.count("clerk started") == 1


async def test_an_ask_made_while_the_server_is_away_waits_for_its_return(
    server: OwnServer, home: Node, away: Node, eventually: Eventually
) -> None:
    server.kill()
    await eventually(lambda: not is_up(away))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(away.actor("clerk").ask, Add(7), 20)
        tasks.start_soon(away.actor("clerk").tell, Note("told while it was away"), 20)
        await anyio.wait_all_tasks_blocked()
        server.start()
    assert await away.actor("clerk").ask(Add(0)) == Count(7)
    assert "told while it was away" in (await away.actor("clerk").ask(GetNotes())).texts


async def test_what_could_not_be_sent_before_its_deadline_is_not_carried_out_later(
    server: OwnServer, home: Node, away: Node, eventually: Eventually
) -> None:
    server.kill()
    await eventually(lambda: not is_up(away))
    with pytest.raises(NotReachable, match="away"):
        await away.actor("clerk").ask(Add(100), timeout=0.2)
    with anyio.move_on_after(0.1):
        await away.actor("clerk").ask(Add(100))
    server.start()
    assert await away.actor("clerk").ask(Add(1), timeout=20) == Count(1)


async def test_watches_go_on_when_the_server_comes_back(
    server: OwnServer, home: Node, away: Node, eventually: Eventually
) -> None:
    await home.spawn(Clerk, ClerkConfig("other"), name="other")
    watcher = await away.spawn(Clerk, ClerkConfig("watcher"), name="watcher")
    for address in ("clerk", "other"):
        await watcher.ask(Watch(address))
        await eventually(lambda address=address: bool(home.actors[address].watchers))
    server.kill()
    await eventually(lambda: not is_up(home) and not is_up(away))
    await home.stop("other")  # this end could not be announced, and must not be lost
    server.start()
    await DIARY.has("watcher saw other stopped")
    assert len((await watcher.ask(GetSeen())).events) == 1
    await home.stop("clerk")
    await DIARY.has("watcher saw clerk stopped")


async def test_an_end_that_is_told_before_the_watcher_is_back_is_not_lost(
    server: OwnServer, home: Node, away: Node, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    await home.spawn(Clerk, ClerkConfig("other"), name="other")
    watcher = await away.spawn(Clerk, ClerkConfig("watcher"), name="watcher")
    await watcher.ask(Watch("other"))
    await eventually(lambda: bool(home.actors["other"].watchers))
    client, may_return = away.require_links().bus.client, anyio.Event()
    connect = client._connect_to_server

    async def connect_later(to: Any) -> None:
        await may_return.wait()
        await connect(to)

    monkeypatch.setattr(client, "_connect_to_server", connect_later)
    server.kill()
    await eventually(lambda: not is_up(home) and not is_up(away))
    await home.stop("other")
    server.start()
    await eventually(lambda: is_up(home))
    await home.require_links().bus.flush()
    assert not is_up(away)
    may_return.set()
    await DIARY.has("watcher saw other stopped")
    assert len((await watcher.ask(GetSeen())).events) == 1


async def test_who_is_gone_for_good_is_said_so_after_the_server_came_back(
    server: OwnServer, home: Node, away: Node, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.runtime.links.RETURN_GRACE_S", 0.5)
    server.kill()
    await eventually(lambda: not is_up(home) and not is_up(away))
    server.start()
    with anyio.fail_after(10), pytest.raises(NoSuchActor):
        await away.actor("nobody").ask(Add())


async def test_a_node_does_not_join_a_bus_that_is_not_there(server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.runtime.bus.CONNECT_TIMEOUT_S", 0.5)
    server.kill()
    with pytest.raises(NotReachable), anyio.fail_after(8):
        async with Node(bus=BusOptions(server.url)):
            pass
    server.start()


async def test_joining_ends_in_time_though_an_attempt_forgets_that_it_was_cancelled(
    server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As asyncio.wait_for of Python 3.11 does where what it waits for comes together with the cancellation."""

    async def forgetful(*_: object) -> None:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            raise ConnectionResetError("the server hung up") from None

    monkeypatch.setattr("callboard.runtime.bus.CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("callboard.runtime.bus._Client._connect_to_server", forgetful)
    with pytest.raises(NotReachable, match="hung up"), anyio.fail_after(20):
        async with Node(bus=BusOptions(server.url)):
            pass


async def test_joining_is_cancelled_though_an_attempt_forgets_that_it_was(
    server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = anyio.Event()
    connect = _Client._connect_to_server

    async def forgetful(client: _Client, to: Any) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            await connect(client, to)

    monkeypatch.setattr(_Client, "_connect_to_server", forgetful)
    bus = Bus(BusOptions(server.url), "late", Events(*[lambda *_: None] * 5))
    opening = asyncio.create_task(bus.open())
    await begun.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not bus.is_up
    assert bus.client.is_closed


async def test_a_node_leaves_in_time_while_the_server_is_away(server: OwnServer, eventually: Eventually) -> None:
    with anyio.fail_after(10):
        async with Node(bus=BusOptions(server.url), drain_timeout=1.0) as node:
            await node.spawn(Clerk, ClerkConfig("clerk"), name="clerk")
            server.kill()
            await eventually(lambda: not is_up(node))
    assert DIARY.entries == ["clerk started", "clerk stopped"]
    server.start()


# The server stands still


async def test_a_server_that_stands_still_is_a_deadline_and_no_more(server: OwnServer, home: Node, away: Node) -> None:
    clerk = away.actor("clerk")
    await clerk.ask(Add())
    server.signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await clerk.ask(Wait("late"), timeout=0.3)
        assert 0.3 <= time.monotonic() - begun < 2.0
    finally:
        server.signal(signal.SIGCONT)
    assert (await clerk.ask(Add(), timeout=10)).n == 2
    assert "clerk late finished" not in DIARY.entries
