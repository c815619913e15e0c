"""Other processes: whether one is still the one that we knew, what an earlier life left over, and how to end it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import anyio.abc
import psutil

# A process id is used again after a while; with its start time it names one process only. Both sides of a comparison
# come from the same clock, but a step of the system's clock can move it a little.
_SAME_START_S = 2.0


async def whole(opening: Awaitable[anyio.abc.Process]) -> anyio.abc.Process:
    """The process that `anyio.open_process(...)` opens, also where the caller is being cancelled.

    A cancel that arrives between the fork and the opening's end would leave a process that nobody knows of. Here it
    arrives at the caller's next await, when the process has a name by which it can be ended.
    """
    with anyio.CancelScope(shield=True):
        return await opening
    raise AssertionError("nobody cancels this scope")


def start_time(pid: int) -> float | None:
    """When the process began (seconds since the epoch); None when there is none, or only its zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.create_time()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def is_alive(pid: int, started: float) -> bool:
    """Whether process `pid` runs and is the one that began at `started`."""
    found = start_time(pid)
    return found is not None and abs(found - started) < _SAME_START_S


def find_by_arguments(*arguments: str) -> list[psutil.Process]:
    """This person's processes with exactly these arguments in a row on their command line, ourselves left out."""
    found: list[psutil.Process] = []
    width = len(arguments)
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            line = tuple(process.cmdline())
            if any(line[at : at + width] == arguments for at in range(len(line) - width + 1)):
                if process.uids().real == os.getuid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def end_processes(processes: Sequence[psutil.Process], grace_s: float) -> None:
    """SIGTERM, up to `grace_s` seconds of patience for all of them, SIGKILL. Blocks until all are gone."""
    for process in processes:
        _signal(process.terminate)
    deadline = time.monotonic() + grace_s
    for process in processes:
        if not wait_exit(process, max(0.0, deadline - time.monotonic())):
            _signal(process.kill)
            wait_exit(process, None)


def wait_exit(process: psutil.Process, timeout_s: float | None) -> bool:
    """Blocks until the process has ended, though nobody may have collected it yet; False after `timeout_s`.

    psutil counts a process that init is slow to collect as alive, which a pidfd does not.
    """
    if not hasattr(os, "pidfd_open"):
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            return False
        return True
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not process.is_running():  # the number belongs to another process by now
            return True
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send()


def dying_with_us(command: Sequence[str], by: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command that runs `command` and ends it with this process, `by` a signal, where the system can (Linux).

    Start it from a thread that lives as long as the process: to the kernel, the parent is the thread that forks.
    """
    if sys.platform != "linux":
        return list(command)
    launcher = Path(__file__).with_name("die_with_parent.py")
    return [sys.executable, "-I", "-S", str(launcher), str(os.getpid()), str(by.value), *command]


def find_by_variable(name: str, value: str) -> list[psutil.Process]:
    """This person's processes that were started with that environment variable; ourselves and our parents left out."""
    us = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        if process.pid in us:
            continue
        try:
            # The cheap question first: reading the environment of all processes of a machine takes a while.
            if process.uids().real == os.getuid() and process.environ().get(name) == value:
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
