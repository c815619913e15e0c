"""Actors in processes of their own, killed, stopped, stood still, or failing to begin, with a real server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from company import (
    DIARY,
    THIS_FILE,
    Add,
    Clerk,
    ClerkConfig,
    Count,
    Fail,
    GetSeen,
    Numbers,
    NumbersBeside,
    Open,
    Pid,
    Wait,
    WaitBeside,
    Watch,
)

from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import (
    ActorStopped,
    CallboardError,
    ConfigError,
    DeadlineExceeded,
    HandlerFailed,
    NameTaken,
    NoSuchActor,
    UnknownKind,
)
from callboard.runtime.node import Node
from callboard.runtime.placement import Process
from callboard.runtime.refs import Ref
from callboard.runtime.supervision import Restart
from callboard.schemas.runtime import Ended

pytestmark = pytest.mark.anyio

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]

HERE = Path(__file__).parent


@pytest.fixture
async def node(nats_server: Any) -> AsyncIterator[Node]:
    DIARY.clear()
    async with Node(bus=BusOptions(nats_server.url), drain_timeout=3.0) as node:
        yield node


async def clerk(node: Node, name: str = "clerk", restart: Restart = Restart.PERMANENT, **options: Any) -> Ref:
    """A clerk in a process of its own."""
    where = Process(load=(THIS_FILE,), **options)
    return await node.spawn("company:Clerk", ClerkConfig(name), name=name, where=where, restart=restart)


async def gone(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await anyio.sleep(0.01)


async def ask_when_back(ref: Ref) -> Count:
    """While its process starts again, an actor is not there."""
    while True:
        try:
            return await ref.ask(Add())
        except (NoSuchActor, ActorStopped):
            await anyio.sleep(0.01)


async def test_an_actor_in_a_process_of_its_own_is_spoken_to_as_any_other(node: Node) -> None:
    ref = await clerk(node)
    assert await ref.ask(Add(2)) == Count(2)
    assert (await ref.ask(Pid())).n != os.getpid()
    async with ref.stream(Numbers(500)) as numbers:
        assert [number.n async for number in numbers] == list(range(500))
    with pytest.raises(NameTaken):
        await node.spawn(Clerk, name="clerk")


# kill -9


async def test_killing_a_process_ends_what_was_under_way_and_its_actor_comes_back(
    node: Node, nats_server: Any, eventually: Eventually
) -> None:
    ref = await clerk(node)
    pid = (await ref.ask(Pid())).n
    async with Node(bus=BusOptions(nats_server.url)) as away:
        watcher = await away.spawn(Clerk, ClerkConfig("watcher"), name="watcher")
        await watcher.ask(Watch("clerk"))
        near = await node.spawn(Clerk, ClerkConfig("near"), name="near")
        await near.ask(Watch("clerk"))
        ended: list[str] = []

        async def ask(asker: Node) -> None:
            with pytest.raises(ActorStopped):
                await asker.actor("clerk").ask(WaitBeside())
            ended.append("ask")

        async def read(reader: Node) -> None:
            async with reader.actor("clerk").stream(NumbersBeside(10, wait_at=1)) as numbers:
                await anext(numbers)
                ended.append("first item")
                with pytest.raises(ActorStopped):
                    await anext(numbers)
            ended.append("stream")

        async with anyio.create_task_group() as tasks:
            for asker in (node, away):
                tasks.start_soon(ask, asker)
                tasks.start_soon(read, asker)
            await eventually(lambda: ended.count("first item") == 2)
            os.kill(pid, signal.SIGKILL)
            with anyio.fail_after(3.0):  # sooner than a silence tells
                await eventually(lambda: len(ended) == 6)
        assert sorted(ended) == ["ask"] * 2 + ["first item"] * 2 + ["stream"] * 2
        for name in ("watcher", "near"):
            seen = (await away.actor(name).ask(GetSeen())).events
            assert [(event.address, event.restarting) for event in seen] == [("clerk", True)]
            assert seen[0].reason in (Ended.NODE_DOWN, Ended.CRASHED)
            assert seen[0].error is not None
            assert "SIGKILL" in seen[0].error.message
        assert await ask_when_back(away.actor("clerk")) == Count(1)
    assert (await ref.ask(Pid())).n != pid
    assert node.actors["clerk"].restarts == 1


async def test_a_crash_in_a_process_of_its_own_restarts_the_process(node: Node) -> None:
    ref = await clerk(node)
    pid = (await ref.ask(Pid())).n
    with pytest.raises(HandlerFailed, match="one over nothing"):
        await ref.ask(Fail())
    assert await ask_when_back(ref) == Count(1)
    assert (await ref.ask(Pid())).n != pid


async def test_a_temporary_process_that_is_killed_stays_away(node: Node, eventually: Eventually) -> None:
    ref = await clerk(node, restart=Restart.TEMPORARY)
    near = await node.spawn(Clerk, ClerkConfig("near"), name="near")
    await near.ask(Watch("clerk"))
    os.kill((await ref.ask(Pid())).n, signal.SIGKILL)
    await eventually(lambda: "clerk" not in node.actors)
    with pytest.raises(NoSuchActor):
        await ref.ask(Add())
    (event,) = (await near.ask(GetSeen())).events
    assert not event.restarting
    await clerk(node)
    assert await ref.ask(Add()) == Count(1)


@pytest.mark.parametrize("killed", ["the process", "the one that is linked to it"])
async def test_a_link_reaches_into_a_process(node: Node, killed: str) -> None:
    ref = await clerk(node)
    near = await node.spawn(Clerk, ClerkConfig("near"), name="near")
    await near.ask(Watch("clerk", link=True))
    pid = (await ref.ask(Pid())).n
    if killed == "the process":
        os.kill(pid, signal.SIGKILL)
    else:
        await ref.ask(Add())  # so the link, sent before, has arrived
        with pytest.raises(HandlerFailed):
            await near.ask(Fail())
    await gone(pid)
    await DIARY.has("near started", 2)
    assert await ask_when_back(ref) == Count(1)


PARENT = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.runtime.placement import Process
from company import THIS_FILE, ClerkConfig, Pid

async def main():
    async with Node("parent", bus=BusOptions(sys.argv[1]), drain_timeout=1.0) as node:
        where = Process(load=(THIS_FILE,))
        ref = await node.spawn("company:Clerk", ClerkConfig("orphan"), name="orphan", where=where)
        print((await ref.ask(Pid())).n, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_process_whose_parent_is_killed_goes_by_itself(node: Node, nats_server: Any) -> None:
    command = [sys.executable, "-c", PARENT, nats_server.url, str(HERE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(await anyio.to_thread.run_sync(parent.stdout.readline))
        assert await node.actor("orphan").ask(Add()) == Count(1)
        parent.kill()
        with anyio.fail_after(15):
            await gone(pid)
    with pytest.raises(NoSuchActor):
        await node.actor("orphan").ask(Add())


# Stopping


async def test_a_process_that_is_stopped_finishes_what_it_has(node: Node) -> None:
    where = Process(load=(THIS_FILE,))
    ref = await node.spawn("company:Clerk", ClerkConfig("clerk", listens=True), name="clerk", where=where)
    pid = (await ref.ask(Pid())).n
    answers: list[Count] = []
    async with ref.stream(NumbersBeside(3, wait_at=1)) as numbers:
        await anext(numbers)
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                answers.append(await ref.ask(WaitBeside()))

            tasks.start_soon(ask)
            await ref.ask(Pid())
            tasks.start_soon(node.stop, "clerk", 10.0)
            await refused(ref)
            await node.publish("topic.open", Open())
            assert [number.n async for number in numbers] == [1, 2]
    assert answers == [Count(0)]
    await gone(pid)
    with pytest.raises(NoSuchActor):
        await ref.ask(Add())


async def refused(ref: Ref) -> None:
    """Returns when the actor takes nothing new."""
    while True:
        try:
            await ref.ask(Add(0))
        except ActorStopped:
            return
        await anyio.sleep(0.01)


async def test_a_stop_of_a_process_keeps_to_its_own_time(node: Node) -> None:
    ref = await clerk(node)
    pid = (await ref.ask(Pid())).n
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            with pytest.raises(ActorStopped):
                await ref.ask(Wait())

        tasks.start_soon(ask)
        await ref.ask(Pid())
        begun = time.monotonic()
        await node.stop("clerk", 0.2)
        assert time.monotonic() - begun < 2.5  # though the node's own drain time is 3 s
    await gone(pid)


async def test_a_process_is_stopped_with_the_node_that_started_it(nats_server: Any) -> None:
    async with Node(bus=BusOptions(nats_server.url), drain_timeout=1.0) as node:
        pid = (await (await clerk(node)).ask(Pid())).n
    assert not psutil.pid_exists(pid)


async def test_a_process_that_takes_no_notice_is_killed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.runtime.process.KILL_AFTER_S", 0.3)
    ref = await clerk(node)
    pid = (await ref.ask(Pid())).n
    os.kill(pid, signal.SIGSTOP)
    await node.stop("clerk", 0.2)
    assert not psutil.pid_exists(pid)


# Beginning

FAILING = """
import os, time
from callboard.runtime.actor import Actor
from callboard.runtime.errors import RequestInvalid

class Refuses(Actor):
    async def started(self):
        raise RequestInvalid("not today", hint="tomorrow")

class Breaks(Actor):
    async def started(self):
        raise ZeroDivisionError("one over nothing")

class Dies(Actor):
    async def started(self):
        os._exit(7)

class Sleeps(Actor):
    async def started(self):
        print("asleep")
        time.sleep(60)
"""


@pytest.fixture
def failing(tmp_path: Path) -> str:
    path = tmp_path / "failing.py"
    path.write_text(FAILING)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("failing:Refuses", CallboardError, "not today"),
        ("failing:Breaks", HandlerFailed, "one over nothing"),
        ("failing:Dies", ActorStopped, "exit code 7"),
        ("failing:NotThere", UnknownKind, "NotThere"),
        ("elsewhere:Kind", UnknownKind, "elsewhere"),
    ],
)
async def test_what_keeps_a_process_from_beginning_is_the_spawners_error(
    node: Node, failing: str, kind: str, error: type[CallboardError], says: str
) -> None:
    with pytest.raises(error, match=says):
        await node.spawn(kind, name="failing", where=Process(load=(failing,)))
    assert "failing" not in node.actors
    assert await (await clerk(node, "failing")).ask(Add()) == Count(1)


async def test_a_file_that_is_not_there_is_the_spawners_error(node: Node) -> None:
    with pytest.raises(ConfigError, match="no Python file"):
        await node.spawn("nothing:Kind", name="failing", where=Process(load=("/nowhere/nothing.py",)))


async def test_a_configuration_that_does_not_fit_is_the_spawners_error(node: Node) -> None:
    with pytest.raises(ConfigError, match="Clerk"):
        await node.spawn("company:Clerk", '{"name": 5}', name="clerk", where=Process(load=(THIS_FILE,)))


async def test_a_process_that_does_not_become_ready_is_ended(
    node: Node, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.runtime.process.KILL_AFTER_S", 0.2)
    with pytest.raises(DeadlineExceeded, match="not ready"):
        await node.spawn("failing:Sleeps", name="sleeper", where=Process(load=(failing,), ready_timeout=1.0))
    assert "sleeper" not in node.actors


async def test_a_process_stopped_while_it_begins_is_ended(node: Node, failing: str, eventually: Eventually) -> None:
    async with anyio.create_task_group() as tasks:

        async def spawn() -> None:
            with pytest.raises(ActorStopped):
                await node.spawn("failing:Sleeps", name="sleeper", where=Process(load=(failing,)))

        tasks.start_soon(spawn)
        await eventually(lambda: "sleeper" in node.actors and node.actors["sleeper"].info().pid > 0)
        pid = node.actors["sleeper"].info().pid
        await node.stop("sleeper", 0.1)
        await gone(pid)
    assert "sleeper" not in node.actors
