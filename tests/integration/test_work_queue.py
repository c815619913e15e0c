"""Work queues: nothing that was acknowledged is lost, nothing that is done is given out again, whoever dies."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil
import pytest
from own_server import OwnServer, own_server

from callboard import Message, Node, Process, Ref, WorkQueue
from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.errors import (
    CallboardError,
    Fenced,
    LeaseLost,
    NoSuchActor,
    QueueFull,
    StoreError,
    StoreFull,
    TooLarge,
)
from callboard.runtime.event_log import EventLog, list_logs
from callboard.runtime.queue_actor import Queue
from callboard.runtime.queue_state import QueueConfig, QueueEvent
from callboard.schemas.queue import (
    ExtendLease,
    FailItem,
    FinishItem,
    GetQueueStats,
    ItemsPut,
    LeasedItem,
    NewItem,
    PutItems,
    QueueStats,
    ReturnItem,
    TakeItems,
)
from callboard.schemas.runtime import Ended, Terminated

pytestmark = pytest.mark.anyio


class Task(Message, frozen=True, tag="test.task"):
    n: int
    padding: bytes = b""


async def queue(node: Node, name: str = "q", **config: Any) -> Ref:
    return await node.spawn("queue", QueueConfig(**{"backoff_s": 0.0, **config}), name=name)


async def again(node: Node, name: str = "q", **config: Any) -> Ref:
    """The same queue in its next life."""
    await node.stop(name)
    return await queue(node, name, **config)


async def put(ref: Ref, *payloads: bytes, **more: Any) -> tuple[int, ...]:
    return (await ref.ask(PutItems(tuple(NewItem(payload, **more) for payload in payloads)))).ids


async def take(ref: Ref, limit: int = 1, lease: float = 30.0, wait: float = 0.0) -> list[LeasedItem]:
    return list((await ref.ask(TakeItems(limit, lease, wait), 30.0)).items)


async def one(ref: Ref, lease: float = 30.0, wait: float = 20.0) -> LeasedItem:
    (item,) = await take(ref, 1, lease, wait)
    return item


async def stats(ref: Ref) -> QueueStats:
    return await ref.ask(GetQueueStats())


async def test_items_are_taken_in_order_and_are_gone_when_done(node: Node) -> None:
    ref = await queue(node)
    assert await put(ref, b"a", b"b", b"c") == (1, 2, 3)
    items = await take(ref, 2)
    assert [item.payload for item in items] == [b"a", b"b"]
    for item in items:
        await ref.ask(FinishItem(item.id, item.lease))
    assert [item.payload for item in await take(ref, 5)] == [b"c"]
    assert await take(ref) == []
    now = await stats(ref)
    assert (now.ready, now.leased, now.totals.put, now.totals.done) == (0, 1, 3, 2)


async def test_a_restart_forgets_nothing_and_gives_out_nothing_twice(node: Node) -> None:
    ref = await queue(node)
    await put(ref, b"a", b"b", b"c", b"d")
    a, b, c = await take(ref, 3)
    await ref.ask(FinishItem(a.id, a.lease))
    await ref.ask(FailItem(b.id, b.lease, "broken", dead=True))
    ref = await again(node)
    assert [item.payload for item in await take(ref, 9)] == [b"d"]
    await ref.ask(FinishItem(a.id, a.lease))  # its answer might have been lost
    await ref.ask(FinishItem(c.id, c.lease))  # a lease outlives the queue's process
    assert (await put(ref, b"e")) == (5,)
    assert (await stats(ref)).dead == 1


async def test_a_lease_that_passes_gives_the_item_to_the_next_with_another_attempt(node: Node) -> None:
    ref = await queue(node)
    await put(ref, b"a")
    first = await one(ref, lease=0.1)
    second = await one(ref)
    assert (first.attempt, second.attempt) == (1, 2)
    kinds: tuple[Any, ...] = (FinishItem, FailItem, ReturnItem, ExtendLease)
    for request in [kind(first.id, first.lease) for kind in kinds]:
        with pytest.raises(LeaseLost, match="given to somebody else"):
            await ref.ask(request)
    await ref.ask(FinishItem(second.id, second.lease))
    with pytest.raises(LeaseLost, match="not in the queue"):
        await ref.ask(FinishItem(first.id, first.lease))


async def test_a_late_done_counts_as_long_as_nobody_else_was_given_the_item(node: Node) -> None:
    ref = await queue(node, max_attempts=1)
    await put(ref, b"a")
    late = await one(ref, lease=0.05)
    while (await stats(ref)).dead == 0:
        await anyio.sleep(0.01)
    with pytest.raises(LeaseLost, match="dead letter"):
        await ref.ask(ExtendLease(late.id, late.lease))
    await ref.ask(FinishItem(late.id, late.lease))
    assert (await stats(ref)).dead == 0
    assert await take(ref) == []


async def test_a_done_or_failed_that_comes_twice_is_answered_as_the_first_was(node: Node) -> None:
    ref = await queue(node)
    await put(ref, b"a", b"b")
    a, b = await take(ref, 2)
    done = await ref.ask(FinishItem(a.id, a.lease))
    failed = await ref.ask(FailItem(b.id, b.lease, "no", retry_after_s=100.0))
    for _ in range(2):
        assert await ref.ask(FinishItem(a.id, a.lease)) == done
        assert await ref.ask(FailItem(b.id, b.lease, "no", retry_after_s=100.0)) == failed
        ref = await again(node)
    with pytest.raises(LeaseLost):
        await ref.ask(FinishItem(b.id, b.lease))
    with pytest.raises(LeaseLost):
        await ref.ask(FailItem(a.id, a.lease))
    assert (await stats(ref)).totals.failed == 1


async def test_an_item_that_fails_too_often_is_a_dead_letter_to_requeue_or_drop(node: Node) -> None:
    tasks = WorkQueue(await queue(node, max_attempts=2), Task)
    ids = await tasks.put(*(Task(n) for n in range(3)))
    for attempt in (1, 2):
        for job in await tasks.take(9, wait=5.0):
            assert job.attempt == attempt
            assert (await job.fail(f"attempt {attempt}")).dead == (attempt == 2)
    dead = await tasks.dead()
    assert [(item.id, item.error, item.attempts) for item in dead] == [(id_, "attempt 2", 2) for id_ in ids]
    assert tasks.message_of(dead[1]) == Task(1)
    assert await tasks.requeue(ids[1]) == (ids[1],)
    assert await tasks.drop(ids[0], 99) == (ids[0],)
    (job,) = await tasks.take()
    assert (job.message, job.attempt) == (Task(1), 1)
    tasks = WorkQueue(await again(node, max_attempts=2), Task)
    assert [item.id for item in await tasks.dead()] == [ids[2]]
    assert await tasks.requeue() == await tasks.drop() == ()
    assert await tasks.requeue(all=True) == (ids[2],)


async def test_a_key_is_put_once_also_when_its_item_is_done_and_over_a_restart(node: Node) -> None:
    ref = await queue(node, remember_s=0.6)
    both = await asyncio.gather(put(ref, b"a", key="k"), put(ref, b"a", key="k"))
    assert both == [(1,), (1,)]
    answer = await ref.ask(PutItems((NewItem(b"a", "k"), NewItem(b"b", "l"), NewItem(b"b", "l"))))
    assert answer == ItemsPut((1, 2, 2), known=(1, 2))
    ref = await again(node, remember_s=1.5)
    item = await one(ref)
    await ref.ask(FinishItem(item.id, item.lease))
    began = time.time()
    assert await put(ref, b"a", key="k") == (1,)
    ref = await again(node, remember_s=1.5)
    if time.time() - began < 0.8:
        assert await put(ref, b"a", key="k") == (1,)
    await anyio.sleep(1.6)  # the time that it is remembered for
    assert await put(ref, b"a", key="k") == (3,)
    assert await put(ref, b"b", key="l") == (2,)  # its item is there


async def test_a_full_queue_refuses_all_of_a_put_and_what_is_known_is_no_put(node: Node) -> None:
    ref = await queue(node, max_items=3, max_bytes=100)
    await put(ref, b"a", key="a")
    with pytest.raises(QueueFull, match="1 items"):
        await put(ref, b"b", b"c", b"d")
    await put(ref, b"b" * 50, b"c")
    with pytest.raises(QueueFull):
        await put(ref, b"")
    assert await put(ref, b"a", key="a") == (1,)
    item = await one(ref)
    await ref.ask(FinishItem(item.id, item.lease))
    with pytest.raises(QueueFull, match="51 bytes"):
        await put(ref, b"d" * 50)
    await put(ref, b"d" * 49)


async def test_an_item_over_the_limit_of_a_write_is_too_large_and_harms_nothing(node: Node) -> None:
    ref = await queue(node)
    with pytest.raises(TooLarge):
        await put(ref, *[bytes(300_000)] * 4)
    assert await put(ref, *[bytes(300_000)] * 3) == (1, 2, 3)
    assert len(await take(ref, 9)) == 3


async def test_delayed_and_urgent_items(node: Node) -> None:
    ref = await queue(node)
    began = time.monotonic()
    await put(ref, b"later", delay_s=0.3)
    await put(ref, b"normal")
    await put(ref, b"urgent", priority=1)
    assert [item.payload for item in await take(ref, 9)] == [b"urgent", b"normal"]
    assert (await one(ref)).payload == b"later"
    assert time.monotonic() - began >= 0.3


async def test_those_that_wait_get_items_in_turn_as_they_come(node: Node) -> None:
    ref = await queue(node)
    order: list[int] = []

    async def waiter(number: int) -> None:
        await one(ref)
        order.append(number)

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(waiter, number)
            while (await stats(ref)).waiting <= number:
                await anyio.sleep(0.005)
        for number in range(4):
            await put(ref, b"x")
            while len(order) <= number:
                await anyio.sleep(0.005)
    assert order == [0, 1, 2, 3]
    assert await take(ref, wait=0.05) == []


async def test_what_was_taken_for_somebody_who_is_gone_is_there_at_once(node: Node) -> None:
    ref = await queue(node)
    with pytest.raises(CallboardError):
        await ref.ask(TakeItems(1, 1000.0, 10.0), 0.2)
    await put(ref, b"a")
    assert (await one(ref)).attempt == 1


async def test_a_queue_that_is_stopped_lets_those_go_that_wait(node: Node) -> None:
    ref = await queue(node)
    async with anyio.create_task_group() as group:
        waited = asyncio.ensure_future(take(ref, wait=20.0))
        while (await stats(ref)).waiting == 0:
            await anyio.sleep(0.005)
        began = time.monotonic()
        await node.stop("q")
        assert await waited == []
        assert time.monotonic() - began < 5.0
        group.cancel_scope.cancel()


async def test_a_returned_item_does_not_count_as_an_attempt(node: Node) -> None:
    ref = await queue(node)
    await put(ref, b"a")
    item = await one(ref)
    for _ in range(2):
        await ref.ask(ReturnItem(item.id, item.lease))
    item = await one(ref)
    assert item.attempt == 1
    await ref.ask(ExtendLease(item.id, item.lease, 100.0))
    assert await take(ref) == []


async def test_the_log_is_bounded_by_what_is_there_not_by_what_was(node: Node) -> None:
    config: dict[str, Any] = {"compact_bytes": 20_000, "remember_items": 50}
    ref = await queue(node, **config)
    await put(ref, b"kept", key="kept")
    held = await one(ref, lease=1000.0)
    await put(ref, b"dead")
    dead = await one(ref)
    await ref.ask(FailItem(dead.id, dead.lease, "broken", dead=True))
    done: list[LeasedItem] = []
    for number in range(40):
        await put(ref, *[b"x" * 100] * 20, priority=1)
        await put(ref, b"waits", delay_s=1000.0) if number % 10 == 0 else None
        done = await take(ref, 20)
        for item in done:
            await ref.ask(FinishItem(item.id, item.lease))
    log = await EventLog.open(node, "queue.q", QueueEvent)
    kept = [event async for event in log.read()]
    assert log.last > 2400
    assert len(kept) < 600
    before = await stats(ref)
    ref = await again(node, **config)
    after = await stats(ref)
    assert (after.totals, after.bytes) == (before.totals, before.bytes)
    assert (after.ready, after.delayed, after.leased, after.dead) == (0, 4, 1, 1)
    assert await put(ref, b"", key="kept") == (held.id,)
    await ref.ask(FinishItem(held.id, held.lease))
    await ref.ask(FinishItem(done[-1].id, done[-1].lease))


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


async def test_foreign_programs_put_json(node: Node, server: OwnServer) -> None:
    tasks = WorkQueue(await queue(node), Task)
    payload = base64.b64encode(b'{"type": "test.task", "n": 7}').decode()
    request = {"type": "queue.put", "items": [{"payload": payload}]}
    async with Node(bus=BusOptions(server.url)) as other:
        answer = await Client(other).request_raw("actor.q", msgspec.json.encode(request))
    assert msgspec.json.decode(answer) == {"type": "queue.items_put", "ids": [1], "known": []}
    await put(tasks.ref, b"{no json", b"\x81")
    (job,) = await tasks.take(9)
    assert job.message == Task(7)
    assert [item.error[:17] for item in await tasks.dead()] == ["it cannot be read"] * 2


async def test_a_job_keeps_its_lease_is_done_failed_or_given_back(node: Node) -> None:
    tasks = WorkQueue(await queue(node, max_attempts=2), Task)
    await tasks.put(Task(1))
    (job,) = await tasks.take(lease=1.0)
    async with job:
        await anyio.sleep(2.5)  # the work, longer than two leases
        assert await tasks.take() == []
    assert (await tasks.stats()).totals.done == 1
    await tasks.put(Task(2))
    (job,) = await tasks.take()
    with pytest.raises(ZeroDivisionError):
        async with job:
            raise ZeroDivisionError("no")
    (job,) = await tasks.take(wait=5.0)
    assert job.attempt == 2
    with anyio.move_on_after(0.1):
        async with job:
            await anyio.sleep_forever()
    (job,) = await tasks.take()
    assert job.attempt == 2
    async with job:
        await job.fail("I know why", dead=True)
    assert [item.error for item in await tasks.dead()] == ["I know why"]


async def test_a_job_whose_lease_is_lost_is_cancelled(node: Node) -> None:
    tasks = WorkQueue(await queue(node), Task)
    await tasks.put(Task(1))
    (job,) = await tasks.take(lease=0.3)
    await tasks.ref.ask(ReturnItem(job.id, job._lease))
    with pytest.raises(LeaseLost):
        async with job:
            await anyio.sleep_forever()
    (job,) = await tasks.take(lease=0.3)
    await node.stop("q")
    with anyio.fail_after(10), pytest.raises(LeaseLost, match="could not be extended"):
        async with job:
            await anyio.sleep_forever()


async def test_workers_go_on_through_failures_and_a_restart_of_the_queue(node: Node) -> None:
    tasks = WorkQueue(await queue(node), Task)
    seen: list[int] = []
    everything = anyio.Event()

    async def do(task: Task) -> None:
        if task.n % 5 == 0 and task.n not in seen:
            seen.append(task.n)
            raise ValueError("the first time")
        seen.append(task.n)
        if len(seen) == 36:
            everything.set()

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: tasks.work(do, concurrency=3))
        await tasks.put(*(Task(n) for n in range(15)))
        await again(node)
        await tasks.put(*(Task(n) for n in range(15, 30)))
        with anyio.fail_after(20):
            await everything.wait()
        group.cancel_scope.cancel()
    assert set(seen) == set(range(30))


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


async def test_the_queues_are_seen_as_logs(node: Node) -> None:
    await queue(node)
    await queue(node, "mail")
    assert {"queue.q", "queue.mail"} <= set(await list_logs(node))


def test_the_kind_goes_by_its_name() -> None:
    from callboard.runtime.actor import kind_name

    assert kind_name(Queue) == "queue"
