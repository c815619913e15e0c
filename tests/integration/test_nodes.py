"""Actors on other nodes: placed by what a node offers, kept under a lease, restarted elsewhere when it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from board import Board
from company import DIARY, LIVING, THIS_FILE, Add, Clerk, ClerkConfig, Count, Fail, GetSeen, Pid, Wait, Watch

from callboard.runtime import peers
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import (
    ActorStopped,
    CallboardError,
    HandlerFailed,
    NameTaken,
    NoNodeFits,
    NoSuchActor,
    UnknownKind,
)
from callboard.runtime.leases import LEASE_S, Offer
from callboard.runtime.node import Node
from callboard.runtime.placement import OnNode
from callboard.runtime.refs import Ref
from callboard.runtime.supervision import Restart
from callboard.schemas import bench
from callboard.schemas.runtime import ActorInfo, Ended, ListActors, ListNodes, Spawn

pytestmark = pytest.mark.anyio

GIB = 2**30
KIND = "company:Clerk"


@pytest.fixture
async def home(nats_server: Any) -> AsyncIterator[Node]:
    """The node that supervises."""
    DIARY.clear()
    async with Node("home", bus=BusOptions(nats_server.url), drain_timeout=3.0) as node:
        yield node


@asynccontextmanager
async def stage(
    home: Node, url: str, name: str, *labels: str, memory: int = GIB, cpus: float = 2
) -> AsyncIterator[Node]:
    """A node in this process that offers something, once `home` has heard of it."""
    offer = Offer(labels, memory, cpus)
    async with Node(name, bus=BusOptions(url), allow=("company",), offer=offer, drain_timeout=3.0) as node:
        await known(home, name)
        yield node


async def known(home: Node, name: str) -> None:
    peers = home.require_links().peers
    while name not in peers.known:
        await peers.news(None)


@contextmanager
def joined(url: str, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`callboard node` in a process of its own."""
    command = [sys.executable, "-m", "callboard.runtime.cli", "node", "--nats", url, "--name", name, *arguments]
    with subprocess.Popen([*command, "--load", THIS_FILE], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "joined" in line:
                    break
            yield process
        finally:
            process.kill()


async def clerk(home: Node, name: str = "clerk", restart: Restart = Restart.PERMANENT, **wanted: Any) -> Ref:
    return await home.spawn(KIND, ClerkConfig(name), name=name, where=OnNode(**wanted), restart=restart)


async def host_of(home: Node, address: str) -> str:
    """The node that an actor lives on, once it lives on one."""
    while not (keeps := home.actors[address].keeps) or home.actors[address].state != "running":
        await home.require_links().peers.news(0.05)
    return keeps.partition("@")[2]


async def ask_when_back(ref: Ref) -> Count:
    while True:
        try:
            return await ref.ask(Add(), timeout=1.0)
        except CallboardError:
            await anyio.sleep(0.02)


# Placement


async def test_an_actor_may_be_placed_on_the_node_of_a_name(home: Node, nats_server: Any) -> None:
    url = nats_server.url
    async with stage(home, url, "one"), stage(home, url, "two"):
        for name in ("two", "one"):
            await home.spawn(KIND, ClerkConfig(), name=f"on-{name}", where=OnNode(labels=(f"node={name}",)))
            (found,) = [info for info in await at_node(home, name) if info.address == f"on-{name}"]
            assert found.place == "here"
        with pytest.raises(NoNodeFits, match="node=three"):
            await home.spawn(KIND, ClerkConfig(), name="nowhere", where=OnNode(labels=("node=three",)))


async def at_node(home: Node, name: str) -> tuple[ActorInfo, ...]:
    return (await home.actor(f"node.{name}").ask(ListActors())).actors


async def test_an_actor_goes_to_a_node_that_has_its_labels(home: Node, nats_server: Any) -> None:
    async with stage(home, nats_server.url, "plain"), stage(home, nats_server.url, "gpu", "gpu", "zone=a") as gpu:
        ref = await clerk(home, labels=("gpu",))
        assert await ref.ask(Add(2)) == Count(2)
        assert "clerk" in gpu.actors
        assert await host_of(home, "clerk") == "gpu"
        with pytest.raises(NoNodeFits, match="no node for other has gpu, zone=b"):
            await clerk(home, "other", labels=("gpu", "zone=b"))


async def test_memory_that_was_promised_is_not_promised_again_until_its_actor_ends(
    home: Node, nats_server: Any
) -> None:
    async with stage(home, nats_server.url, "a", memory=GIB):
        await clerk(home, memory=GIB * 3 // 4)
        with pytest.raises(NoNodeFits, match="bytes of memory"):
            await clerk(home, "second", memory=GIB // 2)
        async with stage(home, nats_server.url, "b", memory=GIB):
            await clerk(home, "second", memory=GIB // 2)
            assert await host_of(home, "second") == "b"
            await home.stop("clerk")
            await clerk(home, "third", memory=GIB * 3 // 4)
            assert await host_of(home, "third") == "a"


async def test_a_promise_is_kept_also_when_two_supervisors_ask_at_once(home: Node, nats_server: Any) -> None:
    outcomes: list[str] = []
    async with Node("other", bus=BusOptions(nats_server.url)) as other:
        async with stage(home, nats_server.url, "a", cpus=2):
            await known(other, "a")

            async def ask(node: Node, name: str) -> None:
                try:
                    await clerk(node, name, cpus=1.5)
                    outcomes.append("placed")
                except NoNodeFits:
                    outcomes.append("refused")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, home, "one")
                tasks.start_soon(ask, other, "two")
    assert sorted(outcomes) == ["placed", "refused"]


async def test_actors_spread_over_the_nodes_that_fit(home: Node, nats_server: Any) -> None:
    async with stage(home, nats_server.url, "a"), stage(home, nats_server.url, "b"):
        for name in ("one", "two", "three", "four"):
            await clerk(home, name)
            await home.require_links().peers.news(1.0)
        hosts = [await host_of(home, name) for name in ("one", "two", "three", "four")]
        assert sorted(hosts) == ["a", "a", "b", "b"]


async def test_a_first_start_waits_as_long_as_it_is_told_to(home: Node, nats_server: Any) -> None:
    refs: list[Ref] = []

    async def spawn() -> None:
        refs.append(await clerk(home, patience=20.0))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(spawn)
        async with stage(home, nats_server.url, "late"):
            while not refs:
                await home.require_links().peers.news(0.05)
            assert await refs[0].ask(Add()) == Count(1)
            await home.stop("clerk")


async def test_a_node_that_lacks_the_kind_is_passed_over(home: Node, nats_server: Any) -> None:
    offer = Offer((), 8 * GIB, 64)
    async with Node("bare", bus=BusOptions(nats_server.url), offer=offer):
        await known(home, "bare")
        with pytest.raises(UnknownKind, match="may not load the module 'company'"):
            await clerk(home)
        async with stage(home, nats_server.url, "able"):
            await clerk(home)
            assert await host_of(home, "clerk") == "able"


async def test_what_is_wrong_with_the_actor_itself_is_the_spawners_error(home: Node, nats_server: Any) -> None:
    async with stage(home, nats_server.url, "a") as a:
        await a.spawn(Clerk, ClerkConfig("taken"), name="taken")
        with pytest.raises(NameTaken):
            await clerk(home, "taken")
        with pytest.raises(CallboardError, match="does not fit"):
            await home.spawn(KIND, '{"name": 5}', name="odd", where=OnNode())
        assert "odd" not in home.actors
        assert not len(a.leases)


async def test_a_node_that_offers_nothing_takes_nothing(home: Node, nats_server: Any) -> None:
    async with Node("closed", bus=BusOptions(nats_server.url), allow=("company",)):
        await known(home, "closed")
        with pytest.raises(NoNodeFits):
            await clerk(home)
        with pytest.raises(NoNodeFits, match="takes no actors of others"):
            await home.actor("node.closed").ask(Spawn(KIND, "clerk", lease="home"))


# The end of an actor there


async def test_a_crash_there_is_a_restart_by_the_supervisor_here(home: Node, nats_server: Any) -> None:
    async with stage(home, nats_server.url, "a"), Node("away", bus=BusOptions(nats_server.url)) as away:
        ref = await clerk(home)
        for node, name in ((home, "near"), (away, "far")):
            watcher = await node.spawn(Clerk, ClerkConfig(name), name=name)
            await watcher.ask(Watch("clerk"))
        assert await ref.ask(Add()) == Count(1)
        with pytest.raises(HandlerFailed):
            await ref.ask(Fail())
        assert await ask_when_back(ref) == Count(1)
        assert home.actors["clerk"].restarts == 1
        for name in ("near", "far"):
            (event,) = (await home.actor(name).ask(GetSeen())).events
            assert (event.reason, event.restarting) == (Ended.CRASHED, True)


async def test_a_temporary_actor_that_crashes_there_stays_away(home: Node, nats_server: Any) -> None:
    async with stage(home, nats_server.url, "a") as a:
        ref = await clerk(home, restart=Restart.TEMPORARY)
        with pytest.raises(HandlerFailed):
            await ref.ask(Fail())
        while "clerk" in home.actors:
            await home.require_links().peers.news(0.02)
        assert not len(a.leases)
        with pytest.raises(NoSuchActor):
            await ref.ask(Add())


async def test_an_actor_that_is_stopped_here_ends_there(home: Node, nats_server: Any) -> None:
    async with stage(home, nats_server.url, "a") as a:
        await clerk(home)
        await home.stop("clerk")
        assert "clerk" not in a.actors
        assert not len(a.leases)
        await DIARY.has("clerk stopped")


async def test_a_node_that_leaves_drains_and_its_actors_move(home: Node, nats_server: Any) -> None:
    finished: list[Count] = []
    async with stage(home, nats_server.url, "stays", cpus=1), anyio.create_task_group() as tasks:
        async with stage(home, nats_server.url, "leaves", "first"):
            ref = await clerk(home, restart=Restart.TRANSIENT)
            if await host_of(home, "clerk") == "stays":
                pytest.fail("the first node in the alphabet has no more actors than the other")

            async def ask() -> None:
                finished.append(await ref.ask(Wait()))

            tasks.start_soon(ask)
            await DIARY.has("clerk wait began")
            home.loop.call_later(0.2, LIVING["clerk"].gate.set)
        assert await host_of(home, "clerk") == "stays"
        assert await ask_when_back(ref) == Count(1)
    assert finished == [Count(0)]


# Processes that die


async def test_kill_9_of_a_node_and_its_actors_come_back_on_another(home: Node, nats_server: Any) -> None:
    url = nats_server.url
    with joined(url, "one", "--labels", "x") as one, joined(url, "two", "--labels", "x"):
        await known(home, "one")
        await known(home, "two")
        refs = [await clerk(home, name, labels=("x",)) for name in ("a", "b", "c")]
        pids = [(await ref.ask(Pid())).n for ref in refs]
        watcher = await home.spawn(Clerk, ClerkConfig("watcher"), name="watcher")
        victim = next(ref for ref, pid in zip(refs, pids, strict=True) if pid == one.pid)
        await watcher.ask(Watch(victim.address))
        one.kill()
        with anyio.fail_after(10.0):
            while (await host_of(home, victim.address)) != "two":
                await home.require_links().peers.news(0.1)
            for ref in refs:
                await ask_when_back(ref)
                assert (await ref.ask(Pid())).n != one.pid
        (event,) = (await watcher.ask(GetSeen())).events
        assert event.restarting


async def test_kill_9_of_the_supervising_node_ends_what_it_kept_elsewhere(nats_server: Any) -> None:
    source = SUPERVISOR.format(url=nats_server.url)
    async with Node("home", bus=BusOptions(nats_server.url)) as home:
        async with stage(home, nats_server.url, "a") as a:
            with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as supervisor:
                assert supervisor.stdout is not None
                assert (await anyio.to_thread.run_sync(supervisor.stdout.readline)).strip() == "placed"
                assert await home.actor("kept").ask(Add()) == Count(1)
                supervisor.kill()
            with anyio.fail_after(LEASE_S + 5):
                while "kept" in a.actors:
                    await anyio.sleep(0.1)
        with pytest.raises(NoSuchActor):
            await home.actor("kept").ask(Add())


SUPERVISOR = """
import asyncio
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.runtime.placement import OnNode

async def main():
    async with Node("doomed", bus=BusOptions("{url}")) as node:
        await node.spawn("company:Clerk", name="kept", where=OnNode(patience=10.0))
        print("placed", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_node_that_stood_still_ends_what_was_started_elsewhere_meanwhile(
    home: Node, nats_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stale owner wakes up and finds in the first hello that it keeps the actor no more."""
    monkeypatch.setattr(peers, "SILENT_NODE_S", 7.0)
    url = nats_server.url
    with joined(url, "sleeper", "--labels", "x") as sleeper:
        await known(home, "sleeper")
        ref = await clerk(home, labels=("x",))
        sleeper.send_signal(signal.SIGSTOP)
        with joined(url, "other", "--labels", "x") as other:
            with anyio.fail_after(30.0):
                while await host_of(home, "clerk") != "other":
                    await home.require_links().peers.news(0.1)
            assert await ref.ask(Add()) == Count(1)
            sleeper.send_signal(signal.SIGCONT)
            with anyio.fail_after(10.0):
                while "clerk" in [info.address for info in await actors_of(home, "sleeper")]:
                    await home.require_links().peers.news(0.1)
            assert await ref.ask(Add()) == Count(2)
            assert (await ref.ask(Pid())).n == other.pid


async def test_a_process_on_another_node_comes_back_there_when_it_is_killed(home: Node, nats_server: Any) -> None:
    with joined(nats_server.url, "one") as one:
        await known(home, "one")
        where = OnNode(process=True)
        ref = await home.spawn("counter", name="apart", where=where)
        (info,) = [a for a in await actors_of(home, "one") if a.address == "apart"]
        assert await ref.ask(bench.Add(3)) == bench.Count(3)
        assert info.place == "process"
        assert info.pid != one.pid
        os.kill(info.pid, signal.SIGKILL)
        with anyio.fail_after(10.0):
            while True:
                try:
                    assert await ref.ask(bench.Add(4)) == bench.Count(4)
                    break
                except (NoSuchActor, ActorStopped):
                    await anyio.sleep(0.02)
        assert home.actors["apart"].restarts == 1


async def actors_of(home: Node, name: str) -> tuple[ActorInfo, ...]:
    return (await home.actor(f"node.{name}").ask(ListActors())).actors


async def test_the_listing_of_nodes_says_what_each_offers(home: Node, nats_server: Any) -> None:
    async with stage(home, nats_server.url, "a", "gpu", memory=GIB, cpus=2):
        await clerk(home, cpus=0.5)
        await home.require_links().peers.news(1.0)
        nodes = {info.node: info for info in (await home.actor("node.home").ask(ListNodes())).nodes}
        assert nodes["a"].labels == ("gpu",)
        assert nodes["a"].cpus == 1.5
        assert nodes["home"].keeps == ("clerk@a",)
        assert not nodes["home"].accepts


async def test_a_machine_joins_with_a_token_and_takes_actors(tmp_path: Path) -> None:
    board, elsewhere = Board.at(tmp_path / "main"), Board.at(tmp_path / "elsewhere")
    try:
        url = (await anyio.to_thread.run_sync(board.up)).url
        token = board.run("creds", "token").stdout.strip()
        node = elsewhere.start("node", "--nats", url, "--token", token, "--name", "far", "--labels", "gpu")
        assert node.stderr is not None
        assert "joined" in await anyio.to_thread.run_sync(node.stderr.readline)
        spawned = board.run("spawn", "counter", "--name", "c", "--labels", "gpu", "--process")
        assert (spawned.returncode, spawned.stderr) == (0, "")
        answer = board.run("publish", "--answer", "actor.c", '{"type": "bench.add", "amount": 3}')
        assert answer.stdout == '{"type":"bench.count","value":3}\n'
        node.send_signal(signal.SIGTERM)
        assert node.wait(20) == 0
        again = elsewhere.run("node", "--nats", url, "--token", token, "--name", "another")
        assert again.returncode == 3 or again.returncode == 1
        assert "token" in again.stderr
    finally:
        await anyio.to_thread.run_sync(board.close)
        elsewhere.close()
