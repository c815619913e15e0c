"""A node behind a network of its own (a namespace and a veth pair) whose cable is pulled, and put back."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import company
import durable
import psutil
import pytest
from cable import Cable, cable_laid
from company import Clerk, ClerkConfig, Wait
from durable import Deposit
from own_server import OwnServer, own_server

from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import CallboardError
from callboard.runtime.leases import LEASE_S
from callboard.runtime.node import Node
from callboard.runtime.placement import OnNode
from callboard.runtime.refs import Ref
from callboard.schemas.runtime import ListActors, Terminated

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def cable() -> Iterator[Cable]:
    with cable_laid() as cable:
        yield cable


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    with own_server(tmp_path, "--jetstream", "--store_dir", str(tmp_path / "js"), host="0.0.0.0") as server:
        yield server


@contextmanager
def node_process(url: str, name: str, *before: str) -> Iterator[subprocess.Popen[str]]:
    """`callboard node`, which takes clerks and accounts."""
    command = [*before, sys.executable, "-m", "callboard.runtime.cli", "node", "--nats", url, "--name", name]
    command += ["--labels", "desk", "--load", company.THIS_FILE, "--load", durable.THIS_FILE]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("joined" in line for line in process.stderr)
            yield process
        finally:
            process.kill()


async def lives(node: Node, name: str) -> set[str]:
    """The actors of a node, as it says itself; it is waited for."""
    while True:
        try:
            listed = await node.actor(f"node.{name}").ask(ListActors(), timeout=1.0)
            return {info.address for info in listed.actors}
        except CallboardError:
            await anyio.sleep(0.1)  # nothing says when a node is back


async def deposit_when_back(account: Ref) -> durable.Balance:
    while True:
        try:
            return await account.ask(Deposit(1), timeout=2.0)
        except CallboardError:  # none of these is carried out: what was said to the far side is not heard in time
            await anyio.sleep(0.1)


@pytest.mark.timeout(200)
async def test_a_node_behind_a_cut_cable_loses_its_actors_and_takes_none_back(cable: Cable, server: OwnServer) -> None:
    ended: list[Terminated] = []
    async with Node("home", bus=BusOptions(server.url), drain_timeout=3.0) as home:
        home.on_terminated = ended.append
        far_url = f"nats://{cable.host}:{server.port}"
        with node_process(far_url, "far", "ip", "netns", "exec", cable.namespace) as far:
            await lives(home, "far")
            where = OnNode(labels=("desk",))
            account = await home.spawn("durable:Account", name="account", where=where)
            clerk = await home.spawn("company:Clerk", ClerkConfig("clerk"), name="clerk", where=where)
            assert (await account.ask(Deposit(5))).pid == far.pid
            home.watch_root("account")
            with node_process(server.url, "near") as near:
                await lives(home, "near")
                cable.cut()
                began = time.monotonic()
                with anyio.fail_after(60):
                    with pytest.raises(CallboardError):
                        await clerk.ask(Wait(), timeout=40.0)
                    took = time.monotonic() - began
                    balance = await deposit_when_back(account)
                assert took < 30.0, "longer than the silence after which a node counts as gone, and its lease"
                assert (balance.amount, balance.pid) == (6, near.pid)
                assert [event.address for event in ended] == ["account"]
                assert ended[0].restarting
                # On its own side the lease has passed too: it ended them without being told.
                await anyio.sleep(max(0.0, began + LEASE_S + 5.0 - time.monotonic()))
                cable.mend()
                with anyio.fail_after(90):
                    assert await lives(home, "far") == {"node.far"}
                assert far.poll() is None
                assert psutil.pid_exists(far.pid)
                balance = await account.ask(Deposit(1))
                assert (balance.amount, balance.pid) == (7, near.pid)
                assert {"account", "clerk"} <= await lives(home, "near")


@pytest.mark.timeout(120)
async def test_a_cut_that_is_shorter_than_the_lease_costs_time_and_nothing_else(
    cable: Cable, server: OwnServer
) -> None:
    async with Node("home", bus=BusOptions(server.url), drain_timeout=3.0) as home:
        await home.spawn(Clerk, ClerkConfig("clerk"), name="clerk")
        far_url = f"nats://{cable.host}:{server.port}"
        with node_process(far_url, "far", "ip", "netns", "exec", cable.namespace) as far:
            await lives(home, "far")
            account = await home.spawn("durable:Account", name="account", where=OnNode(labels=("desk",)))
            for amount in range(1, 4):
                async with anyio.create_task_group() as group:
                    cable.cut()
                    group.start_soon(account.ask, Deposit(1), 30.0)
                    await anyio.sleep(2.0)  # the cut itself
                    cable.mend()
                balance = await account.ask(Deposit(0))
                assert (balance.amount, balance.pid) == (amount, far.pid)
