"""When approvals expire: one timer for all of them, however many wait and however long."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ...schemas.agent_log import AnyEvent, ApprovalGiven
from ...schemas.agent_parts import Verdict
from .log import RunLog

# The wall clock may be set: it is looked at again after this at the latest.
LOOK_AGAIN_S = 600.0


def expired(log: RunLog, id_: str, now: float) -> Sequence[AnyEvent]:
    """Where nobody answered in time, it counts as denied."""
    asked = log.approvals.get(id_)
    if asked is None or asked.expires_at > now:
        return ()
    return (ApprovalGiven(id=id_, step=asked.step, verdict=Verdict.EXPIRED),)


class Expiry:
    """Has `expire` called with the id of each approval when its time is over, answered meanwhile or not."""

    def __init__(self, expire: Callable[[str], Coroutine[Any, Any, None]], start: Callable[..., None]) -> None:
        self._expire = expire
        self._start = start
        self._heap: list[tuple[float, str]] = []
        self._known: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, id_: str, at: float) -> None:
        if id_ in self._known:
            return
        self._known.add(id_)
        heapq.heappush(self._heap, (at, id_))
        if self._heap[0][1] == id_:
            self._set()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set(self) -> None:
        self.close()
        if self._heap:
            seconds = min(max(self._heap[0][0] - time.time(), 0.0), LOOK_AGAIN_S)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        while self._heap and self._heap[0][0] <= time.time():
            _, id_ = heapq.heappop(self._heap)
            self._known.discard(id_)
            self._start(self._expire, id_)
        self._set()
