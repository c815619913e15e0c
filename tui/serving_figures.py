"""How engines do, in the figures that the page of serving shows. No widgets here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.errors import ActorStopped, DeadlineExceeded, NoSuchActor
from ..schemas.serve_stats import EngineStats, GetStats, ServedSecond

if TYPE_CHECKING:
    from ..runtime.client import Client

SCHEDULER_KIND = "serve.scheduler"
ENGINE_KIND = "serve.engine"
# A scheduler that lives answers at once.
STATS_TIMEOUT_S = 3.0
# The value behind a curve is the mean of so many last seconds.
RECENT_S = 10


@dataclass(frozen=True)
class Served:
    """One engine: the address of its root, of its scheduler, and how it does; `stats` None while it says nothing."""

    engine: str
    scheduler: str
    stats: EngineStats | None


async def find_engines(client: Client) -> dict[str, str]:
    """The engines by their addresses, each with its scheduler's; "" where it is still loading."""
    found = {info.address: info for info in await client.actors()}
    engines = {address: "" for address, info in found.items() if info.kind == ENGINE_KIND}
    for address, info in found.items():
        if info.kind == SCHEDULER_KIND:
            engines[info.supervisor or address.rpartition(".")[0]] = address
    return dict(sorted(engines.items()))


async def ask_engines(client: Client, engines: dict[str, str]) -> list[Served]:
    """All at once; one that is stuck holds up none of the others."""

    async def ask(engine: str, scheduler: str) -> Served:
        if not scheduler:
            return Served(engine, "", None)
        try:
            stats = await client.actor(scheduler).ask(GetStats(detail=True), STATS_TIMEOUT_S)
        except (NoSuchActor, ActorStopped, DeadlineExceeded):  # it ended, or starts anew
            return Served(engine, scheduler, None)
        return Served(engine, scheduler, stats)

    return list(await asyncio.gather(*(ask(engine, scheduler) for engine, scheduler in engines.items())))


def mean_recent(seconds: Sequence[ServedSecond], what: str, weight: str) -> float | None:
    """The mean of a figure over the last seconds, weighted by how many it was of; None where there were none."""
    last = seconds[-RECENT_S:]
    total = sum(getattr(second, weight) for second in last)
    if not total:
        return None
    return sum(getattr(second, what) * getattr(second, weight) for second in last) / total


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"
