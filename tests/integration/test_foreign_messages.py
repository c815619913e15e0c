"""What any program on the bus may send to an actor: JSON, nonsense, too much of it; and what NATS's own tools ask."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import msgspec
import nats.errors
import pytest
from company import (
    DIARY,
    LIVING,
    Add,
    Bulk,
    BulkItems,
    Clerk,
    ClerkConfig,
    Count,
    Fail,
    GetNotes,
    Note,
    NumbersBeside,
    SmallClerk,
)
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from callboard.runtime.batches import Batch
from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.errors import HandlerFailed, TooLarge
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.wire import Envelope, Frame, Mark, Op

pytestmark = pytest.mark.anyio

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]

MIB = 1024 * 1024


@dataclass
class Scene:
    """A clerk at home, a program that knows nothing of us, and a node of ours elsewhere."""

    home: Node
    away: Node
    outsider: Nats

    @property
    def clerk(self) -> Ref:
        return self.away.actor("clerk")

    async def request(self, payload: bytes, subject: str = "actor.clerk") -> Any:
        """The answer to raw bytes: a dictionary for JSON, a frame for MessagePack."""
        data = (await self.outsider.request(subject, payload, timeout=20)).data
        return json.loads(data) if data[:1] == b"{" else msgspec.msgpack.decode(data, type=Frame[Any])


@pytest.fixture
async def scene(nats_server: Any) -> AsyncIterator[Scene]:
    DIARY.clear()
    options = BusOptions(nats_server.url)
    outsider = Nats()
    await outsider.connect(nats_server.url)
    async with Node(bus=options, drain_timeout=1.0) as home, Node(bus=options) as away:
        await home.spawn(Clerk, ClerkConfig("clerk"), name="clerk")
        yield Scene(home, away, outsider)
    await outsider.close()


# JSON


async def test_json_is_answered_in_json(scene: Scene) -> None:
    assert await scene.request(b'{"type": "test.add", "n": 4}') == {"type": "test.count", "n": 4}
    assert await scene.request(b'{"type": "test.add"}') == {"type": "test.count", "n": 5}
    assert await scene.request(b'{"type": "test.add", "n": 1, "unknown": [1, 2]}') == {"type": "test.count", "n": 6}


async def test_an_error_for_json_is_json(scene: Scene) -> None:
    answer = await scene.request(b'{"type": "test.fail", "typed": true}')
    assert (answer["type"], answer["code"], answer["hint"]) == ("error", "model.request", "ask for another")
    answer = await scene.request(b'{"type": "test.fail"}')
    assert (answer["type"], answer["code"]) == ("error", "actor.failed")


async def test_a_stream_in_json_is_its_items_then_its_result(scene: Scene) -> None:
    inbox = scene.outsider.new_inbox()
    subscription = await scene.outsider.subscribe(inbox)
    await scene.outsider.publish("actor.clerk", b'{"type": "test.numbers", "upto": 4}', reply=inbox)
    got = [json.loads((await subscription.next_msg(timeout=20)).data) for _ in range(5)]
    assert got == [*({"type": "test.number", "n": n} for n in range(4)), {"type": "test.total", "total": 6}]


async def test_a_stream_in_json_ends_with_its_error(scene: Scene) -> None:
    inbox = scene.outsider.new_inbox()
    subscription = await scene.outsider.subscribe(inbox)
    await scene.outsider.publish("actor.clerk", b'{"type": "test.numbers", "upto": 4, "fail_at": 1}', reply=inbox)
    got = [json.loads((await subscription.next_msg(timeout=20)).data) for _ in range(2)]
    assert got[0] == {"type": "test.number", "n": 0}
    assert (got[1]["type"], got[1]["code"]) == ("error", "model.request")


async def test_a_reader_of_json_that_leaves_ends_its_stream(scene: Scene) -> None:
    inbox = scene.outsider.new_inbox()
    subscription = await scene.outsider.subscribe(inbox)
    await scene.outsider.publish("actor.clerk", b'{"type": "test.numbers", "upto": 9, "wait_at": 1}', reply=inbox)
    await subscription.next_msg(timeout=20)
    await subscription.unsubscribe()
    await scene.outsider.flush()
    LIVING["clerk"].gate.set()
    await DIARY.has("clerk numbers over")


async def test_a_quiet_stream_in_json_is_not_taken_for_one_that_stalls(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.runtime.inbound.STALL_LIMIT_S", -1.0)
    inbox = scene.outsider.new_inbox()
    subscription = await scene.outsider.subscribe(inbox)
    await scene.outsider.publish("actor.clerk", b'{"type": "test.numbers", "upto": 2, "wait_at": 1}', reply=inbox)
    await subscription.next_msg(timeout=20)
    links = scene.home.links
    assert links is not None
    links.inbound.beat(scene.home.loop.time() + 1)
    LIVING["clerk"].gate.set()
    got = [json.loads((await subscription.next_msg(timeout=20)).data)["type"] for _ in range(2)]
    assert got == ["test.number", "test.total"]


async def test_plain_json_finds_its_actor(scene: Scene, eventually: Eventually) -> None:
    await scene.outsider.publish("actor.clerk", b'{"type": "test.note", "text": "from outside"}')
    await eventually(lambda: LIVING["clerk"].noted == ["from outside"])


async def test_what_does_not_fit_is_counted_and_published_as_dead(scene: Scene, eventually: Eventually) -> None:
    await scene.home.spawn(SmallClerk, ClerkConfig("small"), name="small")
    dead = await scene.outsider.subscribe("dead.>")
    texts = [f"wait {index}" for index in range(8)]
    for text in texts:
        await scene.outsider.publish("actor.small", json.dumps({"type": "test.note", "text": text}).encode())
        if text == "wait 0":
            await DIARY.has("small wait 0 began")  # it is in hand, and the mailbox of four is empty
    lost: list[str] = []
    while len(lost) < 3:
        message = await dead.next_msg(timeout=20)
        assert message.subject == "dead.small"
        lost.append(json.loads(message.data)["text"])
    LIVING["small"].gate.set()
    await eventually(lambda: len(LIVING["small"].noted) == 5)
    assert [*LIVING["small"].noted, *lost] == texts
    assert scene.home.actors["small"].info().dropped == 3


async def test_nobody_of_that_name_is_said_at_once_in_json_too(scene: Scene) -> None:
    answer = await scene.request(b'{"type": "test.add"}', "actor.clerk.nobody")
    assert (answer["type"], answer["code"]) == ("error", "actor.none")
    with pytest.raises(nats.errors.NoRespondersError):
        await scene.outsider.request("actor.nobody", b'{"type": "test.add"}', timeout=5)


async def test_a_plain_message_for_nobody_is_published_as_dead(scene: Scene) -> None:
    async with scene.away.listen("dead.>") as dead:
        await scene.outsider.publish("actor.clerk.nobody", b'{"type": "test.note", "text": "lost"}')
        assert await anext(dead) == ("dead.clerk.nobody", {"type": "test.note", "text": "lost"})
        envelope = Envelope(Op.TELL, Note("lost too"))
        await scene.outsider.publish("actor.clerk.nobody", msgspec.msgpack.encode(envelope))
        assert await anext(dead) == ("dead.clerk.nobody", {"type": "test.note", "text": "lost too"})


async def test_the_client_speaks_json_for_others(scene: Scene) -> None:
    client = Client(scene.away)
    answer = await client.request_raw("actor.clerk", b'{"type": "test.add"}')
    assert json.loads(answer) == {"type": "test.count", "n": 1}
    await client.publish_raw("actor.clerk", b'{"type": "test.note", "text": "raw"}')
    assert (await scene.clerk.ask(GetNotes())).texts == ("add 1", "raw")


# Nonsense

NONSENSE = {
    "an unknown tag": (b'{"type": "no.such"}', {"type": "no.such"}, "message.not_understood"),
    "no tag": (b'{"n": 1}', {"n": 1}, "message.not_understood"),
    "a wrong field": (b'{"type": "test.add", "n": "x"}', {"type": "test.add", "n": "x"}, "message.malformed"),
    "no object": (b"{}", [1, 2], "message.not_understood"),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_what_is_no_message_of_the_actor_is_answered_so(scene: Scene, what: str) -> None:
    as_json, as_values, code = NONSENSE[what]
    answer = await scene.request(as_json)
    assert (answer["type"], answer["code"]) == ("error", code)
    frame = await scene.request(msgspec.msgpack.encode(Envelope(Op.ASK, as_values)))
    assert (frame.mark, frame.error.code) == (Mark.ERROR, code)
    assert await scene.clerk.ask(Add()) == Count(1)


MALFORMED = {
    "half an object": b"{",
    "half a value": b'{"type": "test.add", "n": ',
    "text that is no UTF-8, in JSON": b'{"type": "test.note", "text": "\xff\xfe"}',
    "nothing": b"",
    "no MessagePack": b"\xc1",
    "half an envelope": b"\x93\x01",
    "plain text": b"plain text",
    "a message without an envelope": msgspec.msgpack.encode({"type": "test.add"}),
    "an empty envelope": msgspec.msgpack.encode([]),
    "text that is no UTF-8": msgspec.msgpack.encode([1, {"type": "test.note", "text": "?"}]).replace(b"?", b"\xff"),
    "an unknown operation": msgspec.msgpack.encode(Envelope(77)),
    "an unknown operation with a message": msgspec.msgpack.encode(Envelope(77, Note("x"))),
    "nesting without end": b"\x92\x01" + b"\x91" * 100_000,
    "nesting without end, in JSON": b'{"type": "test.add", "a": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_bytes_are_answered_so(scene: Scene, what: str) -> None:
    payload = MALFORMED[what]
    answer = await scene.request(payload)
    error = answer if isinstance(answer, dict) else msgspec.to_builtins(answer.error)
    assert error["code"] == "message.malformed"
    await scene.outsider.publish("actor.clerk", payload)
    assert await scene.clerk.ask(Add()) == Count(1)


async def test_no_bytes_whatever_end_an_actor(scene: Scene) -> None:
    dice = random.Random(7)
    good = [
        msgspec.msgpack.encode(Envelope(op, body, 0, 3, "somebody"))
        for op in Op
        for body in (None, Add(), Note("x"))
        if op is not Op.LINK
    ]
    for _ in range(1500):
        data = bytearray(dice.choice(good))
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        data = data[: dice.randint(1, len(data))] if dice.random() < 0.3 else data
        reply = dice.choice(["", "inbox.nobody.1"])
        await scene.outsider.publish("actor.clerk", bytes(data), reply=reply)
    await scene.outsider.flush()
    assert isinstance(await scene.clerk.ask(Add(), timeout=20), Count)
    assert DIARY.entries.count("clerk started") == 1


async def test_one_bad_message_does_not_take_others_along(scene: Scene, eventually: Eventually) -> None:
    def send(first: int, tail: bytes) -> None:
        frames.append(msgspec.msgpack.encode(Envelope[None](Op.TELL, sender="x"))[:-1] + tail)

    frames: list[bytes] = []
    batch = Batch(scene.home.loop, send, 10_000)
    for text in ("one", None, "two"):
        batch.add(msgspec.msgpack.encode(Note(text) if text else {"type": "no.such"}))
    batch.flush()
    await scene.outsider.publish("actor.clerk", frames[0])
    await eventually(lambda: LIVING["clerk"].noted == ["one", "two"])
    assert scene.home.actors["clerk"].info().dropped == 1


# Too much


async def test_what_is_over_the_payload_limit_and_not_for_an_actor_is_refused_to_its_sender(scene: Scene) -> None:
    huge = "x" * (MIB + 1)
    with pytest.raises(TooLarge):
        await scene.away.publish("topic.huge", Note(huge))
    with pytest.raises(TooLarge):
        await Client(scene.away).request_raw("actor.clerk", huge.encode())
    assert await scene.clerk.ask(Add()) == Count(1)


async def test_an_answer_in_json_over_the_payload_limit_is_an_error_at_the_asker(scene: Scene) -> None:
    assert len((await scene.clerk.ask(Bulk(MIB - 200))).texts[0]) == MIB - 200
    assert len((await scene.clerk.ask(Bulk(MIB))).texts[0]) == MIB
    answer = await scene.request(json.dumps({"type": "test.bulk", "size": MIB}).encode())
    assert (answer["type"], answer["code"]) == ("error", "message.too_large")


async def test_an_item_over_the_payload_limit_comes_in_its_place(scene: Scene) -> None:
    for size in (MIB - 200, MIB):
        async with scene.clerk.stream(BulkItems(size)) as items:
            assert [len(item.text) async for item in items] == [size]
    assert await scene.clerk.ask(Add()) == Count(1)


async def test_a_detour_that_does_not_decode_ends_nothing(scene: Scene) -> None:
    for data in (b"\xc1", b"\xc1\x90", b"\xc1{}", b"\xc1" + b"\xff" * 50):
        await scene.outsider.publish("actor.clerk", data)
    assert await scene.clerk.ask(Add()) == Count(1)


async def test_an_error_with_much_to_say_still_arrives(scene: Scene) -> None:
    with pytest.raises(HandlerFailed, match="one over nothing"):
        await scene.clerk.ask(Fail(size=2 * MIB))


async def test_large_items_and_small_ones_come_whole(scene: Scene) -> None:
    async with scene.clerk.stream(NumbersBeside(3000)) as numbers:
        assert sum([number.n async for number in numbers]) == numbers.result.total


# What NATS's own tools ask


async def test_nats_tools_see_the_company(scene: Scene) -> None:
    await scene.clerk.ask(Add())

    async def ask(subject: str) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        inbox = scene.outsider.new_inbox()

        async def take(message: Msg) -> None:
            answers.append(json.loads(message.data))

        await scene.outsider.subscribe(inbox, cb=take)
        await scene.outsider.publish(subject, b"", reply=inbox)
        while not [answer for answer in answers if answer["metadata"]["kind"] == "company:Clerk"]:
            await anyio.sleep(0.01)
        return answers

    (ping,) = [answer for answer in await ask("$SRV.PING") if answer["metadata"]["kind"] == "company:Clerk"]
    assert set(ping) == {"type", "name", "id", "version", "metadata"}
    assert ping["type"] == "io.nats.micro.v1.ping_response"
    assert ping["name"].replace("_", "").isalnum()
    assert ping["version"].count(".") == 2
    (info,) = await ask(f"$SRV.INFO.{ping['name']}.{ping['id']}")
    assert info["type"] == "io.nats.micro.v1.info_response"
    assert info["description"] == "Does whatever a test asks for."
    (endpoint,) = info["endpoints"]
    assert (endpoint["name"], endpoint["subject"]) == ("clerk", "actor.clerk")
    (stats,) = await ask(f"$SRV.STATS.{ping['name']}")
    assert stats["type"] == "io.nats.micro.v1.stats_response"
    assert stats["started"].endswith("Z")
    (endpoint,) = stats["endpoints"]
    assert {"num_requests", "num_errors", "last_error", "processing_time", "average_processing_time"} <= set(endpoint)
    assert endpoint["num_requests"] == 1
