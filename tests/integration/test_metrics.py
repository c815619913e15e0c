"""What nodes count adds up with what was sent, and a Prometheus server can read it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from company import THIS_FILE, Add, Clerk, ClerkConfig, Fail, Note, Numbers, SmallClerk, Wait

from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.errors import CallboardError, MailboxFull
from callboard.runtime.meters import TIMED_EVERY, DurationMeter
from callboard.runtime.metrics import CROWD, measure, measure_all, prometheus
from callboard.runtime.node import Node
from callboard.runtime.placement import Process
from callboard.schemas.metrics import BUCKETS_US, ActorMetrics, NodeMetrics

pytestmark = pytest.mark.anyio


@pytest.fixture
async def main(nats_server: Any) -> AsyncIterator[Node]:
    async with Node("main", bus=BusOptions(nats_server.url), drain_timeout=3.0) as node:
        yield node


def of(found: NodeMetrics, address: str) -> ActorMetrics:
    (actor,) = (actor for actor in found.actors if actor.address == address)
    return actor


async def test_counts_add_up_with_what_was_sent_over_processes(main: Node, nats_server: Any) -> None:
    await main.spawn(Clerk, ClerkConfig("near"), name="near")
    where = Process(load=(THIS_FILE,))
    await main.spawn("company:Clerk", ClerkConfig("far"), name="far", where=where)
    async with Node("asker", bus=BusOptions(nats_server.url)) as node:
        for address in ("near", "far"):
            ref = node.actor(address)
            for _ in range(300):
                await ref.ask(Add())
            for _ in range(100):
                await ref.tell(Note("x"), timeout=20)
            async with ref.stream(Numbers(5)) as numbers:
                async for _ in numbers:
                    pass
            with pytest.raises(CallboardError):
                await ref.ask(Fail(typed=True))
        found, silent = await measure_all(Client(node))
        own = measure(node)
    assert silent == ()
    by_node = {one.node: one for one in found}
    for address, host in (("near", "main"), ("far", "far")):
        actor = of(by_node[host], address)
        assert (actor.handled, actor.errors, actor.dropped, actor.restarts) == (402, 1, 0, 0)
        # Beyond the first messages one in `TIMED_EVERY` stands for all.
        assert abs(sum(actor.durations.counts) - 402) <= TIMED_EVERY
        assert actor.mailbox_high >= 1
        assert 0 < actor.durations.seconds < 60
    sent = {part.family: part for part in own.traffic}
    assert sent["actor"].sent >= 604
    assert sent["actor"].sent_bytes > 20 * sent["actor"].sent
    assert sent["inbox"].received >= 604
    host = {part.family: part for part in by_node["far"].traffic}
    assert host["actor"].received >= 302


async def test_the_most_that_a_mailbox_held_and_what_it_refused_are_known() -> None:
    async with Node() as node:
        small = await node.spawn(SmallClerk, ClerkConfig("small"), name="small")
        assert of(measure(node), "small").mailbox_high == 0
        for _ in range(3):
            await small.tell(Note("x"))
        assert of(measure(node), "small").mailbox_high == 3
        await small.tell(Note("x"))
        for _ in range(2):
            with pytest.raises(MailboxFull):
                await small.tell(Note("x"))
        actor = of(measure(node), "small")
        assert (actor.mailbox, actor.mailbox_high, actor.mailbox_size, actor.refused) == (4, 4, 4, 2)


async def test_listeners_are_counted_by_pattern(main: Node) -> None:
    async with main.listen("topic.*", Note, size=2):
        for _ in range(3):
            await main.publish("topic.a", Note("x"))
        await main.publish("topic.b", Wait())
        (heard,) = measure(main).listeners
    assert (heard.pattern, heard.listeners, heard.taken, heard.dropped, heard.skipped) == ("topic.*", 1, 2, 1, 1)


async def test_a_crowd_is_one_series() -> None:
    async with Node() as node:
        for number in range(CROWD + 1):
            ref = await node.spawn(Clerk, ClerkConfig(f"c{number}"), name=f"c{number}")
            await ref.ask(Add())
        found = measure(node)
    (crowd,) = found.actors
    assert (crowd.address, crowd.actors, crowd.handled) == ("*", CROWD + 1, CROWD + 1)
    assert sum(crowd.durations.counts) == CROWD + 1


def test_a_duration_is_in_the_bucket_that_bounds_it() -> None:
    for index, bound in enumerate(BUCKETS_US):
        meter = DurationMeter()
        meter.add(bound / 1e6)
        assert meter.counts.index(1) == index
        meter.add(bound * 1.01 / 1e6)
        assert meter.counts[index + 1] == 1
    meter = DurationMeter()
    meter.add(1e6)
    meter.add(0.0)
    assert (meter.counts[-1], meter.counts[0]) == (1, 1)


LABELS = r'([a-z_]+="([^"\\\n]|\\["\\n])*"(,|(?=\})))*'
LINE = re.compile(rf"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)\{{(?P<labels>{LABELS})\}} (?P<value>[-+.0-9e]+)")


def parse(text: str) -> dict[str, list[tuple[str, str, float]]]:
    """The text format, strictly: every line, each metric together and announced, no series twice, buckets that rise."""
    assert text.endswith("\n")
    metrics: dict[str, list[tuple[str, str, float]]] = {}
    helped: set[str] = set()
    name = kind = ""
    series: set[tuple[str, str]] = set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, meaning = line[7:].split(" ", 1)
            assert name not in helped
            assert meaning
            helped.add(name)
        elif line.startswith("# TYPE "):
            typed, kind = line[7:].split(" ")
            assert typed == name
            assert kind in ("counter", "gauge", "histogram")
            assert (kind == "counter") == name.endswith("_total")
            metrics[name] = []
        else:
            found = LINE.fullmatch(line)
            assert found is not None, line
            suffix = found["name"].removeprefix(name)
            assert suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
            assert (found["name"], found["labels"]) not in series
            series.add((found["name"], found["labels"]))
            metrics[name].append((suffix, found["labels"], float(found["value"])))
    for samples in metrics.values():
        by_owner: dict[str, list[float]] = {}
        for suffix, labels, value in samples:
            if suffix == "_bucket":
                by_owner.setdefault(re.sub(r',le="[^"]*"', "", labels), []).append(value)
            elif suffix == "_count":
                assert by_owner[labels] == sorted(by_owner[labels])
                assert by_owner[labels][-1] == value
    return metrics


async def test_prometheus_can_read_it(main: Node) -> None:
    clerk = await main.spawn(Clerk, ClerkConfig("c"), name="c")
    for _ in range(10):
        await clerk.ask(Add())
    metrics = parse(prometheus([measure(main)]))
    handled = {labels: value for _, labels, value in metrics["callboard_actor_handled_total"]}
    assert sum(value for labels, value in handled.items() if 'actor="c"' in labels) == 10
    assert {"callboard_handler_duration_seconds", "callboard_bus_bytes_total"} <= metrics.keys()


def test_odd_names_are_escaped() -> None:
    odd = ActorMetrics('a"b\\c\nd', "k")
    metrics = parse(prometheus([NodeMetrics("n", 1, "v", 1.0, 1.0, 1, (odd,)), NodeMetrics("m", 1, "v", 1, 1, 1)]))
    ((_, labels, _),) = metrics["callboard_actor_handled_total"]
    assert r'actor="a\"b\\c\nd"' in labels


async def test_nats_tools_are_told_how_long_handlers_took(main: Node) -> None:
    from callboard.runtime.discovery import answer_discovery

    clerk = await main.spawn(Clerk, ClerkConfig("c"), name="c")
    for _ in range(5):
        await clerk.ask(Add())
    with pytest.raises(CallboardError):
        await clerk.ask(Fail(typed=True))
    services = [msgspec.json.decode(answer) for answer in answer_discovery(main, "$SRV.STATS")]
    (found,) = (one for service in services for one in service["endpoints"] if one["name"] == "c")
    assert (found["num_requests"], found["num_errors"], found["last_error"]) == (6, 1, "there is no such thing")
    assert found["processing_time"] > 0
    assert abs(found["average_processing_time"] - found["processing_time"] / 6) <= 1
