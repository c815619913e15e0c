"""Work queues: nothing that was acknowledged is lost, nothing that is done is given out again, whoever dies."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from own_server import OwnServer, own_server
from queue_calls import Task, again, one, put, queue, stats, take

from callboard import Node, Process, WorkQueue
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import CallboardError, Fenced, LeaseLost, NoSuchActor, StoreError, StoreFull
from callboard.runtime.event_log import EventLog
from callboard.runtime.queue_state import QueueConfig, QueueEvent
from callboard.schemas.queue import FinishItem, GetQueueStats
from callboard.schemas.runtime import Ended, Terminated

pytestmark = pytest.mark.anyio


async def test_kills_of_the_server_in_a_compaction_lose_nothing(server: OwnServer, node: Node) -> None:
    ref = await queue(node, compact_bytes=2_000)
    rng = random.Random(5)
    there: set[int] = set()
    async with anyio.create_task_group() as group:

        async def kills() -> None:
            for _ in range(6):
                await anyio.sleep(rng.uniform(0.1, 0.5))
                server.kill()
                server.start()

        async def work() -> None:
            while True:
                for id_ in await put(ref, *[rng.randbytes(50)] * 4):
                    there.add(id_)
                for item in await take(ref, 3):
                    await ref.ask(FinishItem(item.id, item.lease), 30.0)
                    there.remove(item.id)

        group.start_soon(work)
        await kills()
        group.cancel_scope.cancel()
    ref = await again(node, compact_bytes=2_000)
    found: set[int] = set()
    while items := await take(ref, 1000, lease=1000.0):
        found |= {item.id for item in items}
    assert len(found ^ there) <= 7  # the put and the item in hand when it ended
    assert there - found <= {max(there, default=0), *sorted(there)[:4]}


async def test_a_store_without_room_is_the_producers_error_and_nothing_is_given_that_is_not_kept(
    tmp_path: Path,
) -> None:
    config = tmp_path / "nats.conf"
    config.write_text(f'jetstream {{ store_dir: "{tmp_path / "js"}", max_file_store: 1MB }}\n')
    with own_server(tmp_path, "--config", str(config)) as server:
        async with Node(bus=BusOptions(server.url), ask_timeout=5.0) as node:
            ref = await queue(node)
            held = 0
            full: StoreError | None = None
            while full is None:
                try:
                    await put(ref, bytes(100_000))
                    held += 1
                except StoreError as error:
                    full = error
            assert held > 3
            assert (await stats(ref)).totals.put == held
            with suppress(StoreFull):  # there may be room for a lease
                assert len(await take(ref, 20, lease=1000.0)) <= held
            assert (await stats(ref)).totals.put == held


async def test_a_server_that_stands_still_is_an_error_and_then_the_state_is_what_the_log_says(tmp_path: Path) -> None:
    import signal

    with own_server(tmp_path, "--jetstream", "--store_dir", str(tmp_path / "js")) as server:
        async with Node(bus=BusOptions(server.url), ask_timeout=1.0) as node:
            ref = await queue(node)
            await put(ref, b"a", key="a")
            server.signal(signal.SIGSTOP)
            asks: list[asyncio.Future[Any]] = [asyncio.ensure_future(put(ref, b"b", key=f"b{n}")) for n in range(5)]
            asks.append(asyncio.ensure_future(take(ref)))
            for failed in await asyncio.gather(*asks, return_exceptions=True):
                assert isinstance(failed, CallboardError)
            server.signal(signal.SIGCONT)
            with anyio.fail_after(30):
                while True:
                    try:
                        ids = [(await put(ref, b"b", key=f"b{n}"))[0] for n in range(5)]
                        break
                    except CallboardError:
                        await anyio.sleep(0.05)
            assert len(set(ids)) == 5
            taken = await take(ref, 20)
            log = await EventLog.open(node, "queue.q", QueueEvent)
            assert (await stats(ref)).totals.put == 6
            assert len({item.id for item in taken}) == len(taken) >= 5
            assert log.last


async def test_an_owner_that_was_taken_over_ends_and_is_not_restarted(node: Node) -> None:
    first = await queue(node)
    await put(first, b"a")
    item = await one(first, lease=1000.0)
    ended: list[Terminated] = []
    gone = anyio.Event()

    def note(event: Terminated) -> None:
        ended.append(event)
        gone.set()

    node.on_terminated = note
    node.watch_root("q")
    second = await queue(node, "heir", log="queue.q")
    with pytest.raises(Fenced):
        await first.ask(FinishItem(item.id, item.lease))
    with anyio.fail_after(10):
        await gone.wait()
    assert (ended[0].reason, ended[0].restarting) == (Ended.CRASHED, False)
    with pytest.raises(NoSuchActor):
        await first.ask(GetQueueStats())
    await second.ask(FinishItem(item.id, item.lease))
    assert await take(second) == []


async def load(node: Node, seconds: float, kills: float, rng: random.Random) -> None:
    """Producers and consumers, while the queue's process is killed; then hold what was acknowledged against it all."""
    ref = await node.spawn("queue", QueueConfig(backoff_s=0.0, max_attempts=1000), name="q", where=Process())
    tasks = WorkQueue(ref, Task)
    put_ids: dict[int, int] = {}
    done: list[int] = []
    over = time.monotonic() + seconds
    producing = 3

    async def produce(number: int) -> None:
        nonlocal producing
        count = 0
        while time.monotonic() < over:
            n = number * 1_000_000 + count
            (id_,) = await tasks.put(Task(n, rng.randbytes(rng.randrange(2000))), key=f"n{n}")
            put_ids[n] = id_
            count += 1
            await anyio.sleep(rng.uniform(0.0, 0.01))
        producing -= 1
        look()

    def look() -> None:
        if not producing and len(done) >= len(put_ids):
            group.cancel_scope.cancel()

    async def consume() -> None:
        async with aclosing(tasks.jobs(lease=2.0)) as jobs:
            async for job in jobs:
                with suppress(LeaseLost):
                    async with job:
                        await anyio.sleep(rng.uniform(0.0, 0.002))
                    done.append(job.message.n)
                look()

    async def kill() -> None:
        while time.monotonic() < over:
            await anyio.sleep(rng.uniform(kills / 2, kills))
            with suppress(psutil.NoSuchProcess, KeyError):
                psutil.Process(node.actors["q"].info().pid).kill()

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(produce, number)
        for _ in range(6):
            group.start_soon(consume)
        group.start_soon(kill)
    assert len(put_ids) > 20
    assert len(set(put_ids.values())) == len(put_ids)
    assert sorted(done) == sorted(put_ids)  # each once
    left = await tasks.stats()
    assert (left.ready, left.delayed, left.leased, left.dead) == (0, 0, 0, 0)
    assert (left.totals.put, left.totals.done) == (len(put_ids), len(put_ids))


async def test_kill_9_of_the_queues_process_under_load_loses_nothing_and_does_nothing_twice(node: Node) -> None:
    await load(node, seconds=3.0, kills=2.0, rng=random.Random(1))


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_kill_9_again_and_again_under_load(node: Node) -> None:
    await load(node, seconds=60.0, kills=14.0, rng=random.Random(2))
