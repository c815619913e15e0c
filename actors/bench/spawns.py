"""How soon an actor answers: one placed on a node that runs already, and one in a new process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ...runtime.bus import BusOptions
from ...runtime.node import Node
from ...runtime.placement import OnNode, Process, Where
from ...schemas.bench import Add
from . import processes
from .loops import new_event_loop
from .report import Report

SPAWNS = 5
TIMEOUT_S = 30.0
KIND = "counter"


def measure(report: Report, loop: str, url: str, rounds: int, step: Callable[[str], None]) -> None:
    """Add the targets, in ms: from the call of `spawn` until the actor has answered a first request."""
    with processes.other_side("host", loop, url), asyncio.Runner(loop_factory=new_event_loop(loop)) as runner:
        remote, process = runner.run(_measure(url, rounds, step))
    report.add_target("remote_spawn_p50_ms", 50, "ms", remote, at_most=True)
    report.add_target("process_spawn_p50_ms", 400, "ms", process, at_most=True)


async def _measure(url: str, rounds: int, step: Callable[[str], None]) -> tuple[list[float], list[float]]:
    remote: list[float] = []
    process: list[float] = []
    async with Node("bench-spawner", bus=BusOptions(url)) as node:
        # The first pays for importing the kind's module over there.
        await _spawn(node, OnNode(patience=TIMEOUT_S))
        for number in range(rounds):
            step(f"spawns elsewhere, round {number + 1} of {rounds}")
            for kept, where in ((remote, OnNode()), (process, Process())):
                kept += [await _spawn(node, where) for _ in range(SPAWNS)]
    return remote, process


async def _spawn(node: Node, where: Where) -> float:
    began = time.perf_counter()
    ref = await node.spawn(KIND, name="spawned", where=where)
    await ref.ask(Add(), TIMEOUT_S)
    taken = time.perf_counter() - began
    await node.stop("spawned", TIMEOUT_S)
    return taken * 1e3
