"""The daemon: the node called `main`, which hosts what `callboard spawn` starts and answers for the company.

It runs as the guardian's child (`main` below: orders on stdin, reports on stdout, log on stderr), or inside
`callboard up` in the foreground (`run_foreground`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from logging.handlers import RotatingFileHandler

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from .daemon_info import OWNER, DaemonInfo, StateLock, remove_info, write_info
from .daemon_orders import DaemonOrders, DaemonReport
from .errors import CallboardError, to_info
from .files import private_folder
from .folders import Paths
from .log import log
from .logfiles import FORMAT, MAX_BYTES, NUM_OLD
from .processes import end_processes, find_by_variable
from .server import embedded_server
from .server_config import ServerFiles
from .settings import Settings

NAME = "main"

# What stopping may take beyond the drain time before the process ends itself the hard way.
LAST_CALL_S = 5.0


async def host(orders: DaemonOrders, ready: Callable[[], None], stop: anyio.Event) -> None:
    """Runs the node `main` until `stop` is set, then drains it. Calls `ready` once it can be reached.

    Raises CredentialsRefused when the server puts it out meanwhile.
    """
    from .access import mint
    from .audit import Audit
    from .bus import BusOptions
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
    put_out: list[CallboardError] = []

    def on_put_out(error: CallboardError) -> None:
        put_out.append(error)
        stop.set()

    node.on_put_out = on_put_out
    async with node:
        if orders.account:
            await Gatekeeper(node.require_links(), orders.paths, node.audit).open()
        log.info("ready on %s", orders.url)
        ready()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(recall, node, node.roster)
            await stop.wait()
            tasks.cancel_scope.cancel()
        log.info("draining")
    if put_out:
        raise put_out[0]


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
    try:
        await anyio.to_thread.run_sync(end_leftovers, paths, settings.drain_timeout)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_on_signal, stop, lambda: os._exit(130))
            async with bus_server(paths, settings) as orders:

                def ready() -> None:
                    info = orders.info(daemon_pid=os.getpid(), since=time.time())
                    write_info(paths, info)
                    announce(info)

                await host(orders, ready, stop)
            Roster.of(paths).clear()
            tasks.cancel_scope.cancel()
    finally:
        remove_info(paths)
        lock.release()


def log_to(paths: Paths, level: str) -> None:
    """Log to the terminal, and to the file that `callboard logs` reads."""
    to_file = RotatingFileHandler(private_folder(paths.logs) / "daemon.log", maxBytes=MAX_BYTES, backupCount=NUM_OLD)
    logging.basicConfig(level=level.upper(), format=FORMAT, handlers=[logging.StreamHandler(), to_file])


async def _serve(orders: DaemonOrders, say: Callable[[DaemonReport], None]) -> int:
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
            await host(orders, lambda: say(DaemonReport()), stop)
        except Exception as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is None:
        return 0
    log.error("%s", failure, exc_info=None if isinstance(failure, CallboardError) else failure)
    say(DaemonReport(to_info(failure)))
    return 1


def main() -> int:
    reports = os.dup(1)
    os.set_inheritable(reports, False)
    os.dup2(2, 1)  # what an actor prints goes to the log; the pipe is for reports
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline()
    if not line:
        return 1  # the guardian went before it said anything
    orders = msgspec.json.decode(line, type=DaemonOrders)
    logging.basicConfig(level=orders.settings.log_level.upper(), format=FORMAT, stream=sys.stderr)

    def say(report: DaemonReport) -> None:
        with contextlib.suppress(BrokenPipeError):  # then the end of stdin says the same
            os.write(reports, msgspec.json.encode(report) + b"\n")

    from .loops import backend_options

    return anyio.run(_serve, orders, say, backend_options=backend_options())


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Threads of a native library must not hold up the end of a process whose actors are all stopped.
    os._exit(code)
