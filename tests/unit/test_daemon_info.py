"""Who runs the daemon of a folder: the lock, the file beside it, and telling a process from a later one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from callboard.runtime.daemon_info import (
    AlreadyRunning,
    DaemonInfo,
    find_daemon,
    find_owner,
    info_file,
    lock_file,
    remove_info,
    take_lock,
    write_info,
)
from callboard.runtime.files import write_private
from callboard.runtime.folders import Paths
from callboard.runtime.processes import find_by_arguments, find_by_variable, is_alive, start_time


@pytest.fixture
def paths() -> Paths:
    return Paths.find().create()


def own_info(**changes: object) -> DaemonInfo:
    fields = {"pid": os.getpid(), "started": start_time(os.getpid()), "daemon_pid": os.getpid(), "url": "nats://x"}
    return DaemonInfo(**(fields | changes))  # type: ignore[arg-type]


def test_one_lock_a_folder(paths: Paths) -> None:
    lock = take_lock(paths)
    assert find_owner(paths) == (os.getpid(), start_time(os.getpid()))
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
        take_lock(paths)
    lock.release()
    take_lock(paths).release()


def test_the_error_names_the_address_once_it_is_known(paths: Paths) -> None:
    lock = take_lock(paths)
    write_info(paths, own_info(url="nats://127.0.0.1:4222"))
    with pytest.raises(AlreadyRunning, match=r"nats://127\.0\.0\.1:4222"):
        take_lock(paths)
    lock.release()


def test_an_inherited_lock_outlives_who_took_it(paths: Paths) -> None:
    lock = take_lock(paths)
    heir = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.descriptor,), text=True
    )
    lock.release()
    with pytest.raises(AlreadyRunning):
        take_lock(paths)
    heir.communicate("\n")
    take_lock(paths).release()


def test_the_info_is_found_while_its_process_lives(paths: Paths) -> None:
    assert find_daemon(paths) is None
    info = own_info()
    write_info(paths, info)
    assert find_daemon(paths) == info
    assert stat.S_IMODE(info_file(paths).stat().st_mode) == 0o600
    remove_info(paths)
    remove_info(paths)
    assert find_daemon(paths) is None


def test_a_later_process_of_the_same_number_is_not_taken_for_it(paths: Paths) -> None:
    started = start_time(os.getpid())
    assert started is not None
    write_info(paths, own_info(started=started - 60))
    assert find_daemon(paths) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "\x00"])
def test_damaged_files_count_as_none(paths: Paths, content: str) -> None:
    info_file(paths).write_text(content)
    lock_file(paths).write_text(content)
    assert find_daemon(paths) is None
    assert find_owner(paths) is None
    take_lock(paths).release()


def test_a_dead_process_and_one_that_nobody_collected_are_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = start_time(child.pid)
        assert started is not None
        assert is_alive(child.pid, started)
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(child.pid, started)
    assert not is_alive(child.pid, started)


def test_processes_are_found_by_arguments_and_by_variable(tmp_path: Path) -> None:
    mark = str(tmp_path)
    command = [sys.executable, "-c", "input()", "--mark", mark]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "CALLBOARD_TEST_MARK": mark}) as child:
        assert [process.pid for process in find_by_arguments("--mark", mark)] == [child.pid]
        assert find_by_arguments(mark, "--mark") == []
        assert [process.pid for process in find_by_variable("CALLBOARD_TEST_MARK", mark)] == [child.pid]
        assert find_by_variable("CALLBOARD_TEST_MARK", mark + "x") == []
        child.kill()


def test_a_private_file_is_whole_and_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_private(path, "one")
    write_private(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_private(path, "three", exclusive=True)
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
