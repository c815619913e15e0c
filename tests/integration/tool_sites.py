"""A company with nodes that take tools: a daemon, `callboard node` processes on machines of their own, a signer.

A node here joins by a token, from other state and cache folders than the daemon's: as far as the two can tell, they are
on two hosts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from board import Board
from unit_helpers import unit_helper

from callboard.actors.tools.deploy.gather import Gathered, gather
from callboard.actors.tools.deploy.keys import Signer, new_signer
from callboard.runtime.client import Client
from callboard.schemas.tool import CallTool, Media, ToolResult

TOOLS = '''"""Tools that the tests deploy."""

import asyncio
import os
import signal
import time
from pathlib import Path

from callboard import File, ToolContext, tool

VERSION = "{version}"


@tool
def version() -> str:
    """Which version this is."""
    return VERSION


@tool
def pid() -> int:
    """The process that it runs in."""
    return os.getpid()


@tool
def flipped(file: File) -> File:
    """The same bytes, the first one flipped.

    Args:
        file: any file
    """
    data = bytearray(file.view)
    data[0] ^= 255
    return File.from_bytes(data, "application/octet-stream", "flipped")


@tool(timeout=50)
def wait_for(path: str, context: ToolContext) -> str:
    """Say that it began, wait until a file is there, and say which version waited.

    Args:
        path: the file
    """
    context.progress(1, 2, "waiting")
    while not Path(path).exists():
        time.sleep(0.01)
    return VERSION


@tool(timeout=50)
async def wait_for_ever(path: str) -> str:
    """Write down that it began, and that it was cancelled.

    Args:
        path: what the files' names begin with
    """
    Path(path + ".began").touch()
    try:
        await asyncio.Event().wait()
    finally:
        Path(path + ".over").touch()
    return ""


@tool
def die() -> str:
    """Kill its own process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return ""
'''


@dataclass
class Site:
    """`base` is a folder of the test's own."""

    board: Board
    base: Path
    signer: Signer
    nodes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    _readers: list[threading.Thread] = field(default_factory=list)

    @classmethod
    def at(cls, base: Path, **settings: str) -> Site:
        """`settings` are variables of the daemon's environment."""
        site = cls(Board.at(base / "main", **settings), base, new_signer(base / "signer.key"))
        site.board.up()
        return site

    def node(
        self,
        name: str,
        *labels: str,
        allow: Sequence[str] | None = None,
        before: Sequence[str] = (),
        url: str = "",
        **environment: str,
    ) -> None:
        """Start a node on another machine, so to speak, that takes tools of `allow` (default: the site's signer).

        `before` is what its command goes behind, `url` how it reaches the server."""
        token = self.board.run("creds", "token", "--role", "node").stdout.strip()
        far = Board.at(self.base / name, **environment)
        allowed = [self.signer.public] if allow is None else allow
        command = [*before, sys.executable, "-m", "callboard.runtime.cli", "node"]
        command += ["--nats", url or self.board.info().url, "--token", token]
        command += ["--name", name, "--labels", ",".join(labels)] if labels else ["--name", name]
        command += [word for key in allowed for word in ("--allow-tools-from", key)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **far.environment})
        self.nodes[name] = process
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if "joined" in line:
                break
        else:
            raise AssertionError("".join(lines))
        reader = threading.Thread(target=_drain, args=(process, self.base / f"{name}.log"), daemon=True)
        reader.start()
        self._readers.append(reader)

    def tools(self, version: str = "1.0", name: str = "kit", text: str = TOOLS) -> Gathered:
        file = self.base / f"source-{version}" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.replace("{version}", version))
        return gather(file, version=version)

    def log(self, name: str) -> str:
        return (self.base / f"{name}.log").read_text()

    def close(self) -> None:
        for process in self.nodes.values():
            process.kill()
            process.wait()
        for reader in self._readers:
            reader.join()
        self.board.close()


async def call(bus: Client, address: str, media: tuple[Media, ...] = (), **arguments: object) -> ToolResult:
    request = CallTool(msgspec.json.encode(arguments).decode(), media)
    async with bus.actor(address).stream(request) as items:
        async for _ in items:
            pass
        return items.result


async def value(bus: Client, address: str, **arguments: object) -> object:
    return msgspec.json.decode((await call(bus, address, (), **arguments)).value)


def make_wheel(folder: Path, name: str, version: str, modules: dict[str, str]) -> Path:
    return unit_helper("tools/deploy_wheels.py").make_wheel(folder, name, version, modules)


def _drain(process: subprocess.Popen[str], log: Path) -> None:
    assert process.stderr is not None
    with log.open("w") as file, process.stderr:
        for line in process.stderr:
            file.write(line)
            file.flush()
