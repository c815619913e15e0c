"""What durable state there is, who uses it now, and removing one piece of it: `callboard state` and `state rm`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ..schemas.store import Saved
from . import event_log, store
from .errors import NoSuchState, StateInUse, StateMismatch
from .jetstream import NOT_FOUND, JetStream, Refused, Stored
from .log_reading import batch_of
from .messages import UNDECODABLE
from .object_store import BUCKET as BLOBS

if TYPE_CHECKING:
    from .client import Client

# Under this key, which no actor's address can be, an import that is under way leaves its mark.
IMPORT_KEY = "=import"
IMPORT_SUBJECT = store.SUBJECTS + IMPORT_KEY

_decode = msgspec.msgpack.Decoder(Saved).decode


class StoredState(msgspec.Struct, frozen=True):
    """An actor's state. `saves` counts those of its present incarnation, `epoch` its incarnations; age in seconds."""

    name: str
    kind: str
    epoch: int
    saves: int
    revision: int
    bytes: int
    written: str
    age: float


class StoredLog(msgspec.Struct, frozen=True):
    """An event log: the numbers of its first and last event, and how many messages they are kept in."""

    name: str
    events: int
    first: int
    last: int
    epoch: int
    messages: int
    bytes: int
    written: str
    age: float


class StoredBlobs(msgspec.Struct, frozen=True):
    """What lies in the object store: copies for other hosts, which go by themselves. No export holds them."""

    objects: int = 0
    bytes: int = 0


class Survey(msgspec.Struct, frozen=True):
    """What `callboard state --json` prints. `importing`: an import is under way, or was cut short."""

    states: tuple[StoredState, ...]
    logs: tuple[StoredLog, ...]
    blobs: StoredBlobs = StoredBlobs()
    importing: bool = False


async def stream_info(jetstream: JetStream, stream: str) -> dict[str, Any] | None:
    """What the server says of a stream; None where there is none."""
    try:
        return msgspec.json.decode(await jetstream.api(f"STREAM.INFO.{stream}"))
    except Refused as error:
        if error.number in NOT_FOUND:
            return None
        raise


async def read_all(jetstream: JetStream, stream: str, pattern: str, seq: int) -> AsyncIterator[Stored]:
    """The messages from `seq` on until there are no more; nothing of a stream that is not there."""
    if await stream_info(jetstream, stream) is None:
        return
    while found := await jetstream.read(stream, pattern, seq):
        for stored in found:
            yield stored
        seq = found[-1].seq + 1


def saved_of(stored: Stored) -> Saved:
    try:
        return _decode(stored.data)
    except UNDECODABLE as error:
        raise StateMismatch(f"what lies on {stored.subject} is no actor's state: {error}") from error


async def survey(jetstream: JetStream) -> Survey:
    """Reads through all that is there, message by message, since the server knows no sizes of single logs."""
    states: dict[str, StoredState] = {}
    importing = False
    async for stored in read_all(jetstream, store.STREAM, f"{store.SUBJECTS}>", 1):
        name = stored.subject.removeprefix(store.SUBJECTS)
        if name == IMPORT_KEY:
            importing = True
        elif stored.data:
            saved = saved_of(stored)
            seen = (stored.seq, len(saved.state), stored.at, _age(stored.at))
            states[name] = StoredState(name, saved.kind, saved.epoch, saved.number, *seen)
    logs: dict[str, StoredLog] = {}
    async for stored in read_all(jetstream, event_log.STREAM, f"{event_log.SUBJECTS}>", 1):
        name, batch = stored.subject.removeprefix(event_log.SUBJECTS), batch_of(stored)
        known = logs.get(name)
        first, messages, size = (known.first, known.messages, known.bytes) if known else (batch.first, 0, 0)
        last = batch.first + len(batch.events) - 1
        at = batch.at or stored.at
        logs[name] = StoredLog(
            *(name, last - first + 1, first, last, batch.epoch),
            *(messages + 1, size + len(stored.data), at, _age(at)),
        )
    objects = await jetstream.subjects(f"OBJ_{BLOBS}", f"$O.{BLOBS}.M.>")
    info = await stream_info(jetstream, f"OBJ_{BLOBS}")
    blobs = StoredBlobs(len(objects), info["state"]["bytes"] if info else 0)
    by_name = sorted(states.values(), key=_name), sorted(logs.values(), key=_name)
    return Survey(tuple(by_name[0]), tuple(by_name[1]), blobs, importing)


def _name(one: StoredState | StoredLog) -> str:
    return one.name


def _age(at: str) -> float:
    then = datetime.fromisoformat(at)
    return max(0.0, (datetime.now(then.tzinfo) - then).total_seconds())


async def state_names(jetstream: JetStream) -> set[str]:
    found = await jetstream.subjects(store.STREAM, f"{store.SUBJECTS}>")
    return {subject.removeprefix(store.SUBJECTS) for subject in found} - {IMPORT_KEY}


async def log_names(jetstream: JetStream) -> set[str]:
    found = await jetstream.subjects(event_log.STREAM, f"{event_log.SUBJECTS}>")
    return {subject.removeprefix(event_log.SUBJECTS) for subject in found}


async def require_unused(bus: Client, states: Iterable[str], logs: Iterable[str]) -> None:
    """Raises StateInUse where an actor of one of those names runs, or somebody follows one of those logs.

    It is a courtesy to those who run: what nobody here can see (a node that is cut off) is kept out by the epochs.
    """
    logs = set(logs)
    running = {info.address for info in await bus.actors()}
    if used := sorted(running & {*states, *logs}):
        raise StateInUse(
            f"{', '.join(used[:5])}{' and others' if len(used) > 5 else ''} run" + ("s" if len(used) == 1 else ""),
            hint=f"`callboard stop {used[0]}` first: what it does now would be lost",
        )
    if followed := sorted(logs & await _followed(bus.node.jetstream)):
        raise StateInUse(
            f"the log {followed[0]} is being followed", hint="end whoever follows it first: its events would change"
        )


async def _followed(jetstream: JetStream) -> set[str]:
    found: set[str] = set()
    offset = 0
    while True:
        try:
            page = msgspec.json.decode(await jetstream.api(f"CONSUMER.LIST.{event_log.STREAM}", {"offset": offset}))
        except Refused as error:
            if error.number in NOT_FOUND:
                return found
            raise
        consumers = page.get("consumers") or []
        found |= {one["config"].get("filter_subject", "") for one in consumers if one.get("num_waiting")}
        offset += len(consumers)
        if not consumers or offset >= page["total"]:
            return {subject.removeprefix(event_log.SUBJECTS) for subject in found}


async def find(jetstream: JetStream, name: str) -> list[str]:
    """What is stored under a name: "state", "log", or both. Raises NoSuchState for neither."""
    found = [
        what
        for what, names in (("state", await state_names(jetstream)), ("log", await log_names(jetstream)))
        if name in names
    ]
    if not found:
        raise NoSuchState(f"nothing is stored under the name {name}")
    return found


async def remove(bus: Client, name: str, what: str) -> None:
    """Remove a "state" or a "log" for good. Whoever owned it unseen is fenced off. Raises StateInUse."""
    jetstream = bus.node.jetstream
    if what == "state":
        await require_unused(bus, [name], [])
        await jetstream.purge(store.STREAM, store.SUBJECTS + name)
    else:
        await require_unused(bus, [], [name])
        await jetstream.purge(event_log.STREAM, event_log.SUBJECTS + name)
