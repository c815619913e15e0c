"""`callboard tool serve FILE.py|MODULE`: offers its tools until it is told to go.

The tools are a process of their own with the role `tool` on the bus, as announced and deployed ones are. This one runs
nothing of theirs: it starts that process, again when it dies, tells the company of its end, and takes it along.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

import anyio
import msgspec

from ...runtime.command import Command, add_bus_options, run_async, settings_of, tls_of
from ...runtime.errors import CallboardError, ConfigError, NameTaken, from_info
from ...runtime.placement import Process
from ...schemas.runtime import Terminated
from ...schemas.tool import ListTools, OfferTools

# A model may be loaded with the module.
READY_TIMEOUT_S = 120.0


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="FILE.py|MODULE[:ATTRIBUTE]", help="all tools that it defines, or those of one attribute"
    )
    parser.add_argument("--name", default="", help="what the set is called (default: as the file or module)")
    parser.add_argument("--version", default="", help="the version to offer them as (default: their own)")
    parser.add_argument(
        "--options", default="", metavar="JSON", help="for the function that makes the tools, if one does"
    )
    parser.add_argument(
        "--memory", default="", metavar="SIZE", help="that its process and what this starts may have, 2GiB say"
    )
    parser.add_argument("--processes", type=int, default=256, metavar="N", help="that it may start (default: 256)")
    add_bus_options(parser)


def _serve(args: Namespace) -> int:
    import logging

    logging.basicConfig(level=settings_of(args).log_level.upper(), format="%(levelname)s %(message)s")
    return run_async(_run, args)


async def _run(args: Namespace) -> int:
    from ...runtime.access import bus_access
    from ...runtime.node import Node
    from .directory import ADDRESS
    from .limits import limits_of
    from .tool_set import ToolSetConfig, asks_of

    source = parse_source(args.source)
    limits = limits_of(args.memory or 0, args.processes)
    name = args.name or re.sub(r"[^A-Za-z0-9_-]", "-", source.module.rpartition(".")[2])
    # Another version of the same tools has that address where it is taken; their name stays the same.
    address = name if not args.version else f"{name}-{re.sub(r'[^A-Za-z0-9_-]', '_', args.version)}"
    place = source.place(asks_of(_options(args.options)))
    process = f"{name[:50]}-{secrets.token_hex(3)}"
    over = anyio.Event()
    ended: list[CallboardError] = []

    def put_out(error: CallboardError) -> None:
        ended.append(error)
        over.set()

    options = bus_access(
        process, nats=args.nats or "", creds=args.creds or "", state_dir=args.state_dir, tls=tls_of(args)
    )
    async with options as bus:
        node = Node(process, bus=bus, drain_timeout=settings_of(args).drain_timeout)

        def on_terminated(event: Terminated) -> None:
            if event.restarting:
                node.watch_root(event.address)
            elif event.error is not None:
                put_out(from_info(event.error))
            else:
                over.set()

        node.on_put_out = put_out
        node.on_terminated = on_terminated
        async with node, anyio.create_task_group() as tasks:
            names = node.require_links().names
            # Before a user is minted under a name that is another's: its creds file would be in that one's place.
            for taken in (address, f"node.{address}"):
                if await names.answers(taken):
                    raise NameTaken(f"there is an actor {taken} on the bus already", hint="--name gives another name")
            config = ToolSetConfig(source.load, name, args.version, args.options, alone=True, limits=limits)
            ref = await node.spawn("tool.set", config, name=address, where=place)
            node.watch_root(address)
            for info in (await ref.ask(ListTools())).tools:
                print(f"offers {info.name}{'@' + info.version if info.version else ''}", file=sys.stderr)
            with contextlib.suppress(CallboardError):  # a directory that is not there yet finds it when it is
                await node.actor(ADDRESS).ask(OfferTools(address))
            print(f"{address} is on {bus.url}; Ctrl-C ends it", file=sys.stderr, flush=True)
            tasks.start_soon(_until_signal, over)
            await over.wait()
            tasks.cancel_scope.cancel()
    if ended:
        raise ended[0]
    return 0


@dataclass(frozen=True)
class Source:
    """What is served: `module` is loaded from `file`, or found in `folder`; a set of tools is loaded by `load`."""

    module: str
    load: str
    folder: Path
    file: Path | None = None

    def place(self, asks: tuple[str, ...]) -> Process:
        # As Python does for a program: what lies beside it can be imported.
        path = os.pathsep.join(filter(None, (str(self.folder), os.environ.get("PYTHONPATH", ""))))
        load = () if self.file is None else (str(self.file),)
        env = {"PYTHONPATH": path}
        return Process(env, load, READY_TIMEOUT_S, role="tool", asks=asks, allow=(self.module,))


def parse_source(source: str) -> Source:
    """What `FILE.py[:ATTRIBUTE]` or `MODULE[:ATTRIBUTE]` means. Nothing is loaded. Raises ConfigError."""
    place, _, attribute = source.partition(":")
    file = None
    module, folder = place, Path.cwd()
    if place.endswith(".py"):
        file = Path(place).expanduser().resolve()
        if not file.is_file():
            raise ConfigError(f"there is no file {place}")
        module, folder = file.stem, file.parent
    return Source(module, f"{module}:{attribute}" if attribute else module, folder, file)


def _options(text: str) -> dict[str, object]:
    """What `asks_of` looks at; whether the options fit is the set's own matter. Raises ConfigError."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, object])
    except msgspec.DecodeError as error:
        raise ConfigError(f"--options is no JSON object: {error}") from error


async def _until_signal(over: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            over.set()


serve = Command(
    "offer tools from this process until Ctrl-C",
    _configure,
    _serve,
    details="examples:\n"
    "  callboard tool serve my_tools.py\n"
    "  callboard tool serve my_tools.py --version 2    beside another version of the same tools",
)
