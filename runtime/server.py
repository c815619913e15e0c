"""The embedded nats-server: started with a state folder of its own, watched, restarted, and ended with its owner.

Its log comes to us through a pipe. That tells without polling when it is ready and why it ended, and lets the log be
turned over by size. Should we be killed, it ends too (`die_with_parent`); where the system cannot do that, the next
start finds the leftover by its command line and ends it before two servers write to one store.
"""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import anyio.to_thread
from anyio.streams.buffered import BufferedByteReceiveStream

from .credentials import create_account, make_trust
from .errors import NotReachable
from .ledger import Ledger
from .logfiles import LineLog
from .processes import dying_with_us, end_processes, find_by_arguments, whole
from .server_config import ServerFiles, choose_port, find_binary, is_free, listen_of, write_config
from .settings import Paths, ServerSettings
from .supervision import RestartBudget, Supervision

_log = logging.getLogger(__name__)

READY_TIMEOUT_S = 60.0  # reading a large store back takes time
STOP_GRACE_S = 5.0
_PORT_TRIES = 5
# What the server's log says when it cannot write; how much room it is to have before it starts again.
_STORE_FULL = "no space left on device"
_ROOM = 4 << 20
_ROOM_LOOK_S = 0.5

# It comes back for as long as its owner lives: a bus that gives up helps nobody.
_RESTARTS = Supervision(max_restarts=8, period_s=60.0, backoff_s=0.1, backoff_max_s=10.0)


class EmbeddedServer:
    """One nats-server and its lives. Made by `embedded_server`; the port and the data outlive each life.

    `ready` is set while it takes connections, `exited` when the present life has ended; each life has its own pair,
    so that `await server.ready.wait()` waits for the present or the next life.
    """

    def __init__(self, paths: Paths, settings: ServerSettings) -> None:
        self.files = ServerFiles.of(paths)
        self.account_seed = create_account(self.files.account_seed)
        self.ready = anyio.Event()
        self.exited = anyio.Event()
        self.pid: int | None = None
        self.port = 0
        self.num_restarts = 0
        self._settings = settings
        self._listen = listen_of(settings)
        self._ledger = Ledger.of(paths)
        self._binary = find_binary()
        self._log = LineLog(self.files.log)
        self._refused_port = 0
        self._complaint = ""
        self._full = anyio.Event()

    @property
    def url(self) -> str:
        host = f"[{self._listen.local}]" if ":" in self._listen.local else self._listen.local
        return f"{'tls' if self._listen.tls else 'nats'}://{host}:{self.port}"

    async def supervise(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Runs the server until cancelled, restarting it when it ends; on the way out stops it (SIGTERM, then
        SIGKILL after `STOP_GRACE_S`). Started once the first life is ready; NotReachable if that fails.
        """
        await anyio.to_thread.run_sync(self._end_leftovers)
        budget = RestartBudget(_RESTARTS)
        first = True
        try:
            while True:
                await self._live(task_status if first else anyio.TASK_STATUS_IGNORED, first=first)
                first = False
                delay = budget.take(time.monotonic())
                self.num_restarts += 1
                _log.warning("nats-server ended (%s); starting it again", self._complaint or "no reason in its log")
                await anyio.sleep(_RESTARTS.backoff_max_s if delay is None else delay)
        finally:
            self._log.close()

    async def _live(self, task_status: anyio.abc.TaskStatus[None], *, first: bool) -> None:
        """One life, from the choice of its port to its last line of log. NotReachable if the first never begins."""
        for _ in range(_PORT_TRIES):
            self.port = choose_port(self.files, self._settings, other_than=self._refused_port)
            trust = make_trust(self.account_seed, self._ledger.revocations())
            write_config(self.files, self._settings, trust, self.port)
            if await self._run(task_status):
                return
            if self._listen.port or is_free(self.port):
                break
            self._refused_port = self.port  # somebody took it between our look at it and the server's
        if first:
            raise NotReachable(
                f"nats-server did not start: {self._complaint or 'no reason in its log'}",
                hint=f"its log is {self.files.log}",
            )

    async def _run(self, task_status: anyio.abc.TaskStatus[None]) -> bool:
        """One process, from its start to its end. Says whether it ever was ready."""
        self._complaint = ""
        self._full = anyio.Event()
        process = await whole(
            anyio.open_process(
                dying_with_us([str(self._binary), "-c", str(self.files.config)]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=self.files.state,
                # A Ctrl-C at the terminal is for us; the server goes last, when the rest has finished.
                start_new_session=True,
            )
        )
        self.pid = process.pid
        self.exited = exited = anyio.Event()
        was_ready = False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._mend, process)
                was_ready = await self._watch(process, task_status)
                tasks.cancel_scope.cancel()
            with anyio.move_on_after(STOP_GRACE_S):
                await process.wait()  # its log has ended, so it is about to go
        finally:
            if self.ready.is_set():
                self.ready = anyio.Event()
            with anyio.CancelScope(shield=True):
                await self._end(process)
            self.pid = None
            exited.set()
        return was_ready

    async def _watch(self, process: anyio.abc.Process, task_status: anyio.abc.TaskStatus[None]) -> bool:
        """Follows the log to its end, which is the server's end. Says whether it ever was ready."""
        with anyio.move_on_after(READY_TIMEOUT_S) as until_ready:
            async for line in _lines(process):
                self._log.write(line)
                if _STORE_FULL in line:
                    self._full.set()
                elif "[FTL]" in line:
                    self._complaint = line.partition("[FTL]")[2].strip()
                elif "Server is ready" in line:
                    until_ready.deadline = math.inf
                    self.ready.set()
                    task_status.started()
        if until_ready.cancelled_caught:
            self._complaint = f"not ready after {READY_TIMEOUT_S:.0f} s"
        return self.ready.is_set()

    async def _mend(self, process: anyio.abc.Process) -> None:
        """A stream whose file could not be written, since the disk was full, takes nothing more in this life of the
        server: end it as soon as there is room."""
        await self._full.wait()
        _log.warning("the disk of %s is full: nothing can be saved until there is room", self.files.store)
        while (await anyio.to_thread.run_sync(shutil.disk_usage, self.files.store)).free < _ROOM:
            await anyio.sleep(_ROOM_LOOK_S)  # no event says so
        self._complaint = "its disk was full, and has room again"
        process.terminate()

    async def _end(self, process: anyio.abc.Process) -> None:
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(STOP_GRACE_S) as patience:
                async for line in _lines(process):
                    self._log.write(line)
                await process.wait()
            if patience.cancelled_caught:
                process.kill()
        await process.aclose()

    def _end_leftovers(self) -> None:
        leftovers = find_by_arguments("-c", str(self.files.config))
        if leftovers:
            _log.warning("ending a nats-server that an earlier life left over: pid %s", [p.pid for p in leftovers])
            end_processes(leftovers, STOP_GRACE_S)


async def _lines(process: anyio.abc.Process) -> AsyncIterator[str]:
    assert process.stderr is not None
    reader = BufferedByteReceiveStream(process.stderr)
    while True:
        try:
            line = await reader.receive_until(b"\n", 1 << 20)
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.ClosedResourceError):
            return
        yield line.decode(errors="replace")


@asynccontextmanager
async def embedded_server(paths: Paths, settings: ServerSettings) -> AsyncIterator[EmbeddedServer]:
    """A supervised server that is ready on entry and gone after exit. The caller holds the state folder's lock."""
    server = EmbeddedServer(paths, settings)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        # Raised below, outside the task group, which would wrap it in a group of exceptions.
        try:
            await tasks.start(server.supervise)
            yield server
        except Exception as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
