"""A crowd at a gateway, a third of which goes away at any moment: nobody else notices, and nothing of them is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
