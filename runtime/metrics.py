"""What a node has counted, as a message and in the text format of Prometheus.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/. The same series come from every node; `node`
tells them apart.
"""

from __future__ import annotations

import asyncio
import collections
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from ..schemas.metrics import BUCKETS_US, ActorMetrics, Durations, GetMetrics, ListenerMetrics, NodeMetrics
from .actor import kind_name
from .cell import Cell
from .errors import ActorStopped, DeadlineExceeded, NoSuchActor, NotUnderstood

if TYPE_CHECKING:
    from .client import Client
    from .node import Node

# More siblings of one kind than this are counted together, so that ten thousand actors are still one message and a
# bounded number of series.
CROWD = 100
NODE_TIMEOUT_S = 3.0

_BEGAN = time.monotonic()


def measure(node: Node) -> NodeMetrics:
    """What this process has counted so far."""
    from .. import __version__

    process = psutil.Process()
    with process.oneshot():
        cpu, memory = process.cpu_times(), process.memory_info().rss
    links = node.links
    return NodeMetrics(
        node=node.name,
        pid=os.getpid(),
        version=__version__,
        uptime_s=time.monotonic() - _BEGAN,
        cpu_s=cpu.user + cpu.system,
        resident_bytes=memory,
        actors=tuple(_actors(node)),
        listeners=_listeners(node),
        traffic=links.bus.traffic.read() if links is not None else (),
        outbox=links.bus.num_waiting if links is not None else 0,
        credit_stalls=links.credit_stalls if links is not None else 0,
        reconnects=links.bus.reconnects if links is not None else 0,
    )


async def measure_all(client: Client) -> tuple[list[NodeMetrics], tuple[str, ...]]:
    """What each node on the bus has counted, and the names of those that did not answer."""
    return await _measure(
        client.node, [info.node for info in await client.nodes() if info.node != client.node.name], {}
    )


@dataclass(frozen=True)
class Around:
    """What nodes have counted, those that did not answer, and how long the answer of each took, in seconds."""

    found: Sequence[NodeMetrics]
    silent: Sequence[str]
    took: Mapping[str, float]


async def measure_around(node: Node) -> Around:
    """The same of `node` itself and of all nodes that it has heard of. It needs no daemon, but a node's role."""
    took: dict[str, float] = {}
    others = [name for name in node.links.peers.known if name != node.name] if node.links is not None else []
    found, silent = await _measure(node, sorted(others), took)
    return Around([measure(node), *found], silent, took)


async def _measure(
    node: Node, names: Sequence[str], took: dict[str, float]
) -> tuple[list[NodeMetrics], tuple[str, ...]]:
    """`took` gets how long each answer took."""

    async def ask(name: str) -> NodeMetrics | None:
        began = time.perf_counter()
        try:
            answer = await node.actor(f"node.{name}").ask(GetMetrics(), NODE_TIMEOUT_S)
        except (NoSuchActor, ActorStopped, DeadlineExceeded, NotUnderstood):  # it left, is stuck, or is older
            return None
        took[name] = time.perf_counter() - began
        return answer

    answers = await asyncio.gather(*map(ask, names))
    silent = tuple(name for name, answer in zip(names, answers, strict=True) if answer is None)
    return [answer for answer in answers if answer is not None], silent


def _actors(node: Node) -> Iterator[ActorMetrics]:
    families: dict[tuple[str, str], list[Cell]] = collections.defaultdict(list)
    for address, child in node.actors.items():
        if isinstance(child, Cell):
            families[address.rpartition(".")[0], kind_name(child.kind)].append(child)
    for (parent, kind), cells in families.items():
        if len(cells) > CROWD:
            yield _together(f"{parent}.*" if parent else "*", kind, cells)
        else:
            yield from (_together(cell.address, kind, [cell]) for cell in cells)


def _together(address: str, kind: str, cells: Sequence[Cell]) -> ActorMetrics:
    durations = [cell.durations for cell in cells if cell.durations is not None]
    counts = tuple(map(sum, zip(*(meter.counts for meter in durations), strict=True)))
    return ActorMetrics(
        address=address,
        kind=kind,
        actors=len(cells),
        handled=sum(cell.processed for cell in cells),
        errors=sum(cell.errors for cell in cells),
        dropped=sum(cell.dropped for cell in cells),
        refused=sum(cell.refused for cell in cells),
        restarts=sum(cell.restarts for cell in cells),
        mailbox=sum(len(cell.inbox) + cell.held for cell in cells),
        mailbox_high=max(cell.high for cell in cells),
        mailbox_size=max(cell.capacity for cell in cells),
        durations=Durations(counts, sum(meter.seconds for meter in durations)),
    )


def _listeners(node: Node) -> tuple[ListenerMetrics, ...]:
    found: dict[str, ListenerMetrics] = {}
    for one in node.topics.listeners:
        known = found.get(one.pattern, ListenerMetrics(one.pattern))
        found[one.pattern] = ListenerMetrics(
            one.pattern,
            known.listeners + 1,
            known.taken + one.taken,
            known.dropped + one.dropped,
            known.skipped + one.skipped,
        )
    return tuple(found.values())


# Prometheus

Sample = tuple[str, dict[str, str], float]


class _Exposition:
    """Samples by metric: the format wants each metric's lines together, after its HELP and TYPE."""

    def __init__(self) -> None:
        self._metrics: dict[str, tuple[str, str, list[Sample]]] = {}

    def metric(self, name: str, kind: str, meaning: str) -> list[Sample]:
        return self._metrics.setdefault(f"callboard_{name}", (kind, meaning, []))[2]

    def counter(self, name: str, meaning: str, labels: dict[str, str], value: float) -> None:
        self.metric(f"{name}_total", "counter", meaning).append(("", labels, value))

    def gauge(self, name: str, meaning: str, labels: dict[str, str], value: float) -> None:
        self.metric(name, "gauge", meaning).append(("", labels, value))

    def histogram(self, name: str, meaning: str, labels: dict[str, str], durations: Durations) -> None:
        samples = self.metric(name, "histogram", meaning)
        total = 0
        for bound, count in zip((*BUCKETS_US, None), durations.counts, strict=True):
            total += count
            samples.append(("_bucket", {**labels, "le": "+Inf" if bound is None else repr(bound / 1e6)}, total))
        samples.append(("_sum", labels, durations.seconds))
        samples.append(("_count", labels, total))

    def text(self) -> str:
        lines: list[str] = []
        for name, (kind, meaning, samples) in self._metrics.items():
            lines.append(f"# HELP {name} {_escaped(meaning)}")
            lines.append(f"# TYPE {name} {kind}")
            for suffix, labels, value in samples:
                pairs = ",".join(f'{key}="{_escaped(text, quotes=True)}"' for key, text in labels.items())
                lines.append(f"{name}{suffix}{{{pairs}}} {value!r}")
        return "\n".join([*lines, ""])


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def prometheus(nodes: Iterable[NodeMetrics]) -> str:
    """The text that a Prometheus server reads, of content type `text/plain; version=0.0.4`."""
    out = _Exposition()
    for one in nodes:
        node = {"node": one.node}
        out.gauge("node_info", "1 for each node that answers.", {**node, "version": one.version}, 1)
        out.gauge("node_uptime_seconds", "How long the node's process has been running.", node, one.uptime_s)
        out.counter("node_cpu_seconds", "Processor time of the node's process.", node, one.cpu_s)
        out.gauge("node_resident_memory_bytes", "Resident memory of the node's process.", node, one.resident_bytes)
        out.gauge("bus_outbox_messages", "Messages that wait to be sent.", node, one.outbox)
        out.counter("bus_reconnects", "How often the connection to the NATS server came back.", node, one.reconnects)
        out.counter("bus_credit_stalls", "How often a sender waited for room.", node, one.credit_stalls)
        for part in one.traffic:
            for direction, messages, size in (
                ("sent", part.sent, part.sent_bytes),
                ("received", part.received, part.received_bytes),
            ):
                labels = {**node, "family": part.family, "direction": direction}
                out.counter(
                    "bus_messages", "Messages over the bus, by the first token of the subject.", labels, messages
                )
                out.counter("bus_bytes", "Payload bytes over the bus, by the first token of the subject.", labels, size)
        for heard in one.listeners:
            labels = {**node, "pattern": heard.pattern}
            out.gauge("listeners", "Listeners of a pattern.", labels, heard.listeners)
            out.counter("listener_messages", "Messages that listeners took.", labels, heard.taken)
            out.counter("listener_dropped", "Messages that listeners had no room for.", labels, heard.dropped)
        for actor in one.actors:
            labels = {**node, "actor": actor.address, "kind": actor.kind}
            out.gauge("actors", "Actors counted in the series of this address.", labels, actor.actors)
            out.counter("actor_handled", "Messages handled.", labels, actor.handled)
            out.counter("actor_errors", "Messages that failed, and crashes.", labels, actor.errors)
            out.counter("actor_dropped", "Messages that nobody handled.", labels, actor.dropped)
            out.counter("actor_refused", "Messages that found the mailbox full.", labels, actor.refused)
            out.counter("actor_restarts", "Restarts by the supervisor.", labels, actor.restarts)
            out.gauge("mailbox_messages", "Messages in the mailbox, with the room promised.", labels, actor.mailbox)
            out.gauge("mailbox_high_messages", "The most that the mailbox ever held.", labels, actor.mailbox_high)
            out.gauge("mailbox_capacity_messages", "Room in the mailbox.", labels, actor.mailbox_size)
            if actor.durations.counts:
                meaning = "How long handlers took (an estimate by samples beyond the first messages)."
                out.histogram("handler_duration_seconds", meaning, labels, actor.durations)
    return out.text()
