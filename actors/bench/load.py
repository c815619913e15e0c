"""Sends a load to an engine and notes when each token came, as a client sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import anyio

from ...runtime.errors import CallboardError
from ...runtime.refs import Ref
from ...schemas.serve import Generate
from .workload import Asked

Progress = Callable[[int], None]


@dataclass
class Record:
    """What became of one request. Times are seconds from the start of the run.

    `due`: when it was to be sent; latencies count from there, so that a client that falls behind does not flatter the
    engine. `gaps`: between tokens; those of a piece of several share its wait evenly. `error`: a code, or empty.
    """

    due: float
    num_prompt_tokens: int
    first: float = 0.0
    ended: float = 0.0
    num_tokens: int = 0
    gaps: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.first - self.due

    @property
    def latency(self) -> float:
        return self.ended - self.due

    @property
    def mean_gap(self) -> float:
        """Seconds between tokens on average; 0 for an answer of one."""
        return sum(self.gaps) / len(self.gaps) if self.gaps else 0.0


@dataclass(frozen=True)
class Run:
    """`seconds`: from the start until the last request had ended."""

    records: list[Record]
    seconds: float


async def open_loop(engine: Ref, asked: Sequence[Asked], times: Sequence[float], progress: Progress) -> Run:
    """Each request at its time, however many are under way: as people come, who do not wait for each other."""
    records: list[Record] = []
    began = time.perf_counter()

    async def one(request: Asked, due: float) -> None:
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        records.append(await _send(engine, request, began, due))
        progress(len(records))

    async with anyio.create_task_group() as group:
        for request, due in zip(asked, times, strict=True):
            group.start_soon(one, request, due)
    return Run(records, time.perf_counter() - began)


async def closed_loop(engine: Ref, asked: Sequence[Asked], concurrency: int, progress: Progress) -> Run:
    """`concurrency` clients that send their next request when the last is answered."""
    records: list[Record] = []
    began = time.perf_counter()
    waiting = iter(asked)

    async def client() -> None:
        for request in waiting:
            records.append(await _send(engine, request, began, time.perf_counter() - began))
            progress(len(records))

    async with anyio.create_task_group() as group:
        for _ in range(concurrency):
            group.start_soon(client)
    return Run(records, time.perf_counter() - began)


async def _send(engine: Ref, asked: Asked, began: float, due: float) -> Record:
    record = Record(due, len(asked.prompt_ids))
    request = Generate(prompt_ids=asked.prompt_ids, max_tokens=asked.output, ignore_eos=True)
    last = 0.0
    try:
        async with engine.stream(request) as pieces:
            async for piece in pieces:
                count = len(piece.token_ids)
                if not count:
                    continue
                now = time.perf_counter() - began
                if record.num_tokens:
                    record.gaps += [(now - last) / count] * count
                else:
                    record.first = now
                    record.gaps += [0.0] * (count - 1)
                record.num_tokens += count
                last = now
    except CallboardError as error:
        record.error = error.code
    record.ended = time.perf_counter() - began
    return record
