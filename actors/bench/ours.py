"""The same work as the floors do, done by our actors: typed, bounded, supervised, with a deadline on each ask."""

from __future__ import annotations

import asyncio
import time

from ...runtime.refs import Ref
from ...schemas.bench import Add, Follow, Note, Report
from .counter import padded
from .floors import IN_FLIGHT

ASK_TIMEOUT_S = 30.0
ROOM_TIMEOUT_S = 60.0


class Ours:
    """The sender's side. Whether the actor lives here or in another process is in the reference."""

    def __init__(self, counter: Ref) -> None:
        self._counter = counter

    async def ask_rate(self, count: int) -> float:
        """Asks a second, one at a time."""
        began = time.perf_counter()
        await self._ask(count)
        return count / (time.perf_counter() - began)

    async def ask_seconds(self, count: int) -> list[float]:
        """How long each of `count` asks took, one at a time."""
        ask, message, clock = self._counter.ask, padded(Add()), time.perf_counter
        taken: list[float] = []
        for _ in range(count):
            began = clock()
            await ask(message, ASK_TIMEOUT_S)
            taken.append(clock() - began)
        return taken

    async def pipelined_rate(self, count: int) -> float:
        """Asks a second with `IN_FLIGHT` under way."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(self._ask(count // IN_FLIGHT))
        return count / (time.perf_counter() - began)

    async def _ask(self, count: int) -> None:
        ask, message = self._counter.ask, padded(Add())
        for _ in range(count):
            await ask(message, ASK_TIMEOUT_S)

    async def tell_rate(self, count: int) -> float:
        """Messages a second, from the first tell until the receiver has handled the last, by one clock.

        The sender waits for room in the bounded mailbox, so nothing is lost.
        """
        tell, message = self._counter.tell, padded(Note())
        await self._counter.ask(Report(), ASK_TIMEOUT_S)
        began = time.monotonic()
        for _ in range(count):
            await tell(message, ROOM_TIMEOUT_S)
        arrivals = await self._counter.ask(Report(), ROOM_TIMEOUT_S)
        if arrivals.count != count:
            raise RuntimeError(f"{count - arrivals.count} of {count} messages were lost")
        return count / (arrivals.at - began)

    async def stream_rate(self, count: int) -> float:
        """Items a second that come back for one request."""
        received = 0
        began = time.perf_counter()
        async with self._counter.stream(Follow(count)) as pieces:
            async for _ in pieces:
                received += 1
        seconds = time.perf_counter() - began
        if received != count:
            raise RuntimeError(f"{count - received} of {count} items were lost")
        return count / seconds
