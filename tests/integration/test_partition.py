"""A node behind a network of its own (a namespace and a veth pair) whose cable is pulled, and put back."""

from __future__ import annotations

import secrets
import shutil
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


class Cable:
    """A network namespace, and the pair of interfaces that joins it to this machine."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.namespace = f"cb-{tag}"
        self._ours, self._theirs = f"cb{tag}a", f"cb{tag}b"
        # A range for measurements between networks (RFC 2544), so nobody's own.
        net = f"198.18.{secrets.randbelow(256)}"
        self.host = f"{net}.1"
        self._their_host = f"{net}.2"

    def lay(self) -> None:
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._ours, "type", "veth", "peer", "name", self._theirs, "netns", self.namespace)
        _ip("addr", "add", f"{self.host}/30", "dev", self._ours)
        _ip("link", "set", self._ours, "up")
        _ip("-n", self.namespace, "addr", "add", f"{self._their_host}/30", "dev", self._theirs)
        _ip("-n", self.namespace, "link", "set", self._theirs, "up")

    def cut(self) -> None:
        _ip("link", "set", self._ours, "down")

    def mend(self) -> None:
        _ip("link", "set", self._ours, "up")

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.namespace], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "link", "delete", self._ours], stderr=subprocess.DEVNULL, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PermissionError(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")


@pytest.fixture
def cable() -> Iterator[Cable]:
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (Debian: apt-get install iproute2)")
    cable = Cable()
    try:
        cable.lay()
    except PermissionError as error:
        cable.remove()
        pytest.skip(f"no network of its own may be made here: {error}")
    yield cable
    cable.remove()


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
