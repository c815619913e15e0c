"""What the peers' programs share: the message, the loops that time it, and the line that they print."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

MESSAGE = b"x" * 128
IN_FLIGHT = 64
ROUNDS = 3

Figures = dict[str, list[float]]


def note(figures: Figures, name: str, value: float) -> None:
    figures.setdefault(name, []).append(value)


def show(figures: Figures) -> None:
    print(json.dumps(figures), flush=True)


async def ask_rate(ask: Callable[[], Awaitable[object]], count: int) -> float:
    """Asks a second, one at a time."""
    began = time.perf_counter()
    for _ in range(count):
        await ask()
    return count / (time.perf_counter() - began)


async def pipelined_rate(ask: Callable[[], Awaitable[object]], count: int) -> float:
    """Asks a second with `IN_FLIGHT` under way."""

    async def some() -> None:
        for _ in range(count // IN_FLIGHT):
            await ask()

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))
    return count / (time.perf_counter() - began)


def resident_kb() -> float:
    """This process's resident memory (KiB), where Linux tells it."""
    with open("/proc/self/status") as status:
        return next(float(line.split()[1]) for line in status if line.startswith("VmRSS"))
