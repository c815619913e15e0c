"""The first process of a sandbox: it holds the limits, collects the dead, and takes all with it when it goes.

It runs no code of others, and nothing of it can be reached from the code that it guards: not its memory (it cannot be
traced), not its descriptors, not by a signal. It obeys its host through one socket; when that closes, it ends.

Between calls the guest is stopped, so nothing goes on in there unseen; what a call left running beside it is killed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import time
from typing import Any, NamedTuple

from . import frames, linux
from .family import Family

# How often the limits are looked at. Between two looks a sandbox of n processes can take at most what n processors
# can touch in that time: on common machines 20 to 50 MiB each.
_LOOK_S = 0.02
_COPY = 1 << 20


class Bounds(NamedTuple):
    """Of one call; bytes and seconds. `scratch_bytes` 0: a file system of its own holds that."""

    wall_s: float
    cpu_s: float
    memory: int
    processes: int
    scratch_bytes: int = 0
    scratch_files: int = 0


class Warden:
    def __init__(self, host: socket.socket, family: Family, scratch: int) -> None:
        self._host = host
        self._family = family
        self._scratch = scratch
        self._guest = 0
        self._bounds: Bounds | None = None
        self._began = self._cpu_before = 0.0
        self._peak = 0
        self._most = 0
        self._next_scratch_look = 0.0

    def guard(self, guest: int) -> None:
        """Until the guest or the host is gone. The caller ends the process, and with it everyone in here."""
        self._guest = self._family.guest = guest
        died, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        watched = select.poll()
        watched.register(self._host, select.POLLIN)
        watched.register(died, select.POLLIN)
        while True:
            ready = {number for number, _ in watched.poll(_LOOK_S * 1000 if self._bounds else None)}
            if died in ready:
                os.read(died, 4096)
                self._family.collect()
            if self._family.guest_end is not None:
                self._exited(self._family.guest_end)
                return
            if self._host.fileno() in ready and not self._obey():
                return
            if self._bounds and (reason := self._over()):
                self._end(reason)
                return

    def _exited(self, status: int) -> None:
        usage = self._usage()
        self._family.end_all_but(0)
        self._say({"event": "exited", "status": os.waitstatus_to_exitcode(status), **usage})

    def _obey(self) -> bool:
        """One order; False when the host is gone or wants an end."""
        try:
            # Descriptors may come with the order: a file to copy in.
            head, descriptors, _, _ = socket.recv_fds(self._host, frames.LENGTH.size, 1)
            if not head:
                return False
            rest = frames.LENGTH.size - len(head)
            head += self._host.recv(rest, socket.MSG_WAITALL) if rest else b""
            (length,) = frames.LENGTH.unpack(head)
            order: dict[str, Any] = frames.json.loads(self._host.recv(length, socket.MSG_WAITALL))
        except (OSError, ValueError):
            return False
        match order["do"]:
            case "start":
                self._start(Bounds(**order["bounds"]))
            case "settle":
                return self._settle()
            case "put":
                self._put(order["name"], descriptors[0])
            case "end":
                self._end(order["reason"])
                return False
        return True

    def _start(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._began = time.monotonic()
        self._cpu_before = self._cpu()
        self._peak = self._most = 0
        self._signal_guest(signal.SIGCONT)

    def _settle(self) -> bool:
        """The call is over: stop the guest, kill what it left behind."""
        self._signal_guest(signal.SIGSTOP)
        usage = self._usage()
        self._bounds = None
        if not self._family.end_all_but(self._guest):
            self._end("processes")
            return False
        self._signal_guest(signal.SIGSTOP)  # again, now that nobody is left who could have sent a SIGCONT
        self._say({"event": "settled", **usage})
        return True

    def _signal_guest(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended, which the next turn of `guard` tells
            os.kill(self._guest, number)

    def _put(self, name: str, source: int) -> None:
        """Copy a file of the host's to `name` below the scratch folder, over what is there. The guest stands still."""
        try:
            self._copy_in(name, source)
        except OSError as error:
            self._say({"event": "put", "error": f"{error.strerror or error}"})
        else:
            self._say({"event": "put", "error": ""})
        finally:
            os.close(source)

    def _copy_in(self, name: str, source: int) -> None:
        folder, _, last = name.rpartition("/")
        at = os.dup(self._scratch)
        try:
            for part in folder.split("/"):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=at)
                below = linux.open_beneath(at, part, os.O_RDONLY | os.O_DIRECTORY)
                os.close(at)
                at = below
            with contextlib.suppress(FileNotFoundError):
                os.unlink(last, dir_fd=at)
            target = linux.open_beneath(at, last, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        finally:
            os.close(at)
        try:
            while data := os.read(source, _COPY):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(target, rest) :]
        finally:
            os.close(target)

    def _over(self) -> str:
        """The limit that is passed, "" for none."""
        bounds = self._bounds
        assert bounds is not None
        now = time.monotonic()
        if now - self._began > bounds.wall_s:
            return "wall_time"
        members = self._family.members()
        living = [member for member in members if not member.ended]
        tasks = sum(member.threads for member in living)
        self._most = max(self._most, tasks)
        if tasks > bounds.processes:
            return "processes"
        if _cpu_of_children() + sum(member.cpu for member in members) - self._cpu_before > bounds.cpu_s:
            return "cpu_time"
        held = sum(member.resident for member in living)
        if held > bounds.memory:  # an upper bound; the truth costs more to find out
            held = self._family.held()
        self._peak = max(self._peak, held)
        # Twice: while processes end between two readings, the others' parts grow.
        if held > bounds.memory and self._family.held() > bounds.memory:
            return "memory"
        if bounds.scratch_bytes and now >= self._next_scratch_look:
            return self._scratch_over(bounds)
        return ""

    def _scratch_over(self, bounds: Bounds) -> str:
        """Whether a scratch folder without a file system of its own has grown too big. Costs what it takes to walk."""
        began = time.monotonic()
        size = count = 0
        for _, folders, names, at in os.fwalk(".", dir_fd=self._scratch):
            count += len(folders) + len(names)
            for name in names:
                with contextlib.suppress(OSError):
                    size += os.stat(name, dir_fd=at, follow_symlinks=False).st_blocks * 512
            if size > bounds.scratch_bytes or count > bounds.scratch_files:
                return "scratch"
        self._next_scratch_look = time.monotonic() + 10 * (time.monotonic() - began)
        return ""

    def _cpu(self) -> float:
        return _cpu_of_children() + sum(member.cpu for member in self._family.members())

    def _usage(self) -> dict[str, float]:
        return {
            "wall_s": time.monotonic() - self._began,
            "cpu_s": max(0.0, self._cpu() - self._cpu_before),
            "peak_memory": self._peak,
            "most_processes": self._most,
        }

    def _end(self, reason: str) -> None:
        usage = self._usage()
        self._family.end_all_but(0)
        self._say({"event": "killed", "reason": reason, **usage})

    def _say(self, event: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the host is gone: the next look at its socket says so
            self._host.sendall(frames.pack(event))


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
