"""Deadlines for many short waits: a wheel of coarse slots, since a timer and a cancel scope each cost more than an ask.

A deadline is never early and at most about two ticks late, beyond what the event loop itself was held up.
"""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import Protocol

from .log import log

TICK_S = 0.02
_SWEEP_TICKS = 50


class Expiring(Protocol):
    """What the wheel holds; `slot` belongs to the wheel."""

    slot: set[Expiring] | None

    def expire(self) -> None:
        """Called once from the event loop when the deadline has passed."""
        ...


class TimeLimit:
    """A limit for what the task that makes it does until `end`: when it passes, the task is cancelled.

    As `asyncio.timeout`, by the wheel: for what is too short and too frequent for a timer of its own. Where a
    CancelledError comes out, `end` says whether it was this limit's.
    """

    __slots__ = ("_before", "_expired", "_task", "slot")

    def __init__(self, wheel: DeadlineWheel, seconds: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit is for what a task does")
        self.slot: set[Expiring] | None = None
        self._task = task
        self._before = task.cancelling()
        self._expired = False
        wheel.add(self, seconds)

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def end(self) -> bool:
        """Take the limit off. Whether it had passed, and nobody else wants the task cancelled."""
        DeadlineWheel.discard(self)
        return self._expired and self._task.uncancel() <= self._before


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
        now = monotonic()
        if self._timer is None:
            self._turn_to(int(now / TICK_S))
        # From the time itself: `_tick` lags where the event loop was held up, and the deadline would come too soon.
        entry.slot = slot = self._slot(int((now + seconds) / TICK_S) + 1)
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

    def _slot(self, tick: int) -> set[Expiring]:
        return self._slots.setdefault(tick, set())

    def _turn_to(self, tick: int) -> None:
        self._tick = tick
        if self._usual_s != math.inf:
            # One tick because the present one has begun, one because the next turn may be late by as much.
            self.usual = self._slot(self._usual_tick(tick))
        self._timer = self._loop.call_later(TICK_S, self._advance)

    def _usual_tick(self, tick: int) -> int:
        return tick + int(self._usual_s / TICK_S) + 2

    def _advance(self) -> None:
        now = int(monotonic() / TICK_S)
        last = self._tick
        if now - last > 1 and self.usual:
            self._postpone_usual(now)
        if now - last > len(self._slots):
            due = sorted(tick for tick in self._slots if tick <= now)
        else:
            due = [tick for tick in range(last, now + 1) if tick in self._slots]
        for tick in due:
            for entry in tuple(self._slots.pop(tick)):
                entry.slot = None
                try:
                    entry.expire()
                except Exception:  # whatever is wrong with one entry, a bug say: the others must not miss their time
                    log.exception("a deadline could not be carried out")
        if now // _SWEEP_TICKS != last // _SWEEP_TICKS:
            self._slots = {tick: slot for tick, slot in self._slots.items() if slot}
            if not self._slots:
                self._timer = self.usual = None
                return
        self._turn_to(now)

    def _postpone_usual(self, now: int) -> None:
        """The loop was held up: what joined the usual slot meanwhile did so later than the slot's time says."""
        late = self._slots.pop(self._usual_tick(self._tick), None)
        if late is None:
            return
        slot = self._slots.setdefault(self._usual_tick(now), late)
        if slot is not late:
            slot.update(late)
            for entry in late:
                entry.slot = slot
