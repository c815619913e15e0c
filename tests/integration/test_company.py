"""The company file with a real daemon: started, held against what runs, reloaded, and kept through every fault."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from board import Board, install_antics

import callboard
from callboard.runtime.daemon_info import find_daemon
from callboard.schemas.bench import Add


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    site = install_antics(tmp_path / "site", fragile="Fragile", gated="Gated", blocker="Blocker")
    board = Board.at(tmp_path, PYTHONPATH=str(site))
    for name, value in board.environment.items():
        monkeypatch.setenv(name, value)
    yield board
    board.close()


class File:
    """A company file that a test writes as `name="kind"` or `name={...}`, in that order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **actors: str | dict[str, Any]) -> None:
        lines: list[str] = []
        for name, given in actors.items():
            table = {"kind": given} if isinstance(given, str) else given
            lines += ["[[actor]]", f'name = "{name}"', *(f"{key} = {_toml(value)}" for key, value in table.items())]
        self.path.write_text("\n".join(lines))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "company.toml")


def up(board: Board, file: File) -> subprocess.CompletedProcess[str]:
    return board.run("up", "--detach", "-c", str(file.path))


def standing(board: Board) -> dict[str, str]:
    status = json.loads(board.run("status", "--json").stdout)
    return {actor["name"]: actor["standing"] for actor in status["company"]["actors"]}


def steps(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {step["name"]: step["action"] for step in json.loads(done.stdout)["steps"]}


def test_up_starts_what_the_file_lists_and_what_fails_does_not_stop_the_others(
    board: Board, file: File, tmp_path: Path
) -> None:
    needed = tmp_path / "needed"
    file.write(
        a="counter", b={"kind": "fragile", "config": {"needs": str(needed)}}, c={"kind": "counter", "where": "process"}
    )
    started = up(board, file)
    assert started.returncode == 1
    assert f"b is failed: ValueError: {needed} is not there" in started.stderr
    assert "2 of 3 actors" in started.stdout
    assert standing(board) == {"a": "running", "b": "failed", "c": "running"}
    assert board.run("status").returncode == 1
    needed.touch()
    assert steps(board.run("reload", "--json")) == {"a": "keep", "b": "start", "c": "keep"}
    status = board.run("status")
    assert status.returncode == 0
    assert [line.split() for line in status.stdout.splitlines()[-3:]][1] == ["b", "fragile", "running"]


def test_a_file_with_mistakes_starts_nothing(board: Board, file: File) -> None:
    file.write(a="counter", b="countre")
    failed = up(board, file)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert f"{file.path}:4: actor b: there is no actor kind named 'countre' (did you mean 'counter'?)" in failed.stderr
    assert find_daemon(board.paths) is None


def test_a_reload_changes_only_what_differs(board: Board, file: File) -> None:
    plain = {"kind": "counter"}
    own = {"kind": "counter", "where": "process"}
    file.write(kept=plain, own=own, moved=plain, gone=plain, looser=plain)
    assert up(board, file).returncode == 0
    with callboard.connect_sync() as bus:
        bus.spawn("counter", name="ad-hoc")
        names = ("kept", "own", "moved", "gone", "looser", "ad-hoc")
        for name in names:
            assert bus.actor(name).ask(Add(5)).value == 5
        pids = {info.address: info.pid for info in bus.actors()}
        moved = {"kind": "counter", "where": {"process": True, "env": {"X": "1"}}}
        file.write(new=plain, own=own, moved=moved, kept=plain, looser={**plain, "restart": "temporary"})
        expected = {
            "new": "start",
            "own": "keep",
            "moved": "restart",
            "gone": "stop",
            "kept": "keep",
            "looser": "adjust",
        }
        assert standing(board)["gone"] == "extra"
        assert standing(board)["moved"] == "differs"
        assert steps(board.run("reload", "--dry-run", "--json")) == expected
        assert [bus.actor(name).ask(Add(1)).value for name in names] == [6] * 6
        assert steps(board.run("reload", "--json")) == expected
        # Same life: the count goes on. A new one begins at nought.
        totals = {
            name: bus.actor(name).ask(Add(1)).value for name in ("kept", "own", "looser", "ad-hoc", "moved", "new")
        }
        assert totals == {"kept": 7, "own": 7, "looser": 7, "ad-hoc": 7, "moved": 1, "new": 1}
        now = {info.address: info.pid for info in bus.actors()}
        assert (now["own"], now["kept"]) == (pids["own"], pids["kept"])
        assert now["moved"] != pids["moved"]
        assert "gone" not in now
        assert "nothing differs" in board.run("reload").stdout
        assert standing(board)["ad-hoc"] == "extra"
        assert board.run("status").returncode == 0

        file.path.write_text(file.path.read_text().replace("counter", "countre", 1))
        broken = board.run("reload")
        assert broken.returncode == 2
        assert "countre" in broken.stderr
        status = board.run("status")
        assert status.returncode == 1
        assert "countre" in status.stderr
        assert [bus.actor(name).ask(Add(1)).value for name in ("kept", "own", "new")] == [8, 8, 2]


def test_sighup_reads_the_file_again_with_and_without_a_guardian(board: Board, file: File) -> None:
    file.write(a="counter")
    assert up(board, file).returncode == 0
    log = board.watch_log("daemon")
    file.write(a="counter", b="counter")
    os.kill(board.info().pid, signal.SIGHUP)
    log.wait("read again: 1 start, 1 keep")
    assert standing(board) == {"a": "running", "b": "running"}
    assert board.run("down").returncode == 0

    foreground = board.start("up", "-c", str(file.path))
    assert foreground.stdout is not None
    foreground.stdout.readline()
    log.wait("company")
    file.write(b="counter")
    foreground.send_signal(signal.SIGHUP)
    log.wait("read again: 1 stop, 1 keep")
    assert standing(board) == {"b": "running"}


def test_kill_9_of_the_daemon_in_the_middle_of_a_reload_ends_in_what_the_file_says(
    board: Board, file: File, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    file.write(a="counter", b="counter", old="counter")
    assert up(board, file).returncode == 0
    file.write(
        a={"kind": "counter", "where": "process"}, slow={"kind": "gated", "config": {"needs": str(gate)}}, b="counter"
    )
    reload = board.start("reload")
    with callboard.connect_sync() as bus, bus.listen("nodes.hello") as hellos:
        for _, hello in hellos:  # `old` is stopped and `a` moved; `slow` is what it waits for
            if "slow" in hello["info"]["roots"]:
                break
        before = board.info().daemon_pid
        os.kill(before, signal.SIGKILL)
        assert reload.wait() == 1
        gate.touch()
        for _, hello in hellos:
            if hello["info"]["pid"] != before and {"slow", "b"} <= set(hello["info"]["roots"]):
                break
    assert standing(board) == {"a": "running", "slow": "running", "b": "running"}
    assert board.run("status").returncode == 0


def test_a_daemon_that_comes_back_over_a_broken_file_runs_what_it_ran(board: Board, file: File) -> None:
    file.write(a="counter")
    assert up(board, file).returncode == 0
    log = board.watch_log("daemon")
    file.path.write_text("[[actor]\n")
    os.kill(board.info().daemon_pid, signal.SIGKILL)
    log.wait("1 start")
    status = json.loads(board.run("status", "--json").stdout)
    assert [actor["standing"] for actor in status["company"]["actors"]] == ["running"]
    assert "not valid TOML" in status["company"]["problem"]["message"]


def test_reload_without_a_company_file_says_how_to_have_one(board: Board) -> None:
    board.up()
    failed = board.run("reload")
    assert failed.returncode == 2
    assert "callboard up -c FILE" in failed.stderr
    assert json.loads(board.run("status", "--json").stdout)["company"] is None


@pytest.mark.parametrize("how", ["stopped", "blocked"])
def test_a_daemon_that_hangs_is_replaced(board: Board, file: File, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("CALLBOARD_WATCHDOG", "1")
    file.write(b="blocker", c="counter")
    assert up(board, file).returncode == 0
    before = board.info()
    guardian, daemon = board.watch_log("guardian"), board.watch_log("daemon")
    if how == "stopped":
        os.kill(before.daemon_pid, signal.SIGSTOP)
    else:
        assert board.run("publish", "actor.b", '{"type": "antics.stuck", "seconds": 40}').returncode == 0
        daemon.wait("in stuck")  # where it hangs is in its log
    guardian.wait("has said nothing for 1 s")
    guardian.wait("the daemon is ready")
    daemon.wait("2 start")
    assert board.info().daemon_pid != before.daemon_pid
    assert standing(board) == {"b": "running", "c": "running"}


def test_a_guardian_that_stood_still_does_not_take_the_daemon_for_hung(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_WATCHDOG", "0.4")
    info = board.up()
    with callboard.connect_sync() as bus:
        bus.spawn("counter", name="c")
        os.kill(info.pid, signal.SIGSTOP)
        for _ in range(3):  # each a fresh process of half a second
            assert board.run("actors").returncode == 0
        os.kill(info.pid, signal.SIGCONT)
        assert board.run("actors").returncode == 0
        assert bus.actor("c").ask(Add(1)).value == 1
    assert board.info().daemon_restarts == 0
