"""A traced request: its spans in every process it came to, and the tree that they make."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
from company import (
    THIS_FILE,
    Add,
    Clerk,
    ClerkConfig,
    Count,
    Fail,
    FailBeside,
    Forward,
    GetNotes,
    Note,
    Numbers,
    Pid,
    Total,
    Wait,
)

from callboard.runtime.actor import Actor, NoConfig, handler
from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.context import current_place
from callboard.runtime.errors import DeadlineExceeded, HandlerFailed, MailboxFull, NoSuchActor, RequestInvalid
from callboard.runtime.node import Node
from callboard.runtime.placement import Process
from callboard.runtime.traces import Step, collect, tree
from callboard.schemas.base import Request
from callboard.schemas.trace import Span, SpanKind

pytestmark = pytest.mark.anyio


@pytest.fixture
async def main(nats_server: Any) -> AsyncIterator[Node]:
    async with Node("main", bus=BusOptions(nats_server.url), drain_timeout=3.0) as node:
        yield node


@pytest.fixture
async def bus(main: Node, nats_server: Any) -> AsyncIterator[Client]:
    async with Node("asker", bus=BusOptions(nats_server.url)) as node:
        yield Client(node)


async def the_tree(bus: Client, trace: str, num_spans: int) -> Step:
    """Once its spans are there: those of a handler come after its answer, those of a process with its end."""
    while True:
        found = await collect(bus, trace)
        assert not found.silent
        if len(found.spans) >= num_spans:
            (root,) = tree(found.spans)
            return root
        await anyio.sleep(0.01)


def drawn(step: Step, depth: int = 0) -> list[str]:
    lines = [f"{'  ' * depth}{step.span.kind.value} {step.span.name} {step.span.actor} {step.span.error}".rstrip()]
    return lines + [line for child in step.children for line in drawn(child, depth + 1)]


class Ring(Request[Total], frozen=True, tag="test.ring"):
    """Forward through one clerk to another, then read a stream of the other, then tell it."""

    near: str
    far: str


class Ringer(Actor[NoConfig]):
    @handler
    async def ring(self, message: Ring) -> Total:
        await self.actor(message.near).ask(Forward(message.far))
        async with self.actor(message.far).stream(Numbers(3)) as numbers:
            async for _ in numbers:
                pass
        await self.actor(message.far).tell(Note("told"))
        return numbers.result


class Start(Request[Count], frozen=True, tag="test.start"): ...


class Born(Actor[NoConfig]):
    async def started(self) -> None:
        assert current_place.get().trace is None

    @handler
    async def start(self, message: Start) -> Count:
        assert current_place.get().trace is not None
        child = await self.spawn(Born, name="child")
        return await child.ask(Add())

    @handler
    async def add(self, message: Add) -> Count:
        return Count(int(current_place.get().trace is not None))


async def test_a_trace_through_three_actors_in_three_processes_and_a_stream_is_one_tree(
    main: Node, bus: Client
) -> None:
    where = Process(load=(THIS_FILE,))
    await main.spawn("company:Clerk", ClerkConfig("far"), name="far", where=where)
    await main.spawn(Clerk, ClerkConfig("near"), name="near")
    await main.spawn(Ringer, name="ringer")
    with bus.trace("test") as trace:
        assert await bus.actor("ringer").ask(Ring("near", "far")) == Total(3)
    root = await the_tree(bus, trace, 11)
    assert drawn(root) == [
        "root test",
        "  ask test.ring ringer",
        "    handle test.ring ringer",
        "      ask test.forward near",
        "        handle test.forward near",
        "          ask test.add far",
        "            handle test.add far",
        "      stream test.numbers far",
        "        handle test.numbers far",
        "      tell test.note far",
        "        handle test.note far",
    ]
    nodes = {step.span.actor: step.span.node for step in root.walk() if step.span.kind is SpanKind.HANDLE}
    assert nodes == {"ringer": "main", "near": "main", "far": "far"}
    assert all(child.at >= step.at for step in root.walk() for child in step.children)
    # What was not traced left nothing, and what comes after the block neither.
    await bus.actor("near").ask(Add())
    assert current_place.get().trace is None
    assert len((await collect(bus, trace)).spans) == 11


async def test_what_failed_says_how_and_what_it_made_fail_does_too(main: Node, bus: Client) -> None:
    await main.spawn(Clerk, ClerkConfig("c"), name="c")
    with bus.trace() as trace, pytest.raises(HandlerFailed):
        await bus.actor("c").ask(Fail())
    assert drawn(await the_tree(bus, trace, 3)) == [
        "root client",
        "  ask test.fail c actor.failed",
        "    handle test.fail c actor.failed",
    ]
    with bus.trace() as trace, pytest.raises(RequestInvalid):
        await bus.actor("c").ask(FailBeside(typed=True))
    root = await the_tree(bus, trace, 3)
    (handled,) = (step.span for step in root.walk() if step.span.kind is SpanKind.HANDLE)
    assert (handled.error, handled.message) == ("model.request", "there is no such thing")


async def test_what_never_came_to_a_handler_is_there_too(main: Node, bus: Client) -> None:
    clerk = await main.spawn(Clerk, ClerkConfig("busy"), name="busy")
    client = Client(main)
    for asker in (bus, client):
        with asker.trace() as trace:
            with pytest.raises(NoSuchActor):
                await asker.actor("nobody").ask(Add())
            with pytest.raises(DeadlineExceeded):
                await asker.actor("busy").ask(Wait("long"), timeout=0.5)  # it is to arrive
        root = await the_tree(bus, trace, 4)
        assert drawn(root) == [
            "root client",
            "  ask test.add nobody actor.none",
            "  ask test.wait busy deadline",
            "    handle test.wait busy cancelled",
        ]
    assert await clerk.ask(Add()) == Count(1)


async def test_a_killed_process_is_seen_from_the_side_that_asked(main: Node, bus: Client) -> None:
    where = Process(load=(THIS_FILE,))
    victim = await main.spawn("company:Clerk", ClerkConfig("victim"), name="victim", where=where)
    pid = (await victim.ask(Pid())).n
    with bus.trace() as trace:
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                with pytest.raises(Exception, match="ended before it answered"):
                    await bus.actor("victim").ask(Wait())

            tasks.start_soon(ask)
            await victim.tell(Note("beside"))
            os.kill(pid, signal.SIGKILL)
    assert "  ask test.wait victim actor.stopped" in drawn(await the_tree(bus, trace, 2))


async def test_a_published_message_takes_the_trace_to_who_listens(main: Node, bus: Client) -> None:
    await main.spawn(Clerk, ClerkConfig("c"), name="c")
    heard = anyio.Event()

    async def listen(node: Node, ready: anyio.Event) -> None:
        async with node.listen("topic.*", Note) as notes:
            ready.set()
            async for subject, note in notes:
                assert (subject, note) == ("topic.news", Note("x"))
                await node.actor("c").ask(Add())
                break
        heard.set()

    ready = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen, main, ready)
        await ready.wait()
        with bus.trace() as trace:
            await bus.publish("topic.news", Note("x"))
            await heard.wait()
        root = await the_tree(bus, trace, 5)
        assert drawn(root) == [
            "root client",
            "  publish test.note topic.news",
            "    receive topic.news topic.*",
            "      ask test.add c",
            "        handle test.add c",
        ]


async def test_json_may_bring_its_own_trace(main: Node, bus: Client) -> None:
    await main.spawn(Clerk, ClerkConfig("c"), name="c")
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    message = {"type": "test.add", "n": 2, "traceparent": f"00-{trace}-{parent}-01"}
    answer = await bus.request_raw("actor.c", msgspec.json.encode(message))
    assert msgspec.json.decode(answer)["n"] == 2
    root = await the_tree(bus, trace, 1)
    assert (root.span.parent, drawn(root)) == (parent, ["handle test.add c"])
    for broken in ("", "00-0-0-01", f"00-{trace[::-1]}-{parent}-00"):
        message["traceparent"] = broken
        assert (await bus.request_raw("actor.c", msgspec.json.encode(message)))[:1] == b"{"
    assert (await collect(bus, trace[::-1])).spans == ()


async def test_actors_and_tasks_that_a_traced_handler_starts_begin_untraced(main: Node, bus: Client) -> None:
    born = await main.spawn(Born, name="born")
    with Client(main).trace():
        assert await born.ask(Start()) == Count(1)
        assert await main.actor("born.child").ask(Add()) == Count(1)
    assert await main.actor("born.child").ask(Add()) == Count(0)


async def test_a_full_mailbox_refuses_a_traced_message_like_any_other(main: Node, bus: Client) -> None:
    class Tiny(Clerk):
        mailbox_size = 1

    tiny = await main.spawn(Tiny, ClerkConfig("tiny"), name="tiny")
    with Client(main).trace() as trace:
        await tiny.tell(Note("a"))
        with pytest.raises(MailboxFull):
            await tiny.tell(Note("b"))
    root = await the_tree(bus, trace, 4)
    assert drawn(root)[-1] == "  tell test.note tiny actor.mailbox_full"


async def test_many_traced_tells_keep_their_order_beside_untraced_ones(main: Node, bus: Client) -> None:
    clerk = await main.spawn(Clerk, ClerkConfig("c"), name="c")
    ref = bus.actor("c")
    for n in range(300):
        if n % 3:
            await ref.tell(Add(n), timeout=20)
        else:
            with bus.trace():
                await ref.tell(Add(n), timeout=20)
    assert await ref.ask(Add(0)) == Count(sum(range(300)))
    assert (await clerk.ask(GetNotes())).texts == (*(f"add {n}" for n in range(300)), "add 0")


def test_spans_of_two_clocks_are_ordered_by_who_caused_them() -> None:
    """The second node's clock is an hour behind; a child is drawn where its parent sent it."""

    def span(number: int, parent: int, kind: SpanKind, started: int, took: int, node: str) -> Span:
        ids = [f"{n:016x}" if n else "" for n in (number, parent)]
        return Span("t", ids[0], ids[1], kind, f"m{number}", "a", node, started, took)

    hour = 3600 * 10**9
    spans = (
        span(5, 4, SpanKind.HANDLE, 70 - hour, 10, "far"),
        span(3, 2, SpanKind.HANDLE, 15 - hour, 30, "far"),
        span(4, 1, SpanKind.ASK, 60, 40, "near"),
        span(2, 1, SpanKind.ASK, 10, 40, "near"),
        span(1, 0, SpanKind.ROOT, 0, 100, "near"),
    )
    (root,) = tree(spans)
    assert [(step.span.name, step.at) for step in root.walk()] == [
        ("m1", 0),
        ("m2", 10),
        ("m3", 15),
        ("m4", 60),
        ("m5", 75),
    ]
