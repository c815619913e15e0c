"""What is said to a work queue: put items in, take them under a lease, and say what became of them.

An item's payload is bytes to the queue. Callboard's own clients (`runtime/work_queue.py`) put a message there, in
MessagePack; others may put JSON.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from .base import Message, Request

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Number = Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
# Items of one message.
Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class NewItem(msgspec.Struct, frozen=True):
    """Work to be done. One with the `key` of an item that was put before is not put again.

    Higher `priority` goes first, among equals the older one. It is not given out before `delay_s` has passed.
    """

    payload: bytes
    key: str = ""
    priority: Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)] = 0
    delay_s: Seconds = 0.0


class ItemsPut(Message, frozen=True, tag="queue.items_put"):
    """The items are on the disk, under these numbers. `known` are those among them that were there by their key."""

    ids: tuple[int, ...]
    known: tuple[int, ...] = ()


class PutItems(Request[ItemsPut], frozen=True, tag="queue.put"):
    """All of them are put, or none. Answered once they are on the disk, else QueueFull, TooLarge, a StoreError."""

    items: Annotated[tuple[NewItem, ...], msgspec.Meta(min_length=1, max_length=1000)]


class LeasedItem(msgspec.Struct, frozen=True):
    """An item that is yours until `until` (the queue's wall clock, seconds since 1970), `lease` being the proof.

    `attempt` is how often it has been given out, this time included.
    """

    id: int
    lease: int
    payload: bytes
    attempt: int
    until: float
    key: str = ""


class ItemsTaken(Message, frozen=True, tag="queue.items_taken"):
    items: tuple[LeasedItem, ...]


class TakeItems(Request[ItemsTaken], frozen=True, tag="queue.take"):
    """Up to `limit` items for `lease_s` seconds. Where there are none it waits `wait_s` for one, then answers so.

    Ask with a timeout longer than `wait_s`.
    """

    limit: Limit = 1
    lease_s: Positive = 30.0
    wait_s: Seconds = 0.0


class ItemSettled(Message, frozen=True, tag="queue.item_settled"):
    """What became of an item: it is done, waits for another attempt (from `not_before`), or is a dead letter."""

    id: int
    dead: bool = False
    not_before: float = 0.0


class FinishItem(Request[ItemSettled], frozen=True, tag="queue.done"):
    """It is done. Safe to repeat. LeaseLost where the item was given to somebody else, or is no more."""

    id: Number
    lease: Number


class FailItem(Request[ItemSettled], frozen=True, tag="queue.fail"):
    """It could not be done: it waits for its next attempt, `retry_after_s` from now (by default longer each time).

    After its last attempt, or with `dead`, it becomes a dead letter. Safe to repeat. LeaseLost as with `queue.done`.
    """

    id: Number
    lease: Number
    error: str = ""
    retry_after_s: Seconds | None = None
    dead: bool = False


class ReturnItem(Request[ItemSettled], frozen=True, tag="queue.return"):
    """It was not tried: the next one may have it at once, and the attempt does not count."""

    id: Number
    lease: Number


class LeaseExtended(Message, frozen=True, tag="queue.lease_extended"):
    until: float


class ExtendLease(Request[LeaseExtended], frozen=True, tag="queue.extend"):
    """It takes longer: the lease now ends `lease_s` seconds from now. LeaseLost as with `queue.done`."""

    id: Number
    lease: Number
    lease_s: Positive = 30.0


class DeadItem(msgspec.Struct, frozen=True):
    """An item that is given out no more. `error` is what its last attempt ended with, `died_at` when (wall clock)."""

    id: int
    payload: bytes
    attempts: int
    error: str
    died_at: float
    key: str = ""


class DeadItems(Message, frozen=True, tag="queue.dead_items"):
    """In the order of their numbers; `total` is how many there are in all."""

    items: tuple[DeadItem, ...]
    total: int


class ListDeadItems(Request[DeadItems], frozen=True, tag="queue.list_dead"):
    """The dead letters with numbers above `after`."""

    after: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] = 0
    limit: Limit = 100


class ItemsChanged(Message, frozen=True, tag="queue.items_changed"):
    """The numbers of those that were changed: others are not there, or not in a state for it."""

    ids: tuple[int, ...]


class RequeueItems(Request[ItemsChanged], frozen=True, tag="queue.requeue"):
    """Give dead letters all their attempts again: those named, or with `all` every one."""

    ids: tuple[Number, ...] = ()
    all: bool = False


class DropItems(Request[ItemsChanged], frozen=True, tag="queue.drop"):
    """Remove items that nobody has at the moment: those named, or with `all` every dead letter."""

    ids: tuple[Number, ...] = ()
    all: bool = False


class QueueTotals(msgspec.Struct, frozen=True):
    """What has happened since the queue was first there: items put, done, failed attempts, leases that passed,
    items that died, were requeued, dropped."""

    put: int
    done: int
    failed: int
    passed: int
    died: int
    requeued: int
    dropped: int


class QueueStats(Message, frozen=True, tag="queue.stats"):
    """What there is now: items that may be taken, that wait for their time, that somebody has, that are dead letters;
    payload bytes of all; the age of the oldest that may be taken (seconds); how many wait for an item."""

    ready: int
    delayed: int
    leased: int
    dead: int
    bytes: int
    oldest_s: float
    waiting: int
    totals: QueueTotals


class GetQueueStats(Request[QueueStats], frozen=True, tag="queue.get_stats"): ...
