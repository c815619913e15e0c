"""What an engine says of itself to who looks closely: each sequence, each block, each second."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from serving import answers, idle, requests, serving

from callboard.actors.serve.blocks import BlockPool
from callboard.schemas.serve import Generate
from callboard.schemas.serve_stats import EngineDetail, GetStats

pytestmark = pytest.mark.anyio


def test_a_map_of_the_pool_says_blank_kept_and_how_many_hold_each_block() -> None:
    pool = BlockPool(6)
    one, two, three = pool.allocate(3)
    pool.share(two)
    pool.keep(three)
    pool.release([three])
    states = [0] * 6
    states[one], states[two], states[three] = 2, 3, 1
    assert pool.cells(6) == (1, bytes(states))
    # A cell that stands for several shows the highest.
    assert pool.cells(3) == (2, bytes(max(states[i : i + 2]) for i in (0, 2, 4)))
    assert pool.cells(4) == (2, bytes(max(states[i : i + 2]) for i in (0, 2, 4)))


async def test_who_asks_for_detail_sees_what_runs_what_waits_and_the_blocks_they_hold(tiny_path: Path) -> None:
    async with serving(tiny_path, max_running=2, num_blocks=64) as scheduler:
        assert (await scheduler.ask(GetStats())).detail is None
        endless = Generate(prompt="some text to go on from", max_tokens=200, ignore_eos=True, client="somebody")
        seen: list[EngineDetail] = []
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(lambda: scheduler.ask(endless, timeout=60))
            while not seen:
                stats = await scheduler.ask(GetStats(detail=True))
                assert stats.detail is not None
                (lane,) = stats.detail.lanes
                # Those that share a prefix may be held back for a moment, so both run a little later.
                if lane.running == 2 and all(one.generated_tokens for one in lane.under_way if one.running):
                    seen.append(stats.detail)
        (lane,) = seen[0].lanes
        assert [one.running for one in lane.under_way] == [True, True, False]
        assert {one.client for one in lane.under_way} == {"somebody"}
        assert all(one.prompt_tokens and one.max_tokens == 200 for one in lane.under_way)
        assert (lane.num_blocks, lane.blocks_per_cell, len(lane.cells)) == (64, 1, 64)
        held = sum(cell > 1 for cell in lane.cells)
        assert held == lane.num_blocks - lane.free_blocks > 0
        assert held <= sum(one.num_blocks for one in lane.under_way)
        assert lane.info is not None
        stats = await idle(scheduler)
        while True:  # until the second that the last token came in is over
            detail = (await scheduler.ask(GetStats(detail=True))).detail
            assert detail is not None
            if sum(second.tokens for second in detail.seconds) == stats.generated_tokens:
                break
            await anyio.sleep(0.05)
        assert sum(second.first_tokens for second in detail.seconds) == 3
        assert any(second.ttft_ms > 0 for second in detail.seconds)
        assert any(second.token_ms > 0 for second in detail.seconds)
        assert all(cell <= 1 for cell in detail.lanes[0].cells)


async def test_every_token_of_many_streams_is_in_the_pace_once(tiny_path: Path) -> None:
    async with serving(tiny_path, max_running=4, draft="ngram") as scheduler:
        await answers(scheduler, requests(6, ignore_eos=True))
        stats = await idle(scheduler)
        while True:
            detail = (await scheduler.ask(GetStats(detail=True))).detail
            assert detail is not None
            tokens = sum(second.tokens for second in detail.seconds)
            assert tokens <= stats.generated_tokens
            if tokens == stats.generated_tokens:
                break
            await anyio.sleep(0.05)
