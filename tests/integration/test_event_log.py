"""Event logs: ordered, without gaps, written once, by one owner at a time, through kills of the server."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import anyio
import pytest
from own_server import OwnServer

from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import Conflict, Fenced, Truncated
from callboard.runtime.event_log import Appended, EventLog, list_logs
from callboard.runtime.node import Node

pytestmark = pytest.mark.anyio


async def values(log: EventLog[int], after: int | None = None) -> list[int]:
    return [event.value async for event in log.read(after)]


async def test_events_come_back_in_order_from_any_number(node: Node) -> None:
    log, other = [await EventLog.open(node, name, int) for name in ("run.1", "run.2")]
    for n in range(1, 41):
        await log.append(*range(n * 10, n * 10 + n % 3 + 1))
        await other.append(n)
    everything = await values(log)
    assert len(everything) == log.last
    for after in range(log.last + 1):
        events = [event async for event in log.read(after)]
        assert [event.value for event in events] == everything[after:]
        assert [event.number for event in events] == list(range(after + 1, log.last + 1))
    assert set(await list_logs(node)) == {"run.1", "run.2"}
    await other.delete()
    assert set(await list_logs(node)) == {"run.1"}


async def test_appends_that_wait_together_go_as_one_message(node: Node) -> None:
    log = await EventLog.open(node, "l", int)
    numbers = await asyncio.gather(*(log.append(n) for n in range(500)))
    assert [one.first for one in numbers] == list(range(1, 501))
    assert await values(log) == list(range(500))
    assert (await list_logs(node))["l"] <= 3


async def test_an_append_with_a_key_that_is_there_is_not_repeated(node: Node) -> None:
    log = await EventLog.open(node, "l", int)
    assert await log.append(1, 2, key="a") == Appended(1, 2)
    both = await asyncio.gather(log.append(3, key="b"), log.append(3, key="b"))
    assert sorted(one.duplicate for one in both) == [False, True]
    again = await EventLog.open(node, "l", int)
    assert await again.append(1, 2, key="a") == Appended(1, 2, duplicate=True)
    assert await log.append(3, key="b") == Appended(3, 3, duplicate=True)
    assert await values(again) == [1, 2, 3]


async def test_of_two_that_expect_the_same_end_one_gets_a_conflict(node: Node) -> None:
    one, two = await EventLog.open(node, "l", int), await EventLog.open(node, "l", int)
    assert (await one.append(1, expected=0)).last == 1
    with pytest.raises(Conflict):
        await two.append(2, expected=0)
    assert (await two.append(2, expected=1)).last == 2
    assert (await one.append(3)).last == 3
    assert await values(one) == [1, 2, 3]


async def test_an_owner_that_was_taken_over_appends_no_more_and_others_may(node: Node) -> None:
    first = await EventLog.open(node, "l", int, own=True)
    guest = await EventLog.open(node, "l", int)
    await first.append(1)
    await guest.append(2)
    assert (await first.append(3)).last == 3
    second = await EventLog.open(node, "l", int, own=True)
    assert second.epoch == first.epoch + 1
    for _ in range(2):
        with pytest.raises(Fenced):
            await first.append(4)
    await guest.append(5)
    await second.append(6)
    assert await values(second) == [1, 2, 3, 5, 6]


async def test_what_a_snapshot_stands_for_is_removed_and_numbers_go_on(node: Node) -> None:
    log = await EventLog.open(node, "l", int)
    for n in range(20):
        await log.append(n)
    assert await log.compact(100) == 21
    await log.append(101)
    assert await values(log) == [100, 101]
    assert await values(log, 20) == [100, 101]
    with pytest.raises(Truncated, match="11 to 20"):
        await values(log, 10)
    await log.truncate(1000)
    again = await EventLog.open(node, "l", int, own=True)
    assert (await again.append(102)).last == 23


async def test_a_follower_gets_what_is_there_and_then_what_comes(server: OwnServer, node: Node) -> None:
    log = await EventLog.open(node, "l", int)
    await log.append(1, 2, 3)
    seen: list[int] = []
    async with anyio.create_task_group() as group:

        async def follow() -> None:
            async with aclosing(log.follow(after=1)) as events:
                async for event in events:
                    assert event.number == len(seen) + 2
                    seen.append(event.value)
                    if event.value == 1000:
                        return

        group.start_soon(follow)
        for n in range(4, 700):
            await log.append(n)
            if n == 350:
                server.kill()
                server.start()
        await log.append(1000)
    assert seen == [*range(2, 700), 1000]


@pytest.mark.parametrize("own", [False, True])
async def test_kills_of_the_server_lose_no_acknowledged_event_and_repeat_none(server: OwnServer, own: bool) -> None:
    async with Node(bus=BusOptions(server.url)) as node:
        log = await EventLog.open(node, "l", int, own=own)
        acknowledged: dict[int, int] = {}
        async with anyio.create_task_group() as group:

            async def write(start: int) -> None:
                for n in range(start, start + 150):
                    acknowledged[n] = (await log.append(n)).first

            for writer in range(4):
                group.start_soon(write, writer * 1000)
            for kill in range(4):
                while len(acknowledged) < 100 * (kill + 1):
                    await anyio.lowlevel.checkpoint()
                server.kill()
                server.start()
        found = {event.value: event.number async for event in log.read()}
        assert found == acknowledged
        assert log.last == 600
