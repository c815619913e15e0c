"""Errors of MCP servers whose tools the company uses.

ToolError                       tool
├── ToolServerAway              tool.server_away     it does not run, or the connection broke in mid-call
├── ToolServerFailed            tool.server_failed   an answer that the protocol does not allow, or an error
└── NoSuchServer                tool.server_none     no MCP server of that name is configured
"""

from __future__ import annotations

from ..errors import ToolError


class ToolServerAway(ToolError):
    code = "tool.server_away"
    default_hint = (
        "it is started again by itself: call again in a moment; `callboard tool mcp list` shows how it stands"
    )


class ToolServerFailed(ToolError):
    code = "tool.server_failed"
    default_hint = "the server is at fault, not the arguments: tell its author"


class NoSuchServer(ToolError):
    code = "tool.server_none"
    default_hint = "`callboard tool mcp list` shows those that are configured"
