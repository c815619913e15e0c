"""Which adapters are loaded, and which of them requests use."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ...runtime.errors import RequestInvalid
from ...schemas.serve import AdapterInfo


@dataclass(eq=False)
class Entry:
    """`generation` tells adapters apart that had the same name one after the other: their keys and values differ."""

    info: AdapterInfo
    generation: int
    num_users: int = 0
    is_leaving: bool = False
    unused: asyncio.Event = field(default_factory=asyncio.Event)


class AdapterBook:
    """The adapters by name. One that is to go takes no new users, and goes when it has none."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._num_generations = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    @property
    def infos(self) -> tuple[AdapterInfo, ...]:
        return tuple(self._entries[name].info for name in self.names)

    def info(self, name: str) -> AdapterInfo:
        return self._entries[name].info

    def check(self, name: str) -> None:
        """RequestInvalid unless requests may use that adapter."""
        entry = self._entries.get(name)
        if entry is None or entry.is_leaving:
            known = ", ".join(self.names) or "none"
            raise RequestInvalid(
                f"no adapter named '{name}' is loaded" if entry is None else f"the adapter '{name}' is being unloaded",
                hint=f"loaded: {known}; `serve.load_adapter` loads one",
            )

    def generation(self, name: str) -> int:
        """0 for no adapter, -1 for one that is not there."""
        if not name:
            return 0
        entry = self._entries.get(name)
        return entry.generation if entry is not None else -1

    def enter(self, name: str, generation: int) -> None:
        """A sequence begins to use an adapter. RequestInvalid if that one has gone meanwhile."""
        if name:
            self.check(name)
            entry = self._entries[name]
            if entry.generation != generation:
                raise RequestInvalid(f"the adapter '{name}' was replaced", hint="ask again")
            entry.num_users += 1
            entry.unused.clear()

    def leave(self, name: str) -> None:
        if name:
            entry = self._entries[name]
            entry.num_users -= 1
            if not entry.num_users:
                entry.unused.set()

    def add(self, info: AdapterInfo) -> None:
        self._num_generations += 1
        entry = self._entries[info.name] = Entry(info, self._num_generations)
        entry.unused.set()

    async def close(self, name: str) -> None:
        """Let nobody use it any more, and wait until nobody does. If that is cancelled, it stays."""
        self.check(name)
        entry = self._entries[name]
        entry.is_leaving = True
        try:
            await entry.unused.wait()
        except BaseException:
            entry.is_leaving = False
            raise

    def reopen(self, name: str) -> None:
        """Let it be used again, after `close`."""
        self._entries[name].is_leaving = False

    def drop(self, name: str) -> None:
        del self._entries[name]
