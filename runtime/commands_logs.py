"""`callboard logs`: what the daemon, nats-server and the processes of actors have written, and go on writing."""

from __future__ import annotations

import re
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from datetime import UTC, datetime, timedelta

import msgspec

from .command import Command, add_state_option, paths_of
from .errors import UsageError
from .log_lines import LEVELS, Wanted, plain
from .log_tail import LOOK_EVERY_S, LogEntry, LogReader, tails

DEFAULT_LINES = 20


def _since(text: str) -> datetime:
    """`10m`, `2h`, `1d`, or a date and time."""
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is not None:
        return datetime.now(UTC) - timedelta(**{units[found[2]]: float(found[1])})
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise ArgumentTypeError(f"'{text}' is neither like 30s, 10m, 2h, 1d nor a date and time") from None


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="*", help="daemon, nats-server, guardian, or an actor's process; default: all")
    parser.add_argument(
        "-n", "--lines", type=int, metavar="N", help="last lines of each (default: 20; all with --since)"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added, until Ctrl-C")
    parser.add_argument("--actor", default="", metavar="ADDRESS", help="only of this actor and those below it")
    parser.add_argument("--level", choices=LEVELS, default="", help="only of this level and above")
    parser.add_argument("--since", type=_since, metavar="WHEN", help="only from then on: 10m, 2h, 2026-01-31T12:00")
    parser.add_argument("--trace", default="", metavar="ID", help="only of this traced request")
    parser.add_argument("--json", action="store_true", help="print JSON, a line each")
    add_state_option(parser)


def _run(args: Namespace) -> int:
    if args.lines is not None and args.lines < 0:
        raise UsageError("--lines takes a number from 0")
    folder = paths_of(args).logs
    wanted = Wanted(args.actor, args.level, args.since, args.trace)
    count = args.lines if args.lines is not None or args.since is not None else DEFAULT_LINES
    readers = {tail.name: LogReader(tail, wanted) for tail in tails(folder, args.name)}
    several = len(readers) > 1 or (args.follow and not args.name)

    def show(found: list[LogEntry]) -> None:
        """Those of several processes in the order of their times."""
        for entry in sorted(found, key=lambda entry: entry.time):
            if args.json:
                print(msgspec.json.encode({"process": entry.process, **msgspec.to_builtins(entry.line)}).decode())
            else:
                print(f"{entry.process}: {plain(entry.line)}" if several else plain(entry.line))
        sys.stdout.flush()

    show([entry for reader in readers.values() for entry in reader.last(count)])
    while args.follow:
        time.sleep(LOOK_EVERY_S)
        if not args.name:  # an actor that got its own process meanwhile
            for tail in tails(folder, []):
                readers.setdefault(tail.name, LogReader(tail, wanted))
        show([entry for reader in readers.values() for entry in reader.new()])
    return 0


logs = Command("show the logs of the daemon, its NATS server and its processes", _configure, _run)
