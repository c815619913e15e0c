"""The daemon: the node called `main`, which hosts what `callboard spawn` starts and answers for the company.

It runs as the guardian's child (`main` below: orders on stdin, reports on stdout, log on stderr), or inside
`callboard up` in the foreground (`run_foreground`).
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from .daemon_info import OWNER, DaemonInfo, StateLock, remove_info, write_info
from .daemon_orders import DaemonOrders, DaemonReport, Saying
from .errors import CallboardError, to_info
from .files import private_folder
from .folders import Paths
from .log import log
from .log_lines import JsonLines
from .logfiles import FORMAT, MAX_BYTES, NUM_OLD, log_to_pipe
from .processes import end_processes, find_by_variable
from .sd_notify import ServiceManager, relay
from .server import embedded_server
from .server_config import ServerFiles
from .settings import Settings

if TYPE_CHECKING:
    from .company import Company
    from .node import Node

Say = Callable[[DaemonReport], None]

NAME = "main"

# What stopping may take beyond the drain time before the process ends itself the hard way.
LAST_CALL_S = 5.0


async def host(orders: DaemonOrders, say: Say, stop: anyio.Event) -> None:
    """Runs the node `main` with its company until `stop` is set, then drains it.

    Says READY once it can be reached, which is before the company file is read and its actors are started. Raises
    CredentialsRefused when the server puts it out meanwhile.
    """
    from .access import mint
    from .audit import Audit
    from .bus import BusOptions
    from .company import Company
    from .gatekeeper import Gatekeeper
    from .node import Node
    from .roles import MAIN
    from .roster import Roster, recall

    settings = orders.settings
    creds = settings.creds if settings.nats else ""
    options = mint(BusOptions(orders.url, creds, NAME, orders.account, orders.tls), NAME, role=MAIN)
    node = Node(
        NAME,
        bus=options,
        ask_timeout=settings.timeout,
        drain_timeout=settings.drain_timeout,
        logs=orders.paths.logs,
    )
    node.roster = Roster.of(orders.paths)
    node.audit = Audit.of(orders.paths)
    node.settings = settings
    put_out: list[CallboardError] = []

    def on_put_out(error: CallboardError) -> None:
        put_out.append(error)
        stop.set()

    node.on_put_out = on_put_out
    async with node:
        node.blobs.begin()  # what processes leave that are killed is swept, also when nobody else is there to do it
        if orders.account:
            await Gatekeeper(node.require_links(), orders.paths, node.audit).open()
        async with anyio.create_task_group() as tasks:
            if settings.company:
                node.company = Company(node, Path(settings.company), orders.paths, say, tasks)
            await tasks.start(reload_on_signal, node.company, stop)
            log.info("ready on %s", orders.url)
            say(DaemonReport(text=f"ready on {orders.url}"))
            if orders.beat_s:
                tasks.start_soon(_beat, node, orders.beat_s, say)
            if node.company is not None:
                await tasks.start(node.company.begin)
            tasks.start_soon(recall, node, node.roster)
            await stop.wait()
            say(DaemonReport(what=Saying.STOPPING))
            tasks.cancel_scope.cancel()
        log.info("draining")
    if put_out:
        raise put_out[0]


async def _beat(node: Node, every_s: float, say: Say) -> None:
    """Says that the daemon answers, each time that its control actor does."""
    from ..schemas.runtime import ListNodes

    control = node.actor(f"node.{node.name}")
    while True:
        try:
            await control.ask(ListNodes(), timeout=every_s)
        except CallboardError as error:
            log.warning("the daemon does not answer itself: %s", error)
        else:
            say(DaemonReport(what=Saying.BEAT))
        await anyio.sleep(every_s)


async def reload_on_signal(
    company: Company | None, stop: anyio.Event, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """SIGHUP reads the company file again. At a terminal it means that this has gone, and sets `stop`."""
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            if os.isatty(0):
                stop.set()
            elif company is None:
                log.info("SIGHUP, and there is no company file to read again")
            else:
                try:
                    await company.reload()
                except Exception as error:  # nobody waits for this reload, so the log is told
                    unexpected = None if isinstance(error, CallboardError) else error
                    log.error("the company stays as it is: %s", error, exc_info=unexpected)


@asynccontextmanager
async def bus_server(paths: Paths, settings: Settings) -> AsyncIterator[DaemonOrders]:
    """The embedded server, or the user's own where the settings name one; gives the orders for a daemon on it."""
    if settings.nats:
        yield DaemonOrders.of(paths, settings, settings.nats)
        return
    async with embedded_server(paths, settings.server) as server:
        yield DaemonOrders.of(paths, settings, server.url, str(ServerFiles.of(paths).account_seed))


def end_leftovers(paths: Paths, patience_s: float) -> list[int]:
    """Ends what an earlier daemon of this state folder left over, and says which processes that were. Blocks.

    What it started notices its death and is about to go by itself; what does not is killed after `patience_s`. The
    caller holds the lock, so nothing of a daemon that runs can be meant.
    """
    leftovers = find_by_variable(OWNER, str(paths.state))
    if leftovers:
        log.warning("ending what an earlier daemon left over: pid %s", ", ".join(str(p.pid) for p in leftovers))
        end_processes(leftovers, patience_s)
    return [process.pid for process in leftovers]


async def stop_on_signal(stop: anyio.Event, hard_exit: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT sets `stop`; a second SIGINT, somebody's impatience, calls `hard_exit`."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            if stop.is_set() and number == signal.SIGINT:
                hard_exit()
            stop.set()


async def run_foreground(
    paths: Paths, settings: Settings, lock: StateLock, announce: Callable[[DaemonInfo], None]
) -> None:
    """`callboard up` without `--detach`: server and node in this process, until SIGTERM or SIGINT."""
    from .roster import Roster

    stop = anyio.Event()
    os.environ[OWNER] = str(paths.state)
    manager = ServiceManager.from_environment()
    manager.tell(STATUS="starting")
    try:
        await anyio.to_thread.run_sync(end_leftovers, paths, settings.drain_timeout)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_on_signal, stop, lambda: os._exit(130))
            async with bus_server(paths, settings) as orders:

                def hear(report: DaemonReport) -> None:
                    if report.what is Saying.READY:
                        info = orders.info(daemon_pid=os.getpid(), since=time.time())
                        write_info(paths, info)
                        announce(info)
                    if report.what is Saying.STOPPING:
                        manager.tell(STOPPING=1, STATUS="draining")
                    relay(manager, report)

                await host(msgspec.structs.replace(orders, beat_s=manager.watchdog_s / 2), hear, stop)
            Roster.of(paths).clear()
            tasks.cancel_scope.cancel()
    finally:
        remove_info(paths)
        lock.release()
        manager.close()


def log_to(paths: Paths, level: str) -> None:
    """Log to the terminal, and to the file that `callboard logs` reads."""
    to_file = RotatingFileHandler(private_folder(paths.logs) / "daemon.log", maxBytes=MAX_BYTES, backupCount=NUM_OLD)
    to_file.setFormatter(JsonLines(NAME))
    logging.basicConfig(level=level.upper(), format=FORMAT, handlers=[logging.StreamHandler(), to_file])


async def _serve(orders: DaemonOrders, say: Say) -> int:
    stop = anyio.Event()
    loop = asyncio.get_running_loop()
    patience = orders.settings.drain_timeout + LAST_CALL_S

    def until_eof() -> None:
        """In a thread of its own, so that a busy event loop cannot miss it: the guardian is gone."""
        while os.read(0, 4096):
            pass
        killer = threading.Timer(patience, os._exit, (1,))
        killer.daemon = True
        killer.start()
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=until_eof, name="parent-watch", daemon=True).start()
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signal, stop, lambda: os._exit(130))
        try:
            await host(orders, say, stop)
        except Exception as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is None:
        return 0
    log.error("%s", failure, exc_info=None if isinstance(failure, CallboardError) else failure)
    say(DaemonReport(to_info(failure), Saying.FAILED))
    return 1


def main() -> int:
    reports = os.dup(1)
    os.set_inheritable(reports, False)
    os.dup2(2, 1)  # what an actor prints goes to the log; the pipe is for reports
    faulthandler.enable()  # the guardian sends SIGABRT when we hang, and the log then shows where
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline()
    if not line:
        return 1  # the guardian went before it said anything
    orders = msgspec.json.decode(line, type=DaemonOrders)
    log_to_pipe(NAME, orders.settings.log_level)

    os.set_blocking(reports, False)  # a guardian that stands still must not stop us too

    def say(report: DaemonReport) -> None:
        try:
            os.write(reports, msgspec.json.encode(report) + b"\n")
        except BlockingIOError:
            log.warning("the guardian takes no reports; left out: %s", report.what)
        except BrokenPipeError:
            log.debug("the guardian is gone, as the end of stdin says too")

    from .loops import backend_options

    return anyio.run(_serve, orders, say, backend_options=backend_options())


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Threads of a native library must not hold up the end of a process whose actors are all stopped.
    os._exit(code)
