"""Looking on: everything is heard, in order and whole, over a connection that is read now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_server import own_server

from callboard.runtime.bundles import Bundles
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.runtime.overhearing import overhear

pytestmark = pytest.mark.anyio

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]
Heard = list[tuple[str, str, bytes]]


class NatsPy:
    """What of nats-py's client and parser is used: here what goes on to it is kept."""

    _transport = None

    def __init__(self) -> None:
        self.given = b""

    async def parse(self, data: bytes) -> None:
        self.given += data

    def reset(self) -> None:
        self.given = b""


SAID = (
    b"MSG topic.a 7 5\r\nhello\r\n"
    b"PING\r\n"
    b"MSG topic.b 7 inbox.x.1 0\r\n\r\n"
    b"MSG inbox.js 3 6\r\nanswer\r\n"
    b"HMSG topic.c 7 19 24\r\nNATS/1.0\r\nA: bc\r\n\r\n12345\r\n"
    b"-ERR 'no'\r\n"
    b"MSG topic.d 7 28\r\nMSG topic.e 7 5\r\nhello\r\nPONG\r\n"
)


@given(st.sets(st.integers(1, len(SAID) - 1)))
def test_messages_are_whole_wherever_their_bytes_are_cut(places: set[int]) -> None:
    heard: Heard = []
    other = NatsPy()
    bundles = Bundles(other, other)
    bundles.receivers[b"7"] = lambda subject, reply, data: heard.append((subject, reply, data))

    async def read() -> None:
        before = 0
        for place in (*sorted(places), len(SAID)):
            await bundles.parse(SAID[before:place])
            before = place

    asyncio.run(read())
    assert heard == [
        ("topic.a", "", b"hello"),
        ("topic.b", "inbox.x.1", b""),
        ("topic.c", "", b"12345"),
        ("topic.d", "", b"MSG topic.e 7 5\r\nhello\r\nPONG"),
    ]
    # What is for others goes on as it came.
    assert other.given == b"PING\r\nMSG inbox.js 3 6\r\nanswer\r\n-ERR 'no'\r\n"


def collected() -> tuple[Heard, Callable[[str, str, bytes], None]]:
    heard: Heard = []
    return heard, lambda subject, reply, data: heard.append((subject, reply, data))


async def test_all_of_a_burst_is_heard_in_order_and_large_messages_too(
    nats_server: Any, eventually: Eventually
) -> None:
    heard, take = collected()
    options = BusOptions(nats_server.url)
    async with Node("onlooker", bus=options) as node, Node("speaker", bus=options) as speaker:
        bus = speaker.require_links().bus
        async with overhear(node.require_links(), ["topic.>"], take, lambda: None):
            for n in range(20_000):
                bus.send(f"topic.{n % 7}", b"%d" % n)
                if n % 1000 == 0:
                    await bus.room(30.0)
            large = bytes(range(256)) * 3_900
            bus.send("topic.large", large, "inbox.somebody")
            await eventually(lambda: len(heard) == 20_001)
        assert [int(data) for _, _, data in heard[:-1]] == list(range(20_000))
        assert heard[-1] == ("topic.large", "inbox.somebody", large)
        bus.send("topic.late", b"nobody looks on any more")
        await bus.flush()
        assert len(heard) == 20_001


async def test_a_lost_connection_is_said_and_comes_back_by_itself(tmp_path: Path, eventually: Eventually) -> None:
    heard, take = collected()
    losses: list[int] = []
    with own_server(tmp_path) as server:
        options = BusOptions(server.url)
        async with Node("onlooker", bus=options) as node, Node("speaker", bus=options) as speaker:
            async with overhear(
                node.require_links(), ["topic.>"], take, lambda: losses.append(len(heard))
            ) as onlooking:
                bus = speaker.require_links().bus
                bus.send("topic.before", b"1")
                await eventually(lambda: len(heard) == 1)
                await anyio.to_thread.run_sync(server.kill)
                await eventually(lambda: losses == [1])
                await anyio.to_thread.run_sync(server.start)
                await onlooking.up()
                await bus.up()
                await onlooking.flush(10.0)
                bus.send("topic.after", b"2")
                await eventually(lambda: [subject for subject, _, _ in heard] == ["topic.before", "topic.after"])
