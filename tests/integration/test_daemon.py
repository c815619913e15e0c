"""The daemon through its command line, with real processes: up, down, draining, and every way to die."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from board import Board, gone, install

from callboard.runtime.credentials import Role, mint_user_file
from callboard.runtime.daemon_info import find_daemon
from callboard.runtime.folders import Paths
from callboard.runtime.server import embedded_server
from callboard.runtime.settings import ServerSettings

# A package as somebody else would install it, with an actor that takes its time.
SLOWPOKE = """
from collections.abc import AsyncIterator
import anyio
from callboard import Actor, StreamRequest, Message, handler

class Begun(Message, frozen=True, tag="slow.begun"): pass
class Done(Message, frozen=True, tag="slow.done"): pass
class Work(StreamRequest[Begun, Done], frozen=True, tag="slow.work"):
    seconds: float

class Slowpoke(Actor):
    @handler
    async def work(self, message: Work) -> AsyncIterator[Begun | Done]:
        yield Begun()
        await anyio.sleep(message.seconds)
        yield Done()
"""


@pytest.fixture
def slowpoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install(tmp_path / "site", "slowpoke", SLOWPOKE, slowpoke="Slowpoke")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.syspath_prepend(str(site))


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(Paths.find().create())
    yield board
    board.close()


# Up and down


def test_up_returns_when_ready_and_down_leaves_nothing(board: Board) -> None:
    info = board.up()
    status = json.loads(board.run("status", "--json").stdout)
    assert status["running"]
    assert status["answers"]
    assert (status["pid"], status["url"], status["embedded"]) == (info.pid, info.url, True)
    before = board.processes()
    assert len(before) == 2  # nats-server and the daemon; the guardian is the one that marks them
    done = board.run("down")
    assert done.returncode == 0
    assert f"pid {info.pid}" in done.stdout
    assert gone(before)
    assert find_daemon(board.paths) is None
    assert board.run("status").returncode == 3


def test_a_second_up_says_where_the_first_one_runs(board: Board) -> None:
    info = board.up()
    for arguments in (["up", "--detach"], ["up"]):
        second = board.run(*arguments)
        assert second.returncode == 1
        assert f"pid {info.pid}" in second.stderr
        assert info.url in second.stderr
    assert board.info() == info


def test_of_two_ups_at_once_exactly_one_wins(board: Board) -> None:
    contenders = [board.start("up", "--detach") for _ in range(3)]
    codes = sorted(contender.wait() for contender in contenders)
    assert codes == [0, 1, 1]
    assert len(board.processes()) == 2


def test_down_and_status_where_nothing_runs(board: Board) -> None:
    assert (board.run("down").returncode, board.run("status").returncode) == (0, 3)
    assert json.loads(board.run("status", "--json").stdout)["running"] is False


def test_files_left_over_are_not_in_the_way(board: Board) -> None:
    info = board.up()
    files = {path: path.read_bytes() for path in board.paths.state.iterdir() if path.is_file()}
    board.run("down")
    for path, content in files.items():
        path.write_bytes(content)
    (board.paths.state / "daemon.lock").write_text('{"pid": 1, "started": 5}')
    (board.paths.state / "nats-server.pid").write_text("1")
    assert find_daemon(board.paths) is None
    again = board.up()
    assert again.pid != info.pid
    assert again.url == info.url


def test_a_daemon_that_cannot_start_says_why_and_leaves_nothing(board: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        failed = board.run("up", "--detach", "--port", port)
    assert failed.returncode == 3
    assert port in failed.stderr
    assert "Traceback" not in failed.stderr
    assert board.processes() == []
    assert board.up().pid  # and the folder is free


# Draining


@pytest.mark.anyio
@pytest.mark.usefixtures("slowpoke")
@pytest.mark.parametrize("process", [False, True])
async def test_sigterm_lets_work_in_hand_finish_and_takes_nothing_new(board: Board, process: bool) -> None:
    import callboard

    info = board.up()
    async with callboard.connect() as bus:
        from slowpoke import Done, Work  # pyright: ignore[reportMissingImports]

        await bus.spawn("slowpoke", name="slow", process=process)
        log = board.watch_log("daemon")
        async with bus.actor("slow").stream(Work(1.0), timeout=10) as stream:
            await anext(stream)
            guardian = psutil.Process(info.pid)
            guardian.terminate()
            log.wait("draining")
            with pytest.raises(callboard.CallboardError):
                await bus.actor("slow").ask(Work(0.0), timeout=10)
            assert [item async for item in stream] == []
            assert stream.result == Done()
    assert gone([guardian])
    assert board.processes() == []


@pytest.mark.anyio
@pytest.mark.usefixtures("slowpoke")
async def test_work_without_end_does_not_hold_up_the_end(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    import callboard

    monkeypatch.setenv("CALLBOARD_DRAIN_TIMEOUT", "0.3")
    info = board.up()
    async with callboard.connect() as bus:
        from slowpoke import Work  # pyright: ignore[reportMissingImports]

        await bus.spawn("slowpoke", name="slow")
        async with bus.actor("slow").stream(Work(3600.0), timeout=3600) as stream:
            await anext(stream)
            daemon = psutil.Process(info.daemon_pid)
            done = board.run("down")
            assert "stopped" in done.stdout
            with pytest.raises(callboard.CallboardError):
                await anext(stream)
    assert find_daemon(board.paths) is None
    assert gone([daemon])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_a_signal_stops_everything_in_order(board: Board, number: signal.Signals) -> None:
    up = board.start("up")
    assert up.stdout is not None
    assert "callboard is up" in up.stdout.readline()
    assert board.info().pid == board.info().daemon_pid == up.pid
    up.send_signal(number)
    _, log = up.communicate(timeout=20)
    assert up.returncode == 0, log
    assert "draining" in log
    assert board.processes() == []


# Ways to die


def test_kill_9_of_the_daemon_and_the_guardian_brings_it_back(board: Board) -> None:
    before = board.up()
    log = board.watch_log("guardian")
    os.kill(before.daemon_pid, signal.SIGKILL)
    log.wait("the daemon is ready")
    assert json.loads(board.run("status", "--json").stdout)["answers"]
    after = board.info()
    assert (after.pid, after.url, after.daemon_restarts) == (before.pid, before.url, 1)
    assert after.daemon_pid != before.daemon_pid


def test_kill_9_of_the_server_and_it_comes_back_where_it_was(board: Board) -> None:
    before = board.up()
    log = board.watch_log("nats-server")
    board.server().kill()
    log.wait("Server is ready")
    assert json.loads(board.run("status", "--json").stdout)["answers"]
    assert board.info() == before


def test_a_server_that_loses_its_port_while_down_takes_the_daemon_to_another(board: Board) -> None:
    before = board.up()
    log = board.watch_log("guardian")
    guardian, server = psutil.Process(before.pid), board.server()
    guardian.suspend()
    server.kill()
    assert gone([server])
    with socket.create_server(("127.0.0.1", int(before.url.rpartition(":")[2]))):
        guardian.resume()
        log.wait("the daemon is ready")
        after = board.info()
        assert after.url != before.url
        assert json.loads(board.run("status", "--json").stdout)["answers"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next `up` ends the server")
def test_kill_9_of_the_guardian_and_all_goes_with_it(board: Board) -> None:
    info = board.up()
    others = board.processes()
    os.kill(info.pid, signal.SIGKILL)
    assert gone(others)
    assert find_daemon(board.paths) is None
    again = board.up()
    assert again.url == info.url
    assert json.loads(board.run("status", "--json").stdout)["answers"]


def test_what_does_not_notice_that_its_guardian_died_is_ended_by_the_next_up(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_DRAIN_TIMEOUT", "0.3")
    info = board.up()
    os.kill(info.daemon_pid, signal.SIGSTOP)
    others = board.processes()
    os.kill(info.pid, signal.SIGKILL)
    again = board.up()
    assert gone(others)
    assert again.daemon_pid != info.daemon_pid
    assert len(board.processes()) == 2


def test_down_mends_what_a_killed_guardian_left(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_DRAIN_TIMEOUT", "0.3")
    info = board.up()
    os.kill(info.daemon_pid, signal.SIGSTOP)
    guardian = psutil.Process(info.pid)
    guardian.kill()
    assert gone([guardian])
    assert "left over" in board.run("down").stdout
    assert board.processes() == []


def test_kill_9_of_a_foreground_daemon_leaves_a_state_that_the_next_one_takes_up(board: Board) -> None:
    up = board.start("up")
    assert up.stdout is not None
    up.stdout.readline()
    url = board.info().url
    up.kill()
    up.wait()
    assert find_daemon(board.paths) is None
    assert board.up().url == url


def test_ctrl_c_while_up_waits_leaves_nothing(board: Board) -> None:
    up = board.start("up", "--detach")
    lock = board.paths.state / "daemon.lock"
    while not (lock.exists() and lock.read_bytes()):
        assert up.poll() is None
    up.send_signal(signal.SIGINT)
    assert up.wait(20) in (130, 0)
    if up.returncode == 130:
        assert gone(board.processes())
        assert find_daemon(board.paths) is None


# A server of one's own


@pytest.mark.anyio
async def test_a_server_of_the_users_own_is_used_and_left_running(board: Board, tmp_path: Path) -> None:
    state = tmp_path / "elsewhere"
    anyone = Role("anyone", publish=(">",), subscribe=(">",))
    own = Paths(state, state, state, state).create()
    async with embedded_server(own, ServerSettings()) as server:
        creds = mint_user_file(tmp_path / "own.creds", server.account_seed, "own", "own", anyone)
        import anyio

        done = await anyio.to_thread.run_sync(board.run, "up", "--detach", "--nats", server.url, "--creds", str(creds))
        assert done.returncode == 0, done.stderr
        info = board.info()
        assert (info.url, info.creds, info.account) == (server.url, str(creds), "")
        status = await anyio.to_thread.run_sync(board.run, "status", "--json")
        assert json.loads(status.stdout)["answers"]
        await anyio.to_thread.run_sync(board.run, "down")
        assert server.ready.is_set()
