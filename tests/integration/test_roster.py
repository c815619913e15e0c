"""What a daemon was asked to run comes back after its death, and not after its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from antics import Begun, FragileConfig, Hold
from board import Board, install_antics
from own_server import own_server

import callboard
from callboard import Restart
from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.errors import ActorStopped, NotReachable
from callboard.runtime.node import Node
from callboard.runtime.roster import Roster, recall, spawn_patiently
from callboard.schemas.bench import Add, Count
from callboard.schemas.runtime import Spawn

pytestmark = pytest.mark.anyio


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    board = Board.at(tmp_path, PYTHONPATH=str(install_antics(tmp_path / "site")))
    for name, value in board.environment.items():
        monkeypatch.setenv(name, value)
    yield board
    board.close()


async def kill_daemon(board: Board, bus: Client, *awaited: str) -> None:
    """`kill -9`, and wait until the daemon that the guardian starts says that it hosts these roots again."""
    before = board.info().daemon_pid
    async with bus.listen("nodes.hello") as hellos:
        os.kill(before, signal.SIGKILL)
        missing = set(awaited) | {"main"}
        async for _, hello in hellos:
            if hello["info"]["pid"] != before:
                missing -= {hello["info"]["node"], *hello["info"]["roots"]}
            if not missing:
                break
    while board.info().daemon_pid == before:  # its file is written a moment after it said hello
        await anyio.sleep(0.01)


async def addresses(bus: Client) -> set[str]:
    found = [info.address for info in await bus.actors() if info.state == "running"]
    return {address for address in found if not address.startswith("node.")}


async def test_permanent_actors_come_back_after_kill_9_of_the_daemon_and_only_they(board: Board) -> None:
    board.up()
    async with callboard.connect() as bus:
        await bus.spawn("counter", name="kept")
        await bus.spawn("counter", name="passing", restart=Restart.TEMPORARY)
        await bus.spawn("counter", name="stopped")
        await bus.stop("stopped")
        await bus.actor("kept").ask(Add(5))
        await kill_daemon(board, bus, "kept")
        assert await bus.actor("kept").ask(Add(1)) == Count(1)
        assert await addresses(bus) == {"kept"}
        await kill_daemon(board, bus, "kept")
        assert await addresses(bus) == {"kept"}
    board.run("down")
    board.up()
    async with callboard.connect() as bus:
        assert await addresses(bus) == set()


async def test_an_actor_in_a_process_comes_back_when_its_earlier_life_has_finished(
    board: Board, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    board.up()
    async with callboard.connect() as bus, bus.listen("nodes.hello") as hellos:
        await bus.spawn("narrow", name="busy", process=True)
        (first,) = await bus.actors("busy")
        async with bus.actor("busy").stream(Hold(str(gate))) as work:
            assert await anext(work) == Begun()
            await kill_daemon(board, bus)  # and `busy` has seen it die, and finishes what it has: its name is held
            gate.touch()
            with pytest.raises(StopAsyncIteration):
                await anext(work)
        async for _, hello in hellos:
            if hello["info"]["roots"] == ["busy"] and hello["info"]["pid"] != first.pid:
                break
        (second,) = await bus.actors("busy")
        assert second.pid != first.pid


async def test_what_waits_to_come_back_may_be_stopped(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_DRAIN_TIMEOUT", "1.5")
    board.up()
    async with callboard.connect() as bus:
        await bus.spawn("narrow", name="busy", process=True)
        async with bus.actor("busy").stream(Hold(str(tmp_path / "gate"))) as work:
            await anext(work)
            await kill_daemon(board, bus)  # `busy` is still at work, and the new daemon waits for its name
            await bus.stop("busy", timeout=0.1)
            with pytest.raises(ActorStopped):
                await anext(work)
        await kill_daemon(board, bus)
        assert await addresses(bus) == set()


async def test_an_actor_that_cannot_start_again_takes_neither_the_daemon_nor_the_others_along(
    board: Board, tmp_path: Path
) -> None:
    needed = tmp_path / "needed"
    needed.touch()
    board.up()
    async with callboard.connect() as bus:
        for name in ("a", "c"):
            await bus.spawn("counter", name=name)
        await bus.spawn("fragile", FragileConfig(str(needed)), name="b")
        needed.unlink()
        guardian = board.watch_log("guardian")
        await kill_daemon(board, bus, "a", "c")
        assert await addresses(bus) == {"a", "c"}
        await anyio.to_thread.run_sync(guardian.wait, "the daemon is ready")
        assert board.info().daemon_restarts == 1
    logs = board.run("logs", "daemon", "-n", "100")
    assert "b is not brought back" in logs.stdout


async def test_a_foreground_daemon_that_was_killed_leaves_its_roster_to_the_next(board: Board) -> None:
    up = board.start("up")
    assert up.stdout is not None
    up.stdout.readline()
    async with callboard.connect() as bus:
        await bus.spawn("counter", name="kept")
    up.kill()
    up.wait()
    board.up()
    async with callboard.connect() as bus, bus.listen("nodes.hello") as hellos:
        async for _, hello in hellos:
            if "kept" in hello["info"]["roots"]:
                break
        assert await bus.actor("kept").ask(Add(1)) == Count(1)


async def test_what_is_brought_back_while_the_bus_is_away_waits_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    caplog.set_level("INFO", "callboard")
    roster = Roster(tmp_path / "roster.json")
    roster.add(Spawn("counter", "kept"))
    with own_server(tmp_path) as server:
        async with Node(bus=BusOptions(server.url), drain_timeout=0.5) as node, anyio.create_task_group() as tasks:
            server.kill()
            await eventually(lambda: not node.require_links().bus.is_up)
            tasks.start_soon(recall, node, roster)
            await eventually(lambda: "kept is to be spawned again" in caplog.text)
            server.start()
            await eventually(lambda: "kept" in node.actors)
            assert await node.actor("kept").ask(Add(1)) == Count(1)
    assert "is not brought back" not in caplog.text


async def test_what_cannot_start_for_want_of_something_else_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bus is there all the time: that its own start reaches nobody is no reason to wait for ever."""
    monkeypatch.setattr("callboard.runtime.roster.NAME_PATIENCE_S", 0.3)
    with own_server(tmp_path) as server:
        async with Node(bus=BusOptions(server.url), drain_timeout=0.1) as node:

            async def start() -> None:
                raise NotReachable("what it needs is not there")

            with pytest.raises(NotReachable):
                await spawn_patiently(node, "lonely", start)
