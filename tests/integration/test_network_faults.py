"""The network between a node and its server is slow, stalls, is cut, or repeats what it said; nothing hangs or lies."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import msgspec
import pytest
from company import DIARY, LIVING, Add, Clerk, ClerkConfig, Count, GetNotes, GetSeen, Note, NumbersBeside, Wait, Watch
from proxy import Proxy, proxy_to

from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import ActorStopped, DeadlineExceeded, Disconnected, NoSuchActor
from callboard.runtime.node import Node
from callboard.schemas.wire import Envelope, Frame, Mark, Op

pytestmark = pytest.mark.anyio

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node counts as gone after 0.8 s of silence, not 15. To be named first."""
    DIARY.clear()
    monkeypatch.setattr("callboard.runtime.links.BEAT_EVERY_S", 0.1)
    monkeypatch.setattr("callboard.runtime.peers.HELLO_EVERY_S", 0.1)
    monkeypatch.setattr("callboard.runtime.peers.SILENT_NODE_S", 0.8)
    monkeypatch.setattr("callboard.runtime.calls.SILENCE_S", 0.8)


@pytest.fixture
async def proxy(quick_beats: None, nats_server: Any) -> AsyncIterator[Proxy]:
    async with proxy_to(nats_server.url) as proxy:
        yield proxy


@pytest.fixture
async def home(proxy: Proxy) -> AsyncIterator[Node]:
    """Hosts a clerk, behind the proxy."""
    async with Node("home", bus=BusOptions(proxy.url), drain_timeout=1.0) as node:
        await node.spawn(Clerk, ClerkConfig("clerk"), name="clerk")
        yield node
        proxy.flow()


@pytest.fixture
async def away(nats_server: Any, home: Node) -> AsyncIterator[Node]:
    async with Node("away", bus=BusOptions(nats_server.url), drain_timeout=1.0) as node:
        assert node.links is not None
        while "home" not in node.links.peers.known:
            await anyio.sleep(0.01)
        yield node


def nothing_is_left(*nodes: Node) -> bool:
    """No conversation, stream or watch is open, and no credit is promised that could not be spent."""
    return all(
        node.links is not None
        and not node.links.conversations
        and not node.links._watches
        and not node.links.inbound._asks
        and not node.links.inbound._streams
        for node in nodes
    )


async def test_a_slow_network_is_slow_and_no_more(proxy: Proxy, home: Node, away: Node) -> None:
    clerk = away.actor("clerk")
    proxy.delay = 0.05
    begun = time.monotonic()
    assert await clerk.ask(Add()) == Count(1)
    assert time.monotonic() - begun >= 0.1
    for n in range(50):
        await clerk.tell(Note(str(n)), timeout=20)
    async with clerk.stream(NumbersBeside(1000)) as numbers:
        assert [number.n async for number in numbers] == list(range(1000))
    assert (await clerk.ask(GetNotes())).texts == ("add 1", *map(str, range(50)))


async def test_a_partition_shorter_than_the_silence_bound_loses_nothing(
    proxy: Proxy, home: Node, away: Node, eventually: Eventually
) -> None:
    watcher = await away.spawn(Clerk, ClerkConfig("watcher"), name="watcher")
    await watcher.ask(Watch("clerk"))
    clerk = away.actor("clerk")
    answers: list[Count] = []
    proxy.stall()

    async def ask() -> None:
        answers.append(await clerk.ask(Add(5), timeout=20))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(clerk.tell, Note("during"), 5)
        await anyio.sleep(0.4)  # half the bound: the partition itself
        assert not answers
        proxy.flow()
    assert answers == [Count(5)]
    assert "during" in (await clerk.ask(GetNotes())).texts
    assert (await watcher.ask(GetSeen())).events == ()


async def test_a_partition_longer_than_the_silence_bound_ends_in_errors_and_heals(
    proxy: Proxy, home: Node, away: Node, eventually: Eventually
) -> None:
    """Who is on the far side is taken for gone; after healing the same actor answers, with its state."""
    watcher = await away.spawn(Clerk, ClerkConfig("watcher"), name="watcher")
    await watcher.ask(Watch("clerk"))
    clerk = away.actor("clerk")
    assert await clerk.ask(Add(3)) == Count(3)
    own = await home.spawn(Clerk, ClerkConfig("inner"), name="inner")
    proxy.stall()
    async with anyio.create_task_group() as tasks:

        async def far_ask() -> None:
            with pytest.raises((ActorStopped, DeadlineExceeded)):
                await home.actor("watcher").ask(Add(), timeout=2)

        tasks.start_soon(far_ask)
        with anyio.fail_after(4), pytest.raises(ActorStopped, match="no sign of life"):
            await clerk.ask(Wait("cut off"), timeout=30)
        assert await own.ask(Add()) == Count(1)  # those on one side of it go on
    await DIARY.has("watcher saw clerk node_down")
    assert away.links is not None
    links = away.links
    proxy.flow()
    await eventually(lambda: "home" in links.peers.known)
    assert await clerk.ask(Add(1), timeout=20) == Count(4)
    assert len((await watcher.ask(GetSeen())).events) == 1
    await eventually(lambda: nothing_is_left(home, away))


async def test_a_name_given_back_while_the_network_stands_still_is_not_taken_again_with_the_next_connection(
    proxy: Proxy, home: Node, away: Node, eventually: Eventually
) -> None:
    await home.spawn(Clerk, ClerkConfig("mover"), name="mover")
    assert await away.actor("mover").ask(Add()) == Count(1)
    links = home.require_links()
    proxy.stall()
    await home.stop("mover")
    await eventually(lambda: not links.leaving)
    proxy.cut()
    proxy.flow()
    await eventually(lambda: links.bus.reconnects > 0 and links.bus.is_up)
    await links.bus.flush()
    with pytest.raises(NoSuchActor, match=r"there is no actor mover$"):  # so says the server: nobody listens
        await away.actor("mover").ask(Add())


async def test_a_connection_that_is_cut_again_and_again_ends_every_ask(
    proxy: Proxy, home: Node, away: Node, eventually: Eventually
) -> None:
    clerk = away.actor("clerk")
    answered = broken = 0
    async with anyio.create_task_group() as tasks:

        async def cut() -> None:
            for _ in range(5):
                await anyio.sleep(0.2)  # time for some asks to pass
                proxy.cut()

        tasks.start_soon(cut)
        with anyio.move_on_after(2.0):
            while True:
                try:
                    await clerk.ask(Add(), timeout=1.0)
                    answered += 1
                except (DeadlineExceeded, ActorStopped, Disconnected):
                    broken += 1
                except NoSuchActor:  # the server knows of nobody who listens, just then
                    broken += 1
                    await anyio.sleep(0.01)
    assert answered
    with anyio.fail_after(10):
        while True:
            try:
                total = (await clerk.ask(Add(0), timeout=1.0)).n
                break
            except (DeadlineExceeded, ActorStopped):
                continue
    assert answered <= total <= answered + broken + 1
    assert LIVING["clerk"].count == total
    await eventually(lambda: nothing_is_left(home, away))


# What comes twice, or late


async def recorded(node: Node, request: Any, address: str) -> list[tuple[str, str, bytes]]:
    """Everything the node's bus receives while it asks."""
    assert node.links is not None
    links = node.links
    seen: list[tuple[str, str, bytes]] = []
    on_reply = links._on_reply

    def record(subject: str, reply: str, data: bytes) -> None:
        seen.append((subject, reply, data))
        on_reply(subject, reply, data)

    subscription = await links.bus.subscribe(f"{links.inbox}*", record)
    await links.bus.flush()
    await node.actor(address).ask(request)
    await links.bus.unsubscribe(subscription)
    return seen


async def test_an_answer_that_comes_twice_or_late_is_ignored(home: Node, away: Node, eventually: Eventually) -> None:
    assert home.links is not None
    answers = await recorded(away, Add(2), "clerk")
    assert answers
    for subject, reply, data in answers * 3:
        home.links.bus.send(subject, data, reply)
    await home.links.bus.flush()
    assert await away.actor("clerk").ask(Add(1)) == Count(3)
    await eventually(lambda: nothing_is_left(home, away))


async def test_a_request_that_comes_twice_is_carried_out_twice_and_its_asker_gets_one_answer(
    home: Node, away: Node, eventually: Eventually
) -> None:
    """Promised is no more than what the asker sees: a network that repeats a request repeats its work."""
    assert away.links is not None
    request = msgspec.msgpack.encode(Envelope(Op.ASK, Add(1), 5000, 0, "away"))
    heard: list[bytes] = []
    subject = f"{away.links.inbox}twice"
    await away.links.bus.subscribe(subject, lambda _subject, _reply, data: heard.append(data))
    for _ in range(2):
        away.links.bus.send("actor.clerk", request, subject)
    await eventually(lambda: len(heard) >= 2)
    assert LIVING["clerk"].count == 2
    await eventually(lambda: nothing_is_left(home, away))


async def test_a_cancel_or_credit_for_what_is_over_is_ignored(home: Node, away: Node) -> None:
    assert away.links is not None
    for op in (Op.CANCEL, Op.CREDIT, Op.UNWATCH):
        away.links.bus.send("actor.clerk", msgspec.msgpack.encode(Envelope(op, None, 0, 9)), f"{away.links.inbox}1")
    assert await away.actor("clerk").ask(Add()) == Count(1)


# Nodes of other versions


async def test_an_older_node_takes_a_newer_message_and_a_longer_envelope(
    home: Node, away: Node, eventually: Eventually
) -> None:
    assert away.links is not None
    heard: list[Frame[Any]] = []
    subject = f"{away.links.inbox}newer"
    decoder = msgspec.msgpack.Decoder(Frame[Any])
    await away.links.bus.subscribe(subject, lambda _subject, _reply, data: heard.append(decoder.decode(data)))
    newer = {"type": "test.add", "n": 4, "colour": "blue", "nested": {"more": [1, 2]}}
    envelope = [int(Op.ASK), newer, 5000, 0, "newer-node", "", [], "a field of the future", {"and": "another"}]
    away.links.bus.send("actor.clerk", msgspec.msgpack.encode(envelope), subject)
    await eventually(lambda: len(heard) == 1)
    assert heard[0].body == {"type": "test.count", "n": 4}
    for message, code in (
        ({"type": "test.from_the_future"}, "message.not_understood"),
        ({"type": "test.add", "n": "four"}, "message.malformed"),
    ):
        envelope[1] = message
        heard.clear()
        away.links.bus.send("actor.clerk", msgspec.msgpack.encode(envelope), subject)
        await eventually(lambda: len(heard) == 1)
        assert heard[0].error is not None
        assert heard[0].error.code == code
    heard.clear()
    away.links.bus.send("actor.clerk", msgspec.msgpack.encode([42, None, 0, 0, "newer-node", "", []]), subject)
    await eventually(lambda: len(heard) == 1)
    assert heard[0].error is not None
    assert await away.actor("clerk").ask(Add(0)) == Count(4)


async def test_a_newer_nodes_answer_is_understood_by_an_older_one(home: Node, away: Node) -> None:
    """Its frame has more fields, its answer too; an answer of a mark that nobody knows yet is waited past."""
    assert away.links is not None
    links = away.links

    def answer(subject: str, reply: str, data: bytes) -> None:
        body = {"type": "test.count", "n": 7, "unit": "apples"}
        links.bus.send(reply, msgspec.msgpack.encode([99, 0, None, None, [], "unknown mark"]))
        links.bus.send(reply, msgspec.msgpack.encode([int(Mark.OK), 0, body, None, [], "more", 1]))

    await links.bus.subscribe("actor.newer", answer)
    await links.bus.flush()
    assert await home.actor("newer").ask(Add(), timeout=20) == Count(7)


async def test_hellos_of_a_newer_node_and_of_nobody_knows_whom_are_taken_as_far_as_they_go(
    home: Node, away: Node, eventually: Eventually
) -> None:
    assert away.links is not None
    assert home.links is not None
    peers = home.links.peers.known
    info = {"node": "newer", "pid": 1, "host": "h", "version": "99.0", "roots": [], "moon": "full"}
    send = away.links.bus.send
    send("nodes.hello", msgspec.msgpack.encode({"type": "node.hello", "info": info, "leaving": False, "phase": 3}))
    await eventually(lambda: "newer" in peers)
    for noise in (b"", b"\xc1", b"{}", msgspec.msgpack.encode({"type": "node.of_the_future"})):
        send("nodes.hello", noise)
        send("nodes.of-the-future", noise)
    assert await away.actor("clerk").ask(Add()) == Count(1)
