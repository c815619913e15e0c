"""MCP servers whose tools the company uses: how each stands. Their tools are asked as all tools are."""

from __future__ import annotations

import msgspec

from .base import Message, Request


class RefusedTool(msgspec.Struct, frozen=True):
    """A tool that a server lists and that is not offered, and why."""

    name: str
    why: str


class McpStatus(Message, frozen=True, tag="mcp.status.result"):
    """`implementation`, `protocol`: what the server calls itself, and the version of MCP that is spoken with it.

    `error`: why it is not connected. `connections`: how often it has been, since its actor started.
    """

    name: str
    connected: bool
    error: str = ""
    implementation: str = ""
    protocol: str = ""
    connections: int = 0
    tools: tuple[str, ...] = ()
    refused: tuple[RefusedTool, ...] = ()


class GetMcpStatus(Request[McpStatus], frozen=True, tag="mcp.status"):
    """Ask a server's actor how it stands.

    `wait_s`: answered as soon as it is connected, or after so many seconds as it then is.
    """

    wait_s: float = 0.0
