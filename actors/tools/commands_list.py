"""`callboard tool list` and `callboard tool show`: which tools there are, and what one of them takes and gives."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

import msgspec

from ...runtime.command import Command, add_bus_options, add_json_option, run_async
from ...runtime.commands_actors import client_of, to_json
from ...runtime.tables import print_table
from ...schemas.tool import ToolInfo

# What of a description fits beside the other columns.
_WIDTH = 72


def _configure_list(parser: ArgumentParser) -> None:
    parser.add_argument("query", nargs="?", default="", metavar="QUERY", help="what it is to do: the best fit first")
    parser.add_argument("-n", "--limit", type=int, default=0, metavar="N", help="only the first N")
    add_json_option(parser)
    add_bus_options(parser)


def _list(args: Namespace) -> int:
    from .client import list_tools

    async def run() -> int:
        async with client_of(args) as bus:
            found = await list_tools(bus, args.query, limit=args.limit)
        if args.json:
            print(to_json([as_json(info) for info in found]))
            return 0
        rows: list[tuple[str, ...]] = [("NAME", "VERSION", "RUNS AT", "WHAT IT DOES")]
        rows += [(info.name, info.version, info.address or "-", _line(info.description)) for info in found]
        print_table(rows)
        return 0

    return run_async(run)


list_tools = Command(
    "list the tools there are, those that fit a query first",
    _configure_list,
    _list,
    details="A tool that runs nowhere yet is started when it is called.",
)


def _configure_show(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME[@VERSION]", help="a tool of `callboard tool list`")
    add_json_option(parser)
    add_bus_options(parser)


def _show(args: Namespace) -> int:
    from .client import list_tools
    from .relevance import newest

    async def run() -> int:
        async with client_of(args) as bus:
            info = newest(await list_tools(bus), args.name)
        if args.json:
            print(to_json(as_json(info)))
        else:
            _print(info)
        return 0

    return run_async(run)


show = Command("show what a tool does, takes and gives", _configure_show, _show)


def as_json(info: ToolInfo) -> dict[str, Any]:
    """With the schemas as JSON, not as texts of it."""
    schemas = {
        name: msgspec.json.decode(getattr(info, name) or "{}", type=Any) for name in ("input_schema", "output_schema")
    }
    return {**msgspec.to_builtins(info), **schemas}


def _line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def _print(info: ToolInfo) -> None:
    from .explain import describe

    inputs = msgspec.json.decode(info.input_schema or "{}", type=dict[str, Any])
    outputs = msgspec.json.decode(info.output_schema or "{}", type=dict[str, Any])
    marks = info.annotations
    said = [word for word in ("read_only", "destructive", "idempotent", "open_world") if getattr(marks, word)]
    print(f"{info.name}{'@' + info.version if info.version else ''}\n\n{info.description}\n")
    required = inputs.get("required", ())
    for name, part in inputs.get("properties", {}).items():
        default = f", default {to_json(part['default'])}" if "default" in part else ""
        needed = "" if name in required else ", may be left out"
        print(f"  {name}: {describe(part) or 'anything'}{needed}{default}")
        if "description" in part:
            print(f"      {part['description']}")
    print(f"\ngives:       {describe(outputs) or 'anything'}")
    print(f"annotations: {', '.join(said).replace('_', '-') or '-'}")
    print(f"limits:      {info.timeout:g} s a call, {info.concurrency} at once")
    print(f"runs at:     {info.address or 'nowhere yet: it is started when it is called'}")
