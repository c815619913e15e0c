"""The stdio transport of a client: a server as a child process, a JSON-RPC message a line.

In the place of the SDK's own, since a server is not trusted here: what it may send is bounded, garbage on its standard
output is counted rather than logged whole, its standard error goes to our log without the keys it was given, and the
kernel ends it when this process is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import mcp_types
from anyio.abc import ByteReceiveStream, Process
from mcp.client._transport import TransportStreams
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage

from ....runtime import die_with_parent
from ....runtime.log import log
from ....runtime.processes import whole
from .errors import ToolServerAway, ToolServerFailed

# Lines in a row that are no messages, after which a server is given up.
MAX_GARBAGE = 1000
# Of a line of garbage, and of the server's own log, what is shown.
SHOWN = 300
# Lines of a server's log that are taken over within a minute.
LINES_A_MINUTE = 600
# How long it may take to go, at each step.
CLOSE_S = 2.0


@dataclass
class StdioServer:
    """`why` is set when the connection has ended by itself."""

    name: str
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    max_message: int = 64 << 20
    secrets: tuple[str, ...] = ()
    why: Exception | None = None
    garbage: int = 0

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[TransportStreams]:
        """Start it. Leaving the block ends it: its input is closed, then it is asked to go, then killed.

        Raises ToolServerAway where the program cannot be started.
        """
        process = await self._start()
        to_session, read_stream = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write_stream, from_session = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, process, to_session)
                tasks.start_soon(self._write, process, from_session, to_session)
                tasks.start_soon(self._log, process)
                try:
                    yield read_stream, write_stream
                finally:
                    with anyio.CancelScope(shield=True):
                        await _end(process)
                    tasks.cancel_scope.cancel()
        finally:
            for stream in (to_session, read_stream, write_stream, from_session):
                stream.close()

    async def _start(self) -> Process:
        environment = {**get_default_environment(), **self.env}
        program = shutil.which(self.command, path=environment.get("PATH"))
        if program is None:
            raise ToolServerAway(
                f"MCP server {self.name}: there is no program {self.command}", hint="install it, or give its whole path"
            )
        command = [program, *self.args]
        if sys.platform == "linux":
            script = str(Path(die_with_parent.__file__))
            command = [sys.executable, "-I", "-S", script, str(os.getpid()), str(int(signal.SIGKILL)), *command]
        try:
            return await whole(
                anyio.open_process(command, env=environment, cwd=self.cwd or None, start_new_session=True)
            )
        except OSError as error:
            raise ToolServerAway(f"MCP server {self.name} cannot be started: {error.strerror}") from error

    async def _read(self, process: Process, to_session: Any) -> None:
        assert process.stdout is not None
        in_a_row = 0
        async with to_session:
            try:
                async for line in _lines(process.stdout, self.max_message):
                    if not line.strip():
                        continue
                    try:
                        message = mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                    except ValueError:
                        in_a_row += 1
                        self._say_garbage(line)
                        if in_a_row > MAX_GARBAGE:
                            self.why = ToolServerFailed(
                                f"MCP server {self.name} writes what is no message to its standard output"
                            )
                            return
                        continue
                    in_a_row = 0
                    await to_session.send(SessionMessage(message))
                self.why = ToolServerAway(f"MCP server {self.name} has ended")
            except _LineTooLong:
                self.why = ToolServerFailed(
                    f"MCP server {self.name} sent a message of more than {self.max_message} bytes",
                    hint="raise `max_message` of the server if that is meant",
                )
            except (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
                self.why = self.why or ToolServerAway(f"MCP server {self.name} has ended")

    def _say_garbage(self, line: bytes) -> None:
        self.garbage += 1
        # 1, 2, 4, 8...: a server that prints one line has it told, one that prints thousands does not fill the log.
        if self.garbage & (self.garbage - 1) == 0:
            shown = self.blotted(line[:SHOWN].decode(errors="replace"))
            log.warning("MCP server %s printed what is no message (%d so far): %r", self.name, self.garbage, shown)

    async def _write(self, process: Process, from_session: Any, to_session: Any) -> None:
        assert process.stdin is not None
        try:
            async with from_session:
                async for message in from_session:
                    text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                    await process.stdin.send(text.encode() + b"\n")
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            # The session sees the end of the connection rather than wait for answers that cannot come.
            self.why = self.why or ToolServerAway(f"MCP server {self.name} has closed its standard input")
            to_session.close()

    async def _log(self, process: Process) -> None:
        assert process.stderr is not None
        minute, said = -1, 0
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            async for line in _lines(process.stderr, SHOWN * 4, cut=True):
                if int(anyio.current_time() / 60) != minute:
                    minute, said = int(anyio.current_time() / 60), 0
                said += 1
                if said == LINES_A_MINUTE:
                    log.info("mcp %s: (more than %d lines a minute are left out)", self.name, LINES_A_MINUTE)
                elif said < LINES_A_MINUTE and line.strip():
                    log.info("mcp %s: %s", self.name, self.blotted(line.decode(errors="replace").rstrip())[:SHOWN])

    def blotted(self, text: str) -> str:
        """Without the values that the configuration gave the server."""
        for secret in self.secrets:
            text = text.replace(secret, "•••")
        return text


class _LineTooLong(Exception):
    pass


async def _lines(stream: ByteReceiveStream, limit: int, *, cut: bool = False) -> AsyncIterator[bytes]:
    """The stream's lines. One over the limit raises `_LineTooLong`, or with `cut` loses its end."""
    kept = bytearray()
    skipping = False
    while True:
        try:
            piece = await stream.receive(65536)
        except anyio.EndOfStream:
            break
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            if not skipping:
                kept += piece[start:end]
                yield bytes(kept)
            kept.clear()
            skipping = False
            start = end + 1
        if not skipping:
            kept += piece[start:]
        if len(kept) > limit:
            if not cut:
                raise _LineTooLong
            yield bytes(kept[:limit])
            kept.clear()
            skipping = True
    if kept and not skipping:
        yield bytes(kept)


async def _end(process: Process) -> None:
    """As the protocol says: close its input, wait, ask it and all it started to go, kill them."""
    if process.stdin is not None:
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            await process.stdin.aclose()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with anyio.move_on_after(CLOSE_S):
            await _gone(process)
        # Where it has gone, those that it started may be left.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
    with anyio.move_on_after(CLOSE_S):
        await _gone(process)
    await process.aclose()


async def _gone(process: Process) -> None:
    """Its end alone: `wait` would also wait for whoever else holds its pipes."""
    if sys.platform != "linux":
        while process.returncode is None:
            await anyio.sleep(0.01)  # there are no pidfds, and nothing else tells of this end without reaping it
        return
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        await anyio.wait_readable(handle)
    finally:
        os.close(handle)
