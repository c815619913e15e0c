"""All durable state into one file while the company runs, and back.

Out: the states are read until there are no more, then the logs, then the states again; when that last look finds
nothing new, no state changed while the logs came to their end, so the file is of that one moment. A log that was
compacted while it was read shows a gap in its numbers, and what lies before a gap had been removed.

In: everything is written anew, after what is there, by a new owner in a higher epoch than any that the store or the
file knows. Sequences thus never go back, so that no write that an earlier owner still has under way can fit.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .. import __version__
from ..schemas.store import LogBatch, Saved
from . import event_log, store
from .errors import BackupDamaged, Disconnected, StateInUse, StoreUnavailable, TooLarge
from .jetstream import JetStream, Stored, WrongSequence
from .log_reading import batch_of
from .messages import UNDECODABLE
from .state_file import Batch, End, Reader, Start, State, Writer
from .state_survey import (
    IMPORT_KEY,
    IMPORT_SUBJECT,
    log_names,
    read_all,
    require_unused,
    saved_of,
    state_names,
    stream_info,
)

if TYPE_CHECKING:
    from .client import Client

# A moment without a save is looked for so often. Each look takes about a millisecond, and a synced save no less.
LOOKS = 2000
# A stream that an import makes begins so far after the one that the file is of: more than was written there since.
LEAP = 1 << 32
# What a new epoch, owner, id and time add to a message, at most.
_ADDED = 128

Progress = Callable[[int, int], None]

_encode = msgspec.msgpack.Encoder().encode
_decode_saved = msgspec.msgpack.Decoder(Saved).decode
_decode_batch = msgspec.msgpack.Decoder(LogBatch).decode


@dataclass(frozen=True)
class Moved:
    """What an export or an import carried."""

    states: int
    logs: int
    events: int
    bytes: int
    sha256: str


async def export(jetstream: JetStream, path: Path, progress: Progress) -> Moved:
    """Write all states and logs to `path`, which holds the old file or the whole new one at any time.

    `progress` hears the bytes written, and about how many there will be. Raises StateInUse while an import is
    unfinished, StoreFull where `path` has no room, StoreUnavailable, ConfigError.
    """
    if await jetstream.last(store.STREAM, IMPORT_SUBJECT) is not None:
        raise StateInUse("an import is under way, or was cut short", hint="let it end, or import that file again")
    infos = [await stream_info(jetstream, stream) for stream in (store.STREAM, event_log.STREAM)]
    total = sum(info["state"]["bytes"] for info in infos if info)
    with Writer(path) as writer:
        writer.write(Start(__version__, time.time()))
        there: dict[str, bool] = {}
        logs: dict[str, _LogPlan] = {}
        seq, log_seq = 1, 1

        async def drain_states() -> bool:
            nonlocal seq
            before = seq
            async for stored in read_all(jetstream, store.STREAM, f"{store.SUBJECTS}>", seq):
                name = stored.subject.removeprefix(store.SUBJECTS)
                writer.write(State(name, stored.seq, stored.data))
                there[name] = bool(stored.data)
                seq = stored.seq + 1
                progress(writer.num_bytes, total)
            return seq > before

        await drain_states()
        for _ in range(LOOKS):
            async for stored in read_all(jetstream, event_log.STREAM, f"{event_log.SUBJECTS}>", log_seq):
                name = stored.subject.removeprefix(event_log.SUBJECTS)
                writer.write(Batch(name, stored.seq, stored.at, stored.data))
                logs.setdefault(name, _LogPlan()).see(stored.seq, batch_of(stored))
                log_seq = stored.seq + 1
                progress(writer.num_bytes, total)
            if not await drain_states():
                break
        else:
            raise StoreUnavailable("states are saved faster than they can be read", hint="try again in a calmer moment")
        kept = await state_names(jetstream) & {name for name, has_data in there.items() if has_data}
        kept_logs = await log_names(jetstream) & set(logs)
        digest = writer.finish(tuple(sorted(kept)), tuple(sorted(kept_logs)))
        progress(writer.num_bytes, writer.num_bytes)
        events = sum(logs[name].events for name in kept_logs)
        return Moved(len(kept), len(kept_logs), events, writer.num_bytes, digest.hex())


@dataclass
class _LogPlan:
    """Which messages of a log in a file are those that were there at its moment."""

    begin: int = 0  # the sequence of the first of them
    first: int = 1
    last: int = 0
    epoch: int = 0

    @property
    def events(self) -> int:
        return self.last - self.first + 1

    def see(self, seq: int, batch: LogBatch) -> None:
        if not self.begin or batch.first != self.last + 1:  # after a compaction, or begun anew
            self.begin, self.first = seq, batch.first
        self.last = batch.first + len(batch.events) - 1
        self.epoch = max(self.epoch, batch.epoch)


@dataclass
class _Plan:
    """What an import will write, found out by reading the whole file once."""

    states: dict[str, int] = field(default_factory=dict)  # name -> sequence of the record that counts
    logs: dict[str, _LogPlan] = field(default_factory=dict)
    last_seq: dict[str, int] = field(default_factory=lambda: {store.STREAM: 0, event_log.STREAM: 0})
    largest: int = 0
    digest: bytes = b""

    @classmethod
    def of(cls, reader: Reader) -> _Plan:
        """Raises BackupDamaged."""
        plan = cls()
        try:
            for record in reader.records():
                plan._see(record)
        except UNDECODABLE as error:
            raise BackupDamaged(f"the file holds what is no state of an actor and no part of a log: {error}") from error
        return plan

    def _see(self, record: Start | State | Batch | End) -> None:
        match record:
            case Start():
                pass
            case State(name, seq, data):
                if data and name != IMPORT_KEY:
                    _decode_saved(data)
                self.states[name] = seq
                self.last_seq[store.STREAM] = seq
                self.largest = max(self.largest, len(data))
            case Batch(name, seq, _, data):
                self.logs.setdefault(name, _LogPlan()).see(seq, _decode_batch(data))
                self.last_seq[event_log.STREAM] = seq
                self.largest = max(self.largest, len(data))
            case End(states, logs, digest):
                self.states = {name: self.states[name] for name in states}
                self.logs = {name: self.logs[name] for name in logs}
                self.digest = digest


async def import_(bus: Client, path: Path, progress: Progress, *, replace: bool = False) -> Moved:
    """Bring back what is in the file of an export; what is stored under other names stays.

    Nothing is touched before all of the file was read and checked. One that is cut short has written some of it, and
    says so until the same file is imported again, which carries it through; the same holds for StateInUse from the
    middle, where somebody wrote to what is being imported. Raises BackupDamaged, StateInUse (without `replace`: some
    of it is there already), TooLarge, StoreFull, StoreUnavailable, ConfigError.
    """
    jetstream = bus.node.jetstream
    with Reader(path) as reader:
        plan = _Plan.of(reader)
        if plan.largest + _ADDED > jetstream.max_payload:
            raise TooLarge(
                f"{path} has a message of {plan.largest} bytes, over the server's limit of {jetstream.max_payload}",
                hint="raise the server's `max_payload`",
            )
        mark = await jetstream.last(store.STREAM, IMPORT_SUBJECT)
        goes_on = mark is not None and mark.data == plan.digest
        if mark is not None and not goes_on and not replace:
            raise StateInUse(
                "another import was cut short", hint="import its file again, or this one with --replace in its place"
            )
        there = sorted(set(plan.states) & await state_names(jetstream) | set(plan.logs) & await log_names(jetstream))
        if there and not (replace or goes_on):
            more = f" and {len(there) - 5} more" if len(there) > 5 else ""
            raise StateInUse(
                f"there is state already of {', '.join(there[:5])}{more}",
                hint="--replace puts that of the file in its place",
            )
        await require_unused(bus, plan.states, plan.logs)
        await _Import(jetstream, plan, reader, progress).run(mark)
        events = sum(log.events for log in plan.logs.values())
        return Moved(len(plan.states), len(plan.logs), events, reader.num_bytes, plan.digest.hex())


class _Import:
    """One import, once all was checked."""

    def __init__(self, jetstream: JetStream, plan: _Plan, reader: Reader, progress: Progress) -> None:
        self._jetstream = jetstream
        self._plan = plan
        self._reader = reader
        self._progress = progress
        # Nobody else has it: to every owner that lived before, this is another one that took over.
        self._owner = secrets.token_bytes(8)
        self._ends: dict[str, tuple[int, int]] = {}  # log -> sequence of its last message, epoch

    async def run(self, mark: Stored | None) -> None:
        for config in (store.CONFIG, event_log.CONFIG):
            name = config["name"]
            if await stream_info(self._jetstream, name) is None:
                first_seq = self._plan.last_seq[name] + LEAP
                await self._jetstream.api(f"STREAM.CREATE.{name}", {**config, "first_seq": first_seq})
        marked = mark.seq if mark else 0
        if mark is None or mark.data != self._plan.digest:
            marked = await self._write(store.CONFIG, IMPORT_SUBJECT, self._plan.digest, marked)
        done = 0
        for record in self._reader.records():
            match record:
                case State(name, seq, data) if self._plan.states.get(name) == seq:
                    await self._state(name, _decode_saved(data))
                case Batch(name, seq, at, data) if (log := self._plan.logs.get(name)) and seq >= log.begin:
                    await self._batch(name, log, at, _decode_batch(data))
            if isinstance(record, State | Batch):
                done += len(record.data)
            self._progress(done, self._reader.num_bytes)
        await self._jetstream.purge(store.STREAM, IMPORT_SUBJECT)
        self._progress(self._reader.num_bytes, self._reader.num_bytes)

    async def _state(self, name: str, saved: Saved) -> None:
        subject = store.SUBJECTS + name
        last = await self._jetstream.last(store.STREAM, subject)
        epoch = saved_of(last).epoch if last is not None and last.data else 0
        new = Saved(max(epoch, saved.epoch) + 1, self._owner, 0, saved.kind, saved.state)
        await self._write(store.CONFIG, subject, _encode(new), last.seq if last else 0)

    async def _batch(self, name: str, log: _LogPlan, at: str, batch: LogBatch) -> None:
        subject = event_log.SUBJECTS + name
        begins = name not in self._ends
        seq, epoch = await self._take_over(subject, log) if begins else self._ends[name]
        new = msgspec.structs.replace(
            batch, epoch=epoch, owner=self._owner, id=secrets.token_bytes(8), at=batch.at or at
        )
        seq = await self._write(event_log.CONFIG, subject, _encode(new), seq)
        if begins:
            await self._jetstream.purge(event_log.STREAM, subject, seq)
        self._ends[name] = seq, epoch

    async def _take_over(self, subject: str, log: _LogPlan) -> tuple[int, int]:
        """Fence off the owner of what is there, if any, before anything of it is removed."""
        last = await self._jetstream.last(event_log.STREAM, subject)
        if last is None:
            return 0, log.epoch + 1
        tail = batch_of(last)
        epoch = max(tail.epoch, log.epoch) + 1
        taken = LogBatch(epoch, self._owner, secrets.token_bytes(8), tail.first + len(tail.events))
        return await self._write(event_log.CONFIG, subject, _encode(taken), last.seq), epoch

    async def _write(self, config: dict[str, Any], subject: str, data: bytes, expected: int) -> int:
        """Synced, and once: no two messages of an import have the same bytes, so a lost answer shows."""
        patience = self._jetstream.patience
        try:
            async with asyncio.timeout(patience):
                while True:
                    try:
                        return await self._jetstream.publish(config, subject, data, expected)
                    except WrongSequence:
                        last = await self._jetstream.last(config["name"], subject)
                        if last is not None and last.data == data:
                            return last.seq
                        raise StateInUse(
                            f"somebody writes to {subject} meanwhile",
                            hint="stop whoever does, then import the file again: it is half done",
                        ) from None
                    except (Disconnected, TimeoutError):
                        continue  # it may have been written: the expected sequence tells
        except TimeoutError:
            raise StoreUnavailable(
                f"the server did not confirm within {patience:g} s", hint="import the file again: it is half done"
            ) from None
