"""`callboard node` joins the company with what this machine offers, `callboard nodes` lists who has joined."""

from __future__ import annotations

import logging
import signal
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

import anyio
import msgspec

from .command import Command, add_bus_options, add_json_option, paths_of, run_async, settings_of, tls_of
from .errors import CallboardError, ConfigError, UsageError, VersionMismatch
from .sizes import format_size, parse_size
from .tables import print_table

if TYPE_CHECKING:
    from .node import Node
    from .tls import Tls

# How long the daemon has to say hello to a node that joins. Without one nothing is placed here until it comes.
MAIN_TIMEOUT_S = 2.0


def _configure_node(parser: ArgumentParser) -> None:
    parser.add_argument("--name", default="", help="what it is called on the bus (default: made from the host's name)")
    parser.add_argument("--labels", default="", metavar="A,B=C", help="what it has that others may ask for: gpu,zone=a")
    parser.add_argument("--memory", default="", metavar="SIZE", help="memory to offer: 16GiB (default: the machine's)")
    parser.add_argument("--cpus", type=float, default=0.0, metavar="N", help="CPUs to offer (default: the machine's)")
    parser.add_argument(
        "--load", action="append", default=[], metavar="FILE", help="a Python file whose actor kinds it may run"
    )
    parser.add_argument(
        "--allow-tools-from",
        action="append",
        metavar="KEY",
        help="run the tools that this signer deploys (`callboard tool key show`); may be repeated",
    )
    parser.add_argument("--token", metavar="TOKEN", help="a join token from `callboard creds token`, with --nats URL")
    add_bus_options(parser)


def _node(args: Namespace) -> int:
    settings = settings_of(args, **{"node.allow_tools_from": args.allow_tools_from})
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    async def run() -> int:
        from .access import bus_access
        from .leases import Offer
        from .node import Node
        from .worker import load_file

        allow = tuple(load_file(path) for path in args.load)
        memory = parse_size(args.memory) if args.memory else 0
        offer = Offer(labels_of(args.labels), memory, args.cpus, settings.node.allow_tools_from)
        name = args.name or _host_name()
        tls = tls_of(args) or settings.tls
        creds = await _joined(args, name, tls) if args.token else args.creds or ""
        put_out: list[CallboardError] = []
        over = anyio.Event()

        def on_put_out(error: CallboardError) -> None:
            put_out.append(error)
            over.set()

        async with bus_access(name, nats=args.nats or "", creds=creds, state_dir=args.state_dir, tls=tls) as options:
            node = Node(
                name,
                bus=options,
                allow=allow,
                offer=offer,
                ask_timeout=settings.timeout,
                drain_timeout=settings.drain_timeout,
            )
            node.on_put_out = on_put_out
            node.on_drain = over.set
            async with node, anyio.create_task_group() as tasks:
                await _check_version(node)
                print(f"node {name} joined {options.url}", file=sys.stderr, flush=True)
                tasks.start_soon(_until_signal, over)
                await over.wait()
                tasks.cancel_scope.cancel()
                print(f"node {name} drains and leaves", file=sys.stderr, flush=True)
        if put_out:
            raise put_out[0]
        return 0

    return run_async(run)


async def _check_version(node: Node) -> None:
    """Raises VersionMismatch where the daemon is of a release that cannot work with this one."""
    from .. import __version__
    from ..schemas.runtime import PROTOCOL
    from .daemon import NAME

    links = node.require_links()
    until = node.loop.time() + MAIN_TIMEOUT_S
    while NAME not in links.peers.known and (left := until - node.loop.time()) > 0:
        await links.peers.news(left)
    main = links.peers.known.get(NAME)
    if main is None:
        print("no daemon is on this bus yet: nothing is placed here until it comes", file=sys.stderr, flush=True)
    elif main.info.protocol != PROTOCOL:
        raise VersionMismatch(
            f"the daemon is callboard {main.info.version} (protocol {main.info.protocol}), "
            f"this node {__version__} (protocol {PROTOCOL})"
        )


async def _joined(args: Namespace, name: str, tls: Tls) -> str:
    """The creds file that a join token was traded for. It lasts, so a restart of this node needs no other token."""
    from .files import private_folder, write_private
    from .joining import redeem

    if not args.nats:
        raise UsageError("a join token needs the address of the bus that it is for", hint="--nats URL")
    file = paths_of(args).state / "joined" / f"{name}.creds"
    private_folder(file.parent)
    if not file.is_file():
        write_private(file, await redeem(args.nats, args.token, name, tls))
    return str(file)


async def _until_signal(over: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            over.set()


def _host_name() -> str:
    """A name that no other node has: several may run on one host."""
    import re
    import secrets
    import socket

    host = re.sub("[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:48]
    return f"{host}-{secrets.token_hex(3)}"


def labels_of(text: str) -> tuple[str, ...]:
    """The labels of `gpu,zone=a`. Raises ConfigError for an empty one."""
    labels = tuple(label.strip() for label in text.split(",")) if text else ()
    if not all(labels):
        raise ConfigError(f"'{text}' names an empty label", hint="write them as gpu,zone=a")
    return labels


node = Command(
    "join the company: offer this machine to its actors",
    _configure_node,
    _node,
    details="The daemon places actors here when they ask for what this node offers (`callboard spawn --labels gpu`).\n"
    "SIGTERM and Ctrl-C drain it: work in hand finishes, and its actors move to other nodes that fit.",
)


def _configure_nodes(parser: ArgumentParser) -> None:
    add_json_option(parser)
    add_bus_options(parser)


def _nodes(args: Namespace) -> int:
    from .client import connect

    async def run() -> int:
        async with connect(args.nats or "", args.creds or "", state_dir=args.state_dir) as bus:
            found = [info for info in await bus.nodes() if info.node != bus.node.name]
        if args.json:
            print(msgspec.json.encode(found).decode())
            return 0
        rows: list[tuple[str, ...]] = [("NODE", "HOST", "PID", "VERSION", "ACTORS", "LABELS", "MEMORY", "CPUS")]
        for info in found:
            offer = (
                (",".join(info.labels), format_size(info.memory), f"{info.cpus:g}") if info.accepts else ("", "", "")
            )
            rows.append((info.node, info.host, str(info.pid), info.version, str(len(info.roots)), *offer))
        print_table(rows)
        return 0

    return run_async(run)


nodes = Command("list the nodes on the bus and what each offers", _configure_nodes, _nodes)
