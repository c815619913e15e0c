"""The main program of an actor's own process: one node with one root, until stdin ends or the actor does."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import anyio

from ..schemas.runtime import Ended, Terminated
from .bus import BusOptions
from .errors import ActorStopped, CallboardError, ConfigError, to_info
from .frames import Over, Ready, Start, pack, parse_stop, take_pipes
from .log import log
from .logfiles import FORMAT, OwnLog, log_to_file
from .loops import backend_options
from .node import Node
from .supervision import Restart

# Beyond its drain time, how long a process whose parent is gone may take before it ends itself the hard way.
LAST_CALL_S = 10.0
LOOK_AT_LOG_S = 5.0


def load_file(path: str) -> str:
    """Run a Python file as a module named by its stem, whose actor kinds then go by `stem:Class`."""
    stem = Path(path).stem
    spec = importlib.util.spec_from_file_location(stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ConfigError(f"there is no Python file {path} to load actors from")
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module
    spec.loader.exec_module(module)
    return stem


class Worker:
    """Runs the actor, and ends when it does, when the parent says so, or when the parent is gone."""

    def __init__(self, start: Start, report: int, own_log: OwnLog | None = None) -> None:
        self._start = start
        self._own_log = own_log
        self._report = report
        self._over = anyio.Event()
        self._outcome = Over()
        self._drain_timeout: float | None = None

    async def run(self) -> int:
        start = self._start
        async with anyio.create_task_group() as group:
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._until_eof, args=(loop,), name="parent-watch", daemon=True).start()
            group.start_soon(self._until_signal)
            group.start_soon(self._look_at_log)
            try:
                allow = (*start.allow, *(load_file(path) for path in start.load))
                options = BusOptions(start.url, start.creds, start.name, start.account, start.tls)
                async with Node(
                    start.name,
                    bus=options,
                    allow=allow,
                    ask_timeout=start.ask_timeout,
                    drain_timeout=start.drain_timeout,
                ) as node:
                    node.on_terminated = self._ended
                    node.on_put_out = self._put_out
                    if start.takeover:
                        node.takes_over.add(start.name)
                    await node.spawn(
                        start.kind,
                        start.config,
                        name=start.name,
                        restart=Restart.TEMPORARY,
                        supervised=Restart(start.restart),
                    )
                    node.watch_root(start.name)
                    self.say(Ready())
                    await self._over.wait()
                    if self._drain_timeout is not None:
                        node.drain_timeout = self._drain_timeout
            except Exception as error:
                log.error("%s: %s", start.name, error, exc_info=None if isinstance(error, CallboardError) else error)
                info = to_info(error)
                self._outcome = Over(info.code, info.message, info.hint, info.detail)
            group.cancel_scope.cancel()
        self.say(self._outcome)
        return 1 if self._outcome.code else 0

    def _ended(self, event: Terminated) -> None:
        if event.reason is not Ended.STOPPED:
            error = event.error or ActorStopped(f"{event.address} ended as soon as it had begun").to_info()
            self._outcome = Over(error.code, error.message, error.hint, error.detail)
        self._over.set()

    def _put_out(self, error: CallboardError) -> None:
        """Nobody can reach this process any more: its supervisor decides."""
        info = error.to_info()
        self._outcome = Over(info.code, info.message, info.hint, info.detail)
        self._over.set()

    def _until_eof(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own, so that a busy event loop cannot miss it: the parent closed our stdin, or died."""
        said = b""
        while part := os.read(0, 4096):
            said += part
        stop = parse_stop(said)
        self._drain_timeout = self._start.drain_timeout if stop is None else stop.drain_timeout
        killer = threading.Timer(self._drain_timeout + LAST_CALL_S, os._exit, (1,))
        killer.daemon = True
        killer.start()
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(self._over.set)

    async def _look_at_log(self) -> None:
        """Native code that fills the log tells nobody."""
        while self._own_log is not None:
            self._own_log.look()
            await anyio.sleep(LOOK_AT_LOG_S)

    async def _until_signal(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self._over.set()

    def say(self, report: Ready | Over) -> None:
        try:
            os.write(self._report, pack(report))
        except BrokenPipeError:
            log.debug("nobody is there to take the report")


def main() -> int:
    try:
        start, report = take_pipes(Start)
    except EOFError:
        return 1
    own = None
    if start.log_file:
        own = log_to_file(Path(start.log_file), start.name, start.log_level)
    else:
        logging.basicConfig(level=start.log_level.upper(), format=FORMAT, stream=sys.stderr)
    return anyio.run(Worker(start, report, own).run, backend_options=backend_options())


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Threads of a native library must not hold up the end of a process whose actors are all stopped.
    os._exit(code)
