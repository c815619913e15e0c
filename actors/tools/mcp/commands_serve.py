"""`callboard tool mcp serve`: the company as an MCP server."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_serve_options(parser: ArgumentParser) -> None:
    parser.add_argument("--http", default="", metavar="HOST:PORT", help="over HTTP (port 0: any that is free)")
    parser.add_argument("--token-file", type=Path, default=None, metavar="FILE", help="whose token HTTP hosts show")
    parser.add_argument("--open", action="store_true", default=False, help="no token; on this machine only")
    parser.add_argument("--tools", action="append", default=[], metavar="PATTERN", help="only these tools")
    parser.add_argument("--read-only", action="store_true", default=False, help="only tools that change nothing")
    parser.add_argument("--no-models", action="store_true", default=False, help="no models as tools")
    parser.add_argument("--no-agents", action="store_true", default=False, help="no agents as tools")
    parser.add_argument(
        "--files", action="append", type=Path, default=[], metavar="DIR", help="files here may be named as media"
    )


async def serve(args: Namespace) -> int:
    from ....runtime.commands_actors import client_of
    from ....runtime.errors import MissingExtra, UsageError
    from ....runtime.folders import Paths

    try:
        from .host_server import HostServer
        from .offered_agents import AgentSource
        from .offered_models import ModelSource
        from .offered_tools import ToolSource
        from .serving import serve_http, serve_stdio, token_in
    except ImportError as error:
        raise MissingExtra.of("mcp", "being an MCP server") from error
    roots = tuple(folder.resolve() for folder in args.files)
    for root in roots:
        if not root.is_dir():
            raise UsageError(f"there is no folder {root}")
    async with client_of(args) as bus:
        models = None if args.no_models else ModelSource(bus)
        tools = ToolSource(bus, args.tools or ["*"], read_only=args.read_only, roots=roots)
        agents = [] if args.no_agents or args.read_only else [AgentSource(bus)]
        host = HostServer(bus, [tools, *([models] if models is not None else []), *agents], models)
        if not args.http:
            if sys.stdin.isatty():
                print("an MCP host is to start this; Ctrl-D ends it", file=sys.stderr)
            await serve_stdio(host)
            return 0
        address, _, port = args.http.rpartition(":")
        if not port.isdigit():
            raise UsageError("--http takes HOST:PORT, 127.0.0.1:8808 say")
        file = args.token_file or Paths.find(args.state_dir).state / "mcp.token"
        token = "" if args.open else token_in(file)

        def ready(url: str) -> None:
            print(url, flush=True)
            if token:
                print(
                    f"hosts show the token that is in {file} (Authorization: Bearer ...)", file=sys.stderr, flush=True
                )

        await serve_http(host, address.strip("[]") or "127.0.0.1", int(port), token, ready)
    return 0
