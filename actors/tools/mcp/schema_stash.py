"""Keeps the SDK from compiling and running schemas of strangers: what a tool announces for its results is moved aside
as a listing comes in, and held against them by our own check, which nothing can make run for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....runtime.log import log

if TYPE_CHECKING:
    import mcp_types

_KEY = "callboard/outputSchema"


def stash_output_schemas(message: Any) -> None:
    """Change a message from the server in place, if it lists tools. Anything else is left as it is.

    What is no tool at all is left out: for the SDK the whole list would be wrong.
    """
    result = getattr(getattr(message, "message", None), "result", None)
    tools = result.get("tools") if isinstance(result, dict) else None
    if not isinstance(result, dict) or not isinstance(tools, list):
        return
    kept: list[Any] = []
    for tool in tools:
        if not (isinstance(tool, dict) and isinstance(tool.get("name"), str)):
            log.warning("an MCP server lists what is no tool: %.200r", tool)
            continue
        schema = tool.get("inputSchema")
        # Servers that take no arguments leave it out, and some leave out its type.
        tool["inputSchema"] = {"type": "object", **schema} if isinstance(schema, dict) else {"type": "object"}
        if "outputSchema" in tool:
            meta = tool.get("_meta")
            tool["_meta"] = {**(meta if isinstance(meta, dict) else {}), _KEY: tool.pop("outputSchema")}
        kept.append(tool)
    result["tools"] = kept


def output_schema_of(tool: mcp_types.Tool) -> dict[str, Any] | None:
    """What was moved aside, or what came another way."""
    found = (tool.meta or {}).get(_KEY, tool.output_schema)
    return found if isinstance(found, dict) else None
