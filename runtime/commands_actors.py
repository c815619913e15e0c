"""`callboard actors`, `spawn`, `stop`, `restart`, `publish`, `listen`: the company from a terminal."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import msgspec

from .command import Command, add_bus_options, add_json_option, run_async, tls_of
from .errors import UsageError, from_info
from .messages import UNDECODABLE
from .tables import print_table

if TYPE_CHECKING:
    from .client import Client
    from .placement import OnNode, Ray


def client_of(args: Namespace) -> AbstractAsyncContextManager[Client]:
    """A connection as the options of `add_bus_options` say."""
    from .client import connect

    return connect(args.nats or "", args.creds or "", state_dir=args.state_dir, tls=tls_of(args))


def to_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def positive(text: str) -> float:
    """A number of seconds on the command line."""
    value = float(text)
    if not value > 0:
        raise ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"must be 1 or more, not {text}")
    return value


_EXAMPLE = '{"type": "bench.add", "amount": 3}'


# actors


def _configure_actors(parser: ArgumentParser) -> None:
    parser.add_argument("prefix", nargs="?", default="", help="only this actor and those below it")
    add_json_option(parser)
    add_bus_options(parser)


def _actors(args: Namespace) -> int:
    async def run() -> int:
        async with client_of(args) as bus:
            found = [info for info in await bus.actors(args.prefix) if info.node != bus.node.name]
        if args.json:
            print(to_json(found))
            return 0
        rows: list[tuple[str, ...]] = [
            ("ADDRESS", "KIND", "STATE", "NODE", "PID", "WAITING", "DONE", "ERRORS", "RESTARTS")
        ]
        for info in found:
            numbers = map(str, (info.pid, info.mailbox, info.processed, info.errors, info.restarts))
            rows.append((info.address, info.kind, info.state, info.node, *numbers))
        print_table(rows)
        return 0

    return run_async(run)


actors = Command("list the actors on the bus", _configure_actors, _actors)


# spawn, stop, restart


def _configure_spawn(parser: ArgumentParser) -> None:
    parser.add_argument("kind", help="a registered kind of actor")
    parser.add_argument("--name", default="", help="its address; made up from the kind if not given")
    parser.add_argument("--config", default="{}", metavar="JSON", help="its configuration")
    parser.add_argument("--process", action="store_true", help="in a process of its own")
    parser.add_argument("--on-node", action="store_true", help="on another node that has joined (`callboard node`)")
    parser.add_argument("--labels", default="", metavar="A,B=C", help="on a node with these labels")
    parser.add_argument("--memory", default="", metavar="SIZE", help="with so much memory, on a node or in Ray: 4GiB")
    parser.add_argument("--cpus", type=float, default=0.0, metavar="N", help="on a node with so many CPUs to give")
    parser.add_argument("--ray-cpus", type=float, metavar="N", help="on a Ray cluster, with so many of its CPUs")
    parser.add_argument("--ray-gpus", type=float, metavar="N", help="on a Ray cluster, with so many of its GPUs")
    parser.add_argument(
        "--ray-address",
        default="",
        metavar="HOST:PORT",
        help="of that cluster (default: RAY_ADDRESS, or this machine's)",
    )
    parser.add_argument(
        "--restart", choices=("permanent", "transient", "temporary"), default="permanent", help="when it is restarted"
    )
    add_json_option(parser)
    add_bus_options(parser)


def _spawn(args: Namespace) -> int:
    from .supervision import Restart

    where = _where(args)

    async def run() -> int:
        async with client_of(args) as bus:
            ref = await bus.spawn(
                args.kind,
                args.config,
                name=args.name,
                process=args.process,
                where=where,
                restart=Restart(args.restart),
            )
        print(to_json({"address": ref.address}) if args.json else ref.address)
        return 0

    return run_async(run)


def _where(args: Namespace) -> OnNode | Ray | None:
    from .commands_node import labels_of
    from .placement import OnNode, Ray
    from .sizes import parse_size

    memory = parse_size(args.memory) if args.memory else 0
    on_node = args.on_node or args.labels or args.cpus
    if args.ray_cpus is not None or args.ray_gpus is not None or args.ray_address:
        if on_node or args.process:
            raise UsageError("an actor lives in one place", hint="leave out --process and what is said of nodes")
        cpus = 1.0 if args.ray_cpus is None else args.ray_cpus
        return Ray(cpus, args.ray_gpus or 0.0, memory, address=args.ray_address or "auto")
    if on_node or memory:
        return OnNode(labels_of(args.labels), memory, args.cpus)
    return None


spawn = Command("start an actor under the daemon's supervision", _configure_spawn, _spawn)


def _configure_stop(parser: ArgumentParser) -> None:
    parser.add_argument("address", help="as `callboard actors` lists it")
    parser.add_argument(
        "--timeout", type=positive, default=10.0, metavar="S", help="seconds to finish what it has (default: 10)"
    )
    add_bus_options(parser)


def _stop(args: Namespace) -> int:
    async def run() -> int:
        async with client_of(args) as bus:
            await bus.stop(args.address, args.timeout)
        return 0

    return run_async(run)


stop = Command("end an actor: it finishes what it has and is not restarted", _configure_stop, _stop)


def _restart(args: Namespace) -> int:
    async def run() -> int:
        async with client_of(args) as bus:
            await bus.restart(args.address, args.timeout)
        return 0

    return run_async(run)


restart = Command("end an actor's present life and begin the next", _configure_stop, _restart)


# publish, listen


def _configure_publish(parser: ArgumentParser) -> None:
    parser.add_argument("subject", help="`actor.<address>` for an actor, `topic.<anything>` for whoever listens")
    parser.add_argument("message", help=f"JSON with a type: '{_EXAMPLE}'; - reads one from each line of stdin")
    parser.add_argument("--answer", action="store_true", help="wait for the actor's answer, or answers, and print them")
    parser.add_argument(
        "--timeout", type=positive, default=30.0, metavar="S", help="seconds to wait for an answer (default: 30)"
    )
    parser.add_argument("--trace", action="store_true", help="trace it: `callboard trace ID` then draws where it went")
    add_bus_options(parser)


def _publish(args: Namespace) -> int:
    if args.answer and not args.subject.startswith("actor."):
        raise UsageError(f"only an actor answers, and {args.subject} is none", hint="actors are at `actor.<address>`")
    only = None if args.message == "-" else _checked(args.message)

    async def run() -> int:
        from .stdin import stdin_lines

        async with client_of(args) as bus:

            async def send(message: bytes) -> None:
                if not args.answer:
                    await bus.publish_raw(args.subject, message)
                    return
                async for answer in bus.stream_raw(args.subject, message, args.timeout):
                    _print_answer(answer)

            async def send_all() -> None:
                if only is not None:
                    await send(only)
                    return
                number = 0
                async for line in stdin_lines():
                    number += 1
                    if line.strip():
                        await send(_checked(line, f"line {number}"))

            if not args.trace:
                await send_all()
                return 0
            with bus.trace(f"publish {args.subject}") as trace:
                print(f"trace {trace}", file=sys.stderr, flush=True)
                await send_all()
        return 0

    return run_async(run)


def _checked(text: str, what: str = "this") -> bytes:
    try:
        value = msgspec.json.decode(text)
    except UNDECODABLE as error:
        raise UsageError(f"{what} is no JSON: {error}", hint=f"a message looks like {_EXAMPLE}") from None
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise UsageError(f"{what} is no message: it has no type", hint=f"a message looks like {_EXAMPLE}")
    return msgspec.json.encode(value)


def _print_answer(data: bytes) -> None:
    from ..schemas.base import ErrorInfo

    try:
        error = msgspec.json.decode(data, type=ErrorInfo)
    except UNDECODABLE:
        print(data.decode(errors="backslashreplace"), flush=True)
        return
    raise from_info(error)


publish = Command(
    "publish a JSON message to an actor or a topic",
    _configure_publish,
    _publish,
    details="Without --answer nobody says whether an actor took the message: `callboard listen 'dead.>'` shows those "
    "that\nnone did.\n\nexamples:\n"
    '  callboard publish topic.news \'{"type": "news", "text": "hello"}\'\n'
    f"  callboard publish --answer actor.c '{_EXAMPLE}'",
)


def _configure_listen(parser: ArgumentParser) -> None:
    parser.add_argument("pattern", help="`*` is one token, `>` all that follow: topic.>, dead.>, tap.engine.>")
    parser.add_argument("-n", "--count", type=at_least_one, metavar="N", help="stop after so many messages")
    add_json_option(parser)
    add_bus_options(parser)


def _listen(args: Namespace) -> int:
    tokens = args.pattern.split(".")
    tapping = tokens[0] == "tap"
    if tokens[0] in ("actor", "*", ">"):
        raise UsageError(
            f"{args.pattern} takes in actor.>, and who listens there is taken for an actor",
            hint="`callboard listen 'tap.>'` shows what actors get, and `topic.>` what is published freely",
        )

    def show(subject: str, message: Any) -> None:
        if isinstance(message, bytes):
            message = message.decode(errors="backslashreplace")
        if args.json:
            print(to_json({"subject": subject, "message": message}), flush=True)
        elif isinstance(message, str):
            print(subject, message, flush=True)
        elif tapping:
            print(subject, "from", message["sender"] or "its process", to_json(message["message"]), flush=True)
        else:
            print(subject, to_json(message), flush=True)

    async def run() -> int:
        left = args.count
        async with client_of(args) as bus:
            source = bus.tap_raw(".".join(tokens[1:]) or ">") if tapping else bus.listen(args.pattern)
            async with source as messages:
                print(f"listening to {args.pattern}", file=sys.stderr, flush=True)
                try:
                    async for subject, message in messages:
                        show(subject, message)
                        if left is not None:
                            left -= 1
                            if left == 0:
                                break
                finally:
                    if messages.dropped:
                        print(f"{messages.dropped} messages came faster than they were printed", file=sys.stderr)
        return 0

    return run_async(run)


listen = Command(
    "print what is published on matching subjects",
    _configure_listen,
    _listen,
    details="subjects:\n"
    "  topic.>  what programs and actors publish freely\n"
    "  tap.>    every message that an actor gets, mirrored while you look; tap.ADDRESS is one actor's\n"
    "  dead.>   what could not be delivered\n"
    "  nodes.>  processes that come, stay and go",
)
