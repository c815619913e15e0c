"""Snapshots: what an actor saved is there again, whatever ended it, and an owner that was taken over writes no more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import durable
import pytest
from durable import THIS_FILE, Account, Balance, Bytes, Crash, Deposit, GetBalance
from own_server import OwnServer, own_server

from callboard.runtime.actor import Actor, NoConfig, handler
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import (
    ActorStopped,
    Fenced,
    NoStore,
    NoSuchActor,
    StateMismatch,
    StoreUnavailable,
    TooLarge,
)
from callboard.runtime.node import Node
from callboard.runtime.placement import Process

pytestmark = pytest.mark.anyio


async def test_an_actor_that_crashes_gets_its_saved_state_back(node: Node) -> None:
    account = await node.spawn(Account, name="a")
    await account.ask(Deposit(5))
    await account.ask(Deposit(1, durable=False))
    with pytest.raises(Exception, match="no money"):
        await account.ask(Crash())
    assert (await account.ask(GetBalance())).amount == 5


async def test_a_clean_stop_saves_what_no_handler_did(node: Node) -> None:
    account = await node.spawn(Account, name="a")
    await account.ask(Deposit(3, durable=False))
    await node.stop("a")
    again = await node.spawn(Account, name="a")
    assert (await again.ask(GetBalance())).amount == 3


async def test_children_have_a_state_of_their_own_by_address(node: Node) -> None:
    class Parent(Actor[NoConfig]):
        @handler
        async def open(self, message: Deposit) -> Balance:
            return await (await self.spawn(Account, name="child")).ask(message)

    for expected in (1, 2):
        parent = await node.spawn(Parent, name="p")
        assert (await parent.ask(Deposit(1))).amount == expected
        await node.stop("p")


async def test_kill_9_of_an_actors_process_loses_no_saved_state(node: Node) -> None:
    account = await node.spawn("durable:Account", name="a", where=Process(load=(THIS_FILE,)))
    answer = await account.ask(Deposit(7))
    os.kill(answer.pid, signal.SIGKILL)
    while True:
        try:
            again = await account.ask(GetBalance())
            break
        except (ActorStopped, NoSuchActor):
            continue
    assert again.amount == 7
    assert again.pid != answer.pid


async def test_a_later_version_of_the_state_reads_an_earlier_one(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    account = await node.spawn(Account, name="a")
    await account.ask(Deposit(4))
    await node.stop("a")

    class Later(Account):
        def snapshot(self) -> durable.LedgerOfTomorrow:  # pyright: ignore[reportIncompatibleMethodOverride]
            return durable.LedgerOfTomorrow(self.amount)

        def restore(self, state: durable.LedgerOfTomorrow) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            self.amount = state.amount

    Later.__qualname__ = "Account"
    later = await node.spawn(Later, name="a")
    assert (await later.ask(Deposit(1))).amount == 5
    await node.stop("a")
    earlier = await node.spawn(Account, name="a")
    assert (await earlier.ask(GetBalance())).amount == 5


async def test_state_of_another_kind_is_not_taken_for_ones_own(node: Node) -> None:
    account = await node.spawn(Account, name="a")
    await account.ask(Deposit(4))
    await node.stop("a")
    with pytest.raises(StateMismatch):
        await node.spawn(Bytes, name="a")
    assert (await (await node.spawn(Account, name="a")).ask(GetBalance())).amount == 4


async def test_bytes_are_state_too_and_too_much_of_it_is_refused(node: Node) -> None:
    actor = await node.spawn(Bytes, name="b")
    await actor.ask(Deposit(1000))
    with pytest.raises(TooLarge):
        await actor.ask(Deposit(2_000_000))
    with pytest.raises(TooLarge):
        await actor.ask(Deposit(0))


async def test_without_a_bus_or_without_jetstream_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    async with Node() as alone:
        with pytest.raises(NoStore, match="alone"):
            await alone.spawn(Account, name="a")
    with own_server(tmp_path) as plain:
        async with Node(bus=BusOptions(plain.url)) as node:
            with pytest.raises(NoStore, match="JetStream"):
                await node.spawn(Account, name="a")


@pytest.mark.parametrize("swallow", [False, True])
async def test_an_owner_that_was_taken_over_is_fenced_off_and_ends(server: OwnServer, swallow: bool) -> None:
    """Real processes: the first owner stands still, another takes its place, and the first wakes up."""
    command = [sys.executable, durable.THIS_FILE, server.url, "a"]
    stale = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert stale.stdout is not None
        assert stale.stdout.readline() == "ready\n"
        async with Node("near", bus=BusOptions(server.url, node_id="near")) as node:
            assert (await node.actor("a").ask(Deposit(1))).pid == stale.pid
        stale.send_signal(signal.SIGSTOP)
        server.kill()  # so that its connection, and with it its name, is gone
        server.start()
        async with Node("near", bus=BusOptions(server.url, node_id="near"), ask_timeout=5.0) as node:
            here = await node.spawn(Account, name="a")
            assert await here.ask(Deposit(10)) == Balance(11, os.getpid())
            async with Node("far", bus=BusOptions(server.url, node_id="far"), ask_timeout=10.0) as far:
                stale.send_signal(signal.SIGCONT)
                # Both hear what is said to the name now, and only one may save and so answer.
                pids: set[int] = set()
                async with anyio.create_task_group() as group:

                    async def deposit() -> None:
                        while True:
                            with contextlib.suppress(Fenced, ActorStopped, NoSuchActor):
                                pids.add((await far.actor("a").ask(Deposit(100, swallow=swallow))).pid)

                    group.start_soon(deposit)
                    assert await anyio.to_thread.run_sync(stale.stdout.readline) == "store.fenced False\n"
                    group.cancel_scope.cancel()
                assert swallow or pids <= {os.getpid()}
                assert stale.wait(10) == 0
                assert (await far.actor("a").ask(GetBalance())).pid == os.getpid()
            total = (await here.ask(GetBalance())).amount
            await node.stop("a")
            again = await node.spawn(Account, name="a")
            assert (await again.ask(GetBalance())).amount == total
    finally:
        stale.kill()
        stale.communicate()


async def test_a_save_waits_for_a_server_that_was_killed(server: OwnServer, node: Node) -> None:
    account = await node.spawn(Account, name="a")
    confirmed = 0
    async with anyio.create_task_group() as group:

        async def deposit() -> None:
            nonlocal confirmed
            for _ in range(150):
                confirmed = (await account.ask(Deposit(1), timeout=30)).amount

        group.start_soon(deposit)
        for round_ in range(3):
            while confirmed < 30 * (round_ + 1):
                await anyio.lowlevel.checkpoint()
            server.kill()
            server.start()
    assert confirmed == 150
    await node.stop("a")
    again = await node.spawn(Account, name="a")
    assert (await again.ask(GetBalance())).amount == 150


async def test_a_save_that_nobody_confirms_leaves_the_old_state_or_the_new_one(server: OwnServer) -> None:
    async with Node(bus=BusOptions(server.url), ask_timeout=1.0) as node:
        account = await node.spawn(Account, name="a")
        await account.ask(Deposit(1))
        server.signal(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable):
            await account.ask(Deposit(2), timeout=20)
        server.signal(signal.SIGCONT)
        assert (await account.ask(Deposit(4), timeout=20)).amount == 5
        with pytest.raises(Exception, match="no money"):
            await account.ask(Crash())
        assert (await account.ask(GetBalance())).amount == 5
