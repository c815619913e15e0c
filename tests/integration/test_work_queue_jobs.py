"""Work queues as those use them who put messages and do jobs: leases that are kept, workers, foreign programs."""

from __future__ import annotations

import base64

import anyio
import msgspec
import pytest
from own_server import OwnServer
from queue_calls import Task, again, put, queue

from callboard import Node, WorkQueue
from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.errors import LeaseLost
from callboard.schemas.queue import ReturnItem

pytestmark = pytest.mark.anyio


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
