"""The journal that an executor owns: what its runs write, in one event log, and the logs that they move to.

Whoever opens it becomes its owner, in the next epoch; the owner before is `Fenced` from its next write, so of two that
think the runs are theirs one goes on. Writes that wait together are one message. Records may repeat (a compaction
writes again what it keeps), so reading goes by the numbers in them, not by their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from ...runtime.errors import CallboardError, Conflict
from ...runtime.event_log import EventLog, list_logs
from ...runtime.log import log
from ...runtime.node import Node
from ...schemas.agent import Approval, RunInfo
from ...schemas.agent_journal import JournalRecord, Moved, Removed, Wrote
from ...schemas.agent_log import AnyEvent
from .errors import NoRoomInRun

# What lies in the journal before what is over is taken out of it.
COMPACT_BYTES = 16 << 20
# Ended runs that are still listed; older ones are found by their id alone.
KEEP_ENDED = 5000
LOGS = "agents.run."

_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class Kept:
    """A run as the journal has it: `moved` events are in its own log, `tail` are those after them."""

    info: RunInfo | None = None
    approvals: tuple[Approval, ...] = ()
    tail: list[AnyEvent] = field(default_factory=list)

    @property
    def moved(self) -> int:
        return self.info.events if self.info is not None else 0


class Journal:
    """Made by `open`. `append` and `move` raise StoreError; after one, what was written is not known: open anew."""

    def __init__(self, node: Node, name: str, log_: EventLog[JournalRecord]) -> None:
        self._node = node
        self._log = log_
        self._written = 0
        self._compact_over = COMPACT_BYTES
        self.name = name

    @classmethod
    async def open(cls, node: Node, name: str) -> tuple[Journal, dict[str, Kept]]:
        """Become its owner, and read what its runs have come to."""
        journal = cls(node, name, await EventLog.open(node, name, JournalRecord, own=True))
        return journal, await journal._read()

    @property
    def epoch(self) -> int:
        return self._log.epoch

    async def _read(self) -> dict[str, Kept]:
        kept: dict[str, Kept] = {}
        events: dict[str, dict[int, AnyEvent]] = {}
        async for record in self._log.read():
            match record.value:
                case Wrote(run, first, some):
                    events.setdefault(run, {}).update(enumerate(some, first))
                    kept.setdefault(run, Kept())
                case Moved(info, approvals):
                    one = kept.setdefault(info.run, Kept())
                    if info.events >= one.moved:
                        one.info, one.approvals = info, approvals
                case Removed(runs):
                    for run in runs:
                        kept.pop(run, None)
                        events.pop(run, None)
        for run, numbered in events.items():
            one = kept[run]
            number = one.moved + 1
            while number in numbered:
                one.tail.append(numbered[number])
                number += 1
        return kept

    @property
    def is_full(self) -> bool:
        """Whether it is time for a compaction."""
        return self._written >= self._compact_over

    async def append(self, run: str, first: int, events: Sequence[AnyEvent]) -> None:
        """Returns when they are on the disk. Those that do not fit into one message are written one after the other."""
        record = Wrote(run, first, tuple(events))
        size = len(_encode(record))
        if size <= self._log.room:
            await self._log.append(record)
        else:
            await self._append_apart([Wrote(run, number, (event,)) for number, event in enumerate(events, first)])
        self._written += size

    async def _append_apart(self, records: Sequence[Wrote]) -> None:
        largest = max(len(_encode(record)) for record in records)
        if largest > self._log.room:
            raise NoRoomInRun(f"an event of {largest} bytes is over the limit of {self._log.room} for one message")
        for record in records:
            await self._log.append(record)

    async def move(self, info: RunInfo, approvals: Sequence[Approval], tail: Sequence[AnyEvent]) -> None:
        """Put `tail`, the last events of a run, into its own log, and say so.

        What is there has been written by an owner of the journal, so it is the same; only what lacks is added.
        """
        own = await EventLog.open(self._node, log_name(info.run), AnyEvent)
        first = info.events - len(tail) + 1
        while own.last < info.events:
            at = own.last
            chunk = _fitting(tail[at + 1 - first :], own.room)
            try:
                await own.append(*chunk, expected=at)
            except Conflict:
                continue  # it has just caught up
        await self._log.append(Moved(info, tuple(approvals)))

    async def history(self, run: str) -> list[AnyEvent]:
        """The events in a run's own log, none if it has none."""
        own = await EventLog.open(self._node, log_name(run), AnyEvent)
        return [event.value async for event in own.read()]

    async def own_logs(self) -> list[str]:
        """The runs of this journal that have a log of their own, listed or not."""
        start = f"{LOGS}{self.name.rpartition('.')[2]}-"
        return [name.removeprefix(LOGS) for name in await list_logs(self._node) if name.startswith(start)]

    async def remove(self, runs: Sequence[str]) -> None:
        """Forget runs that have ended, then delete their logs: a log that is left is found again by `own_logs`."""
        await self._log.append(Removed(tuple(runs)))
        for run in runs:
            await (await EventLog.open(self._node, log_name(run), AnyEvent)).delete()

    async def compact(self, kept: Iterable[Kept], tails: Iterable[tuple[str, int, Sequence[AnyEvent]]]) -> None:
        """Write again what still counts, and remove all before. `tails`: run, first number, events."""
        self._written = 0
        records = [Moved(one.info, one.approvals) for one in kept if one.info is not None]
        start = self._log.last + 1
        try:
            for some in _chunks(records, self._log.room // 2):
                await self._log.append(*some)
            for run, first, events in tails:
                await self.append(run, first, events)
            await self._log.truncate(start)
        except CallboardError as error:
            log.warning("the journal %s keeps its old records for now: %s", self.name, error)
        self._compact_over = COMPACT_BYTES + 3 * self._written
        self._written = 0


def log_name(run: str) -> str:
    return LOGS + run


def _fitting(events: Sequence[AnyEvent], room: int) -> list[AnyEvent]:
    """As many from the beginning as go into one message, one at least."""
    size, chunk = 0, []
    for event in events:
        size += len(_encode(event))
        if chunk and size > room:
            break
        chunk.append(event)
    return chunk


def _chunks(records: Sequence[Moved], size: int) -> Iterable[list[Moved]]:
    chunk: list[Moved] = []
    used = 0
    for record in records:
        length = len(_encode(record))
        if chunk and used + length > size:
            yield chunk
            chunk, used = [], 0
        chunk.append(record)
        used += length
    if chunk:
        yield chunk
