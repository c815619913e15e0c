"""Deadlines for many short waits: a wheel of coarse slots, since a timer and a cancel scope each cost more than an ask.

A deadline is never early and at most about two ticks late.
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

TICK_S = 0.02
_SWEEP_TICKS = 50


class Expiring(Protocol):
    """What the wheel holds; `slot` belongs to the wheel."""

    slot: set[Expiring] | None

    def expire(self) -> None:
        """Called once from the event loop when the deadline has passed."""
        ...


class DeadlineWheel:
    """Calls `expire()` on each entry whose time has passed and that was not discarded before.

    `usual` is the slot for a deadline `usual_s` seconds from now while the wheel turns: a hot path adds to it without a
    call. The timer runs only while something waits. Not thread-safe: one wheel per event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, usual_s: float = 30.0) -> None:
        self.usual: set[Expiring] | None = None
        self._loop = loop
        self._usual_s = usual_s
        self._slots: dict[int, set[Expiring]] = {}
        self._tick = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, entry: Expiring, seconds: float) -> None:
        """Have the entry expire in so many seconds; infinity means never."""
        if seconds == math.inf:
            return
        if self._timer is None:
            self._turn_to(int(self._loop.time() / TICK_S))
        entry.slot = slot = self._slot(seconds)
        slot.add(entry)

    @staticmethod
    def discard(entry: Expiring) -> None:
        slot = entry.slot
        if slot is not None:
            slot.discard(entry)
            entry.slot = None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.usual = None
        self._slots.clear()

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def _slot(self, seconds: float) -> set[Expiring]:
        # One tick because the present one has begun, one because `_tick` may lag by as much.
        return self._slots.setdefault(self._tick + int(seconds / TICK_S) + 2, set())

    def _turn_to(self, tick: int) -> None:
        self._tick = tick
        self.usual = self._slot(self._usual_s) if self._usual_s != math.inf else None
        self._timer = self._loop.call_later(TICK_S, self._advance)

    def _advance(self) -> None:
        now = int(self._loop.time() / TICK_S)
        if now - self._tick > len(self._slots):
            due = sorted(tick for tick in self._slots if tick <= now)
        else:
            due = [tick for tick in range(self._tick, now + 1) if tick in self._slots]
        for tick in due:
            for entry in tuple(self._slots.pop(tick)):
                entry.slot = None
                entry.expire()
        if now // _SWEEP_TICKS != self._tick // _SWEEP_TICKS:
            self._slots = {tick: slot for tick, slot in self._slots.items() if slot}
            if not self._slots:
                self._timer = self.usual = None
                return
        self._turn_to(now)
