"""The processes of one sandbox as its warden sees them, from /proc: who they are, what they use, and ending them.

In a pid namespace these are all but the warden itself. Without one they are those that descend from it, which it
adopts when their parents end (PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# After so many rounds of killing that each found somebody new, they start processes faster than they can be ended.
_MAX_ROUNDS = 200
# Who was killed ends when it next gets a processor, on a busy machine much later than it takes to look that often.
_DYING_S = 30.0


class Member(NamedTuple):
    """One process. `cpu`: seconds, with those of children it has collected. `resident`: bytes, with what it shares."""

    pid: int
    entry: str
    parent: int
    threads: int
    cpu: float
    resident: int
    ended: bool


class Family:
    """`proc`: an open /proc. `translate`: its numbers are those of an outer pid namespace."""

    def __init__(self, proc: int, *, translate: bool) -> None:
        self._proc = proc
        self._translate = translate
        self._own_entry = os.readlink("self", dir_fd=proc)
        self.guest = 0
        self.guest_end: int | None = None  # its wait status, once it has ended and was collected

    def members(self) -> list[Member]:
        """All but the warden."""
        everyone = {member.entry: member for member in self._everyone()}
        children: dict[int, list[Member]] = {}
        for member in everyone.values():
            children.setdefault(member.parent, []).append(member)
        found: list[Member] = []
        waiting = [int(self._own_entry)]
        while waiting:
            for child in children.get(waiting.pop(), ()):
                found.append(child)
                waiting.append(int(child.entry))
        return found

    def _everyone(self) -> Iterator[Member]:
        for entry in os.listdir(self._proc):
            if entry.isdigit() and entry != self._own_entry:
                with contextlib.suppress(OSError):  # it ended meanwhile
                    yield self._member(entry)

    def _member(self, entry: str) -> Member:
        # The name in parentheses may hold anything; the fields begin after the last one closes (proc_pid_stat(5)).
        fields = self._read(f"{entry}/stat").rpartition(b")")[2].split()
        pid = self._inner_pid(entry) if self._translate else int(entry)
        return Member(
            pid=pid,
            entry=entry,
            parent=int(fields[1]),
            threads=int(fields[17]),
            cpu=sum(int(field) for field in fields[11:15]) * _TICK_S,
            resident=int(fields[21]) * _PAGE,
            ended=fields[0] in (b"Z", b"X"),
        )

    def _inner_pid(self, entry: str) -> int:
        for line in self._read(f"{entry}/status").splitlines():
            if line.startswith(b"NSpid:"):
                return int(line.split()[-1])
        raise ProcessLookupError(entry)

    def held(self) -> int:
        """What all hold in memory together, each page that they share counted once (the sum of Pss)."""
        return sum(self._own_share(member) for member in self.members())

    def _own_share(self, member: Member) -> int:
        try:
            for line in self._read(f"{member.entry}/smaps_rollup").splitlines():
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
        except PermissionError:
            return member.resident
        except OSError:  # it has ended: nothing is held by it any more
            return 0
        return 0

    def _read(self, name: str) -> bytes:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            return os.read(descriptor, 8192)
        finally:
            os.close(descriptor)

    def end_all_but(self, keep: int) -> bool:
        """SIGKILL to everyone else, again until nobody is left. False: they come back faster than they go."""
        known: set[int] = set()
        rounds = 0
        give_up = time.monotonic() + _DYING_S
        while others := [member.pid for member in self.members() if member.pid != keep and not member.ended]:
            if known.issuperset(others):
                if time.monotonic() > give_up:
                    return False
                _kill_and_await(others[0], give_up - time.monotonic())
            elif rounds == _MAX_ROUNDS:
                return False
            else:
                rounds += 1
                known.update(others)
                for pid in others:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self.collect()
        return True

    def collect(self) -> None:
        """Wait for everyone who has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.guest:
                self.guest_end = status


def _kill_and_await(pid: int, seconds: float) -> None:
    """Its end, whoever collects it. It was killed before, unless its number was given to another since."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            waiting = select.poll()
            waiting.register(handle, select.POLLIN)
            waiting.poll(max(seconds, 0.0) * 1000)
        finally:
            os.close(handle)
