"""How many calls of one tool run at once, how many wait, and what of it is stuck."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable

from .errors import ToolBusy
from .threads import Worker

# For each call that may run, how many may wait. What waits longer than its caller does is gone by itself.
WAITING_PER_SLOT = 16


class Slots:
    """First come, first served. `all_stuck` is called when every slot was lost to a function that does not return.

    A slot whose call is over is free again when its thread is; one whose thread is still busy at the call's time limit
    is written off, and comes back only if that thread ever does.
    """

    def __init__(self, name: str, count: int, all_stuck: Callable[[], None]) -> None:
        self._name = name
        self.count = count
        self.free = count
        self.stuck = 0
        self._all_stuck = all_stuck
        self._waiters: collections.deque[asyncio.Future[None]] = collections.deque()

    def take_now(self) -> bool:
        """Whether a slot was free, which is the caller's now."""
        if self.free > 0 and not self._waiters:
            self.free -= 1
            return True
        return False

    async def take(self) -> None:
        """Return with a slot. Raises ToolBusy where too many wait already, or nothing is left to wait for."""
        if self.stuck >= self.count:
            raise ToolBusy(f"the tool {self._name} hangs in {self.stuck} calls, which is all it may work on")
        if self.take_now():
            return
        if len(self._waiters) >= WAITING_PER_SLOT * self.count:
            raise ToolBusy(
                f"the tool {self._name} works on {self.count - self.free} calls, and {len(self._waiters)} wait"
            )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give_back()  # it was ours already
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def give_back(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.free += 1

    def give_back_after(self, worker: Worker, seconds: float) -> None:
        """The call is over and its thread is not: the slot comes back with it, or is written off in so many seconds."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(0.0, seconds), self._write_off, worker)

        def free() -> None:
            timer.cancel()
            self.give_back()

        worker.on_free = free

    def _write_off(self, worker: Worker) -> None:
        self.stuck += 1
        worker.on_free = self._recovered
        if self.stuck >= self.count:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(ToolBusy(f"the tool {self._name} hangs in all the calls it may work on"))
            self._waiters.clear()
            self._all_stuck()

    def _recovered(self) -> None:
        self.stuck -= 1
        self.give_back()
