"""What a node counts, and how it is asked for it."""

from __future__ import annotations

import msgspec

from .base import Message, Request

# Upper bounds of the buckets of a duration, in microseconds; the last bucket has none.
BUCKETS_US = tuple(4**power for power in range(14))


class Durations(msgspec.Struct, frozen=True):
    """How long handlers took: how many ended within each of `BUCKETS_US` and not the one before, and beyond all.

    An actor's first messages are measured one by one, later ones by samples that stand for several.
    """

    counts: tuple[int, ...] = ()
    seconds: float = 0.0


class ActorMetrics(msgspec.Struct, frozen=True):
    """One actor since its supervisor began it, or (`actors` > 1) a crowd of siblings of one kind, `parent.*`.

    `refused` counts messages that found the mailbox full, `dropped` those that nobody handled. `mailbox_high` is the
    most that ever waited.
    """

    address: str
    kind: str
    actors: int = 1
    handled: int = 0
    errors: int = 0
    dropped: int = 0
    refused: int = 0
    restarts: int = 0
    mailbox: int = 0
    mailbox_high: int = 0
    mailbox_size: int = 0
    durations: Durations = Durations()


class Traffic(msgspec.Struct, frozen=True):
    """What went over the bus below one first token of a subject: `actor`, `inbox`, `topic`, ..."""

    family: str
    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0


class ListenerMetrics(msgspec.Struct, frozen=True):
    """All listeners of one pattern: what they took, what found no room, what was of no type that they wanted."""

    pattern: str
    listeners: int = 0
    taken: int = 0
    dropped: int = 0
    skipped: int = 0


class NodeMetrics(Message, frozen=True, tag="node.node_metrics"):
    """`outbox` is what waits to be sent, `credit_stalls` how often a sender had to wait for a receiver's room."""

    node: str
    pid: int
    version: str
    uptime_s: float
    cpu_s: float
    resident_bytes: int
    actors: tuple[ActorMetrics, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    listeners: tuple[ListenerMetrics, ...] = ()
    outbox: int = 0
    credit_stalls: int = 0
    reconnects: int = 0


class GetMetrics(Request[NodeMetrics], frozen=True, tag="node.metrics"):
    """Ask a node's control actor what it has counted."""
