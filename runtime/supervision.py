"""Supervision as in OTP: who is restarted when a child crashes, how often, and how soon.

See the Erlang/OTP design principles, "Supervisor Behaviour". One difference: an actor keeps its address and its waiting
messages across a restart; only the message it crashed on is gone, and its sender was told.
"""

from __future__ import annotations

import collections
import enum
import random
from dataclasses import dataclass


class Strategy(enum.StrEnum):
    """Who is restarted with a crashed child: itself, all its siblings, or those started after it."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


class Restart(enum.StrEnum):
    """When a child is restarted: always, after a crash only, or never."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


@dataclass(frozen=True)
class Supervision:
    """How an actor looks after its children.

    More than `max_restarts` within `period_s` seconds is a crash of the supervisor itself. The first restart is
    immediate; the n-th within the period waits `backoff_s * 2**(n-2)`, at most `backoff_max_s`, less up to a quarter
    at random so that many do not return at once.
    """

    strategy: Strategy = Strategy.ONE_FOR_ONE
    max_restarts: int = 5
    period_s: float = 30.0
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0


class RestartBudget:
    """Counts restarts over the sliding period of a `Supervision`."""

    def __init__(self, policy: Supervision) -> None:
        self._policy = policy
        self._times: collections.deque[float] = collections.deque()

    def take(self, now: float) -> float | None:
        """Seconds to wait before this restart, or None when the budget is spent. `now` is a monotonic time."""
        policy, times = self._policy, self._times
        while times and now - times[0] > policy.period_s:
            times.popleft()
        if len(times) >= policy.max_restarts:
            return None
        times.append(now)
        if len(times) == 1:
            return 0.0
        delay = min(policy.backoff_s * 2 ** (len(times) - 2), policy.backoff_max_s)
        return delay * random.uniform(0.75, 1.0)
