"""Log files of bounded size: those that our own logging writes, and those that another process's output goes to."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

from .files import private_folder

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
