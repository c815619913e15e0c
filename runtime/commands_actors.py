"""`callboard actors`, `spawn`, `stop`, `publish`, `listen`: the company from a terminal."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import msgspec

from .command import Command, add_bus_options, add_json_option, run_async
from .errors import CallboardError, UsageError, from_info
from .tables import print_table

if TYPE_CHECKING:
    from .client import Client


def client_of(args: Namespace) -> AbstractAsyncContextManager[Client]:
    """A connection as the options of `add_bus_options` say."""
    from .client import connect

    return connect(args.nats or "", args.creds or "", state_dir=args.state_dir)


def to_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


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


# spawn, stop


def _configure_spawn(parser: ArgumentParser) -> None:
    parser.add_argument("kind", help="a registered kind of actor")
    parser.add_argument("--name", default="", help="its address; made up from the kind if not given")
    parser.add_argument("--config", default="{}", metavar="JSON", help="its configuration")
    parser.add_argument("--process", action="store_true", help="in a process of its own")
    parser.add_argument(
        "--restart", choices=("permanent", "transient", "temporary"), default="permanent", help="when it is restarted"
    )
    add_json_option(parser)
    add_bus_options(parser)


def _spawn(args: Namespace) -> int:
    from .supervision import Restart

    async def run() -> int:
        async with client_of(args) as bus:
            ref = await bus.spawn(
                args.kind, args.config, name=args.name, process=args.process, restart=Restart(args.restart)
            )
        print(to_json({"address": ref.address}) if args.json else ref.address)
        return 0

    return run_async(run)


spawn = Command("start an actor under the daemon's supervision", _configure_spawn, _spawn)


def _configure_stop(parser: ArgumentParser) -> None:
    parser.add_argument("address", help="as `callboard actors` lists it")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds to finish what it has")
    add_bus_options(parser)


def _stop(args: Namespace) -> int:
    async def run() -> int:
        async with client_of(args) as bus:
            await bus.stop(args.address, args.timeout)
        return 0

    return run_async(run)


stop = Command("end an actor: it finishes what it has and is not restarted", _configure_stop, _stop)


# publish, listen


def _configure_publish(parser: ArgumentParser) -> None:
    parser.add_argument("subject", help="`actor.<address>` for an actor, `topic.<anything>` for whoever listens")
    parser.add_argument("message", help='JSON with a type: \'{"type": "counter.add", "n": 1}\'; - reads lines of stdin')
    parser.add_argument("--answer", action="store_true", help="wait for the actor's answer and print it")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds to wait for an answer")
    add_bus_options(parser)


def _publish(args: Namespace) -> int:
    texts = [line for line in sys.stdin if line.strip()] if args.message == "-" else [args.message]
    messages = [_checked(text) for text in texts]
    if args.answer and not args.subject.startswith("actor."):
        raise UsageError(f"only an actor answers, and {args.subject} is none", hint="actors are at actor.<address>")

    async def run() -> int:
        async with client_of(args) as bus:
            for message in messages:
                if args.answer:
                    _print_answer(await bus.request_raw(args.subject, message, args.timeout))
                else:
                    await bus.publish_raw(args.subject, message)
        return 0

    return run_async(run)


def _checked(text: str) -> bytes:
    try:
        value = msgspec.json.decode(text)
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"this is no JSON: {error}", hint='a message looks like {"type": "counter.add", "n": 1}'
        ) from None
    if not isinstance(value, dict):
        raise UsageError("a message is a JSON object", hint='like {"type": "counter.add", "n": 1}')
    return msgspec.json.encode(value)


def _print_answer(data: bytes) -> None:
    from ..schemas.base import ErrorInfo

    try:
        error = msgspec.json.decode(data, type=ErrorInfo)
    except msgspec.MsgspecError:
        print(data.decode())
        return
    raise from_info(error)


publish = Command(
    "publish a JSON message to an actor or a topic",
    _configure_publish,
    _publish,
    details="examples:\n"
    '  callboard publish topic.news \'{"type": "news", "text": "hello"}\'\n'
    '  callboard publish --answer actor.counter \'{"type": "counter.add", "n": 1}\'',
)


def _configure_listen(parser: ArgumentParser) -> None:
    parser.add_argument("pattern", help="`*` is one token, `>` all that follow; `tap.>` shows what actors get")
    parser.add_argument("-n", "--count", type=int, default=0, metavar="N", help="stop after so many messages")
    add_json_option(parser)
    add_bus_options(parser)


def _listen(args: Namespace) -> int:
    def show(subject: str, message: Any) -> None:
        line = to_json({"subject": subject, "message": message}) if args.json else f"{subject} {to_json(message)}"
        print(line, flush=True)

    async def run() -> int:
        left = args.count or -1
        async with client_of(args) as bus:
            tapping = args.pattern == "tap" or args.pattern.startswith("tap.")
            source = bus.tap_raw(args.pattern.removeprefix("tap.")) if tapping else bus.listen(args.pattern)
            async with source as messages:
                print(f"listening to {args.pattern}", file=sys.stderr, flush=True)
                async for subject, message in messages:
                    show(subject, message)
                    left -= 1
                    if left == 0:
                        break
                if messages.dropped:
                    raise CallboardError(f"{messages.dropped} messages came faster than they could be printed")
        return 0

    return run_async(run)


listen = Command("print what is published on matching subjects", _configure_listen, _listen)
