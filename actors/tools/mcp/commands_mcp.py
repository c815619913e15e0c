"""`callboard tool mcp`: MCP servers whose tools the company uses. `serve` has a module of its own."""

from __future__ import annotations

import contextlib
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....runtime.command import Command, add_bus_options, add_json_option, run_async
from .commands_serve import add_serve_options, serve

if TYPE_CHECKING:
    from ....runtime.client import Client
    from ....schemas.mcp import McpStatus
    from .config import ServerConfig

STOP_S = 10.0


class _CommandAtTheEnd(ArgumentParser):
    """What follows `--` is a command line with options of its own: argparse would look for ours in it."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]  # its overloads say no more
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        ours, command = given, None
        if "--" in given:
            at = given.index("--")
            ours, command = given[:at], given[at + 1 :]
        found, left = super().parse_known_args(ours, namespace)
        if command is None:
            return found, left
        if not hasattr(found, "command"):
            self.error("it takes no command line after --")
        found.command = command
        return found, left


def _configure(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(
        dest="mcp_action", metavar="[add|list|remove|start|stop|import|serve]", parser_class=_CommandAtTheEnd
    )
    parser.set_defaults(do_mcp=_list)
    made: list[ArgumentParser] = []

    def action(name: str, do: Any, help: str) -> ArgumentParser:
        one = actions.add_parser(name, argument_default=SUPPRESS, help=help)
        one.set_defaults(do_mcp=do)
        made.append(one)
        return one

    add = action("add", _add, "configure a server, and start it where the company runs")
    add.usage = "%(prog)s NAME [options] (-- COMMAND [ARGUMENT ...] | --url URL)"
    add.add_argument("name", metavar="NAME", help="its tools are called NAME.tool")
    add.set_defaults(command=[])
    add.add_argument("--url", default="", help="of a server that runs already (Streamable HTTP)")
    add.add_argument("--sse", action="store_true", default=False, help="the URL speaks the older SSE transport")
    add.add_argument(
        "--env", action="append", default=[], metavar="KEY=VALUE", help="for the program; ${NAME} is filled in"
    )
    add.add_argument("--header", action="append", default=[], metavar="'KEY: VALUE'", help="for the URL")
    add.add_argument("--cwd", default="", metavar="DIR", help="where the program runs")
    add.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of a call")
    add.add_argument("--tools", action="append", default=[], metavar="PATTERN", help="only these of its tools")
    add.add_argument(
        "--sampling", choices=("refuse", "ask", "allow"), default="refuse", help="whether it may use the model here"
    )
    add.add_argument("--no-elicitation", action="store_true", default=False, help="it may not ask people")
    add.add_argument(
        "--no-hints", action="store_true", default=False, help="its word on what is harmless does not count"
    )
    add.add_argument("--replace", action="store_true", default=False, help="in the place of one of that name")
    add.add_argument("--no-start", action="store_true", default=False, help="write it down only")

    action("list", _list, "those that are configured, and how they stand")
    remove = action("remove", _remove, "stop a server and forget it")
    start = action("start", _start, "start servers: all that do not run, or those named")
    stop = action("stop", _stop, "stop servers until they are started again")
    import_ = action("import", _import, "take over servers from another host's file of mcpServers")
    import_.add_argument("source", type=Path, metavar="FILE")
    import_.add_argument("names", nargs="*", default=[], metavar="NAME", help="only these")
    import_.add_argument("--replace", action="store_true", default=False, help="in the place of those of the same name")
    remove.add_argument("names", nargs="+", metavar="NAME")
    stop.add_argument("names", nargs="+", metavar="NAME")
    start.add_argument("names", nargs="*", default=[], metavar="NAME")

    add_serve_options(action("serve", serve, "be an MCP server: over stdio, or over HTTP"))
    for one in made:
        one.add_argument("--file", default="", metavar="FILE", help="of mcpServers (default: in the state folder)")
        add_json_option(one)
        add_bus_options(one)
    parser.add_argument("--file", default="", metavar="FILE", help="of mcpServers (default: in the state folder)")
    add_json_option(parser)
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    return run_async(args.do_mcp, args)


def _file(args: Namespace) -> Path:
    from .config import default_file

    return Path(args.file).absolute() if args.file else default_file(args.state_dir)


# add, import, remove


async def _add(args: Namespace) -> int:
    from ....runtime.errors import ConfigError
    from .config import SamplingPolicy, ServerConfig, read_servers, write_servers

    server = ServerConfig(
        type="sse" if args.sse else "",
        command=args.command[0] if args.command else "",
        args=tuple(args.command[1:]),
        env=dict(_pair(one, "=", "--env") for one in args.env),
        cwd=args.cwd,
        url=args.url,
        headers=dict(_pair(one, ":", "--header") for one in args.header),
        timeout_s=args.timeout,
        tools=tuple(args.tools) or ("*",),
        sampling=SamplingPolicy(args.sampling),
        elicitation=not args.no_elicitation,
        hints=not args.no_hints,
    )
    server.check(args.name)
    path = _file(args)
    servers = read_servers(path)
    if args.name in servers and not args.replace:
        raise ConfigError(f"there is an MCP server {args.name} already", hint="--replace puts this in its place")
    write_servers(path, {**servers, args.name: server})
    print(f"{args.name} is in {path}", file=sys.stderr)
    return 0 if args.no_start else await _start_now(args, {args.name: server}, again=True)


def _pair(text: str, mark: str, flag: str) -> tuple[str, str]:
    from ....runtime.errors import UsageError

    key, found, value = text.partition(mark)
    if not (found and key.strip()):
        # The text itself may be a key: it is not repeated.
        raise UsageError(f"{flag} takes KEY{mark}VALUE")
    return key.strip(), value.strip() if mark == ":" else value


async def _import(args: Namespace) -> int:
    from ....runtime.errors import ConfigError
    from .config import read_servers, write_servers
    from .errors import NoSuchServer

    found = read_servers(args.source, missing_ok=False)
    for name in args.names:
        if name not in found:
            raise NoSuchServer(f"{args.source} has no server {name}", hint=f"it has: {', '.join(found) or 'none'}")
    wanted = {name: server for name, server in found.items() if not args.names or name in args.names}
    path = _file(args)
    servers = read_servers(path)
    twice = [name for name in wanted if name in servers]
    if twice and not args.replace:
        raise ConfigError(f"there is an MCP server {twice[0]} already", hint="--replace puts the new one in its place")
    write_servers(path, {**servers, **wanted})
    for name in wanted:
        print(name)
    return await _start_now(args, {name: one for name, one in wanted.items() if not one.disabled}, again=True)


async def _remove(args: Namespace) -> int:
    from .config import read_server, read_servers, write_servers

    path = _file(args)
    for name in args.names:
        read_server(path, name)
    await _stop_those(args, args.names)
    write_servers(path, {name: one for name, one in read_servers(path).items() if name not in args.names})
    return 0


# start, stop


async def _start(args: Namespace) -> int:
    from .config import read_server, read_servers

    path = _file(args)
    servers = {name: read_server(path, name) for name in args.names} or {
        name: server for name, server in read_servers(path).items() if not server.disabled
    }
    return await _start_now(args, servers, again=False, must=True)


async def _start_now(args: Namespace, servers: dict[str, ServerConfig], *, again: bool, must: bool = False) -> int:
    """Start actors for servers, and say how each stands. Without a company that waits, unless `must`."""
    from ....runtime.commands_actors import client_of, to_json
    from ....runtime.errors import NotReachable
    from ....schemas.tool import OfferTools
    from ..client import ask_directory

    failed = False
    try:
        async with client_of(args) as bus:
            for name, server in servers.items():
                if again and await _status(bus, name) is not None:
                    await bus.stop(name, STOP_S)
                if args.file:  # the directory knows the company's own file alone
                    await _start_from(bus, name, server, str(_file(args)))
                else:
                    await ask_directory(bus.node, OfferTools(name))
                status = await _status(bus, name, server.start_s)
                failed |= status is None or not status.connected
                if args.json:
                    print(to_json(status))
                elif status is not None:
                    _say(status)
    except NotReachable:
        if must:
            raise
        print("the company does not run: `callboard tool mcp start` starts what is configured", file=sys.stderr)
    return 1 if failed else 0


async def _start_from(bus: Client, name: str, server: ServerConfig, file: str) -> None:
    """In a process with the role of a tool, as the directory starts those of the company's own file."""
    from ....runtime.errors import NameTaken
    from .asking import BOARD, BOARD_KIND
    from .server_actor import KIND, McpConfig
    from .starting import asks_of

    asks = asks_of(server)
    if BOARD in asks:  # the server's process may not start it
        with contextlib.suppress(NameTaken):
            await bus.spawn(BOARD_KIND, name=BOARD)
    try:
        await bus.spawn(KIND, McpConfig(name, file), name=name, process=True, role="tool", asks=asks)
    except NameTaken:
        if await _status(bus, name) is None:
            raise


def _say(status: McpStatus) -> None:
    if not status.connected:
        print(f"{status.name} is not connected: {status.error}", file=sys.stderr)
        return
    print(
        f"{status.name}: {len(status.tools)} tools of {status.implementation or 'an unnamed server'}", file=sys.stderr
    )
    for tool in status.tools:
        print(tool)
    for refused in status.refused:
        print(f"{refused.name} is not offered: {refused.why}", file=sys.stderr)


async def _status(bus: Client, name: str, wait_s: float = 0.0) -> McpStatus | None:
    from ....runtime.errors import NoSuchActor, NotUnderstood
    from ....schemas.mcp import GetMcpStatus

    try:
        return await bus.actor(name).ask(GetMcpStatus(wait_s), wait_s + 10.0)
    except (NoSuchActor, NotUnderstood):
        return None


async def _stop(args: Namespace) -> int:
    stopped = await _stop_those(args, args.names)
    for name in args.names:
        if name not in stopped:
            print(f"{name} does not run", file=sys.stderr)
    return 0


async def _stop_those(args: Namespace, names: list[str]) -> list[str]:
    from ....runtime.commands_actors import client_of
    from ....runtime.errors import NotReachable

    stopped: list[str] = []
    try:
        async with client_of(args) as bus:
            for name in names:
                if await _status(bus, name) is not None:
                    await bus.stop(name, STOP_S)
                    stopped.append(name)
    except NotReachable:
        print("the company does not run", file=sys.stderr)
    return stopped


# list


async def _list(args: Namespace) -> int:
    from ....runtime.commands_actors import client_of, to_json
    from ....runtime.errors import NotReachable
    from ....runtime.tables import print_table
    from .config import read_servers

    servers = read_servers(_file(args))
    found: dict[str, McpStatus | None] = dict.fromkeys(servers)
    try:
        async with client_of(args) as bus:
            for name in servers:
                found[name] = await _status(bus, name)
    except NotReachable:
        print("the company does not run", file=sys.stderr)
    if args.json:
        shown = [
            {"name": name, "transport": server.transport.value, "server": server.shown, "disabled": server.disabled}
            | {"status": found[name]}
            for name, server in servers.items()
        ]
        print(to_json(shown))
        return 0
    if not servers:
        print("no MCP servers are configured: `callboard tool mcp add NAME -- command`", file=sys.stderr)
        return 0
    rows: list[tuple[str, ...]] = [("NAME", "TRANSPORT", "SERVER", "STATE", "TOOLS")]
    for name, server in servers.items():
        status = found[name]
        state = "disabled" if server.disabled else "stopped"
        if status is not None:
            state = "connected" if status.connected else status.error
        tools = "-" if status is None else str(len(status.tools))
        rows.append((name, server.transport.value, server.shown, state, tools))
    print_table(rows)
    return 0


mcp = Command(
    "other people's tools by the Model Context Protocol, and the company's tools for other hosts",
    _configure,
    _run,
    details="examples:\n"
    "  callboard tool mcp add files -- npx -y @modelcontextprotocol/server-filesystem ~/papers\n"
    "  callboard tool mcp add wiki --url https://example.com/mcp --header 'Authorization: Bearer ${WIKI_KEY}'\n"
    "  callboard tool mcp serve --http 127.0.0.1:8808",
)
