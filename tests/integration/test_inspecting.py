"""A company looked at closely, from anywhere on its bus: one actor in full, the daemon's logs, a restart as asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from board import Board, install

import callboard
from callboard.runtime.client import Client
from callboard.runtime.errors import ActorStopped, NoSuchActor, UsageError
from callboard.schemas.bench import Add
from callboard.schemas.inspecting import DescribeActor, FollowLogs, ListKinds, LogEntry
from callboard.schemas.runtime import RestartActor

pytestmark = pytest.mark.anyio

FRAGILE = '''
"""An actor that does not start a second time unless a file lets it."""
from pathlib import Path
import msgspec
from callboard import Actor
from callboard.runtime.placement import Process
from callboard.runtime.actor import NoConfig

class Boss(Actor[NoConfig]):
    """Has a child in its own process, and one in another."""

    async def started(self):
        await self.spawn("counter", name="near")
        await self.spawn("counter", name="far-from-boss", where=Process())

class Config(msgspec.Struct):
    file: str

class OnceStarted(Actor[Config]):
    """Starts while its file is there."""

    async def started(self) -> None:
        print(f"here with {self.config.file}")
        if not Path(self.config.file).exists():
            raise ValueError("my file is gone")
'''


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    base = tmp_path_factory.mktemp("inspecting")
    site = install(base / "site", "fragile_once", FRAGILE, once="OnceStarted", boss="Boss")
    board = Board.at(base, PYTHONPATH=str(site))
    board.up()
    yield board
    board.close()


@pytest.fixture
def state(daemon: Board, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in daemon.environment.items():
        monkeypatch.setenv(name, value)
    return str(daemon.paths.state)


async def restarts_of(bus: Client, address: str) -> list[int]:
    return [info.restarts for info in await bus.actors(address) if info.address == address]


async def test_an_actor_in_the_daemon_and_one_in_its_own_process_begin_a_new_life(
    state: str,
) -> None:
    async with callboard.connect(state_dir=state) as bus:
        for name, process in (("here", False), ("there", True)):
            counter = await bus.spawn("counter", name=name, process=process)
            await counter.ask(Add(3))
            before = next(info for info in await bus.actors(name))
            assert await bus.restart(name) == 1
            after = next(info for info in await bus.actors(name))
            assert (after.restarts, after.since > before.since) == (1, True)
            assert (after.pid != before.pid) is process
            assert (await counter.ask(Add(1))).value == 1
            await bus.stop(name)
        with pytest.raises(NoSuchActor):
            await bus.restart("here")
        with pytest.raises(UsageError, match="node's own actor"):
            await bus.actor("node.main").ask(RestartActor("node.main"))


async def test_one_that_does_not_start_again_says_why_and_its_supervisor_goes_on(state: str, tmp_path: Path) -> None:
    file = tmp_path / "needed"
    file.touch()
    async with callboard.connect(state_dir=state) as bus:
        await bus.spawn("once", f'{{"file": "{file}"}}', name="o")
        file.unlink()
        with pytest.raises(callboard.CallboardError, match="my file is gone"):
            await bus.restart("o")
        file.touch()
        with anyio.fail_after(20):  # its backoff grows, and then it starts
            while [info.state for info in await bus.actors("o")] != ["running"]:
                await anyio.sleep(0.05)
        assert (await restarts_of(bus, "o"))[0] >= 2
        await bus.stop("o")


async def test_a_description_says_what_an_actor_takes_and_how_it_is_looked_after(state: str) -> None:
    async with callboard.connect(state_dir=state) as bus:
        counter = await bus.spawn("counter", name="described", process=True)
        await counter.ask(Add(1))
        inside = await bus.actor("node.described").ask(DescribeActor("described"))
        assert inside.info.kind == "Counter" or inside.info.kind == "counter"
        assert "bench.add" in inside.handles
        assert inside.doc
        assert sum(inside.durations.counts) >= 1
        assert (inside.strategy, inside.mailbox_size > 0) == ("one_for_one", True)
        outside = await bus.actor("node.main").ask(DescribeActor("described"))
        assert (outside.info.place, outside.restart) == ("process", "permanent")
        await bus.stop("described")
        with pytest.raises(NoSuchActor):
            await bus.actor("node.main").ask(DescribeActor("described"))


async def test_a_node_says_which_kinds_it_can_start_also_those_of_others(state: str) -> None:
    async with callboard.connect(state_dir=state) as bus:
        kinds = {kind.name: kind.package for kind in (await bus.actor("node.main").ask(ListKinds())).kinds}
        assert kinds["counter"] == "callboard"
        assert kinds["once"] == "fragile-once"


async def test_the_logs_come_over_the_bus_and_go_on_as_they_grow(state: str, tmp_path: Path) -> None:
    file = tmp_path / "first"
    file.touch()
    seen: list[LogEntry] = []
    async with callboard.connect(state_dir=state) as bus:
        async with bus.actor("node.main").stream(FollowLogs(actor="logged", lines=10)) as logs:
            await bus.spawn("once", f'{{"file": "{file}"}}', name="logged", process=True)
            async for entries in logs:
                seen += entries.entries
                if any("here with" in entry.message for entry in seen):
                    break
        line = next(entry for entry in seen if "here with" in entry.message)
        assert (line.process, line.actor, line.logger) == ("logged", "logged", "stdout")
        assert {entry.actor for entry in seen} == {"logged"}
        # What is there already, without following.
        again = [
            entry
            async for entries in bus.actor("node.main").stream(FollowLogs(("logged",), follow=False))
            for entry in entries.entries
        ]
        assert line in again
        await bus.stop("logged")
        for wrong in (FollowLogs(("nobody",)), FollowLogs(level="wrong")):
            with pytest.raises(UsageError):
                await bus.actor("node.main").ask(wrong)
        with pytest.raises(UsageError, match="keeps no logs"):
            await bus.actor(f"node.{bus.node.name}").ask(FollowLogs())


async def test_who_supervises_whom_is_in_the_listing_also_where_an_address_does_not_say_it(state: str) -> None:
    async with callboard.connect(state_dir=state) as bus:
        await bus.spawn("boss", name="boss", process=True)
        supervisors = {info.address: info.supervisor for info in await bus.actors()}
        assert supervisors["boss"] == ""
        assert supervisors["boss.near"] == "boss"
        assert supervisors["far-from-boss"] == "boss"
        described = await bus.actor("node.boss").ask(DescribeActor("boss"))
        assert described.children == ("boss.near", "far-from-boss")
        await bus.stop("boss")


def test_the_command_restarts_too(state: str, daemon: Board) -> None:
    assert daemon.run("spawn", "counter", "--name", "by-command").returncode == 0
    done = daemon.run("restart", "by-command")
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.run("restart", "nobody").returncode == 1
    assert daemon.run("stop", "by-command").returncode == 0


async def test_one_that_is_just_ending_is_not_restarted() -> None:
    from callboard.actors.bench.counter import Counter

    async with callboard.Node("alone") as node:
        await node.spawn(Counter, name="c")
        node.actors["c"].state = "stopping"
        with pytest.raises(ActorStopped):
            await node.restart("c")
        node.actors["c"].state = "running"


async def test_who_gives_up_while_a_listener_is_registered_leaves_the_connection_as_it_was(state: str) -> None:
    """nats-py reads nothing more once the server's answer to a ping comes for which nobody waits any more."""
    async with callboard.connect(state_dir=state) as bus:

        async def listen() -> None:
            async with bus.tap(">"):
                await anyio.sleep_forever()

        for patience in range(40):
            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                for _ in range(patience):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
        with anyio.fail_after(15):
            await bus.nodes()
