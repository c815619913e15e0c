"""Actors on a Ray cluster: a process that Ray finds room for, supervised from here like one of this machine."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from board import Board
from company import THIS_FILE, Add, Clerk, ClerkConfig, Count, GetSeen, Number, Numbers, Pid, Total, Wait, Watch
from ray_cluster import RayCluster

from callboard.runtime import ray_child
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import (
    ActorStopped,
    CallboardError,
    HandlerFailed,
    NoNodeFits,
    NotReachable,
    UnknownKind,
)
from callboard.runtime.node import Node
from callboard.runtime.placement import Ray
from callboard.runtime.processes import wait_exit
from callboard.runtime.ray_driver import NAMESPACE
from callboard.runtime.refs import Ref
from callboard.runtime.supervision import Restart
from callboard.schemas.runtime import Ended, Terminated

pytest.importorskip("ray", reason="the extra 'cluster' is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KIND = "company:Clerk"


@pytest.fixture(scope="module", autouse=True)
def token() -> Iterator[None]:
    """A cluster lets in who has its token; these have one of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


@pytest.fixture(scope="module")
def cluster(token: None) -> Iterator[RayCluster]:
    cluster = RayCluster()
    yield cluster
    cluster.close()


@pytest.fixture
async def home(nats_server: Any) -> AsyncIterator[Node]:
    """The node that supervises."""
    async with Node("home", bus=BusOptions(nats_server.url), drain_timeout=3.0) as node:
        yield node


async def clerk(home: Node, cluster: RayCluster, name: str = "clerk", **wanted: Any) -> Ref:
    restart = wanted.pop("restart", Restart.PERMANENT)
    where = Ray(**{"address": cluster.address, "load": (THIS_FILE,), "env": {"DESK": "ray"}, **wanted})
    return await home.spawn(KIND, ClerkConfig(name), name=name, where=where, restart=restart)


class Life:
    """The processes of an actor's present life: its own, the Ray actor above it, and the driver beside us."""

    def __init__(self, actor: int, driver: int) -> None:
        self.actor = psutil.Process(actor)
        self.driver = psutil.Process(driver)
        above = self.actor.parent()
        assert above is not None
        self.ray_actor = above

    @classmethod
    async def of(cls, home: Node, ref: Ref) -> Life:
        pid: Count = await ref.ask(Pid())
        return cls(pid.n, home.actors[ref.address].info().pid)

    async def gone(self) -> bool:
        for process in (self.driver, self.actor, self.ray_actor):
            if not await anyio.to_thread.run_sync(wait_exit, process, 30.0):
                return False
        return True


async def ask_when_back(ref: Ref) -> Count:
    while True:
        try:
            return await ref.ask(Add(), timeout=1.0)
        except CallboardError:
            await anyio.sleep(0.02)


async def end_seen(watcher: Ref) -> Terminated:
    """What the watcher was told of the end of what it watches."""
    while True:
        if events := (await watcher.ask(GetSeen())).events:
            return events[0]
        await anyio.sleep(0.02)


def papers() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("callboard-papers-*"))


async def test_an_actor_lives_in_the_cluster_and_is_asked_like_any_other(home: Node, cluster: RayCluster) -> None:
    ref = await clerk(home, cluster)
    life = await Life.of(home, ref)
    assert life.ray_actor.pid in [process.pid for process in cluster.processes()]
    assert life.actor.environ()["DESK"] == "ray"
    assert await ref.ask(Add(2)) == Count(2)
    async with ref.stream(Numbers(1000)) as items:
        assert [item async for item in items] == [Number(n) for n in range(1000)]
    assert items.result == Total(499500)
    info = home.actors["clerk"].info()
    assert (info.state, info.place, info.restarts) == ("running", "process", 0)


@pytest.mark.parametrize("victim", ["actor", "ray_actor", "driver"])
async def test_kill_9_of_any_of_its_processes_ends_it_and_it_is_restarted(
    home: Node, cluster: RayCluster, victim: str
) -> None:
    watcher = await home.spawn(Clerk, ClerkConfig("watcher"), name="watcher")
    ref = await clerk(home, cluster)
    await watcher.ask(Watch("clerk"))
    life = await Life.of(home, ref)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                with pytest.raises(ActorStopped):
                    await ref.ask(Wait())

            tasks.start_soon(ask)
            await anyio.sleep(0.1)  # the request is on its way; an answer to it never comes
            getattr(life, victim).kill()
        event = await end_seen(watcher)
        assert (event.reason, event.restarting) == (Ended.CRASHED, True)
        assert await ask_when_back(ref) == Count(1)
        assert await life.gone()
    assert home.actors["clerk"].restarts == 1


async def test_an_actor_that_ray_kills_is_restarted(home: Node, cluster: RayCluster) -> None:
    ref = await clerk(home, cluster)
    life = await Life.of(home, ref)
    program = f"""
import ray
ray.init(address="{cluster.address}", log_to_driver=False, logging_level="ERROR", namespace="{NAMESPACE}")
(name,) = [name for name in ray.util.list_named_actors() if name.startswith("clerk.")]
ray.kill(ray.get_actor(name))
"""
    await anyio.run_process([sys.executable, "-c", program])
    with anyio.fail_after(20):
        assert await life.gone()
        assert await ask_when_back(ref) == Count(1)


async def test_a_stopped_actor_finishes_its_work_and_leaves_nothing_behind(
    home: Node, cluster: RayCluster, nats_server: Any
) -> None:
    ref = await clerk(home, cluster, num_cpus=2)
    life = await Life.of(home, ref)
    assert len(papers()) == 1
    seen: list[Number] = []

    async def read() -> None:
        async with ref.stream(Numbers(20000)) as items:
            async for item in items:
                seen.append(item)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        while not seen:
            await anyio.sleep(0.01)
        await home.stop("clerk", 10.0)
    assert len(seen) == 20000
    assert await life.gone()
    assert not papers()
    # What it had is free for the next.
    await clerk(home, cluster, "next", num_cpus=2, patience=5.0)


async def test_what_the_kind_raises_arrives_as_it_is_and_nothing_is_left(home: Node, cluster: RayCluster) -> None:
    with pytest.raises(UnknownKind):
        await home.spawn("company:Nobody", name="nobody", where=Ray(address=cluster.address, load=(THIS_FILE,)))
    with pytest.raises(CallboardError, match="there is no Python file /nowhere"):
        await clerk(home, cluster, load=("/nowhere/a.py",))
    assert "clerk" not in home.actors
    assert not papers()


async def test_more_than_the_cluster_has_is_an_error_in_time_that_says_what_it_has(
    home: Node, cluster: RayCluster
) -> None:
    with anyio.fail_after(10), pytest.raises(NoNodeFits, match=r"it asks for 64 CPU \(it has 2, 2 free\)"):
        await clerk(home, cluster, num_cpus=64, patience=0.5)
    await clerk(home, cluster, num_cpus=1.5)
    with pytest.raises(NoNodeFits, match=r"1 CPU \(it has 2, 0.5 free\), 1 gate \(it has 0, 0 free\)"):
        await clerk(home, cluster, "second", resources={"gate": 1.0}, patience=0.5)


async def test_a_stop_ends_an_actor_that_waits_for_room(home: Node, cluster: RayCluster) -> None:
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:

            async def spawn() -> None:
                with pytest.raises(ActorStopped):
                    await clerk(home, cluster, num_cpus=64, patience=60)

            tasks.start_soon(spawn)
            while "clerk" not in home.actors or not home.actors["clerk"].info().pid:
                await anyio.sleep(0.02)
            driver = psutil.Process(home.actors["clerk"].info().pid)
            await home.stop("clerk", 1.0)
            assert await anyio.to_thread.run_sync(wait_exit, driver, 5.0)


@pytest.mark.timeout(300)
async def test_through_rays_client_it_is_the_same(home: Node, cluster: RayCluster) -> None:
    ref = await clerk(home, cluster, address=cluster.client_address)
    for victim in ("actor", "driver"):
        life = await Life.of(home, ref)
        getattr(life, victim).kill()
        with anyio.fail_after(90):  # the cluster starts a process for each new driver, two where it is short of them
            assert await life.gone()
            assert await ask_when_back(ref) == Count(1)
    life = await Life.of(home, ref)
    await home.stop("clerk")
    assert await life.gone()


OWNER = """
import sys, anyio
sys.path.insert(0, {folder!r})
from company import THIS_FILE, ClerkConfig, Pid
from callboard.runtime.node import Node
from callboard.runtime.bus import BusOptions
from callboard.runtime.placement import Ray

async def main():
    async with Node("owner", bus=BusOptions({url!r})) as node:
        where = Ray(address={address!r}, load=(THIS_FILE,))
        ref = await node.spawn("company:Clerk", ClerkConfig("clerk"), name="clerk", where=where)
        print((await ref.ask(Pid())).n, node.actors["clerk"].info().pid, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.parametrize("with_driver", [False, True])
async def test_kill_9_of_the_owner_leaves_nothing_behind(
    nats_server: Any, cluster: RayCluster, with_driver: bool
) -> None:
    program = OWNER.format(folder=str(Path(__file__).parent), url=nats_server.url, address=cluster.address)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        actor, driver = map(int, (await anyio.to_thread.run_sync(owner.stdout.readline)).split())
        life = Life(actor, driver)
        owner.kill()
        if with_driver:
            life.driver.kill()
    assert await life.gone()


async def test_an_actor_outlasts_its_cluster_and_comes_back_with_the_next(
    home: Node, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    first = RayCluster()
    try:
        ref = await clerk(home, first)
        life = await Life.of(home, ref)
        first.close(signal.SIGKILL)
        assert await life.gone()
        await eventually(lambda: home.actors["clerk"].info().state == "starting")
    finally:
        first.close(signal.SIGKILL)
    second = RayCluster(first.port)
    try:
        with anyio.fail_after(40):
            assert await ask_when_back(ref) == Count(1)
        await home.stop("clerk")
    finally:
        second.close()


async def test_no_cluster_and_a_wrong_token_are_errors_in_time_that_say_what_to_do(
    home: Node, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CallboardError, match="'nowhere' is no address of a Ray cluster"):
        await clerk(home, cluster, address="nowhere")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with pytest.raises(NotReachable, match="it wants its token") as refused:
        await clerk(home, cluster)
    assert "RAY_AUTH_TOKEN" in refused.value.hint
    monkeypatch.setattr(ray_child, "RAY_CONNECT_TIMEOUT_S", 1.0)
    with anyio.fail_after(10), pytest.raises(NotReachable, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        await clerk(home, cluster, address="127.0.0.1:1")


async def test_what_its_started_raises_is_told(home: Node, cluster: RayCluster, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        "from callboard import Actor\nfrom callboard.runtime.actor import NoConfig\n\n"
        "class Broken(Actor[NoConfig]):\n    async def started(self):\n        raise ValueError('no desk')\n"
    )
    with pytest.raises(HandlerFailed, match="no desk"):
        await home.spawn("broken:Broken", where=Ray(address=cluster.address, load=(str(file),)))


def test_the_daemon_places_actors_in_ray_for_whoever_asks_and_for_its_company_file(
    cluster: RayCluster, tmp_path: Path
) -> None:
    board = Board.at(tmp_path)
    try:
        company = tmp_path / "company.toml"
        company.write_text(
            f'[[actor]]\nname = "listed"\nkind = "counter"\n'
            f'[actor.where]\nray = true\nnum_cpus = 0.5\naddress = "{cluster.address}"\n'
        )
        done = board.run("up", "--detach", "-c", str(company))
        assert done.returncode == 0, done.stderr
        done = board.run("spawn", "counter", "--name", "asked", "--ray-cpus", "0.5", "--ray-address", cluster.address)
        assert (done.returncode, done.stdout) == (0, "asked\n"), done.stderr
        for name in ("asked", "listed"):
            message = '{"type": "bench.add", "amount": 3}'
            done = board.run("publish", "--answer", f"actor.{name}", message)
            assert done.returncode == 0, done.stderr
        in_ray = {process.pid for process in cluster.processes()}
        ours = [process for process in board.processes() if process.pid in in_ray]
        assert len(ours) == 2
        assert board.run("down").returncode == 0
        assert all(wait_exit(process, 10.0) for process in ours)
        assert not papers()
    finally:
        board.close()
