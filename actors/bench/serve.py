"""`callboard bench serve`: an engine under requests that come one after another, as its clients see it.

The clients are this process and reach the engine over the bus, in a process of its own: one that runs already, or one
that is started for the run with a nats-server beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio.to_thread
import msgspec

from ...runtime.bus import BusOptions
from ...runtime.client import connect
from ...runtime.node import Node
from ...runtime.placement import Process
from ...runtime.refs import Ref
from ...runtime.tls import Tls
from ...schemas.serve_stats import EngineStats, GetStats
from . import processes
from .errors import BenchFailed
from .load import Run, closed_loop, open_loop
from .machine import kernels_of, machine_facts
from .serve_report import CONCURRENCY, RATE, Bounds, Level, ServeReport, errors_of, level_of
from .workload import Asked, Lengths, from_pairs, poisson_arrivals, read_sharegpt, synthetic

Step = Callable[[str], None]
# A way to an engine's scheduler, open for as long as the run takes.
Way = Callable[[], AbstractAsyncContextManager[Ref]]

KIND = "serve.engine"
# Before anything is measured, so that nothing is done for the first time in it.
WARM_UP = 4
# An engine that is loading answers when it is done.
STATS_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class ServeOptions:
    """One run: `requests` at each of the `levels`, which are rates or numbers of clients, by `kind`.

    `dataset`: a file in ShareGPT's format in place of the synthetic `prompt` and `output` lengths. `model`: whose
    tokenizer counts; empty for the one that the engine says it serves.
    """

    kind: str = RATE
    levels: tuple[float, ...] = (1.0, 2.0, 4.0)
    requests: int = 60
    prompt: int = 128
    output: int = 64
    dataset: Path | None = None
    model: str = ""
    seed: int = 0
    bounds: Bounds = field(default_factory=lambda: Bounds(1000.0, 200.0))

    def quick(self) -> ServeOptions:
        """A check that all of it runs, not a measurement."""
        return replace(self, requests=min(self.requests, 4), prompt=min(self.prompt, 16), output=min(self.output, 8))


async def run(way: Way, options: ServeOptions, step: Step) -> ServeReport:
    """Measure all of it. `step` hears what is being done. Raises DatasetInvalid, NoSuchModel, what starting raised."""
    step("finding the engine")
    async with way() as engine:
        stats = await engine.ask(GetStats(), timeout=STATS_TIMEOUT_S)
        report = ServeReport("serve", machine_facts("nats-py", "torch"))
        load = await anyio.to_thread.run_sync(_load_maker, options, stats)
        report.machine |= {"model": Path(stats.model).stem, "dtype": stats.dtype}
        report.machine |= {"load": load.describe(), "seed": options.seed}
        step("warming up")
        warm_up = await closed_loop(engine, load.make(WARM_UP, "warm-up"), WARM_UP, lambda _: None)
        if failed := errors_of(warm_up):
            raise BenchFailed(f"the engine cannot serve this load: it answered with {', '.join(failed)}")
        report.machine["kernels"] = kernels_of(await engine.ask(GetStats()))
        levels: list[Level] = []
        for value in options.levels:
            run = await _one_level(engine, options, load, value, step)
            levels.append(level_of(options.kind, value, run, options.bounds))
            for code, count in errors_of(run).items():
                report.notes.append(f"{levels[-1].name}: {count} requests failed with {code}")
        report.take(levels)
    return report


async def _one_level(engine: Ref, options: ServeOptions, load: LoadMaker, value: float, step: Step) -> Run:
    def progress(done: int) -> None:
        step(f"{options.kind} {value:g}: {done} of {options.requests} requests")

    progress(0)
    seed = f"{options.seed}/{value:g}"
    asked = load.make(options.requests, seed)
    if options.kind == CONCURRENCY:
        return await closed_loop(engine, asked, round(value), progress)
    return await open_loop(engine, asked, poisson_arrivals(value, options.requests, seed), progress)


@dataclass(frozen=True)
class LoadMaker:
    """Makes requests for the engine's model: synthetic, or from questions and answers."""

    lengths: Lengths
    vocab_size: int
    encode: Callable[[str], list[int]]
    pairs: list[tuple[str, str]]

    def make(self, count: int, seed: str) -> list[Asked]:
        if self.pairs:
            return from_pairs(self.pairs, count, self.lengths.longest, self.encode, seed)
        return synthetic(count, self.lengths, self.vocab_size, seed)

    def describe(self) -> str:
        if self.pairs:
            return f"{len(self.pairs):,} conversations"
        return f"about {self.lengths.prompt} tokens in, {self.lengths.output} out"


def _load_maker(options: ServeOptions, stats: EngineStats) -> LoadMaker:
    from ..models.loading import load_tokenizer
    from ..models.store import ModelStore

    tokenizer = load_tokenizer(ModelStore().path(options.model or stats.model))
    # What the cache can never hold would be refused.
    longest = min(stats.context_length, stats.num_blocks * stats.block_size)
    return LoadMaker(
        Lengths(options.prompt, options.output, longest),
        tokenizer.vocab_size,
        tokenizer.encode,
        read_sharegpt(options.dataset) if options.dataset is not None else [],
    )


def own_engine(settings: Mapping[str, object]) -> Way:
    """An engine with these settings, in a process of its own, with a nats-server for the run."""

    @asynccontextmanager
    async def way() -> AsyncIterator[Ref]:
        with processes.nats_server() as url:
            async with Node("bench-clients", bus=BusOptions(url)) as node:
                config = msgspec.json.encode(settings).decode()
                await node.spawn(KIND, config, name="engine", where=Process())
                yield node.actor("engine.scheduler")

    return way


def engine_at(address: str, nats: str, creds: str, state_dir: str, tls: Tls | None) -> Way:
    """An engine that runs: its scheduler's address on the bus of the daemon, or of a server of the user's own."""

    @asynccontextmanager
    async def way() -> AsyncIterator[Ref]:
        async with connect(nats, creds, state_dir=state_dir, tls=tls) as bus:
            yield bus.actor(address)

    return way
