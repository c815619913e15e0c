"""`callboard schema`: every message of the bus as JSON Schema or as an AsyncAPI document."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

import msgspec

from .command import Command
from .errors import ConfigError, UsageError


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("message", nargs="?", default="", help="only this one, by its tag, with what it refers to")
    parser.add_argument("--asyncapi", action="store_true", help="the subjects too, as an AsyncAPI 3 document")
    parser.add_argument("--own", action="store_true", help="leave out the messages of other installed packages")
    parser.add_argument("--against", metavar="FILE", help="print what breaks with the schemas of an earlier version")
    parser.add_argument("--json", action="store_true", help="print JSON on one line")


def _run(args: Namespace) -> int:
    from .. import __version__
    from .asyncapi import asyncapi
    from .schema import all_messages, document, one_message, own_messages

    if sum(map(bool, (args.message, args.asyncapi, args.against))) > 1:
        raise UsageError("a message, --asyncapi and --against each ask for something else", hint="give one of them")
    messages = own_messages() if args.own else all_messages()
    for line in messages.left_out:
        print(f"left out: {line}", file=sys.stderr)
    found = document(messages.by_tag, __version__)
    if args.against:
        return _compare(args.against, found, json=args.json)
    if args.asyncapi:
        found = asyncapi(found, __version__)
    elif args.message:
        found = one_message(found, args.message)
    data = msgspec.json.encode(found)
    print((data if args.json else msgspec.json.format(data, indent=2)).decode())
    return 0


def _compare(path: str, new: dict[str, Any], *, json: bool) -> int:
    from pathlib import Path

    from .compatibility import breaking_changes

    try:
        old = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, Any])
        changes = breaking_changes(old, new)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, KeyError) as error:
        raise ConfigError(f"{path} holds no schemas", hint="it is what `callboard schema` printed then") from error
    if json:
        print(msgspec.json.encode(changes).decode())
    else:
        print("\n".join(changes) or "nothing breaks")
    return 1 if changes else 0


schema = Command("print the messages of the bus as JSON Schema or AsyncAPI", _configure, _run)
