"""How often we may ask: limits kept on our side in any window of a minute, and pauses that the endpoint asks for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import anyio

WINDOW_S = 60.0


class Window:
    """At most `limit` of something in any `WINDOW_S` seconds; 0: no limit. What is more than the limit by itself may
    come when nothing else is in the window: whether that is allowed is the endpoint's to say."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: deque[list[float]] = deque()  # [time, amount], oldest first
        self._sum = 0.0

    def delay(self, now: float, amount: float) -> float:
        """Seconds until so much may be taken."""
        if not self._limit:
            return 0.0
        while self._taken and self._taken[0][0] <= now - WINDOW_S:
            self._sum -= self._taken.popleft()[1]
        over = self._sum + amount - self._limit
        if over <= 0 or not self._taken:
            return 0.0
        for at, taken in self._taken:
            over -= taken
            if over <= 0:
                return at + WINDOW_S - now
        return self._taken[-1][0] + WINDOW_S - now

    def take(self, now: float, amount: float) -> list[float]:
        """Counts from now on. The entry may be given to `correct`."""
        entry = [now, amount]
        if self._limit:
            self._taken.append(entry)
            self._sum += amount
        return entry

    def correct(self, entry: list[float], amount: float) -> None:
        """What an estimate turned out to be."""
        if any(entry is one for one in self._taken):
            self._sum += amount - entry[1]
            entry[1] = amount


class Pace:
    """One for all requests of an upstream. Who waits is served in the order of arrival."""

    def __init__(
        self,
        requests_per_minute: int,
        tokens_per_minute: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = Window(requests_per_minute)
        self._tokens = Window(tokens_per_minute)
        self._clock = clock
        self._turn = anyio.Lock()
        self._not_before = 0.0

    async def take(self, num_tokens: int) -> list[float]:
        """Wait until a request of so many tokens may be sent. Returns what `settle` takes once they are known."""
        async with self._turn:
            while (seconds := self.delay(num_tokens)) > 0:
                await anyio.sleep(seconds)
            now = self._clock()
            self._requests.take(now, 1)
            return self._tokens.take(now, num_tokens)

    def delay(self, num_tokens: int) -> float:
        now = self._clock()
        waits = (self._not_before - now, self._requests.delay(now, 1), self._tokens.delay(now, num_tokens))
        return max(0.0, *waits)

    def settle(self, entry: list[float], num_tokens: int) -> None:
        self._tokens.correct(entry, num_tokens)

    def pause(self, seconds: float) -> None:
        """The endpoint wants none of us to ask before."""
        self._not_before = max(self._not_before, self._clock() + seconds)
