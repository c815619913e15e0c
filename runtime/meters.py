"""Counting that the hot path can afford: durations in a few wide buckets, by samples, and bytes by family."""

from __future__ import annotations

from ..schemas.metrics import BUCKETS_US, Durations, Traffic

# So many messages of an actor's life are timed one by one, and then one in so many: reading the clock twice costs a
# tenth of handling a small message.
TIMED_FIRST = 256
TIMED_EVERY = 64
# Families of subjects are few unless somebody makes up first tokens.
MAX_FAMILIES = 32


class DurationMeter:
    """A histogram with a bucket for each factor of four, in microseconds."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_US) + 1)
        self.seconds = 0.0

    def add(self, seconds: float, weight: int = 1) -> None:
        microseconds = int(seconds * 1e6 + 0.999999)
        self.counts[min((max(0, microseconds - 1).bit_length() + 1) // 2, len(BUCKETS_US))] += weight
        self.seconds += seconds * weight

    def read(self) -> Durations:
        return Durations(tuple(self.counts), self.seconds)


class TrafficMeter:
    """Messages and bytes by the first token of their subject."""

    def __init__(self) -> None:
        self.sent: dict[str, list[int]] = {}
        self.received: dict[str, list[int]] = {}

    @staticmethod
    def count_of(counts: dict[str, list[int]], subject: str) -> list[int]:
        """`[messages, bytes]` of a subject's family, to be added to."""
        family = subject.partition(".")[0]
        found = counts.get(family)
        if found is None:
            if len(counts) >= MAX_FAMILIES:
                family = "other"
            found = counts.setdefault(family, [0, 0])
        return found

    def read(self) -> tuple[Traffic, ...]:
        families = sorted({*self.sent, *self.received})
        none = [0, 0]
        return tuple(Traffic(f, *self.sent.get(f, none), *self.received.get(f, none)) for f in families)
