"""A node with an MCP server of many antics, over stdio or HTTP, and ways to speak to its tools."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from callboard.actors.questions.board import Board
from callboard.actors.tools.client import OpenedTool, open_tool
from callboard.actors.tools.directory import Directory
from callboard.actors.tools.mcp.config import ServerConfig, write_servers
from callboard.actors.tools.mcp.server_actor import McpConfig, McpServer
from callboard.runtime.client import Client
from callboard.runtime.node import Node
from callboard.runtime.processes import dying_with_us
from callboard.schemas.mcp import GetMcpStatus, McpStatus
from callboard.schemas.question import ListQuestions, Question

ANTICS = str(Path(__file__).with_name("mcp_antics.py"))
KEY = "sesame-open-7"


class Company:
    """A node with a directory, a board and one MCP server under the name `antics`."""

    def __init__(self, node: Node, tmp_path: Path) -> None:
        self.node = node
        self.bus = Client(node)
        self.file = tmp_path / "mcp.json"
        self.diary = tmp_path / "diary"

    async def open(self) -> Company:
        await self.node.spawn(Directory, name="tools")
        await self.node.spawn(Board, name="questions")
        return self

    async def start(self, *flags: str, url: str = "", name: str = "antics", **more: Any) -> McpStatus:
        if url:
            config = ServerConfig(url=url, **more)
        else:
            more.setdefault("env", {"API_KEY": KEY, "REMOTE_SCHEMA": "https://example.com/schema.json"})
            arguments = (ANTICS, "--diary", str(self.diary), *flags)
            config = ServerConfig(command=sys.executable, args=arguments, **more)
        write_servers(self.file, {name: config})
        await self.node.spawn(McpServer, McpConfig(file=str(self.file)), name=name)
        return await self.status(name=name)

    async def status(self, wait_s: float = 20.0, name: str = "antics") -> McpStatus:
        return await self.node.actor(name).ask(GetMcpStatus(wait_s), 30.0)

    @asynccontextmanager
    async def tool(self, name: str) -> AsyncIterator[OpenedTool]:
        async with open_tool(self.bus, f"antics.{name}") as tool:
            yield tool

    async def call(self, name: str, **arguments: Any) -> Any:
        async with self.tool(name) as tool:
            return await tool.call(**arguments)

    async def has_noted(self, text: str, times: int = 1) -> None:
        with anyio.fail_after(20):
            while not self.diary.exists() or self.diary.read_text().splitlines().count(text) < times:
                await anyio.sleep(0.01)

    def pids(self) -> list[int]:
        return [int(line.split()[1]) for line in self.diary.read_text().splitlines() if line.startswith("pid ")]

    async def question(self) -> Question:
        with anyio.fail_after(20):
            while not (found := (await self.node.actor("questions").ask(ListQuestions())).questions):
                await anyio.sleep(0.01)
        return found[0]

    async def no_question(self) -> None:
        with anyio.fail_after(20):
            while (await self.node.actor("questions").ask(ListQuestions())).questions:
                await anyio.sleep(0.01)


@pytest.fixture
async def company(node: Node, tmp_path: Path) -> Company:
    return await Company(node, tmp_path).open()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class OverHttp:
    """Starts the server with HTTP, and ends it."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *flags: str, port: int = 0) -> str:
        """Its URL, once it can be reached."""
        port = port or free_port()
        command = [sys.executable, ANTICS, "--http", str(port), *flags]
        process = subprocess.Popen(dying_with_us(command), env={**os.environ, "API_KEY": KEY})
        self._started.append(process)
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return f"http://127.0.0.1:{port}/mcp"
            except ConnectionRefusedError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.02)

    def stop(self) -> None:
        while self._started:
            process = self._started.pop()
            process.kill()
            process.wait()


@pytest.fixture
def over_http() -> Iterator[OverHttp]:
    servers = OverHttp()
    yield servers
    servers.stop()
