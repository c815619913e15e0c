"""The events of a work queue's log: what was said to it, and what stands for that after a compaction. No messages.

Array-like, since every write pays for its bytes: new fields go to the end and have defaults. Times are wall clock.
"""

from __future__ import annotations

import enum

import msgspec

from .queue import QueueTotals


class Back(enum.StrEnum):
    """Why an item came back: its consumer failed, its lease passed, or it was not tried."""

    FAILED = "failed"
    PASSED = "passed"
    RETURNED = "returned"


class QueueEvent(msgspec.Struct, frozen=True, array_like=True, tag_field="type"):
    """Base of all of them."""


class PutEvent(QueueEvent, frozen=True, tag="put"):
    id: int
    payload: bytes
    at: float
    key: str = ""
    priority: int = 0
    not_before: float = 0.0


class GivenEvent(QueueEvent, frozen=True, tag="given"):
    id: int
    lease: int
    until: float


class ExtendedEvent(QueueEvent, frozen=True, tag="extended"):
    id: int
    lease: int
    until: float


class DoneEvent(QueueEvent, frozen=True, tag="done"):
    id: int
    lease: int
    at: float


class BackEvent(QueueEvent, frozen=True, tag="back"):
    """`dead` where it is to be given out no more."""

    id: int
    lease: int
    at: float
    why: Back
    not_before: float = 0.0
    dead: bool = False
    error: str = ""


class RequeuedEvent(QueueEvent, frozen=True, tag="requeued"):
    id: int
    at: float


class DroppedEvent(QueueEvent, frozen=True, tag="dropped"):
    id: int
    at: float


class KeptEvent(QueueEvent, frozen=True, tag="kept"):
    """An item as it is now, in the place of all that was said of it before. `state` is ready, leased or dead."""

    id: int
    payload: bytes
    at: float
    key: str
    priority: int
    not_before: float
    state: str
    attempt: int
    lease: int
    until: float
    error: str
    died_at: float


class PastKey(msgspec.Struct, frozen=True, array_like=True):
    """The key of an item that is gone, and when it went."""

    key: str
    id: int
    at: float


class PastLease(msgspec.Struct, frozen=True, array_like=True):
    """How a lease ended: `outcome` is done, again, dead or returned."""

    lease: int
    id: int
    at: float
    outcome: str
    not_before: float = 0.0


class PastEvent(QueueEvent, frozen=True, tag="past"):
    """What is remembered of items that are gone, in the place of what was said of them before."""

    keys: tuple[PastKey, ...] = ()
    leases: tuple[PastLease, ...] = ()


class BaseEvent(QueueEvent, frozen=True, tag="base"):
    """Where the numbers go on from, and the totals so far, in the place of all before."""

    next_id: int
    next_lease: int
    totals: QueueTotals


class CheckedEvent(QueueEvent, frozen=True, tag="checked"):
    """Changes nothing. Once it is there, whatever was written before it is there or never will be."""
