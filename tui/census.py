"""The company at one moment and how fast it goes: what the page of it shows. No widgets here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..runtime.census import actors_of
from ..runtime.metrics import measure_all
from ..schemas.metrics import NodeMetrics
from ..schemas.runtime import ActorInfo, NodeInfo

if TYPE_CHECKING:
    from ..runtime.client import Client


@dataclass(frozen=True)
class Seen:
    """What was seen at `at`, a monotonic time. `silent`: nodes that did not answer."""

    at: float
    nodes: tuple[NodeInfo, ...]
    actors: tuple[ActorInfo, ...]
    metrics: Mapping[str, NodeMetrics]
    silent: tuple[str, ...] = ()


async def look(client: Client) -> Seen:
    """Ask every node but this program's own. Raises NotReachable where no daemon is on the bus."""
    nodes = tuple(info for info in await client.nodes() if info.node != client.node.name)
    actors = await actors_of(client.node, [info.node for info in nodes])
    found, silent = await measure_all(client)
    return Seen(time.monotonic(), nodes, tuple(actors), {one.node: one for one in found}, silent)


@dataclass(frozen=True)
class ActorRow:
    """`rate`: messages handled a second since the last look, None at the first. `memory`: of its whole process."""

    info: ActorInfo
    rate: float | None
    memory: int


@dataclass(frozen=True)
class NodeRow:
    """`cpu`: the share of one core that its process used since the last look; `rate`: messages of all its actors."""

    info: NodeInfo
    actors: int
    rate: float | None
    cpu: float | None
    memory: int
    uptime_s: float


@dataclass
class Pace:
    """Turns what is seen into rows; remembers the counts of the look before, for the rates."""

    _at: float = 0.0
    _handled: dict[tuple[str, str, int], int] = field(default_factory=dict)
    _cpu: dict[tuple[str, int], float] = field(default_factory=dict)

    def take(self, seen: Seen) -> tuple[list[NodeRow], list[ActorRow]]:
        """Rows in the order of their names."""
        elapsed = seen.at - self._at if self._at else 0.0
        handled = {(info.node, info.address, info.pid): info.processed for info in seen.actors}
        cpu = {(one.node, one.pid): one.cpu_s for one in seen.metrics.values()}
        actors = [
            ActorRow(
                info,
                _rate(self._handled.get((info.node, info.address, info.pid)), info.processed, elapsed),
                seen.metrics[info.node].resident_bytes if info.node in seen.metrics else 0,
            )
            for info in seen.actors
        ]
        nodes = [self._node(info, seen, actors, elapsed) for info in sorted(seen.nodes, key=lambda info: info.node)]
        self._at, self._handled, self._cpu = seen.at, handled, cpu
        return nodes, actors

    def _node(self, info: NodeInfo, seen: Seen, actors: Sequence[ActorRow], elapsed: float) -> NodeRow:
        own = [row for row in actors if row.info.node == info.node]
        rates = [row.rate for row in own if row.rate is not None]
        measured = seen.metrics.get(info.node)
        return NodeRow(
            info,
            len(own),
            sum(rates) if rates else None,
            _rate(self._cpu.get((measured.node, measured.pid)), measured.cpu_s, elapsed) if measured else None,
            measured.resident_bytes if measured else 0,
            measured.uptime_s if measured else 0.0,
        )


def _rate(before: float | None, now: float, elapsed: float) -> float | None:
    if before is None or elapsed <= 0:
        return None
    return max(0.0, (now - before) / elapsed)


def parents(actors: Sequence[ActorInfo]) -> dict[str, str]:
    """By address, under whom an actor stands in the tree of supervision: "" at the top.

    One whose supervisor was not seen stands under who its address says, or at the top.
    """
    there = {info.address for info in actors}

    def parent_of(info: ActorInfo) -> str:
        by_address = info.address.rpartition(".")[0]
        return next((name for name in (info.supervisor, by_address) if name in there and name != info.address), "")

    found = {info.address: parent_of(info) for info in actors}
    for address in found:  # what two nodes say a moment apart may make a circle
        above = {address}
        step = address
        while step := found[step]:
            if step in above:
                found[address] = ""
                break
            above.add(step)
    return found


# How figures are written


def short_rate(value: float) -> str:
    """`0`, `3.4`, `128`, `12.3k`."""
    if value < 0.05:
        return "0"
    if value < 10:
        return f"{value:.1f}"
    if value < 10_000:
        return f"{value:.0f}"
    return f"{value / 1000:.1f}k"


def short_time(seconds: float) -> str:
    """`5s`, `3m12s`, `2h05m`, `4d03h`."""
    whole = int(max(0.0, seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def short_size(num_bytes: int) -> str:
    """`980K`, `132M`, `1.4G`: a column of a table has no room for more."""
    value = float(num_bytes)
    for unit in ("", "K", "M"):
        if value < 1000:
            return f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.1f}G" if value < 1000 else f"{value / 1024:.1f}T"
