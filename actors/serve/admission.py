"""Who is let in: a bound on how many wait, and for those who are one too many, when to come again."""

from __future__ import annotations

import math
from collections import deque

from .errors import Overloaded

# The rate is measured over so many requests that ended last.
NUM_MEASURED = 32


class Admission:
    """`max_here` sequences may wait and run. Times are given, of one monotonic clock."""

    def __init__(self, max_here: int) -> None:
        self.max_here = max_here
        self.num_refused = 0
        self._ended: deque[float] = deque(maxlen=NUM_MEASURED)

    def ended(self, now: float) -> None:
        """A sequence ended, so there is room for another one."""
        self._ended.append(now)

    def check(self, num_here: int, num_waiting: int, now: float) -> None:
        """Overloaded, with about how long it takes, if there is no room for one more."""
        if num_here < self.max_here:
            return
        self.num_refused += 1
        seconds = self._seconds_each(now)
        hint = ""
        if seconds is not None:
            hint = (
                f"ask again in about {max(1, math.ceil(seconds))} s: one ends every {seconds:.2g} s, and all that wait "
                f"are served in about {max(1, math.ceil(seconds * num_waiting))} s"
            )
        raise Overloaded(f"{num_waiting} requests are waiting already; the engine takes no more", hint=hint)

    def _seconds_each(self, now: float) -> float | None:
        """Seconds from one end to the next; longer where none has ended for a while."""
        if len(self._ended) < 2:
            return None
        since = max(now - self._ended[-1], 0.0)
        return max((self._ended[-1] - self._ended[0]) / (len(self._ended) - 1), since)
