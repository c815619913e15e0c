"""The sandbox as its users have it: code in, results out; sessions that keep their state; snapshots of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
import anyio.to_thread
import psutil

from . import scratch
from .config import SandboxConfig
from .errors import NeverBegan, SandboxError, SandboxLacks, SnapshotRefused
from .guest import Guest, Outcome
from .harvest import result_of, snapshot_of
from .kernel import probe
from .launcher import Zygote
from .parts import Kernel, Part
from .results import RunResult
from .snapshot import SessionSnapshot

Given = Mapping[str, bytes | Path]

_FOLDER = "callboard-sandbox-"


class _Session:
    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.lock = anyio.Lock()


class Sandbox:
    """Code that nobody trusts, run where it can do no harm.

    A call without a session has a process of its own, which nothing outlives. Calls of one session share a process,
    one at a time; it stands still between them. `kernel`: what to take for granted instead of trying it (for tests).

    Raises SandboxLacks when it is opened where the kernel lacks a part that the configuration does not accept to lack;
    SandboxKilled from a call that passed a limit. Cancelling a call ends its processes, and its session.
    """

    def __init__(self, config: SandboxConfig | None = None, *, kernel: Kernel | None = None) -> None:
        self.config = config or SandboxConfig()
        self._kernel = kernel
        self._zygote: Zygote | None = None
        self._folder = ""
        self._spares: deque[Guest] = deque()
        self._sessions: dict[str, _Session] = {}
        self._ending: set[Guest] = set()
        self._calls = 0

    async def __aenter__(self) -> Sandbox:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.close()

    async def open(self) -> None:
        kernel = self._kernel or await anyio.to_thread.run_sync(probe)
        if lacking := [part for part in kernel.lacking if part not in self.config.accept or part is Part.LINUX]:
            raise SandboxLacks.of(lacking, kernel)
        self._kernel = kernel
        for path in self.config.read:
            _check_readable(path)
        self._folder = await anyio.to_thread.run_sync(_own_folder)
        await self._start()

    async def _start(self) -> None:
        assert self._kernel is not None
        self._zygote = Zygote(self.config, self._kernel, self._folder)
        await self._zygote.start()
        self._spares.append(self._zygote.order())

    async def close(self) -> None:
        """End every process and wait until all are gone. Results that were not released are deleted."""
        for session in self._sessions.values():
            self._let_go(session.guest)
        self._sessions.clear()
        while self._spares:
            self._let_go(self._spares.popleft())
        for guest in list(self._ending):
            await guest.wait_gone()
        self._ending.clear()
        if self._zygote is not None:
            await self._zygote.close()
            self._zygote = None
        if self._folder:
            await anyio.to_thread.run_sync(shutil.rmtree, self._folder, True)

    async def run_python(
        self, code: str, session: str = "", files: Given | None = None, *, timeout: float | None = None
    ) -> RunResult:
        """Run it as a notebook runs a cell. `files` are put into the work folder first, by relative name.

        `timeout`: less wall time than the limits give, in seconds.
        """
        return await self._run({"do": "python", "code": code}, session, files or {}, timeout)

    async def run_shell(
        self, command: str, session: str = "", files: Given | None = None, *, timeout: float | None = None
    ) -> RunResult:
        """Run it with the system's shell. A session's variables, functions and folder outlive the command; it shares
        its files with the session's Python."""
        return await self._run({"do": "shell", "code": command}, session, files or {}, timeout)

    @property
    def sessions(self) -> tuple[str, ...]:
        """Those that run, the one that was used longest ago first."""
        return tuple(self._sessions)

    def processes_gone(self) -> bool:
        """Whether all processes of finished calls have ended by now."""
        self._forget_gone()
        return not self._ending

    async def end_session(self, session: str) -> None:
        """Its process and files go; nothing happens when there is none."""
        if found := self._sessions.pop(session, None):
            self._let_go(found.guest)
            await found.guest.wait_gone()
            self._ending.discard(found.guest)

    async def snapshot(self, session: str) -> SessionSnapshot:
        """What can be carried over of it. Raises SandboxError where there is no such session."""
        if session not in self._sessions:
            raise SandboxError(f"there is no session {session!r}")
        entry = self._sessions[session]
        limit = self.config.limits.snapshot_bytes
        async with entry.lock:
            outcome = await self._call(entry.guest, {"do": "save", "limit": limit}, None)
            if outcome.answer is None or outcome.answer.error is not None:
                self._sessions.pop(session, None) if outcome.ended else None
                why = outcome.answer.error.message if outcome.answer and outcome.answer.error else "it ended"
                raise SandboxError(f"session {session!r} could not be put away: {why}")
            return await anyio.to_thread.run_sync(snapshot_of, entry.guest, outcome, limit, self.config.limits)

    async def restore(self, session: str, snapshot: SessionSnapshot) -> tuple[tuple[str, str], ...]:
        """A new session from it; one of that name must not run. Gives the names that are not there, with reasons."""
        if session in self._sessions:
            raise SandboxError(f"session {session!r} runs already")
        entry = await self._session(session)
        async with entry.lock:
            try:
                files = {f"work/{name}": data for name, data in snapshot.files}
                await self._put(entry.guest, {**files, "out/state": snapshot.state, "out/shell-state": snapshot.shell})
                outcome = await self._call(entry.guest, {"do": "load"}, None)
            except BaseException:
                self._sessions.pop(session, None)
                self._let_go(entry.guest)
                raise
        if outcome.answer is None or outcome.answer.error is not None:
            await self.end_session(session)
            why = outcome.answer.error.message if outcome.answer and outcome.answer.error else "its process ended"
            raise SnapshotRefused(f"session {session!r} cannot be brought back: {why}")
        return tuple(outcome.answer.lost.items())

    async def _run(self, order: dict[str, Any], session: str, files: Given, timeout: float | None) -> RunResult:
        given = {f"work/{_relative(name)}": data for name, data in files.items()}
        try:
            return await self._attempt(order, session, given, timeout)
        except NeverBegan:  # in the moment between being ready and being used
            await self._drop_spares()
            return await self._attempt(order, session, given, timeout)

    async def _attempt(
        self, order: dict[str, Any], session: str, given: Mapping[str, bytes | Path], timeout: float | None
    ) -> RunResult:
        if not session:
            guest = await self._take()
            try:
                return await self._run_in(guest, order, given, timeout)
            finally:
                self._let_go(guest)
        entry = await self._session(session)
        async with entry.lock:
            try:
                result = await self._run_in(entry.guest, order, given, timeout)
            except BaseException:
                if entry.guest.closed:
                    self._forget(session, entry)
                raise
            if result.session_ended:
                self._forget(session, entry)
            return result

    async def _run_in(
        self, guest: Guest, order: dict[str, Any], given: Mapping[str, bytes | Path], timeout: float | None
    ) -> RunResult:
        limits = self.config.limits
        await self._put(guest, given)
        stamps = partial(scratch.stamps, guest.scratch, limits.scratch_files)
        # A new sandbox holds what was just put there; a session may hold thousands of files.
        before = stamps() if guest.is_new else await anyio.to_thread.run_sync(stamps)
        outcome = await self._call(guest, order, timeout)
        self._calls += 1
        folder = Path(self._folder) / f"results-{self._calls}"
        return await anyio.to_thread.run_sync(result_of, guest, outcome, before, folder, limits)

    async def _call(self, guest: Guest, order: dict[str, Any], timeout: float | None) -> Outcome:
        limits = self.config.limits
        assert self._kernel is not None
        watched = Part.MOUNT_NAMESPACE not in self._kernel.parts
        bounds = {
            "wall_s": limits.wall_s if timeout is None else min(timeout, limits.wall_s),
            "cpu_s": limits.cpu_s,
            "memory": limits.memory,
            "processes": limits.processes,
            "scratch_bytes": limits.scratch_bytes if watched else 0,
            "scratch_files": limits.scratch_files if watched else 0,
        }
        return await guest.call(order, bounds)

    async def _put(self, guest: Guest, files: Mapping[str, bytes | Path]) -> None:
        for name, data in files.items():
            with tempfile.TemporaryFile() if isinstance(data, bytes) else data.open("rb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                    file.seek(0)
                await guest.put(name, file.fileno())

    async def _session(self, name: str) -> _Session:
        """The session; a new one where there is none. It counts as the last used."""
        entry = self._sessions.pop(name, None)
        if entry is None:
            if len(self._sessions) >= self.config.max_sessions:
                raise SandboxError(
                    f"{len(self._sessions)} sessions run already", hint="end one, or raise `max_sessions`"
                )
            entry = _Session(await self._take())
            if other := self._sessions.get(name):  # somebody else made it meanwhile
                self._let_go(entry.guest)
                return other
        self._sessions[name] = entry
        return entry

    def _forget(self, name: str, entry: _Session) -> None:
        if self._sessions.get(name) is entry:
            del self._sessions[name]
        self._let_go(entry.guest)

    async def _take(self) -> Guest:
        """A sandbox that is ready: a spare, while the next ones are made. Where that went wrong, another; where the
        zygote is gone, of a new one."""
        for attempt in (1, 2):
            zygote = self._zygote
            if zygote is None:
                raise SandboxError("the sandbox is not open")
            guest = self._spares.popleft() if self._spares else None
            try:
                guest = guest or zygote.order()
                await guest.wait_ready()
                if guest.gone:  # it was ready, and has been killed while it waited
                    raise EOFError
                while len(self._spares) < self.config.spares:
                    self._spares.append(zygote.order())
            except (EOFError, SandboxError) as error:
                if guest is not None:
                    self._let_go(guest)
                if attempt == 2:
                    said = error if isinstance(error, SandboxError) else SandboxError("a sandbox ended as it began")
                    raise (zygote.failure() if await zygote.is_ending() else said) from error
                await self._drop_spares()
            except BaseException:
                if guest is not None:
                    self._let_go(guest)
                raise
            else:
                return guest
        raise AssertionError

    async def _drop_spares(self) -> None:
        """One has ended unused: whatever ended it may have ended them all, and the zygote."""
        zygote = self._zygote
        ending = zygote is not None and await zygote.is_ending()
        while self._spares:
            self._let_go(self._spares.popleft())
        if zygote is not None and ending and self._zygote is zygote:
            await self._start()
            await zygote.close()

    def _let_go(self, guest: Guest) -> None:
        guest.close()
        self._ending.add(guest)
        self._forget_gone()

    def _forget_gone(self) -> None:
        for guest in [one for one in self._ending if one.gone]:
            guest.release()
            self._ending.discard(guest)


def _own_folder() -> str:
    """A temporary folder of this process. Those of processes that were killed are deleted on the way."""
    base = tempfile.gettempdir()
    for entry in os.scandir(base):
        owner = entry.name.removeprefix(_FOLDER).partition("-")[0]
        if entry.name.startswith(_FOLDER) and owner.isdigit() and not psutil.pid_exists(int(owner)):
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                shutil.rmtree(entry.path, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-")


def _check_readable(path: str) -> None:
    real = os.path.realpath(path)
    if not os.path.isabs(path) or not os.path.exists(real):
        raise SandboxError(f"there is no {path} that code could read", hint="`read` names folders and files in full")
    if real == "/" or real.split("/")[1] in ("proc", "sys", "dev"):
        raise SandboxError(f"{path} is nothing to give to code", hint="name the folder with the data itself")


def _relative(name: str) -> str:
    """A name below the work folder."""
    parts = name.split("/")
    if not all(part and part not in (".", "..") and "\0" not in part for part in parts):
        raise SandboxError(f"{name!r} does not name a file below the work folder")
    return name
