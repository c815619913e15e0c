"""An actor in a process of its own, seen from the process that supervises it.

The child gets its orders on stdin and reports on stdout (frames.py). As long as its stdin is open its parent lives:
end of file means drain and go, so no child outlives its parent, whatever killed that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from ..schemas.base import ErrorInfo
from ..schemas.runtime import ActorInfo, NodeDown
from .access import mint_for_child
from .errors import ActorStopped, CallboardError, DeadlineExceeded, from_info
from .family import Child
from .frames import Over, RayOrders, Start, Stop, pack, read_report
from .log import log
from .placement import ChildSpec, Process
from .processes import whole
from .roles import process_role
from .supervision import Restart

if TYPE_CHECKING:
    pass

# How long a child that was told to go may take beyond its drain time before it is killed.
KILL_AFTER_S = 5.0


class ProcessChild(Child):
    """Starts the process, waits until its actor is ready, and reports its end to the family like any child's.

    The process may stand for one elsewhere: `_module` is what it runs, `_orders` what it is told.
    """

    __slots__ = ("_config", "_given_up", "_kind", "_node", "_process", "_watcher", "_where")

    _module = "callboard.runtime.worker"

    def __init__(self, spec: ChildSpec, where: Process) -> None:
        super().__init__(spec.address, spec.restart, spec.family)
        spec.node.require_links()
        self._node = spec.node
        self._kind = spec.kind_name
        self._config = spec.config_text
        self._where = where
        self._process: anyio.abc.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._given_up: CallboardError | None = None

    async def start(self) -> None:
        self.state = "starting"
        self.since = time.time()
        self._watcher = self._given_up = None
        self._process = process = await self._launch()
        if self.closed:
            _kill(process)
        assert process.stdout is not None
        reader = BufferedByteReceiveStream(process.stdout)
        try:
            with anyio.fail_after(self._where.ready_timeout):
                report = await read_report(reader)
        except (anyio.EndOfStream, anyio.IncompleteRead):
            await self._end(process)
            raise ActorStopped(f"the process of {self.address} ended before it was ready ({_exit(process)})") from None
        except TimeoutError:
            await self._end(process)
            raise DeadlineExceeded(
                f"{self.address} was not ready within {self._where.ready_timeout:g} s",
                hint="`callboard logs` shows what it was doing",
            ) from None
        except BaseException:
            await self._end(process)
            raise
        if isinstance(report, Over):
            await self._end(process)
            raise from_info(ErrorInfo(report.code, report.message, report.hint, report.detail))
        if self.closed:
            await self._end(process)
            raise ActorStopped(f"{self.address} was stopped while it started")
        self.state = "running"
        self._watcher = self._node.loop.create_task(self._watch(process, reader))

    async def _orders(self) -> Start | RayOrders:
        node = self._node
        options = node.require_links().options
        creds = await mint_for_child(
            node.require_links(), self.address, process_role(self._where.role, self._where.asks)
        )
        return Start(
            name=self.address,
            kind=self._kind,
            config=self._config,
            url=options.url,
            creds=creds.creds,
            account=creds.account if self._where.role == "node" else "",
            load=self._where.load,
            allow=(*node.allow, *self._where.allow),
            ask_timeout=node.ask_timeout,
            drain_timeout=node.drain_timeout,
            log_level=_log_level(),
            takeover=self.address in node.takes_over,
            restart=(self.supervised if self.restart is Restart.TEMPORARY else self.restart).value,
            log_file=str(node.logs / f"{self.address}.log") if node.logs is not None else "",
            tls=options.tls,
        )

    async def _launch(self) -> anyio.abc.Process:
        node = self._node
        orders = await self._orders()
        output = None
        if node.logs is not None:
            node.logs.mkdir(parents=True, exist_ok=True)
            output = (node.logs / f"{self.address}.log").open("ab")
        try:
            process = await whole(
                anyio.open_process(
                    [self._where.python or sys.executable, "-m", self._module, self.address],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    env={**os.environ, **self._where.env},
                    # A Ctrl-C at the terminal is for the parent, which drains its children.
                    start_new_session=True,
                )
            )
        finally:
            if output is not None:
                output.close()
        assert process.stdin is not None
        try:
            await process.stdin.send(pack(orders))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("%s ended before it took its orders", self.address)
        except BaseException:
            await self._end(process)
            raise
        return process

    async def _watch(self, process: anyio.abc.Process, reader: BufferedByteReceiveStream) -> None:
        """Wait for the end of the process, and say what ended it."""
        error: CallboardError | None = None
        try:
            report = await read_report(reader)
            if isinstance(report, Over) and report.code:
                error = from_info(ErrorInfo(report.code, report.message, report.hint, report.detail))
        except (anyio.EndOfStream, anyio.IncompleteRead):
            error = None
        await self._end(process)
        if self.closed:
            return
        if self._given_up is not None:
            error = self._given_up
        elif error is None and process.returncode != 0:
            error = ActorStopped(f"the process of {self.address} died ({_exit(process)})")
        self.state = "crashed"
        log.error("%s", error or f"the process of {self.address} ended", extra={"actor": self.address})
        links = self._node.links
        if links is not None:
            info = error.to_info() if error is not None else None
            links.peers.down(NodeDown(self.address, (self.address,), self.returns(error), info))
        self.family.child_ended(self, error)

    async def _end(self, process: anyio.abc.Process) -> None:
        """Close its stdin, which tells it to go; kill it when it does not; collect it."""
        with anyio.CancelScope(shield=True):
            if process.stdin is not None:
                await process.stdin.aclose()
            with anyio.move_on_after(KILL_AFTER_S) as patience:
                await process.wait()
            if patience.cancelled_caught:
                _kill(process)
                await process.wait()
            await process.aclose()

    async def stop(self, timeout: float) -> None:
        self.closed = True
        self.state = "stopping"
        process, watcher = self._process, self._watcher
        if process is not None and watcher is None:
            _kill(process)  # it has not begun, so it has nothing to finish
        elif process is not None and watcher is not None and not watcher.done():
            if process.stdin is not None:
                with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await process.stdin.send(pack(Stop(timeout)))
                await process.stdin.aclose()
            done, _ = await asyncio.wait([watcher], timeout=timeout + KILL_AFTER_S)
            if not done:
                log.error("%s did not end in time and is killed", self.address, extra={"actor": self.address})
                _kill(process)
                await asyncio.wait([watcher])
            links = self._node.links
            if links is not None:
                links.peers.down(NodeDown(self.address, (self.address,)))
        self.state = "stopped"

    def give_up(self, error: CallboardError) -> bool:
        """Kill the process: one that is stuck, or was stopped, hears nothing else."""
        if self.state != "running" or self._process is None:
            return False
        self._given_up = error
        _kill(self._process)
        return True

    def info(self) -> ActorInfo:
        return ActorInfo(
            address=self.address,
            kind=self._kind,
            state=self.state,
            node=self._node.name,
            pid=self._process.pid if self._process is not None else 0,
            restarts=self.restarts,
            place="process",
            since=self.since,
            supervisor=self.family.owner,
        )


def _kill(process: anyio.abc.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _exit(process: anyio.abc.Process) -> str:
    code = process.returncode
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _log_level() -> str:
    import logging

    return logging.getLevelName(log.getEffectiveLevel()).lower()
