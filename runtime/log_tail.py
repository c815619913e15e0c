"""Reading log files as they grow: the last lines, what is added, across the turning over of a file, sifted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError
from .log_lines import LogLine, Wanted, read_line
from .logfiles import NUM_OLD
from .matching import did_you_mean

# How often a followed file is looked at. Local files have no event that all systems share, and a `stat` costs 2 us.
LOOK_EVERY_S = 0.2
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


@dataclass(frozen=True)
class LogEntry:
    """A line and the time that it belongs to: its own, or that of the last line before it that has one."""

    time: str
    process: str
    line: LogLine


class LogReader:
    """One log, read line by line and sifted."""

    def __init__(self, tail: Tail, wanted: Wanted) -> None:
        self.tail = tail
        self._wanted = wanted
        self._time = ""

    def last(self, count: int | None) -> list[LogEntry]:
        """So many that are wanted, all for None."""
        if count is not None and self._wanted.everything:
            return self._sift(self.tail.last(count))
        found = self._sift(self.tail.all())
        return found if count is None else found[len(found) - min(count, len(found)) :]

    def new(self) -> list[LogEntry]:
        return self._sift(self.tail.new())

    def _sift(self, texts: list[str]) -> list[LogEntry]:
        found: list[LogEntry] = []
        for text in texts:
            line = read_line(text)
            self._time = line.time or self._time
            if self._wanted.has(line, self.tail.name, self._time):
                found.append(LogEntry(self._time, self.tail.name, line))
        return found


def tails(folder: Path, names: Sequence[str]) -> list[Tail]:
    """The logs of those names, all for none of them. Raises UsageError for one that is not there."""
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
