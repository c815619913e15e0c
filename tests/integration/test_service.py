"""What systemd hears of a daemon, in order, on a real datagram socket; and the unit that `callboard service` prints."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from board import Board, gone

COUNTER = '[[actor]]\nname = "c"\nkind = "counter"\n'
WATCHDOG_S = 1.0


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    board = Board.at(tmp_path)
    for name, value in board.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "company.toml").write_text(COUNTER)
    yield board
    board.close()


@dataclass
class Manager:
    """Plays systemd's part: hears what a service says, one datagram after another."""

    socket: socket.socket

    def hear(self) -> dict[str, str]:
        lines = self.socket.recv(8192).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def hear_all(self) -> None:
        """What was said already."""
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.hear()
        self.socket.settimeout(20)

    def hear_until(self, *names: str) -> dict[str, str]:
        """The first message with one of these fields; only status and signs of life may come before it."""
        while True:
            fields = self.hear()
            if any(name in fields for name in names):
                return fields
            assert fields.keys() <= {"STATUS", "WATCHDOG"}, fields


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
        yield Manager(listener)


@pytest.mark.parametrize("detached", [False, True])
def test_the_service_manager_hears_all_in_order(board: Board, manager: Manager, tmp_path: Path, detached: bool) -> None:
    company = tmp_path / "company.toml"
    up = board.start("up", "-c", str(company), *(["--detach"] if detached else []))
    assert manager.hear() == {"STATUS": "starting"}
    ready = manager.hear_until("READY")
    info = board.info()
    assert ready == {"READY": "1", "MAINPID": str(info.pid), "STATUS": f"ready on {info.url}"}
    assert (info.pid == up.pid) is not detached
    assert manager.hear_until("WATCHDOG") == {"WATCHDOG": "1"}
    while "STATUS" not in (said := manager.hear()):
        assert said == {"WATCHDOG": "1"}
    assert said["STATUS"] == "1 of 1 actors of company.toml run"
    company.write_text(COUNTER + COUNTER.replace('"c"', '"d"'))
    os.kill(info.pid, signal.SIGHUP)
    reloading = manager.hear_until("RELOADING", "READY")
    assert reloading["RELOADING"] == "1"
    assert int(reloading["MONOTONIC_USEC"]) > 0
    assert manager.hear_until("READY", "STOPPING")["STATUS"] == "2 of 2 actors of company.toml run"
    os.kill(info.pid, signal.SIGTERM)
    assert manager.hear_until("STOPPING", "READY") == {"STOPPING": "1", "STATUS": "draining"}
    if not detached:
        assert up.wait() == 0


def test_there_is_no_sign_of_life_while_the_daemon_hangs_and_one_when_it_is_replaced(
    board: Board, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_WATCHDOG", "1.5")
    info = board.up()
    manager.hear_until("READY")
    manager.hear_until("WATCHDOG")
    daemon = psutil.Process(info.daemon_pid)
    daemon.suspend()
    manager.hear_all()
    said = manager.hear()
    assert gone([daemon])
    assert said["STATUS"] == f"ready on {info.url} (started again 1 times)"
    assert manager.hear_until("WATCHDOG") == {"WATCHDOG": "1"}


def test_a_daemon_in_the_foreground_says_nothing_while_it_hangs(board: Board, manager: Manager) -> None:
    up = board.start("up")
    manager.hear_until("READY")
    manager.hear_until("WATCHDOG")
    os.kill(up.pid, signal.SIGSTOP)
    manager.hear_all()
    manager.socket.settimeout(WATCHDOG_S)  # by then systemd would end it
    with pytest.raises(TimeoutError):
        manager.hear()
    os.kill(up.pid, signal.SIGCONT)
    up.terminate()
    assert up.wait() == 0


def test_what_the_daemon_starts_does_not_speak_to_the_service_manager(board: Board, manager: Manager) -> None:
    board.up()
    manager.hear_until("READY")
    assert board.run("spawn", "counter", "--process", "--name", "c").returncode == 0
    for process in board.processes():
        assert not process.environ().keys() & {"NOTIFY_SOCKET", "WATCHDOG_USEC"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)")
@pytest.mark.parametrize("options", [(), ("--user",), ("-c", "company.toml")])
def test_the_unit_is_valid_to_systemd(board: Board, tmp_path: Path, options: tuple[str, ...]) -> None:
    unit = board.run("service", "unit", *options)
    assert unit.returncode == 0, unit.stderr
    file = tmp_path / "callboard.service"
    file.write_text(unit.stdout)
    checked = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=30)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_unit_names_this_installation_and_its_folders(board: Board, tmp_path: Path) -> None:
    unit = board.run("service", "unit", "-c", str(tmp_path / "company.toml")).stdout
    assert f"-c {tmp_path / 'company.toml'}" in unit
    assert f"Environment=CALLBOARD_STATE_DIR={board.paths.state}" in unit
    for folder in (board.paths.state, board.paths.data, board.paths.cache):
        assert str(folder) in unit.partition("ReadWritePaths=")[2].partition("\n")[0]
