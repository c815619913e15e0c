"""What a work queue holds: a pure function of its log's events and of the time.

Every change is an event that `apply` takes, now and when the log is read again. The methods that decide return events,
or raise, and change nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..schemas.queue import NewItem, QueueTotals
from ..schemas.queue_log import (
    Back,
    BackEvent,
    BaseEvent,
    CheckedEvent,
    DoneEvent,
    DroppedEvent,
    ExtendedEvent,
    GivenEvent,
    KeptEvent,
    PastEvent,
    PastKey,
    PastLease,
    PutEvent,
    RequeuedEvent,
)
from .errors import ConfigError, LeaseLost, QueueFull

QueueEvent = (
    PutEvent
    | GivenEvent
    | ExtendedEvent
    | DoneEvent
    | BackEvent
    | RequeuedEvent
    | DroppedEvent
    | KeptEvent
    | PastEvent
    | BaseEvent
    | CheckedEvent
)

READY, DELAYED, LEASED, DEAD = "ready", "delayed", "leased", "dead"
DONE, AGAIN = "done", "again"
# What an item, a key or a lease takes beside its payload, in memory and in the log, roughly.
OVERHEAD = 64
MAX_ERROR = 1000
# So many entries of a heap may be out of date, beside as many as are not, before they are thrown out.
MOST_STALE = 1000


class QueueConfig(msgspec.Struct, frozen=True):
    """`max_attempts`: then an item is a dead letter. `backoff_s` after the first failed attempt, twice that after each
    further one, up to `backoff_max_s`.

    `max_items` and `max_bytes` (of payload) count all that is there, dead letters too. The key of an item that is gone,
    and how a lease ended, are remembered for `remember_s` seconds, of each the last `remember_items`. The log may have
    `compact_bytes` and three times what is there. It is named `queue.` and the actor's address, unless `log` says so.
    """

    max_attempts: int = 5
    backoff_s: float = 1.0
    backoff_max_s: float = 300.0
    max_items: int = 1_000_000
    max_bytes: int = 256 << 20
    remember_s: float = 86400.0
    remember_items: int = 100_000
    compact_bytes: int = 4 << 20
    log: str = ""

    def check(self) -> None:
        """Raises ConfigError."""
        for name in ("max_attempts", "max_items", "max_bytes", "compact_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a queue is at least 1, not {getattr(self, name)}")
        for name in ("backoff_s", "backoff_max_s", "remember_s", "remember_items"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} of a queue is not negative, as {getattr(self, name)} is")


@dataclass(eq=False, slots=True)
class Item:
    """`lease` is the last one that was given and that its holder has not settled; 0 for none."""

    id: int
    payload: bytes
    at: float
    key: str
    priority: int
    not_before: float
    phase: str = ""
    attempt: int = 0
    lease: int = 0
    until: float = 0.0
    error: str = ""
    died_at: float = 0.0


@dataclass
class QueueState:
    """Empty, until events are applied; `whole` is called after those of the log.

    `items` by number. A key is remembered while its item is there and for a time after; so is how a lease ended.
    """

    config: QueueConfig
    items: dict[int, Item] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    past_keys: dict[str, PastKey] = field(default_factory=dict)
    past_leases: dict[int, PastLease] = field(default_factory=dict)
    next_id: int = 1
    next_lease: int = 1
    bytes: int = 0

    def __post_init__(self) -> None:
        self.counts = {READY: 0, DELAYED: 0, LEASED: 0, DEAD: 0}
        self._totals = dict.fromkeys(QueueTotals.__struct_fields__, 0)
        self._dead: set[int] = set()
        self._is_whole = False
        # (-priority, number), (time, number), (time, lease, number). Entries may be out of date: see `_stands`.
        self._ready: list[tuple[int, int]] = []
        self._delayed: list[tuple[float, int]] = []
        self._leased: list[tuple[float, int, int]] = []

    @property
    def totals(self) -> QueueTotals:
        return QueueTotals(**self._totals)

    @property
    def weight(self) -> int:
        """Bytes that a log which says only what is there now would have, roughly."""
        return self.bytes + OVERHEAD * (2 * len(self.items) + len(self.past_keys) + len(self.past_leases))

    # Decisions

    def put(self, new: tuple[NewItem, ...], now: float) -> tuple[list[PutEvent], list[int], list[int]]:
        """What to put, the number of each item, and those that are known by their key. Raises QueueFull."""
        events: list[PutEvent] = []
        ids: list[int] = []
        known: list[int] = []
        fresh: dict[str, int] = {}
        for item in new:
            id_ = fresh.get(item.key) or self._known(item.key, now) if item.key else None
            if id_ is not None:
                ids.append(id_)
                known.append(id_)
                continue
            id_ = self.next_id + len(events)
            ids.append(id_)
            if item.key:
                fresh[item.key] = id_
            not_before = now + item.delay_s if item.delay_s else 0.0
            events.append(PutEvent(id_, item.payload, now, item.key, item.priority, not_before))
        config = self.config
        if events and len(self.items) + len(events) > config.max_items:
            raise QueueFull(f"the queue holds {len(self.items)} items, and may hold {config.max_items}")
        size = sum(len(event.payload) for event in events)
        if events and self.bytes + size > config.max_bytes:
            raise QueueFull(f"the queue holds {self.bytes} bytes, {size} more are over its {config.max_bytes}")
        return events, ids, known

    def _known(self, key: str, now: float) -> int | None:
        if (id_ := self.keys.get(key)) is not None:
            return id_
        past = self.past_keys.get(key)
        return past.id if past is not None and past.at + self.config.remember_s > now else None

    def give(self, lease_s: float, now: float) -> GivenEvent | None:
        """The next item that may be taken."""
        while self._ready:
            if self._stands(self._ready[0], READY):
                return GivenEvent(self._ready[0][1], self.next_lease, now + lease_s)
            heapq.heappop(self._ready)
        return None

    def settled(self, id_: int, lease: int) -> PastLease | None:
        """How this lease ended, if it has. Raises LeaseLost where it is not, or no more, good for the item.

        A lease that passed is still good while nobody else was given the item.
        """
        past = self.past_leases.get(lease)
        if past is not None and past.id == id_:
            return past
        item = self.items.get(id_)
        if item is None:
            raise LeaseLost(f"item {id_} is not in the queue: it was done long ago, dropped, or never put")
        if item.lease != lease:
            if item.phase == LEASED:
                raise LeaseLost(f"item {id_} was given to somebody else: its lease is {item.lease}, not {lease}")
            raise LeaseLost(f"item {id_} is not yours: the lease {lease} has ended, and somebody else's after it")
        return None

    def fail(
        self, id_: int, now: float, *, error: str, retry_after_s: float | None, dead: bool, why: Back
    ) -> BackEvent:
        """How an item comes back from its holder."""
        item, config = self.items[id_], self.config
        if why is Back.RETURNED:
            return BackEvent(id_, item.lease, now, why)
        if dead or item.attempt >= config.max_attempts:
            return BackEvent(id_, item.lease, now, why, dead=True, error=error[:MAX_ERROR])
        if retry_after_s is None:
            # Two to the 60th is over any bound, and a float.
            retry_after_s = min(config.backoff_s * 2.0 ** min(item.attempt - 1, 60), config.backoff_max_s)
        not_before = now + retry_after_s if retry_after_s else 0.0
        return BackEvent(id_, item.lease, now, why, not_before, error=error[:MAX_ERROR])

    def passed(self, now: float) -> list[BackEvent]:
        """Move what has waited for its time; how those items come back whose lease has passed."""
        while self._delayed and self._delayed[0][0] <= now:
            entry = heapq.heappop(self._delayed)
            if self._stands(entry, DELAYED):
                self._move(self.items[entry[1]], READY)
        events: list[BackEvent] = []
        while self._leased and self._leased[0][0] <= now:
            entry = heapq.heappop(self._leased)
            if self._stands(entry, LEASED):
                words = f"its lease passed in attempt {self.items[entry[2]].attempt}"
                events.append(self.fail(entry[2], now, error=words, retry_after_s=None, dead=False, why=Back.PASSED))
        self._forget(now)
        return events

    def next_time(self) -> float | None:
        """When `passed` has something to do next (or a little earlier)."""
        times = [heap[0][0] for heap in (self._delayed, self._leased) if heap]
        return min(times, default=None)

    def oldest_ready(self) -> float | None:
        """When the oldest item that may be taken was put. Items lie in the order of their numbers."""
        return next((item.at for item in self.items.values() if item.phase == READY), None)

    def dead(self) -> list[Item]:
        return [self.items[id_] for id_ in sorted(self._dead)]

    # Events

    def apply(self, event: Any) -> None:
        _APPLY[type(event)](self, event)

    def _put(self, event: PutEvent) -> None:
        item = Item(event.id, event.payload, event.at, event.key, event.priority, event.not_before)
        self._add(item)
        self.next_id = max(self.next_id, event.id + 1)
        self._totals["put"] += 1
        self._wait(item, event.not_before)

    def _given(self, event: GivenEvent) -> None:
        self.next_lease = max(self.next_lease, event.lease + 1)
        if (item := self.items.get(event.id)) is not None:
            item.attempt += 1
            self._lease(item, event.lease, event.until)

    def _extended(self, event: ExtendedEvent) -> None:
        if (item := self.items.get(event.id)) is not None:
            self._lease(item, event.lease, event.until)

    def _done(self, event: DoneEvent) -> None:
        self._totals["done"] += 1
        self._remember(PastLease(event.lease, event.id, event.at, DONE))
        self._remove(event.id, event.at)

    def _back(self, event: BackEvent) -> None:
        if event.why is Back.FAILED:
            self._totals["failed"] += 1
        elif event.why is Back.PASSED:
            self._totals["passed"] += 1
        self._totals["died"] += event.dead
        item = self.items.get(event.id)
        if event.why is not Back.PASSED:
            outcome = DEAD if event.dead else Back.RETURNED if event.why is Back.RETURNED else AGAIN
            self._remember(PastLease(event.lease, event.id, event.at, str(outcome), event.not_before))
            if item is not None:
                item.lease = 0
        if item is None:
            return
        if event.why is Back.RETURNED:
            item.attempt -= 1
        item.error = event.error or item.error
        if event.dead:
            item.died_at = event.at
            self._move(item, DEAD)
        else:
            self._wait(item, event.not_before)

    def _requeued(self, event: RequeuedEvent) -> None:
        self._totals["requeued"] += 1
        if (item := self.items.get(event.id)) is not None:
            item.attempt = item.lease = 0
            item.died_at = 0.0
            self._wait(item, 0.0)

    def _dropped(self, event: DroppedEvent) -> None:
        self._totals["dropped"] += 1
        self._remove(event.id, event.at)

    def _kept(self, event: KeptEvent) -> None:
        if (old := self.items.pop(event.id, None)) is not None:
            self.bytes -= len(old.payload)
            self._leave(old)
        item = Item(event.id, event.payload, event.at, event.key, event.priority, event.not_before)
        item.attempt, item.lease, item.until = event.attempt, event.lease, event.until
        item.error, item.died_at = event.error, event.died_at
        self._add(item)
        if event.state == LEASED:
            self._lease(item, event.lease, event.until)
        elif event.state == DEAD:
            self._move(item, DEAD)
        else:
            self._wait(item, event.not_before)

    def _past(self, event: PastEvent) -> None:
        for key in event.keys:
            self._remember_key(key)
        for lease in event.leases:
            self._remember(lease)

    def _base(self, event: BaseEvent) -> None:
        self.next_id, self.next_lease = event.next_id, event.next_lease
        self._totals = msgspec.structs.asdict(event.totals)

    def _checked(self, event: CheckedEvent) -> None: ...

    def whole(self) -> None:
        """All of the log has been applied. Compactions say out of its order what is remembered; this mends that."""
        self._is_whole = True
        self.items = dict(sorted(self.items.items()))
        self.past_keys = dict(sorted(self.past_keys.items(), key=lambda entry: entry[1].at))
        self.past_leases = dict(sorted(self.past_leases.items(), key=lambda entry: entry[1].at))
        self._trim(self.past_keys)
        self._trim(self.past_leases)

    # What stands for all of it

    def base(self) -> BaseEvent:
        return BaseEvent(self.next_id, self.next_lease, self.totals)

    def kept(self, id_: int) -> KeptEvent | None:
        """The item as an event, None if it is no more."""
        if (item := self.items.get(id_)) is None:
            return None
        return KeptEvent(
            item.id,
            item.payload,
            item.at,
            item.key,
            item.priority,
            item.not_before,
            READY if item.phase == DELAYED else item.phase,
            item.attempt,
            item.lease,
            item.until,
            item.error,
            item.died_at,
        )

    # Parts

    def _add(self, item: Item) -> None:
        self.items[item.id] = item
        self.bytes += len(item.payload)
        if item.key:
            self.keys[item.key] = item.id
            self.past_keys.pop(item.key, None)

    def _remove(self, id_: int, at: float) -> None:
        if (item := self.items.pop(id_, None)) is None:
            return
        self.bytes -= len(item.payload)
        self._leave(item)
        if item.key and self.keys.get(item.key) == id_:
            del self.keys[item.key]
            self._remember_key(PastKey(item.key, id_, at))

    def _wait(self, item: Item, not_before: float) -> None:
        item.not_before = not_before
        if not_before:
            self._move(item, DELAYED)
            self._push(self._delayed, (not_before, item.id), DELAYED)
        else:
            self._move(item, READY)

    def _lease(self, item: Item, lease: int, until: float) -> None:
        item.lease, item.until = lease, until
        item.not_before = 0.0
        self._move(item, LEASED)
        self._push(self._leased, (until, lease, item.id), LEASED)

    def _move(self, item: Item, phase: str) -> None:
        self._leave(item)
        item.phase = phase
        self.counts[phase] += 1
        if phase == READY:
            self._push(self._ready, (-item.priority, item.id), READY)
        elif phase == DEAD:
            self._dead.add(item.id)

    def _leave(self, item: Item) -> None:
        if item.phase:
            self.counts[item.phase] -= 1
            self._dead.discard(item.id)

    def _push(self, heap: list[Any], entry: tuple[float, ...], phase: str) -> None:
        heapq.heappush(heap, entry)
        if len(heap) > 2 * self.counts[phase] + MOST_STALE:
            heap[:] = {entry for entry in heap if self._stands(entry, phase)}
            heapq.heapify(heap)

    def _stands(self, entry: tuple[float, ...], phase: str) -> bool:
        """Whether an entry of that phase's heap still says how it is with its item."""
        item = self.items.get(int(entry[-1]))
        if item is None or item.phase != phase:
            return False
        if phase == DELAYED:
            return item.not_before == entry[0]
        return phase == READY or (item.until, item.lease) == entry[:2]

    def _remember(self, lease: PastLease) -> None:
        self.past_leases[lease.lease] = lease
        self._trim(self.past_leases)

    def _remember_key(self, key: PastKey) -> None:
        if key.key not in self.keys:
            self.past_keys.pop(key.key, None)
            self.past_keys[key.key] = key
            self._trim(self.past_keys)

    def _trim(self, past: dict[Any, Any]) -> None:
        while self._is_whole and len(past) > self.config.remember_items:
            del past[next(iter(past))]

    def _forget(self, now: float) -> None:
        """What has been remembered for its time. They lie in the order in which they ended."""
        for past in (self.past_keys, self.past_leases):
            gone = list(_before(past, now - self.config.remember_s))
            for key in gone:
                del past[key]


def _before(past: dict[Any, Any], at: float) -> Iterator[Any]:
    for key, value in past.items():
        if value.at > at:
            return
        yield key


_APPLY: dict[type, Any] = {
    PutEvent: QueueState._put,
    GivenEvent: QueueState._given,
    ExtendedEvent: QueueState._extended,
    DoneEvent: QueueState._done,
    BackEvent: QueueState._back,
    RequeuedEvent: QueueState._requeued,
    DroppedEvent: QueueState._dropped,
    KeptEvent: QueueState._kept,
    PastEvent: QueueState._past,
    BaseEvent: QueueState._base,
    CheckedEvent: QueueState._checked,
}
