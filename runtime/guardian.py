"""The small process that `callboard up --detach` leaves: it owns nats-server and the daemon and restarts either, the
daemon also when it lives and does not answer.

It takes both with it when it goes. On SIGTERM the daemon drains first and the server goes last. When it is killed, the
server gets a signal from the kernel and the daemon sees the end of its stdin; the next `callboard up` ends what is
still there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from .daemon import LAST_CALL_S, end_leftovers, stop_on_signal
from .daemon_info import OWNER, StateLock, remove_info, write_info
from .daemon_orders import DaemonOrders, DaemonReport, GuardianReport, Saying
from .errors import CallboardError, NotReachable, from_info, to_info
from .exception_groups import leaves
from .folders import Paths
from .log import log
from .logfiles import LineLog, log_to_file
from .processes import whole
from .roster import Roster
from .sd_notify import ServiceManager, relay
from .server import EmbeddedServer, embedded_server
from .server_config import ServerFiles
from .supervision import RestartBudget, Supervision

# The daemon comes back for as long as the guardian lives, less and less often while it keeps falling.
_RESTARTS = Supervision(max_restarts=6, period_s=60.0, backoff_s=0.1, backoff_max_s=15.0)

# Longer than the daemon's own last call, so that it ends itself where it can.
_KILL_AFTER_S = LAST_CALL_S + 2.0

# What a daemon may take from its orders to its first word; `callboard up` waits as long.
_START_S = 90.0

# A silence is counted in so many parts. Time in which this process itself stood still is then one part at most.
_PARTS = 4

# What a daemon that hangs has for writing down where it does.
_ABORT_S = 2.0


class DaemonChild:
    """The daemon's process and its lives. It is started at once, so that its imports run while the server starts,
    and gets its orders when they are given."""

    def __init__(
        self, paths: Paths, drain_timeout: float, watchdog_s: float, on_report: Callable[[DaemonReport], None]
    ) -> None:
        self.pid = 0
        self.num_restarts = 0
        self.ready = anyio.Event()
        self.ended = anyio.Event()
        self.orders: DaemonOrders | None = None
        self._given = anyio.Event()
        self._paths = paths
        self._patience = drain_timeout + _KILL_AFTER_S
        self._watchdog_s = watchdog_s
        self._on_report = on_report
        self._takes_signals = False
        self._log = LineLog(paths.logs / "daemon.log")
        self._scope = anyio.CancelScope()

    def give(self, orders: DaemonOrders) -> None:
        """The orders for the life that waits for them, and for all that follow."""
        self.orders = orders
        self._given.set()

    def restart(self) -> None:
        """Have the present life drain and end; the next one gets the orders as they are now."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)

    def reload(self) -> None:
        """Have it read its company file again. One that is not ready yet is about to."""
        if self.pid and self._takes_signals:
            os.kill(self.pid, signal.SIGHUP)

    async def stop(self) -> None:
        """Drain the present life, and have no more. Returns when the process is gone."""
        self._scope.cancel()
        await self.ended.wait()

    async def supervise(self) -> None:
        """Runs one life after another until `stop`. Raises what kept the first from becoming ready."""
        budget = RestartBudget(_RESTARTS)
        try:
            with self._scope:
                while True:
                    error = await self._live()
                    if error is not None and not self.ready.is_set():
                        raise error
                    self.num_restarts += 1
                    log.error("the daemon ended%s; starting it again", f" ({error})" if error else "")
                    delay = budget.take(time.monotonic())
                    await anyio.sleep(_RESTARTS.backoff_max_s if delay is None else delay)
        finally:
            self._log.close()
            self.ended.set()

    async def _live(self) -> CallboardError | None:
        """One life. Returns what was wrong with it, None where it was only told to go."""
        process = await whole(
            anyio.open_process(
                [sys.executable, "-P", "-m", "callboard.runtime.daemon"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._paths.state,
            )
        )
        self.pid = process.pid
        error: CallboardError | None = None
        async with anyio.create_task_group() as tasks:
            pump = anyio.CancelScope(shield=True)  # made here: who waits for its start cannot be cancelled then
            try:
                tasks.start_soon(self._pump, process, pump)
                error = await self._converse(process)
            finally:
                self.pid = 0
                self._takes_signals = False
                with anyio.CancelScope(shield=True):
                    await self._end(process)
                    pump.cancel()
        if error is None and process.returncode not in (0, None):
            error = NotReachable(f"the daemon's process died ({_describe(process.returncode)})")
        return error

    async def _converse(self, process: anyio.abc.Process) -> CallboardError | None:
        """Hands over the orders and hears the reports until there are no more. Returns the failure reported."""
        assert process.stdin is not None
        assert process.stdout is not None
        await self._given.wait()
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # it died: stdout ends too
            await process.stdin.send(msgspec.json.encode(self.orders) + b"\n")
        reports = BufferedByteReceiveStream(process.stdout)
        error: CallboardError | None = None
        silence_s = _START_S
        while True:
            try:
                line = await _hear(reports, silence_s)
            except (anyio.EndOfStream, anyio.IncompleteRead):
                break
            if line is None:
                log.error("the daemon (pid %d) has said nothing for %g s and is killed", process.pid, silence_s)
                await _abort(process)
                return NotReachable(f"it did not answer for {silence_s:g} s")
            report = msgspec.json.decode(line, type=DaemonReport)
            if report.error is not None:
                error = from_info(report.error)
                continue
            silence_s = self._patience if report.what is Saying.STOPPING else self._watchdog_s
            if report.what is Saying.READY:
                self._takes_signals = True
            self._on_report(report)
            if report.what is Saying.READY:
                self.ready.set()
        await process.wait()
        return error

    async def _end(self, process: anyio.abc.Process) -> None:
        """Tells it to drain, waits as long as it may take, and then kills it."""
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(self._patience) as patience:
                await process.wait()
            if patience.cancelled_caught:
                log.error("the daemon did not end in time and is killed")
                process.kill()
                await process.wait()
        await process.aclose()

    async def _pump(self, process: anyio.abc.Process, scope: anyio.CancelScope) -> None:
        """What the daemon says on stderr goes to its log, to the last line, also when it is told to end."""
        assert process.stderr is not None
        lines = BufferedByteReceiveStream(process.stderr)
        with scope:
            while True:
                try:
                    line = await lines.receive_until(b"\n", 1 << 20)
                except (anyio.EndOfStream, anyio.IncompleteRead, anyio.ClosedResourceError):
                    return
                self._log.write(line.decode(errors="replace"))


async def _hear(reports: BufferedByteReceiveStream, silence_s: float) -> bytes | None:
    """The next line; None after so long without one. EndOfStream, IncompleteRead at the end."""
    for _ in range(_PARTS):
        with anyio.move_on_after(silence_s / _PARTS):
            return await reports.receive_until(b"\n", 1 << 20)
    return None


async def _abort(process: anyio.abc.Process) -> None:
    """Ends a process that takes no orders; what it was doing goes to its log, if it can still write."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGABRT)
    with anyio.move_on_after(_ABORT_S):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


def _describe(code: int | None) -> str:
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


async def guard(orders: DaemonOrders, report: Callable[[GuardianReport], None], manager: ServiceManager) -> None:
    """Runs server and daemon until SIGTERM or SIGINT. Raises what kept them from becoming ready."""
    paths, settings = orders.paths, orders.settings
    watchdogs = [settings.watchdog / _PARTS, *([manager.watchdog_s / 2] if manager.watchdog_s else [])]
    stop = anyio.Event()
    since = time.time()

    def on_ready() -> None:
        assert child.orders is not None
        info = child.orders.info(daemon_pid=child.pid, since=since, daemon_restarts=child.num_restarts)
        write_info(paths, info)
        log.info("the daemon is ready: pid %d on %s", info.daemon_pid, info.url)
        if not child.ready.is_set():
            report(GuardianReport(info=info))

    def on_report(news: DaemonReport) -> None:
        if news.what is Saying.READY:
            on_ready()
        relay(manager, news, restarts=child.num_restarts)

    async def run_on(url: str, account: str) -> None:
        told = DaemonOrders.of(paths, settings, url, account)
        child.give(msgspec.structs.replace(told, beat_s=min(watchdogs)))
        await stop.wait()
        log.info("stopping: the daemon drains")
        manager.tell(STOPPING=1, STATUS="draining")
        await child.stop()
        Roster.of(paths).clear()

    manager.tell(STATUS="starting")
    await anyio.to_thread.run_sync(end_leftovers, paths, settings.drain_timeout)
    child = DaemonChild(paths, settings.drain_timeout, settings.watchdog, on_report)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signal, stop, lambda: os._exit(130))
        tasks.start_soon(_pass_on_hangups, child)
        tasks.start_soon(child.supervise)
        if settings.nats:
            await run_on(settings.nats, "")
        else:
            async with embedded_server(paths, settings.server) as server:
                tasks.start_soon(_follow, server, child)
                await run_on(server.url, str(ServerFiles.of(paths).account_seed))
        tasks.cancel_scope.cancel()
    log.info("stopped")


async def _pass_on_hangups(child: DaemonChild) -> None:
    """SIGHUP asks the service to read its configuration again, which is the daemon's affair."""
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            child.reload()


async def _follow(server: EmbeddedServer, child: DaemonChild) -> None:
    """A server that lost its port to somebody else comes back on another, where the daemon must go too."""
    while True:
        await server.exited.wait()
        await server.ready.wait()
        orders = child.orders
        if orders is not None and orders.url != server.url:
            log.warning("nats-server has moved to %s; the daemon follows", server.url)
            child.give(msgspec.structs.replace(orders, url=server.url))
            child.restart()


def main() -> int:
    """`guardian LOCK READY`: inherited file descriptors of the state folder's lock and of the pipe to report to."""
    lock_descriptor, ready_descriptor = map(int, sys.argv[1:])
    os.umask(0o077)
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=DaemonOrders)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    log_to_file(orders.paths.logs / "guardian.log", "guardian", orders.settings.log_level)
    for descriptor in (lock_descriptor, ready_descriptor):
        os.set_inheritable(descriptor, False)
    paths = orders.paths
    lock = StateLock(paths, lock_descriptor)
    lock.sign()
    os.environ[OWNER] = str(paths.state)
    manager = ServiceManager.from_environment()
    waiting = [ready_descriptor]

    def report(news: GuardianReport) -> None:
        """To the `callboard up` that waits for the first word; later there is nobody to hear."""
        while waiting:
            descriptor = waiting.pop()
            with contextlib.suppress(BrokenPipeError):
                os.write(descriptor, msgspec.json.encode(news) + b"\n")
            os.close(descriptor)

    try:
        anyio.run(guard, orders, report, manager)
    except Exception as error:
        single = next(leaves(error))
        log.error("%s", single, exc_info=None if isinstance(single, CallboardError) else single)
        report(GuardianReport(error=to_info(single)))
        return 1
    finally:
        remove_info(paths)
        lock.release()
        manager.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
