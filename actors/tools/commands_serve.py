"""`callboard tool serve FILE.py|MODULE`: this process joins the company and offers its tools until it is told to go."""

from __future__ import annotations

import contextlib
import importlib
import re
import secrets
import signal
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import anyio

from ...runtime.command import Command, add_bus_options, run_async, settings_of, tls_of
from ...runtime.errors import CallboardError, ConfigError
from ...schemas.tool import ListTools, OfferTools


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="FILE.py|MODULE[:ATTRIBUTE]", help="all tools that it defines, or those of one attribute"
    )
    parser.add_argument("--name", default="", help="what the set is called (default: as the file or module)")
    parser.add_argument("--version", default="", help="the version to offer them as (default: their own)")
    parser.add_argument(
        "--options", default="", metavar="JSON", help="for the function that makes the tools, if one does"
    )
    add_bus_options(parser)


def _serve(args: Namespace) -> int:
    import logging

    logging.basicConfig(level=settings_of(args).log_level.upper(), format="%(levelname)s %(message)s")
    return run_async(_run, args)


async def _run(args: Namespace) -> int:
    from ...runtime.access import bus_access
    from ...runtime.node import Node
    from .directory import ADDRESS
    from .tool_set import ToolSetConfig

    module, load = load_source(args.source)
    name = args.name or re.sub(r"[^A-Za-z0-9_-]", "-", module.rpartition(".")[2])
    process = f"{name[:50]}-{secrets.token_hex(3)}"
    over = anyio.Event()
    put_out: list[CallboardError] = []

    def on_put_out(error: CallboardError) -> None:
        put_out.append(error)
        over.set()

    options = bus_access(
        process, nats=args.nats or "", creds=args.creds or "", state_dir=args.state_dir, tls=tls_of(args)
    )
    async with options as bus:
        node = Node(process, bus=bus, allow=(module,), drain_timeout=settings_of(args).drain_timeout)
        node.on_put_out = on_put_out
        async with node, anyio.create_task_group() as tasks:
            config = ToolSetConfig(load, name, args.version, args.options)
            # Another version of the same tools has that address where it is taken; their name stays the same.
            address = name if not args.version else f"{name}-{re.sub(r'[^A-Za-z0-9_-]', '_', args.version)}"
            ref = await node.spawn("tool.set", config, name=address)
            for info in (await ref.ask(ListTools())).tools:
                print(f"offers {info.name}{'@' + info.version if info.version else ''}", file=sys.stderr)
            with contextlib.suppress(CallboardError):  # a directory that is not there yet finds it when it is
                await node.actor(ADDRESS).ask(OfferTools(address))
            print(f"{address} is on {bus.url}; Ctrl-C ends it", file=sys.stderr, flush=True)
            tasks.start_soon(_until_signal, over)
            await over.wait()
            tasks.cancel_scope.cancel()
    if put_out:
        raise put_out[0]
    return 0


def load_source(source: str) -> tuple[str, str]:
    """The module that `source` is loaded as, and what a set of its tools is loaded by. Raises ConfigError."""
    from ...runtime.worker import load_file

    place, _, attribute = source.partition(":")
    if place.endswith(".py"):
        # As Python does for a program: what lies beside it can be imported.
        sys.path.insert(0, str(Path(place).expanduser().resolve().parent))
        module = load_file(str(Path(place).expanduser()))
    else:
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place).__name__
        except ModuleNotFoundError as error:
            raise ConfigError(f"there is no module '{place}': {error}", hint="a file is named with its .py") from error
    return module, f"{module}:{attribute}" if attribute else module


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
