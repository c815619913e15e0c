"""One daemon a state folder: the lock that says so, and the file that tells where it runs and how to reach it.

The lock is an flock on `daemon.lock`, held by whoever owns the daemon for as long as it lives: the kernel lets go of it
however the owner ends, so no file that is left over is ever in the way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

import msgspec

from .errors import CallboardError
from .files import private_folder, write_private
from .folders import Paths
from .messages import UNDECODABLE
from .tls import Tls

# In the environment of every process that a daemon starts, directly or not: its state folder. What an earlier life
# left over is known by it.
OWNER = "CALLBOARD_OWNER"


class AlreadyRunning(CallboardError):
    code = "daemon.running"
    default_hint = "`callboard status` says more of it; `callboard down` stops it"


class DaemonInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `daemon.json` holds while a daemon runs."""

    pid: int
    """The process that owns the rest and that SIGTERM stops: the guardian, or the daemon itself in the foreground."""

    started: float
    """When that process began, which tells it from a later one with its number."""

    daemon_pid: int
    """The process that hosts the actors; the same as `pid` in the foreground."""

    url: str
    """The NATS server."""

    creds: str = ""
    """The creds file for it, where it is a server of the user's own."""

    account: str = ""
    """The file with the account's seed, with which users are minted for the embedded server."""

    tls: Tls = Tls()
    """Whom to trust on the way to it."""

    version: str = ""
    state: str = ""
    since: float = 0.0
    """When the daemon became ready for the first time (seconds since the epoch)."""

    daemon_restarts: int = 0
    drain_timeout: float = 10.0


class _Holder(msgspec.Struct, frozen=True):
    pid: int
    started: float


def info_file(paths: Paths) -> Path:
    return paths.state / "daemon.json"


def lock_file(paths: Paths) -> Path:
    return paths.state / "daemon.lock"


def find_daemon(paths: Paths) -> DaemonInfo | None:
    """The daemon of the state folder, if one is there and its owner lives."""
    try:
        info = msgspec.json.decode(info_file(paths).read_bytes(), type=DaemonInfo)
    except (OSError, *UNDECODABLE):
        return None
    from .processes import is_alive

    return info if is_alive(info.pid, info.started) else None


def write_info(paths: Paths, info: DaemonInfo) -> None:
    write_private(info_file(paths), msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")


def remove_info(paths: Paths) -> None:
    with contextlib.suppress(FileNotFoundError):
        info_file(paths).unlink()


def find_owner(paths: Paths) -> tuple[int, float] | None:
    """Process id and start time of whoever holds the lock, also while it is only starting; None if nobody does."""
    try:
        holder = msgspec.json.decode(lock_file(paths).read_bytes(), type=_Holder)
    except (OSError, *UNDECODABLE):
        return None
    from .processes import is_alive

    return (holder.pid, holder.started) if is_alive(holder.pid, holder.started) else None


class StateLock:
    """The right to run the daemon of a state folder. Made by `take_lock`, or from a file descriptor that was
    inherited from the process that took it: an flock belongs to the open file, so it outlives that process."""

    def __init__(self, paths: Paths, descriptor: int) -> None:
        self._paths = paths
        self.descriptor = descriptor

    def sign(self) -> None:
        """Write into the file who holds it: this process."""
        from .processes import start_time

        holder = _Holder(os.getpid(), start_time(os.getpid()) or 0.0)
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, msgspec.json.encode(holder), 0)

    def release(self) -> None:
        """Close our side. The lock is free once every process that shares it has."""
        os.close(self.descriptor)


def take_lock(paths: Paths) -> StateLock:
    """AlreadyRunning, saying where, if somebody has it."""
    private_folder(paths.state)
    descriptor = os.open(lock_file(paths), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        info = find_daemon(paths)
        owner = find_owner(paths)
        if info is not None:
            where = f": pid {info.pid}, {info.url}"
        else:
            where = f" and about to be ready or gone: pid {owner[0]}" if owner else ""
        raise AlreadyRunning(f"a daemon is already running on {paths.state}{where}") from None
    lock = StateLock(paths, descriptor)
    lock.sign()
    return lock
