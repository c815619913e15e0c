"""Ray: an actor, which is always another process."""

from __future__ import annotations

import asyncio
import logging
import time

import ray
from measure import MESSAGE, ROUNDS, Figures, ask_rate, note, pipelined_rate, show

ASKS, TELLS, CROWD = 1_000, 5_000, 4


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.total = 0

    async def add(self, message: bytes) -> int:
        self.total += 1
        return self.total


async def run() -> None:
    figures: Figures = {}
    counter = Counter.remote()

    async def ask() -> object:
        return await counter.add.remote(MESSAGE)

    await ask()
    for _ in range(ROUNDS):
        note(figures, "bus_ask", await ask_rate(ask, ASKS))
        note(figures, "bus_ask_rate", await pipelined_rate(ask, ASKS))
        began = time.perf_counter()
        for _ in range(TELLS):
            counter.add.remote(MESSAGE)
        await ask()
        note(figures, "bus_tell_rate", TELLS / (time.perf_counter() - began))
    began = time.perf_counter()
    crowd = [Counter.remote() for _ in range(CROWD)]
    await asyncio.gather(*(actor.add.remote(MESSAGE) for actor in crowd))
    note(figures, "bus_spawns", CROWD / (time.perf_counter() - began))
    show(figures)


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    asyncio.run(run())
    ray.shutdown()
