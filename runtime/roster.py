"""What the daemon was asked to run, on disk, so that it runs again after the daemon itself was killed.

A clean end clears it: a fresh `up` starts with nothing that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from ..schemas.runtime import Spawn
from .errors import ConfigError, CredentialsRefused, Disconnected, NameTaken, NotReachable
from .files import write_private
from .folders import Paths
from .log import log
from .messages import UNDECODABLE

if TYPE_CHECKING:
    from .node import Node

# How long a process of an earlier life may hold on to a name beyond its drain time, and how often it is asked.
NAME_PATIENCE_S = 15.0
NAME_RETRY_S = 0.25


class Roster:
    """The permanent roots that were spawned over the bus, kept in one file that is replaced as a whole."""

    @classmethod
    def of(cls, paths: Paths) -> Roster:
        return cls(paths.state / "roster.json")

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
        except UNDECODABLE as error:
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

    def remove(self, name: str) -> bool:
        """Whether it was there."""
        known = self._entries.pop(name, None) is not None
        if known:
            self._save()
        return known

    def __contains__(self, entry: object) -> bool:
        return isinstance(entry, Spawn) and self._entries.get(entry.name) is entry

    def clear(self) -> None:
        self._entries.clear()
        self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        write_private(self._path, msgspec.json.encode(self.entries()).decode())


async def recall(node: Node, roster: Roster) -> None:
    """Start again what an earlier life of the daemon was asked to run. Of what fails to, the log tells."""
    async with anyio.create_task_group() as tasks:
        for entry in roster.entries():
            tasks.start_soon(_recall_one, node, roster, entry)


async def _recall_one(node: Node, roster: Roster, entry: Spawn) -> None:
    from .placement import where_of  # here, because the guardian imports this module and hosts no actors
    from .supervision import Restart

    where, restart = where_of(entry), Restart(entry.restart)

    async def spawn() -> None:
        if entry in roster:  # it may be stopped while it waits for its name
            await node.spawn(entry.kind, entry.config, name=entry.name, where=where, restart=restart)

    try:
        await spawn_patiently(node, entry.name, spawn)
    except Exception as error:  # whatever its code raises: the others, and the daemon, go on
        if isinstance(error, NameTaken) and entry.name in node.actors:
            return  # somebody was faster
        unexpected = None if isinstance(error, NameTaken) else error
        log.error("%s is not brought back: %s", entry.name, error, exc_info=unexpected)


async def spawn_patiently(node: Node, name: str, spawn: Callable[[], Awaitable[None]]) -> None:
    """Spawn what an earlier life of the daemon may have run already, through what may be in its way for a moment.

    The process of that life saw its parent die and is finishing what it has: its name is free then. And the bus may go
    away just now. Raises what `spawn` does: NameTaken at once where this very node has that name.
    """
    patience = node.drain_timeout + NAME_PATIENCE_S
    until = anyio.current_time() + patience
    while True:
        try:
            return await spawn()
        except NameTaken:
            if name in node.actors or anyio.current_time() > until:
                raise
        except CredentialsRefused:
            raise
        except (Disconnected, NotReachable) as error:
            if anyio.current_time() > until:
                raise
            log.info("%s is to be spawned again: %s", name, error)
            bus = node.require_links().bus
            if not bus.is_up:
                await bus.up()
                until = anyio.current_time() + patience
        await anyio.sleep(NAME_RETRY_S)
