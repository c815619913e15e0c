"""What the daemon was asked to run, on disk, so that it runs again after the daemon itself was killed.

A clean end clears it: a fresh `up` starts with nothing that nobody asked for.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..schemas.runtime import Spawn
from .errors import ConfigError
from .files import write_private
from .log import log


class Roster:
    """The permanent roots that were spawned over the bus, kept in one file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = self._load()

    def _load(self) -> dict[str, Spawn]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            return {entry.name: entry for entry in msgspec.json.decode(data, type=list[Spawn])}
        except msgspec.MsgspecError as error:
            log.error("%s is damaged and left aside: %s", self._path, error)
            return {}

    def entries(self) -> list[Spawn]:
        """In the order in which they were spawned."""
        return list(self._entries.values())

    def add(self, entry: Spawn) -> None:
        if not entry.name:
            raise ConfigError("only an actor with a name can be remembered")
        self._entries[entry.name] = entry
        self._save()

    def remove(self, name: str) -> None:
        if self._entries.pop(name, None) is not None:
            self._save()

    def clear(self) -> None:
        self._entries.clear()
        self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        write_private(self._path, msgspec.json.encode(self.entries()).decode())
