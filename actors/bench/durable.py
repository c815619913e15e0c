"""What durability costs: saves and appends beside raw writes of the same bytes to the same synced server."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from nats.aio.client import Client

from ...runtime.actor import Actor, NoConfig, handler
from ...runtime.bus import BusOptions
from ...runtime.event_log import EventLog
from ...runtime.node import Node
from ...schemas.bench import SavesTaken, SaveTimes
from . import processes
from .loops import new_event_loop
from .report import Report

TIMEOUT_S = 120.0
WRITES = 100
# Events that go into one synced message.
BATCH = 64
STATE = b"x" * 512
EVENT = b"x" * 128


class Kept(msgspec.Struct, frozen=True):
    data: bytes


class Keeper(Actor[NoConfig]):
    """Saves its state when it is asked to."""

    def __init__(self) -> None:
        self.data = STATE

    def snapshot(self) -> Kept:
        return Kept(self.data)

    def restore(self, state: Kept) -> None:
        self.data = state.data

    @handler
    async def saves(self, message: SaveTimes) -> SavesTaken:
        began = time.perf_counter()
        for _ in range(message.times):
            await self.save()
        return SavesTaken(time.perf_counter() - began)


def measure(report: Report, loop: str, rounds: int, step: Callable[[str], None]) -> None:
    """Add the figures of snapshots and event logs, their floors, and the targets."""
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as base:
        config = Path(base, "nats-server.conf")
        config.write_text(f"jetstream {{ store_dir: {json.dumps(f'{base}/jetstream')}, sync_interval: always }}\n")
        with processes.nats_server(str(config)) as url, asyncio.Runner(loop_factory=new_event_loop(loop)) as runner:
            rates = runner.run(_measure(url, rounds, step))
    for name, samples in rates.items():
        report.add(name, samples, "1/s")
    for name, goal, floor, ours, at_most in (
        ("snapshot_over_raw_put", 1.3, "put.raw", "snapshot.ours", True),
        ("log_append_over_synced_publish", 1.3, "publish.raw", "log_append.ours", True),
        ("log_batched_events_over_single", 10, "log_batched.ours", "log_append.ours", False),
    ):
        ratios = [a / b for a, b in zip(rates[floor], rates[ours], strict=True)]
        report.add_target(name, goal, "x", ratios, at_most=at_most)


async def _measure(url: str, rounds: int, step: Callable[[str], None]) -> dict[str, list[float]]:
    """Writes, or events, a second."""
    client = Client()
    await client.connect(url)
    jetstream = client.jetstream()
    await jetstream.add_stream(name="floor", subjects=["floor"])
    bucket = await jetstream.create_key_value(bucket="floor")
    async with Node("bench-durable", bus=BusOptions(url)) as node:
        keeper = await node.spawn(Keeper, name="keeper")
        log = await EventLog.open(node, "bench", own=True)

        async def put() -> int:
            for _ in range(WRITES):
                await bucket.put("keeper", STATE)
            return WRITES

        async def publish() -> int:
            for _ in range(WRITES):
                await jetstream.publish("floor", EVENT)
            return WRITES

        async def save() -> int:
            await keeper.ask(SaveTimes(WRITES), TIMEOUT_S)
            return WRITES

        async def append(events: int = 1) -> int:
            for _ in range(WRITES):
                await log.append(*[EVENT] * events)
            return WRITES * events

        work: dict[str, Callable[[], Awaitable[int]]] = {
            "put.raw": put,
            "snapshot.ours": save,
            "publish.raw": publish,
            "log_append.ours": append,
            "log_batched.ours": lambda: append(BATCH),
        }
        rates: dict[str, list[float]] = {}
        for number in range(rounds):
            for name, call in work.items():
                step(f"{name}, round {number + 1} of {rounds}")
                began = time.perf_counter()
                rates.setdefault(name, []).append(await call() / (time.perf_counter() - began))
    await client.close()
    return rates
