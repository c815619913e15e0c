"""Xoscar: in one process, and to an actor in another process of its pool."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import xoscar as xo
from measure import MESSAGE, ROUNDS, Figures, ask_rate, note, pipelined_rate, resident_kb, show

LOCAL, BUS, CROWD = 20_000, 2_000, 2_000


class Counter(xo.Actor):
    def __init__(self) -> None:
        self.total = 0

    async def add(self, message: bytes) -> int:
        self.total += 1
        return self.total


class Driver(xo.Actor):
    """Measures from inside a pool."""

    async def figures(self, scope: str, counter: xo.ActorRef, asks: int) -> Figures:
        found: Figures = {}
        if scope == "local":
            counter = await xo.actor_ref(counter)  # one that was made in this process skips the sockets

        async def ask() -> None:
            await counter.add(MESSAGE)

        for _ in range(ROUNDS):
            note(found, f"{scope}_ask", await ask_rate(ask, asks))
            note(found, f"{scope}_ask_rate", await pipelined_rate(ask, asks))
            began = time.perf_counter()
            for _ in range(asks):
                await counter.add.tell(MESSAGE)
            await ask()
            name = "local_tell" if scope == "local" else "bus_tell_rate"
            note(found, name, asks / (time.perf_counter() - began))
        return found

    async def crowd(self, scope: str, address: str) -> Figures:
        before, began = resident_kb(), time.perf_counter()
        for number in range(CROWD if scope == "local" else CROWD // 10):
            await xo.create_actor(Counter, address=address, uid=f"{scope}-{number}")
        seconds = time.perf_counter() - began
        if scope == "bus":
            return {"bus_spawns": [CROWD / 10 / seconds]}
        return {"spawns": [CROWD / seconds], "idle_actor_kb": [(resident_kb() - before) / CROWD]}


async def run() -> None:
    # The pool's processes import what is beside this file.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    figures: Figures = {}
    async with await xo.create_actor_pool(address="127.0.0.1", n_process=0) as pool:
        here = pool.external_address
        driver = await xo.create_actor(Driver, address=here, uid="driver")
        counter = await xo.create_actor(Counter, address=here, uid="counter")
        figures.update(await driver.figures("local", counter, LOCAL))
        figures.update(await driver.crowd("local", here))
    async with await xo.create_actor_pool(address="127.0.0.1", n_process=2) as pool:
        near, far = list(pool.sub_processes)
        driver = await xo.create_actor(Driver, address=near, uid="driver")
        counter = await xo.create_actor(Counter, address=far, uid="counter")
        figures.update(await driver.figures("bus", counter, BUS))
        figures.update(await driver.crowd("bus", far))
    show(figures)


if __name__ == "__main__":
    asyncio.run(run())
