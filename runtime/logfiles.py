"""Log files of bounded size: those that a process writes of itself, and those that another's output goes to.

A line is one JSON object (log_lines.py). What a native library prints, or Python on its way down, is in the same file
as it came, since its last words are often the ones that matter.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from .files import private_folder
from .log_lines import JsonLines, Printed

MAX_BYTES = 8 << 20
NUM_OLD = 3

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LineLog:
    """A file for the lines of another process as they come, turned over at `max_bytes`, `NUM_OLD` old ones kept."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        private_folder(path.parent)
        self._handler = RotatingFileHandler(path, maxBytes=max_bytes, backupCount=NUM_OLD, delay=True, errors="replace")

    def write(self, line: str) -> None:
        self._handler.handle(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        self._handler.close()


class OwnLog(logging.Handler):
    """The file that this process's standard output and error go to, native code's too, turned over by itself.

    A full disk costs lines and nothing else; how many they were is written once there is room again.
    """

    def __init__(self, path: Path, node: str, max_bytes: int = MAX_BYTES) -> None:
        super().__init__()
        self.setFormatter(JsonLines(node))
        self._path = path
        self._max_bytes = max_bytes
        self._lost = 0
        private_folder(path.parent)
        self._open()

    def _open(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode(errors="replace") + b"\n"
            if self._lost:
                words = f"{self._lost} lines before this one could not be written"
                lost = logging.makeLogRecord({"name": "callboard", "levelname": "WARNING", "msg": words})
                line = self.format(lost).encode() + b"\n" + line
            self._turn_over_at(self._max_bytes - len(line))
            os.write(2, line)
            self._lost = 0
        except Exception:  # of the system, or of somebody's %-format: a log must not end who writes it
            self._lost += 1

    def look(self) -> None:
        """Turn it over if what others wrote past us, native code say, has filled it."""
        with self.lock or contextlib.nullcontext():
            self._turn_over_at(self._max_bytes)

    def _turn_over_at(self, size: int) -> None:
        written = os.fstat(2).st_size
        if written == 0 or written < size:
            return
        for number in range(NUM_OLD - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._old(number).replace(self._old(number + 1))
        with contextlib.suppress(FileNotFoundError):
            self._path.replace(self._old(1))
        self._open()

    def _old(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def log_to_file(path: Path, node: str, level: str, max_bytes: int = MAX_BYTES) -> OwnLog:
    """Everything that this process logs and prints goes to that file."""
    own = OwnLog(path, node, max_bytes)
    logging.basicConfig(level=level.upper(), handlers=[own], force=True)
    take_prints()
    return own


def log_to_pipe(node: str, level: str) -> None:
    """The same for a process whose standard error somebody else writes to a file."""
    handler = logging.StreamHandler(os.fdopen(os.dup(2), "w", buffering=1, errors="replace"))
    handler.setFormatter(JsonLines(node))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    take_prints()


def take_prints() -> None:
    """What Python code prints from here on becomes lines of the log that name the actor."""
    sys.stdout = Printed(sys.stdout, "stdout")
    sys.stderr = Printed(sys.stderr, "stderr")
