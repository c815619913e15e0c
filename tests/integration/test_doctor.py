"""`callboard doctor`: each fault is one line with what mends it, and the exit code says whether all works."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from board import Board

from callboard.actors.models.checks import card, kernels
from callboard.kernels import native
from callboard.runtime.checks import Surroundings, Verdict, examine
from callboard.runtime.checks_machine import clock, files_limit, room
from callboard.runtime.processes import wait_exit
from callboard.runtime.settings import Settings


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    board = Board.at(tmp_path)
    for name, value in board.environment.items():
        monkeypatch.setenv(name, value)
    yield board
    board.close()


def doctor(board: Board, code: int) -> dict[str, Any]:
    done = board.run("doctor", "--json")
    assert (done.returncode, done.stderr) == (code, "")
    answer = json.loads(done.stdout)
    assert answer["works"] is (code == 0)
    return {finding["name"]: finding for finding in answer["findings"]}


def test_where_all_that_is_needed_works_it_says_so_in_time(board: Board) -> None:
    findings: dict[str, dict[str, str]] = {}
    for _ in range(3):  # other tests may hold one up
        began = time.monotonic()
        findings = doctor(board, 0)
        took = time.monotonic() - began
        if took < 2.0:
            break
    else:
        pytest.fail("it took two seconds or more, three times in a row")
    assert findings.keys() >= {"python", "callboard", "nats-server", "state folder", "disk", "clock", "extra serve"}
    assert findings["daemon"]["verdict"] == "absent"
    assert findings["models"]["mend"] == "callboard pull smollm2"  # a capability's own check
    lines = board.run("doctor").stdout.splitlines()
    assert any(line.split()[:2] == ["-", "daemon"] and line.endswith("->  callboard up --detach") for line in lines)
    assert lines[-1] == "all that is needed works"


def test_a_daemon_that_answers_and_one_that_does_not_are_told_apart(board: Board) -> None:
    info = board.up()
    assert f"pid {info.pid} answers" in doctor(board, 0)["daemon"]["text"]
    os.kill(info.daemon_pid, signal.SIGSTOP)
    assert "callboard down" in doctor(board, 1)["daemon"]["mend"]
    os.kill(info.daemon_pid, signal.SIGCONT)


def test_what_a_dead_daemon_left_is_found(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_DRAIN_TIMEOUT", "0.3")
    info = board.up()
    os.kill(info.daemon_pid, signal.SIGSTOP)
    guardian, server = psutil.Process(info.pid), board.server()
    guardian.kill()
    assert wait_exit(guardian, 10)
    assert wait_exit(server, 10)  # which goes with it; until then a daemon is there that does not answer
    found = doctor(board, 0)
    assert found["left over"]["verdict"] == "warning"
    assert str(info.daemon_pid) in found["left over"]["text"]
    assert board.run(*found["left over"]["mend"].split()[1:]).returncode == 0
    assert doctor(board, 0)["left over"]["verdict"] == "ok"


def test_a_folder_that_others_may_read_and_settings_that_do_not_fit_are_failures(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.paths.state.chmod(0o755)
    monkeypatch.setenv("CALLBOARD_TIMEOUT", "soon")
    found = doctor(board, 1)
    assert found["state folder"]["mend"] == f"chmod 700 {board.paths.state}"
    assert "CALLBOARD_TIMEOUT" in found["settings"]["text"]
    text = board.run("doctor").stdout
    assert [line.split()[1] for line in text.splitlines() if line.startswith("FAIL")] == ["settings", "state"]


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Surroundings) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("callboard.runtime.checks_machine.MACHINE_CHECKS", (broken,))
    findings = examine(Surroundings(board.paths, Settings(), None))
    assert (findings[0].name, findings[0].verdict) == ("broken", Verdict.FAILED)
    assert "nats-server" in {finding.name for finding in findings}


@pytest.mark.parametrize(("free", "verdict"), [(1 << 40, "ok"), (2 << 30, "warning"), (1 << 20, "failed")])
def test_little_room_on_the_disk_is_said_in_time(tmp_path: Path, free: int, verdict: str) -> None:
    assert room(tmp_path, free).verdict == verdict


@pytest.mark.parametrize(
    ("soft", "hard", "verdict", "mend"),
    [
        (65536, 65536, "ok", ""),
        (-1, -1, "ok", ""),
        (512, 4096, "warning", "ulimit -n 4096"),
        (64, -1, "failed", "ulimit"),
    ],
)
def test_few_open_files_are_raised_as_far_as_they_may(soft: int, hard: int, verdict: str, mend: str) -> None:
    found = files_limit(soft, hard)
    assert found.verdict == verdict
    assert found.mend.startswith(mend)


def test_a_clock_that_is_behind_the_daemons_start_is_found(board: Board) -> None:
    import msgspec

    info = msgspec.structs.replace(board.up(), since=time.time() + 3600)
    (found,) = clock(Surroundings(board.paths, Settings(), info))
    assert found.verdict == "failed"


@pytest.mark.parametrize(
    ("capability", "cuda", "verdict", "words"),
    [
        ("9.0", "12.8", "ok", "CUDA 12.8"),
        ("7.5", "12.8", "ok", "fp16"),
        ("9.0", "", "warning", "built for the CPU"),
        ("9.0", None, "warning", "not installed"),
    ],
)
def test_a_gpu_is_held_against_the_torch_that_is_installed(
    capability: str, cuda: str | None, verdict: str, words: str
) -> None:
    found = card(f"NVIDIA Card, Fine, {capability}, 81559 MiB", cuda)
    assert found.verdict == verdict
    assert words in found.text


def test_what_computes_on_the_cpu_is_said_with_why_it_is_not_native(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Surroundings(board.paths, Settings(), None)
    monkeypatch.setattr(native, "_cpu_flags", lambda: frozenset(native.NEEDED))
    compiler = tmp_path / "c++"
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = kernels(given)
    assert (found.verdict, found.mend) == ("ok", "")
    assert found.text.startswith("native kernels on the CPU")
    compiler.unlink()
    (found,) = kernels(given)
    assert (found.verdict, found.mend) == ("warning", "apt-get install g++")
    monkeypatch.setattr(native, "_cpu_flags", lambda: frozenset({"avx2"}))
    (found,) = kernels(given)
    assert found.verdict == "absent"
    assert "avx512_vnni" in found.text
    monkeypatch.setenv("CALLBOARD_NATIVE", "0")
    (found,) = kernels(given)
    assert "CALLBOARD_NATIVE=0" in found.text
