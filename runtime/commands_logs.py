"""`callboard logs`: what the daemon, nats-server and the processes of actors have written, and go on writing."""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .command import Command, add_state_option, paths_of
from .errors import UsageError
from .matching import did_you_mean

# How often a followed file is looked at. Local files have no event that all systems share, and a `stat` costs 2 us.
LOOK_EVERY_S = 0.2

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
        """What was added to the file before it was renamed to `NAME.log.1`."""
        try:
            with self._path.with_name(f"{self._path.name}.1").open("rb") as old:
                if os.fstat(old.fileno()).st_ino != self._inode:
                    return []
                old.seek(self._position)
                return old.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="*", help="daemon, nats-server, guardian, or an actor's process; default: all")
    parser.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="last lines of each (default: 20)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added, until Ctrl-C")
    add_state_option(parser)


def _run(args: Namespace) -> int:
    if args.lines < 0:
        raise UsageError("--lines takes a number from 0")
    folder = paths_of(args).logs
    tails = {tail.name: tail for tail in _tails(folder, args.name)}
    several = len(tails) > 1 or (args.follow and not args.name)
    for tail in tails.values():
        _print(tail.name, tail.last(args.lines), several=several)
    while args.follow:
        time.sleep(LOOK_EVERY_S)
        for tail in tails.values():
            _print(tail.name, tail.new(), several=several)
        if not args.name:  # an actor that got its own process meanwhile
            for tail in _tails(folder, []):
                if tail.name not in tails:
                    tails[tail.name] = tail
                    _print(tail.name, tail.new(), several=several)
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
    return [Tail(known[name]) for name in names or known]


def _print(name: str, lines: list[str], *, several: bool) -> None:
    for line in lines:
        print(f"{name}: {line}" if several else line)
    if lines:
        sys.stdout.flush()


logs = Command("show the logs of the daemon, its NATS server and its processes", _configure, _run)
