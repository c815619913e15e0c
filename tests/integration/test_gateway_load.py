"""A crowd at a gateway, a third of which goes away at any moment: nobody else notices, and nothing of them is left."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from gateways import gateway, idle, start_engine

from callboard.actors.bench.gateway_crowd import Left, crowd, left_behind
from callboard.actors.bench.gateway_paths import Bus, Talk, ask_over_http, connection_to
from callboard.runtime.node import Node
from callboard.schemas.gateway import AskGateway

pytestmark = pytest.mark.anyio

CROWD = 64


def integrity(node: Node) -> None:
    """The engine's books of its blocks are right, and nobody holds one."""
    cell: Any = node.actors["engine.scheduler"]
    for lane in cell._instance._lanes:
        lane.planner.check_integrity()
        assert lane.planner.pool.num_free == lane.planner.pool.num_blocks


@pytest.mark.timeout(180)
async def test_a_crowd_that_drops_at_random_leaves_nothing_behind(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path, num_blocks=2000)
    async with gateway(node) as url:
        http, scheduler = node.actor("http"), node.actor("engine.scheduler")
        async with connection_to(url) as connection:  # what is made once is there before it is counted
            await ask_over_http(connection, Talk("hello", 2))
        assert await left_behind(http, scheduler, await http.ask(AskGateway())) == Left(0, 0, 0, 0)
        before = await http.ask(AskGateway())
        talks = [Talk(f"What is {number} times {number + 1}?", 24) for number in range(CROWD)]
        outcome = await crowd(url, talks, 3, "a crowd")
        assert not outcome.broken
        assert not outcome.failures
        assert outcome.statuses.keys() <= {200, 429, 503}
        assert outcome.whole + outcome.refused + outcome.dropped.total() == 3 * CROWD
        assert outcome.whole > CROWD
        assert set(outcome.dropped) == {"in its body", "before the answer", "in the answer"}
        assert 0.2 < outcome.dropped.total() / (3 * CROWD) < 0.5
        assert await left_behind(http, scheduler, before) == Left(0, 0, 0, 0)
        assert (await http.ask(AskGateway())).failed == before.failed
    stats = await idle(node)
    assert stats.aborted > 0
    integrity(node)


async def test_what_does_not_fit_is_asked_to_come_again(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path, num_blocks=200, max_running=2, max_waiting=4)
    async with gateway(node) as url:
        talks = [Talk(f"hello {number}", 24) for number in range(CROWD)]
        outcome = await crowd(url, talks, 2, "too many")
        assert not outcome.broken
        assert not outcome.failures
        assert outcome.statuses[429] > 0
        assert outcome.whole > 0
    await idle(node)
    integrity(node)


async def test_both_ways_give_the_same_number_of_tokens_and_tell_how_long_the_engine_took(
    node: Node, long_path: Path
) -> None:
    await start_engine(node, long_path)
    talk = Talk("hello", 9)
    async with gateway(node) as url, connection_to(url) as connection:
        for heard in (await Bus(node.actor("engine")).ask(talk), await ask_over_http(connection, talk)):
            assert heard.num_tokens == 9
            assert 0 < heard.engine <= heard.first
    await idle(node)


async def test_a_client_that_does_not_read_holds_up_nobody_else(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path, num_blocks=2000)
    async with gateway(node) as url:
        async with connection_to(url) as lazy, connection_to(url) as eager:
            await lazy.post("/v1/chat/completions", Talk("hello", 1500).body)
            with anyio.fail_after(30):
                assert (await ask_over_http(eager, Talk("hello", 8))).num_tokens == 8
            lazy.reset()
    await idle(node)
    integrity(node)


async def never_reading(url: str, head: bytes, body: bytes = b"") -> socket.socket:
    """A client that asks and has room for next to nothing of the answer."""
    at = urlsplit(url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (at.hostname, at.port))
    length = b"content-length: %d\r\n" % len(body) if body else b""
    await loop.sock_sendall(client, head + b" HTTP/1.1\r\nhost: x\r\n" + length + b"\r\n" + body)
    return client


async def the_rest(client: socket.socket) -> bytes:
    """What the system still has for a client whose connection is closed."""
    said = b""
    with anyio.fail_after(10):
        while more := await asyncio.get_running_loop().sock_recv(client, 1 << 16):
            said += more
    return said


def small_buffers(node: Node) -> None:
    """What the gateway's connections write is soon more than the system keeps for them."""
    cell: Any = node.actors["http"]
    cell._instance._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def none_open(node: Node) -> None:
    with anyio.fail_after(30):
        while (now := await node.actor("http").ask(AskGateway())).connections or now.open:
            await anyio.sleep(0.01)


async def test_a_client_that_never_reads_its_stream_loses_its_connection_and_its_request(
    node: Node, long_path: Path
) -> None:
    await start_engine(node, long_path, num_blocks=2000)
    async with gateway(node, write_timeout_s=0.2) as url:
        small_buffers(node)
        with await never_reading(url, b"POST /v1/chat/completions", Talk("hello", 1500).body) as client:
            await none_open(node)
            assert not (await the_rest(client)).endswith(b"0\r\n\r\n")  # which is the end of a whole answer
    stats = await idle(node)
    assert (stats.aborted, stats.finished) == (1, 0)
    integrity(node)


async def test_a_client_that_never_reads_a_whole_answer_loses_its_connection(node: Node) -> None:
    async with gateway(node, write_timeout_s=0.2) as url:
        small_buffers(node)
        with await never_reading(url, b"GET /openapi.json"):  # which is over before the client has it
            await none_open(node)


async def test_a_first_token_goes_before_the_next_of_others(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path, num_blocks=2000)
    cell: Any = node.actors["engine.scheduler"]
    scheduler = cell._instance
    hand = scheduler.handed
    told: list[list[bool]] = []

    def handed(sequences: list[Any], now: float) -> None:
        begun = {sequence: sequence.owner.has_begun for sequence in sequences}
        hand(sequences, now)  # which puts them in order
        told.append([begun[sequence] for sequence in sequences])

    scheduler.handed = handed
    engine = node.actor("engine.scheduler")
    async with engine.stream(Talk("a long story", 1500).generate) as long:
        await anext(long)
        while not any(len(set(one)) == 2 for one in told):  # until one begins in the same step as the other goes on
            assert (await Bus(engine).ask(Talk("hello", 2))).num_tokens == 2
            assert await long.take()
    assert [one for one in told if len(one) == 2 and False in one] != []
    assert all(one == sorted(one) for one in told)
    await idle(node)
