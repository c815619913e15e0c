"""Work queues: what is taken, done, failed or returned, once and in which order, over restarts too."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import pytest
from queue_calls import again, one, put, queue, stats, take

from callboard import Node
from callboard.runtime.errors import CallboardError, LeaseLost, QueueFull, TooLarge
from callboard.runtime.event_log import EventLog, list_logs
from callboard.runtime.queue_actor import Queue
from callboard.runtime.queue_state import QueueEvent
from callboard.schemas.queue import (
    ExtendLease,
    FailItem,
    FinishItem,
    ItemsPut,
    LeasedItem,
    NewItem,
    PutItems,
    ReturnItem,
    TakeItems,
)

pytestmark = pytest.mark.anyio


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


async def test_the_queues_are_seen_as_logs(node: Node) -> None:
    await queue(node)
    await queue(node, "mail")
    assert {"queue.q", "queue.mail"} <= set(await list_logs(node))


def test_the_kind_goes_by_its_name() -> None:
    from callboard.runtime.actor import kind_name

    assert kind_name(Queue) == "queue"
