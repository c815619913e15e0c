"""`callboard bench gateway`: what the way through HTTP costs beside the bus, and what a crowd leaves behind.

The gateway and the engine are processes of their own; the clients of both ways are this one, and a load's clients a
fourth. The same request goes by one way and then by the other, turn about within each round, so what the machine does
meanwhile touches both alike.
"""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import msgspec
import psutil

from ...runtime.bus import BusOptions
from ...runtime.census import actors_around
from ...runtime.node import Node
from ...runtime.placement import Process
from ...runtime.refs import Ref
from ...schemas.gateway import AskGateway
from ...schemas.serve_stats import EngineStats, GetStats
from . import processes
from .errors import BenchFailed
from .gateway_crowd import crowd, left_behind
from .gateway_load import LOAD, load
from .gateway_paths import Bus, Heard, Talk, ask_over_http, connection_to
from .machine import kernels_of, machine_facts
from .percentiles import percentile
from .report import Report

Step = Callable[[str], None]

ENGINE, GATEWAY = "serve.engine", "gateway.http"
STATS_TIMEOUT_S = 150.0
CROWD = 64
OVERHEAD_GOAL_MS, RATE_GOAL = 2.0, 0.9


@dataclass(frozen=True)
class Sizes:
    """`pairs`: requests by each way in a round, to their first token; `loaded_pairs`: the same while `LOAD` streams go
    on; `stream_tokens`: of each of the `CROWD` streams whose rate is measured; `crowd_requests`: of each client of the
    crowd of which a third goes away."""

    rounds: int = 5
    pairs: int = 100
    loaded_pairs: int = 60
    load_tokens: int = 96
    stream_tokens: int = 64
    crowd_requests: int = 4
    crowd_tokens: int = 24


QUICK = Sizes(1, 8, 4, 24, 8, 1, 8)


@dataclass
class Samples:
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


@dataclass(frozen=True)
class Stage:
    """What is measured: the gateway and the engine behind it, and the way past it."""

    gateway: Ref
    scheduler: Ref
    url: str
    process: psutil.Process

    def gateway_seconds(self) -> float:
        """Of processor time that the gateway's process has taken."""
        times = self.process.cpu_times()
        return times.user + times.system

    async def stats(self) -> EngineStats:
        return await self.scheduler.ask(GetStats(), timeout=STATS_TIMEOUT_S)


async def run(settings: Mapping[str, object], sizes: Sizes, step: Step) -> Report:
    """Measure all of it, with an engine of these settings. `step` hears what is being done. Raises NoSuchModel and what
    else starting raises, BenchFailed."""
    report = Report("gateway", machine_facts("httptools", "nats-py", "starlette", "torch", "uvicorn", "uvloop"))
    found = Samples()
    step("starting the engine and the gateway")
    async with _stage(settings) as stage:
        stats = await stage.stats()
        report.machine |= {"model": Path(stats.model).stem, "dtype": stats.dtype, "kernels": kernels_of(stats)}
        step("warming up")
        await _alternating(stage, 4, "warm up", found=None)
        for number in range(sizes.rounds):
            step(f"to the first byte, round {number + 1} of {sizes.rounds}")
            await _alternating(stage, sizes.pairs, "alone", found)
            step(f"to the first byte beside {LOAD} streams, round {number + 1} of {sizes.rounds}")
            async with load(stage.url, sizes.load_tokens):
                await _alternating(stage, sizes.loaded_pairs, f"beside_{LOAD}", found)
            step(f"{CROWD} streams, round {number + 1} of {sizes.rounds}")
            await _rates(stage, sizes.stream_tokens, number, found)
        step(f"a crowd of {CROWD}, a third of which goes away")
        await _crowd(stage, sizes, report)
    _report(report, found)
    return report


@asynccontextmanager
async def _stage(settings: Mapping[str, object]) -> AsyncIterator[Stage]:
    with processes.nats_server() as nats:
        async with Node("bench-clients", bus=BusOptions(nats)) as node:
            gateway = await node.spawn(GATEWAY, "{}", name="http", where=Process())
            await node.spawn(ENGINE, msgspec.json.encode(settings).decode(), name="engine", where=Process())
            url = (await gateway.ask(AskGateway())).url
            (pid,) = [one.pid for one in await actors_around(node, "http") if one.place == "here"]
            yield Stage(gateway, node.actor("engine.scheduler"), url, psutil.Process(pid))


async def _alternating(stage: Stage, pairs: int, name: str, found: Samples | None) -> None:
    """The same requests by both ways, turn about, over one connection; the prompt is known to the engine's cache, so
    that little more than the ways themselves is measured."""
    talk, bus = Talk("Say why the sky is blue.", 2), Bus(stage.scheduler)
    heard: dict[str, list[Heard]] = {"bus": [], "http": []}
    async with connection_to(stage.url) as connection:
        works: dict[str, Callable[[], Awaitable[Heard]]] = {
            "bus": lambda: bus.ask(talk),
            "http": lambda: ask_over_http(connection, talk),
        }
        for number in range(pairs):
            for way in works if number % 2 == 0 else reversed(works):
                heard[way].append(await works[way]())
    if found is None:
        return
    ways: dict[str, list[float]] = {}
    for way, each in heard.items():
        ways[way] = [one.way * 1e3 for one in each]
        found.add(f"{way}_first_byte_{name}_p50", statistics.median(one.first * 1e3 for one in each))
        found.add(f"{way}_way_{name}_p50", statistics.median(ways[way]))
        found.add(f"{way}_way_{name}_p90", percentile(ways[way], 90))
    found.add(f"overhead_{name}_p50_ms", statistics.median(ways["http"]) - statistics.median(ways["bus"]))


async def _rates(stage: Stage, tokens: int, number: int, found: Samples) -> None:
    """`CROWD` streams by one way and then as many by the other, turn about by the round's number."""
    talks = [Talk(f"Tell story number {client} of {CROWD}.", tokens) for client in range(CROWD)]
    rates: dict[str, float] = {}
    for way in ("bus", "http") if number % 2 == 0 else ("http", "bus"):
        spent = stage.gateway_seconds()
        if way == "bus":
            rates[way] = await _rate([lambda talk=talk: Bus(stage.scheduler).ask(talk) for talk in talks], tokens)
        else:
            rates[way] = await _rate_over_http(stage.url, talks, tokens)
            found.add("gateway_per_token_us", (stage.gateway_seconds() - spent) / (CROWD * tokens) * 1e6)
        found.add(f"{way}_{CROWD}_streams", rates[way])
    found.add(f"rate_over_bus_{CROWD}", rates["http"] / rates["bus"])


async def _rate_over_http(url: str, talks: list[Talk], tokens: int) -> float:
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connection_to(url)) for _ in talks]
        works = [
            lambda talk=talk, connection=connection: ask_over_http(connection, talk)
            for talk, connection in zip(talks, connections, strict=True)
        ]
        return await _rate(works, tokens)


async def _rate(works: Sequence[Callable[[], Awaitable[Heard]]], tokens: int) -> float:
    """Tokens a second of all streams together. Raises BenchFailed where one has fewer than were asked for."""
    heard: list[Heard] = []

    async def one(work: Callable[[], Awaitable[Heard]]) -> None:
        heard.append(await work())

    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        for work in works:
            group.start_soon(one, work)
    seconds = anyio.current_time() - began
    if any(each.num_tokens != tokens for each in heard):
        raise BenchFailed(f"of {tokens} tokens for each stream came {sorted({each.num_tokens for each in heard})}")
    return len(works) * tokens / seconds


async def _crowd(stage: Stage, sizes: Sizes, report: Report) -> None:
    before = await stage.gateway.ask(AskGateway())
    talks = [Talk(f"What is {number} times {number + 1}?", sizes.crowd_tokens) for number in range(CROWD)]
    outcome = await crowd(stage.url, talks, sizes.crowd_requests, "crowd")
    left = await left_behind(stage.gateway, stage.scheduler, before)
    report.add("crowd_whole", [outcome.whole], "requests")
    report.add("crowd_dropped", [outcome.dropped.total()], "requests")
    report.add("crowd_refused", [outcome.refused], "requests")
    report.notes += outcome.broken
    for name, value in (
        ("crowd_5xx_but_503", outcome.failures),
        ("crowd_broken", len(outcome.broken)),
        ("leaked_blocks", left.blocks),
        ("leaked_connections", left.connections),
        ("leaked_tasks", left.tasks),
        ("leaked_requests", left.requests),
    ):
        report.add_target(name, 0, "", [value], at_most=True)


def _report(report: Report, found: Samples) -> None:
    values = found.values
    for name, samples in values.items():
        if name.endswith(("_p50", "_p90")):
            report.add(name, samples, "ms")
        elif name.endswith("_us"):
            report.add(name, samples, "µs of processor time")
        elif name.endswith("_streams"):
            report.add(name, samples, "tokens/s")
    for name in ("overhead_alone_p50_ms", f"overhead_beside_{LOAD}_p50_ms"):
        report.add_target(name, OVERHEAD_GOAL_MS, "ms", values[name], at_most=True)
    report.add_target(f"rate_over_bus_{CROWD}", RATE_GOAL, "x", values[f"rate_over_bus_{CROWD}"])


__all__ = ["QUICK", "Sizes", "run"]
