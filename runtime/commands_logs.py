"""`callboard logs`: what the daemon, nats-server and the processes of actors have written, and go on writing."""

from __future__ import annotations

import os
import re
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from .command import Command, add_state_option, paths_of
from .errors import UsageError
from .log_lines import LEVELS, LogLine, Wanted, plain, read_line
from .logfiles import NUM_OLD
from .matching import did_you_mean

# How often a followed file is looked at. Local files have no event that all systems share, and a `stat` costs 2 us.
LOOK_EVERY_S = 0.2
DEFAULT_LINES = 20
AUDIT = "audit"

_BLOCK = 1 << 16


class Tail:
    """One growing file: its last lines, and then what is added, across its turning over."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._path = path
        self._position = 0
        self._inode = 0

    def last(self, count: int) -> list[str]:
        """The last `count` lines; `new` goes on after them."""
        try:
            with self._path.open("rb") as file:
                state = os.fstat(file.fileno())
                self._inode, self._position = state.st_ino, state.st_size
                data, at = b"", state.st_size
                while at > 0 and data.count(b"\n") <= count:
                    step = min(_BLOCK, at)
                    at -= step
                    file.seek(at)
                    data = file.read(step) + data
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]  # a line that is still being written is left for `new`
        self._position -= len(data) - len(whole)
        lines = whole.decode(errors="replace").splitlines()
        return lines[-count:] if count else []

    def new(self) -> list[str]:
        """Whole lines that were added since the last call."""
        lines: list[str] = []
        try:
            with self._path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._inode or state.st_size < self._position:
                    lines += self._rest_of_old()
                    self._inode, self._position = state.st_ino, 0
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:  # between two names, while it turns over
            return lines
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return lines + whole.decode(errors="replace").splitlines()

    def _rest_of_old(self) -> list[str]:
        """What was added to the file before it was renamed to `NAME.log.1`, and the files that came and went since."""
        lines: list[str] = []
        for number in range(1, NUM_OLD + 1):
            try:
                with self._old(number).open("rb") as old:
                    ours = os.fstat(old.fileno()).st_ino == self._inode
                    if ours:
                        old.seek(self._position)
                    lines = old.read().decode(errors="replace").splitlines() + lines
            except FileNotFoundError:
                break
            if ours:
                return lines
        return []  # the file was replaced by somebody, or is older than any that is kept

    def _old(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def all(self) -> list[str]:
        """Every line that is kept, the old files' too; `new` goes on after them."""
        lines: list[str] = []
        for number in range(NUM_OLD, 0, -1):
            try:
                lines += self._old(number).read_text(errors="replace").splitlines()
            except FileNotFoundError:
                continue
        self._inode, self._position = 0, 0
        try:
            self._inode = self._path.stat().st_ino
        except FileNotFoundError:
            return lines
        return lines + self.new()


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


@dataclass(frozen=True)
class _Entry:
    """A line and the time that it belongs to: its own, or that of the last line before it that has one."""

    time: str
    process: str
    line: LogLine


class _Reader:
    """One log, read line by line and sifted."""

    def __init__(self, tail: Tail, wanted: Wanted) -> None:
        self.tail = tail
        self._wanted = wanted
        self._time = ""

    def last(self, count: int | None) -> list[_Entry]:
        """So many that are wanted, all for None."""
        if count is not None and self._wanted.everything:
            return self._sift(self.tail.last(count))
        found = self._sift(self.tail.all())
        return found if count is None else found[len(found) - min(count, len(found)) :]

    def new(self) -> list[_Entry]:
        return self._sift(self.tail.new())

    def _sift(self, texts: list[str]) -> list[_Entry]:
        found: list[_Entry] = []
        for text in texts:
            line = read_line(text)
            self._time = line.time or self._time
            if self._wanted.has(line, self.tail.name, self._time):
                found.append(_Entry(self._time, self.tail.name, line))
        return found


def _run(args: Namespace) -> int:
    if args.lines is not None and args.lines < 0:
        raise UsageError("--lines takes a number from 0")
    folder = paths_of(args).logs
    wanted = Wanted(args.actor, args.level, args.since, args.trace)
    count = args.lines if args.lines is not None or args.since is not None else DEFAULT_LINES
    readers = {tail.name: _Reader(tail, wanted) for tail in _tails(folder, args.name)}
    several = len(readers) > 1 or (args.follow and not args.name)

    def show(found: list[_Entry]) -> None:
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
            for tail in _tails(folder, []):
                readers.setdefault(tail.name, _Reader(tail, wanted))
        show([entry for reader in readers.values() for entry in reader.new()])
    return 0


def _tails(folder: Path, names: list[str]) -> list[Tail]:
    known = {path.stem: path for path in sorted(folder.glob("*.log"))} if folder.is_dir() else {}
    for name in names:
        if name not in known:
            guess = did_you_mean(name, known)
            raise UsageError(
                f"there is no log of '{name}'",
                hint=f"did you mean {guess}?" if guess else f"there are: {', '.join(known) or 'none'}",
            )
    # The audit log is a record of its own, not part of what went on in the processes.
    return [Tail(known[name]) for name in names or known if names or name != AUDIT]


logs = Command("show the logs of the daemon, its NATS server and its processes", _configure, _run)
