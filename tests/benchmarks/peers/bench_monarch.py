"""Monarch: an actor in another process of this host."""

from __future__ import annotations

import asyncio
import time

from measure import MESSAGE, ROUNDS, Figures, ask_rate, note, pipelined_rate, show
from monarch.actor import Actor, endpoint, this_host

ASKS, TELLS, CROWD = 1_000, 3_000, 100


class Counter(Actor):
    def __init__(self) -> None:
        self.total = 0

    @endpoint
    async def add(self, message: bytes) -> int:
        self.total += 1
        return self.total


async def run() -> None:
    figures: Figures = {}
    process = this_host().spawn_procs(per_host={"workers": 1})
    counter = process.spawn("counter", Counter)

    async def ask() -> object:
        return await counter.add.call_one(MESSAGE)

    await ask()
    for _ in range(ROUNDS):
        note(figures, "bus_ask", await ask_rate(ask, ASKS))
        note(figures, "bus_ask_rate", await pipelined_rate(ask, ASKS))
        began = time.perf_counter()
        for _ in range(TELLS):
            counter.add.broadcast(MESSAGE)
        await ask()
        note(figures, "bus_tell_rate", TELLS / (time.perf_counter() - began))
    began = time.perf_counter()
    for number in range(CROWD):
        await process.spawn(f"c{number}", Counter).add.call_one(MESSAGE)
    note(figures, "bus_spawns", CROWD / (time.perf_counter() - began))
    await process.stop()
    show(figures)


if __name__ == "__main__":
    asyncio.run(run())
