"""What messages between actors promise, each on both paths: in one process, and over the bus with a real server."""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import msgspec
import pytest
from company import (
    DIARY,
    LIVING,
    Add,
    Clerk,
    ClerkConfig,
    Count,
    Fail,
    FailBeside,
    Forward,
    GetNotes,
    GetSeen,
    Note,
    Number,
    Numbers,
    NumbersBeside,
    Open,
    SmallClerk,
    Total,
    Unknown,
    Unwatch,
    Wait,
    WaitBeside,
    Watch,
)

from callboard.runtime.bus import BusOptions
from callboard.runtime.calls import GrantCall
from callboard.runtime.cell import Cell
from callboard.runtime.client import Client
from callboard.runtime.errors import (
    ActorStopped,
    ConfigError,
    DeadlineExceeded,
    HandlerFailed,
    MailboxFull,
    NameTaken,
    NoSuchActor,
    NotUnderstood,
    RequestInvalid,
)
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref, Stream
from callboard.runtime.supervision import Restart
from callboard.schemas.runtime import Ended, Tapped

pytestmark = pytest.mark.anyio

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


def through_the_wire(value: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))


@dataclass
class Company:
    """The node that hosts the actors, and the one that speaks to them: the same one on the local path."""

    home: Node
    away: Node

    async def clerk(self, name: str = "clerk", kind: type[Clerk] = Clerk, **options: Any) -> Ref:
        """Starts a clerk at home; the reference is for use from away."""
        await self.home.spawn(kind, ClerkConfig(name), name=name, **options)
        return self.away.actor(name)


@pytest.fixture(params=["local", "bus"])
async def company(request: pytest.FixtureRequest, nats_server: Any) -> AsyncIterator[Company]:
    DIARY.clear()
    async with Node(bus=BusOptions(nats_server.url), round_trip=through_the_wire, drain_timeout=2.0) as home:
        if request.param == "local":
            yield Company(home, home)
        else:
            async with Node(bus=BusOptions(nats_server.url), drain_timeout=2.0) as away:
                yield Company(home, away)


# Asking and telling


async def test_an_ask_is_answered_with_its_type(company: Company) -> None:
    clerk = await company.clerk()
    assert await clerk.ask(Add(2)) == Count(2)
    assert await clerk.ask(Add(3)) == Count(5)


async def test_tells_and_asks_of_one_sender_are_handled_in_the_order_sent(company: Company) -> None:
    clerk = await company.clerk()
    expected: list[str] = []
    for index in range(300):
        await clerk.tell(Note(str(index)))
        expected.append(str(index))
        if index % 7 == 0:
            await clerk.ask(Add(index))
            expected.append(f"add {index}")
    await clerk.ask(Add(0))
    assert list((await clerk.ask(GetNotes())).texts) == [*expected, "add 0"]


async def test_a_handler_may_ask_another_actor(company: Company) -> None:
    await company.clerk("back")
    front = await company.clerk("front")
    assert await front.ask(Forward("back")) == Count(1)
    assert await company.away.actor("back").ask(Add(1)) == Count(2)


async def test_many_senders_at_once_are_all_answered(company: Company) -> None:
    clerk = await company.clerk()
    answers: list[int] = []

    async def ask() -> None:
        for _ in range(20):
            answers.append((await clerk.ask(Add(1))).n)

    async with anyio.create_task_group() as senders:
        for _ in range(30):
            senders.start_soon(ask)
    assert sorted(answers) == list(range(1, 601))


async def test_an_actor_that_is_not_there_is_reported_at_once(company: Company) -> None:
    await company.clerk()
    begun = time.monotonic()
    for address in ("nobody", "nobody.below", "clerk.nobody"):
        ref = company.away.actor(address)
        with pytest.raises(NoSuchActor):
            await ref.ask(Add())
        with pytest.raises(NoSuchActor):
            await ref.tell(Note("hello"))
        with pytest.raises(NoSuchActor):
            async with ref.stream(Numbers(3)) as numbers:
                await anext(numbers)
    assert time.monotonic() - begun < 1.0


async def test_a_message_of_the_wrong_type_is_not_understood(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    with pytest.raises(NotUnderstood, match=r"test\.unknown") as caught:
        await clerk.ask(Unknown())
    assert "test.add" in caught.value.hint
    async with company.away.listen("dead.clerk") as dead:
        await clerk.tell(Note("one"))
        await clerk.tell(Unknown())
        await clerk.tell(Note("two"))
        subject, message = await anext(dead)
        assert (subject, message["type"]) == ("dead.clerk", "test.unknown")
    await eventually(lambda: company.home.actors["clerk"].info().processed >= 2)
    assert (await clerk.ask(GetNotes())).texts == ("one", "two")
    assert company.home.actors["clerk"].info().dropped == 1


# The mailbox


async def test_a_full_mailbox_refuses_and_loses_nothing_that_it_took(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk(kind=SmallClerk)
    waiting = Note("wait")
    await clerk.tell(waiting)
    await DIARY.has("clerk wait began")
    taken: list[str] = []
    with pytest.raises(MailboxFull, match="full"):
        await _tell_many(clerk, taken)
    assert 1 <= len(taken) <= 4
    with pytest.raises(MailboxFull):
        await clerk.tell(Note("again"))
    if company.home is company.away:
        with pytest.raises(MailboxFull):
            await clerk.ask(Add(1))
    LIVING["clerk"].gate.set()
    await eventually(lambda: company.home.actors["clerk"].info().processed == 1 + len(taken))
    assert (await clerk.ask(GetNotes())).texts == ("wait", *taken)


async def _tell_many(clerk: Ref, taken: list[str], timeout: float = 0.0) -> None:
    for index in range(100):
        await clerk.tell(Note(str(index)), timeout)
        taken.append(str(index))


async def test_a_tell_with_a_timeout_waits_for_room(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk(kind=SmallClerk)
    await clerk.tell(Note("wait"))
    await DIARY.has("clerk wait began")
    texts = [str(index) for index in range(60)]

    async def tell() -> None:
        for text in texts:
            await clerk.tell(Note(text), timeout=20.0)

    async with anyio.create_task_group() as senders:
        senders.start_soon(tell)
        await eventually(lambda: company.home.actors["clerk"].info().mailbox == 4)
        LIVING["clerk"].gate.set()
    await eventually(lambda: company.home.actors["clerk"].info().processed == 61)
    assert (await clerk.ask(GetNotes())).texts == ("wait", *texts)


async def test_a_tell_with_a_timeout_gives_up_when_no_room_comes(company: Company) -> None:
    clerk = await company.clerk(kind=SmallClerk)
    await clerk.tell(Note("wait"))
    await DIARY.has("clerk wait began")
    begun = time.monotonic()
    with pytest.raises(MailboxFull):
        await _tell_many(clerk, [], timeout=0.2)
    assert 0.2 <= time.monotonic() - begun < 5.0
    with pytest.raises(MailboxFull):
        await clerk.tell(Note("more"))


async def test_an_impatient_tell_is_not_held_up_by_a_patient_one(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk(kind=SmallClerk)
    await clerk.tell(Note("wait"))
    await DIARY.has("clerk wait began")

    async def patient() -> None:
        for _ in range(8):
            await clerk.tell(Note("patient"), timeout=math.inf)

    async with anyio.create_task_group() as senders:
        senders.start_soon(patient)
        await eventually(lambda: company.home.actors["clerk"].info().mailbox == 4)
        with anyio.fail_after(3), pytest.raises(MailboxFull):
            await clerk.tell(Note("impatient"), timeout=0.1)
        LIVING["clerk"].gate.set()


async def test_concurrent_handlers_count_against_the_mailbox(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk(kind=SmallClerk)
    async with anyio.create_task_group() as askers:
        for index in range(4):
            askers.start_soon(clerk.ask, WaitBeside(str(index)))
        for index in range(4):
            await DIARY.has(f"clerk {index} began")
        with pytest.raises(MailboxFull):
            await clerk.ask(Add(1))
        askers.start_soon(clerk.tell, Note("when there is room"), 10.0)
        LIVING["clerk"].gate.set()
    assert await clerk.ask(Add(1)) == Count(1)
    assert "when there is room" in (await clerk.ask(GetNotes())).texts


# Deadlines and cancellation


@pytest.mark.parametrize("request_type", [Wait, WaitBeside])
async def test_a_deadline_that_passes_cancels_the_handler(company: Company, request_type: type[Wait]) -> None:
    clerk = await company.clerk()
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await clerk.ask(request_type(), timeout=0.2)
    assert 0.2 <= time.monotonic() - begun < 2.0
    await DIARY.has("clerk wait CancelledError")
    assert await clerk.ask(Add(1)) == Count(1)
    assert DIARY.entries.count("clerk started") == 1


async def test_a_request_whose_deadline_passed_in_the_mailbox_is_not_begun(company: Company) -> None:
    clerk = await company.clerk()
    async with anyio.create_task_group() as askers:
        askers.start_soon(clerk.ask, Wait("first"))
        await DIARY.has("clerk first began")
        with pytest.raises(DeadlineExceeded):
            await clerk.ask(Wait("second"), timeout=0.1)
        await clerk.tell(Open())
        LIVING["clerk"].gate.set()
    assert await clerk.ask(Add(1)) == Count(1)
    assert "clerk second began" not in DIARY.entries


async def test_an_ask_may_wait_for_ever(company: Company) -> None:
    clerk = await company.clerk()
    assert await clerk.ask(Add(1), timeout=math.inf) == Count(1)


@pytest.mark.parametrize("request_type", [Wait, WaitBeside])
async def test_cancelling_the_caller_cancels_the_handler(company: Company, request_type: type[Wait]) -> None:
    clerk = await company.clerk()
    async with anyio.create_task_group() as askers:
        askers.start_soon(clerk.ask, request_type())
        await DIARY.has("clerk wait began")
        askers.cancel_scope.cancel()
    await DIARY.has("clerk wait CancelledError")
    assert await clerk.ask(Add(1)) == Count(1)
    assert DIARY.entries.count("clerk started") == 1
    assert company.home.actors["clerk"].info().mailbox == 0


async def test_a_concurrent_request_given_up_at_once_holds_no_room(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk(kind=SmallClerk)
    for _ in range(8):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await clerk.ask(WaitBeside())
        await clerk.ask(Add(1))
    await eventually(lambda: company.home.actors["clerk"].info().mailbox == 0)


# Failure


async def test_an_error_of_the_callboard_is_the_answer_and_the_actor_lives(company: Company) -> None:
    clerk = await company.clerk()
    await clerk.ask(Add(1))
    for request in (Fail(typed=True), FailBeside(typed=True)):
        with pytest.raises(RequestInvalid, match="no such thing") as caught:
            await clerk.ask(request)
        assert (caught.value.hint, caught.value.detail) == ("ask for another", "for developers")
    await clerk.tell(Note("refused"))
    assert await clerk.ask(Add(1)) == Count(2)
    assert DIARY.entries.count("clerk started") == 1


@pytest.mark.parametrize("request_type", [Fail, FailBeside])
async def test_any_other_error_restarts_the_actor_under_its_address(company: Company, request_type: type[Fail]) -> None:
    clerk = await company.clerk()
    await clerk.ask(Add(5))
    with pytest.raises(HandlerFailed, match="one over nothing") as caught:
        await clerk.ask(request_type())
    assert "ZeroDivisionError" in caught.value.detail
    assert await clerk.ask(Add(1)) == Count(1)
    assert DIARY.entries == ["clerk started", "clerk stopped", "clerk started"]
    assert company.home.actors["clerk"].info().restarts == 1


async def test_waiting_messages_survive_a_crash(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    async with anyio.create_task_group() as askers:
        askers.start_soon(clerk.ask, Wait())
        await DIARY.has("clerk wait began")

        async def fail() -> None:
            with pytest.raises(HandlerFailed):
                await clerk.ask(Fail())

        askers.start_soon(fail)
        await eventually(lambda: company.home.actors["clerk"].info().mailbox >= 1)
        for index in range(20):
            await clerk.tell(Note(str(index)))
        LIVING["clerk"].gate.set()
    await clerk.ask(Add(1))
    assert (await clerk.ask(GetNotes())).texts == (*map(str, range(20)), "add 1")


# Streams


async def _read(stream: Stream[Number, Total], seen: list[int]) -> None:
    async with stream:
        async for number in stream:
            seen.append(number.n)


@pytest.mark.parametrize("request_type", [Numbers, NumbersBeside])
async def test_a_stream_gives_its_items_in_order_and_then_its_result(
    company: Company, request_type: type[Numbers]
) -> None:
    clerk = await company.clerk()
    async with clerk.stream(request_type(1000)) as numbers:
        with pytest.raises(RuntimeError, match="not ended"):
            _ = numbers.result
        assert [number.n async for number in numbers] == list(range(1000))
        assert numbers.result == Total(sum(range(1000)))


async def test_a_stream_may_be_asked_for_its_result_alone(company: Company) -> None:
    clerk = await company.clerk()
    assert await clerk.ask(Numbers(1000)) == Total(sum(range(1000)))
    assert await clerk.ask(NumbersBeside(1000)) == Total(sum(range(1000)))


async def test_a_stream_of_nothing_may_be_a_coroutine_of_its_result(company: Company) -> None:
    clerk = await company.clerk()
    assert await clerk.ask(NumbersBeside(0)) == Total(0)
    async with clerk.stream(NumbersBeside(0)) as numbers:
        assert [number async for number in numbers] == []
    assert numbers.result == Total(0)
    with pytest.raises(RequestInvalid, match="no number 0"):
        await clerk.ask(NumbersBeside(0, fail_at=0))
    with pytest.raises(RequestInvalid, match="no number 0"):
        await _read(clerk.stream(NumbersBeside(0, fail_at=0)), [])
    assert await clerk.ask(Add(1)) == Count(1)


async def test_an_error_of_a_stream_comes_after_its_items(company: Company) -> None:
    clerk = await company.clerk()
    seen: list[int] = []
    with pytest.raises(RequestInvalid, match="no number 5"):
        await _read(clerk.stream(Numbers(10, fail_at=5)), seen)
    assert seen == [0, 1, 2, 3, 4]
    assert await clerk.ask(Add(1)) == Count(1)


async def test_what_is_there_of_a_stream_is_taken_together(company: Company) -> None:
    clerk = await company.clerk()
    seen: list[int] = []
    takes = 0
    async with clerk.stream(NumbersBeside(5000)) as numbers:
        while some := await numbers.take():
            seen += [number.n for number in some]
            takes += 1
            if len(seen) < 5000:
                assert not numbers.is_over
        assert numbers.is_over
        assert numbers.result == Total(sum(range(5000)))
        assert await numbers.take() == []
    assert seen == list(range(5000))
    assert takes < 5000


async def test_what_is_taken_together_comes_before_an_error(company: Company) -> None:
    clerk = await company.clerk()
    seen: list[int] = []

    async def take_all(stream: Stream[Number, Total]) -> None:
        async with stream:
            while some := await stream.take():
                seen.extend(number.n for number in some)
                assert not stream.is_over

    with pytest.raises(RequestInvalid, match="no number 5"):
        await take_all(clerk.stream(Numbers(10, fail_at=5)))
    assert seen == [0, 1, 2, 3, 4]
    with pytest.raises(DeadlineExceeded):
        await take_all(clerk.stream(Numbers(10, wait_at=2), timeout=0.2))
    assert await clerk.ask(Add(1)) == Count(1)


async def test_a_slow_reader_holds_back_its_producer_and_no_other(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    async with clerk.stream(NumbersBeside(5000, name="slow")) as slow:
        assert await anext(slow) == Number(0)
        async with clerk.stream(NumbersBeside(5000, name="fast")) as fast:
            assert [number.n async for number in fast] == list(range(5000))
        produced = sum(entry.startswith("clerk slow ") for entry in DIARY.entries)
        assert produced < 1000
        assert [number.n async for number in slow] == list(range(1, 5000))


@pytest.mark.parametrize("request_type", [Numbers, NumbersBeside])
@pytest.mark.parametrize("where", ["waiting for something", "waiting for room"])
async def test_leaving_a_stream_early_cancels_its_generator(
    company: Company, request_type: type[Numbers], where: str
) -> None:
    clerk = await company.clerk()
    wait_at = 3 if where == "waiting for something" else -1
    async with clerk.stream(request_type(100_000, wait_at=wait_at)) as numbers:
        assert await anext(numbers) == Number(0)
    await DIARY.has("clerk numbers over")
    assert await clerk.ask(Add(1)) == Count(1)
    assert DIARY.entries.count("clerk started") == 1


async def test_cancelling_the_reader_of_a_stream_cancels_its_generator(company: Company) -> None:
    clerk = await company.clerk()

    async def read() -> None:
        async for _ in clerk.stream(Numbers(10, wait_at=2)):
            pass

    async with anyio.create_task_group() as readers:
        readers.start_soon(read)
        await DIARY.has("clerk numbers waits")
        readers.cancel_scope.cancel()
    await DIARY.has("clerk numbers over")
    assert await clerk.ask(Add(1)) == Count(1)


async def test_a_streams_deadline_bounds_all_of_it(company: Company) -> None:
    clerk = await company.clerk()
    seen: list[int] = []
    with pytest.raises(DeadlineExceeded):
        await _read(clerk.stream(Numbers(10, wait_at=2), timeout=0.2), seen)
    assert seen == [0, 1]
    await DIARY.has("clerk numbers over")


async def test_a_crash_during_a_stream_is_the_readers_error(company: Company) -> None:
    clerk = await company.clerk()
    async with clerk.stream(NumbersBeside(10, wait_at=2)) as numbers:
        assert [(await anext(numbers)).n for _ in range(2)] == [0, 1]
        with pytest.raises(HandlerFailed):
            await clerk.ask(Fail())
        with pytest.raises(ActorStopped):
            await anext(numbers)
    assert await clerk.ask(Add(1)) == Count(1)


# Publishing and observing


async def test_what_is_published_reaches_those_whose_pattern_matches(company: Company) -> None:
    patterns = ("topic.news", "topic.*", "topic.>", "*.news", "topic.news.*")
    got: dict[str, list[str]] = {}

    async def listen(pattern: str, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with company.away.listen(pattern, Note) as listener:
            task_status.started()
            got[pattern] = []
            async for subject, note in listener:
                got[pattern].append(subject)
                if note.text == "last":
                    return

    async with anyio.create_task_group() as listeners:
        for pattern in patterns:
            await listeners.start(listen, pattern)
        await company.home.publish("topic.news", Note("first"))
        await company.home.publish("topic.news.local", Note("second"))
        for subject in ("topic.news", "topic.news.local"):
            await company.home.publish(subject, Note("last"))
    assert got["topic.news"] == got["topic.*"] == got["*.news"] == ["topic.news", "topic.news"]
    assert got["topic.news.*"] == ["topic.news.local", "topic.news.local"]
    assert got["topic.>"][:3] == ["topic.news", "topic.news.local", "topic.news"]


async def test_a_listener_without_types_gets_plain_values(company: Company) -> None:
    async with company.away.listen("topic.>") as listener:
        await company.home.publish("topic.plain", Note("hello"))
        assert await anext(listener) == ("topic.plain", {"type": "test.note", "text": "hello"})


async def test_a_listener_that_falls_behind_counts_what_it_lost(company: Company, eventually: Eventually) -> None:
    async with company.away.listen("topic.flood", Note, size=10) as listener:
        for index in range(25):
            await company.home.publish("topic.flood", Note(str(index)))
        await eventually(lambda: listener.dropped == 15)
        assert [(await anext(listener))[1].text for _ in range(10)] == [str(index) for index in range(10)]


async def test_a_tap_sees_the_messages_that_actors_get(company: Company, eventually: Eventually) -> None:
    await company.clerk("other")
    clerk = await company.clerk()
    async with Client(company.away).tap("clerk") as tapped:
        await eventually(lambda: company.home.taps is not None)
        await company.home.actor("clerk").ask(Add(1))
        await company.away.actor("other").ask(Add(2))
        await clerk.tell(Note("seen"))
        seen: list[Tapped] = []
        while len(seen) < 2:
            seen.append((await anext(tapped))[1])
    assert [event.address for event in seen] == ["clerk", "clerk"]
    assert [msgspec.msgpack.decode(event.message)["type"] for event in seen] == ["test.add", "test.note"]


# Watching and linking


async def test_a_watcher_is_told_of_a_stop_once(company: Company) -> None:
    await company.clerk("watched")
    watcher = await _watcher(company)
    await watcher.ask(Watch("watched"))
    await watcher.ask(Watch("watched"))
    await watcher.ask(Add(1))
    await _settled(company, "watched", watched=True)
    await company.home.stop("watched")
    await DIARY.has("watcher saw watched stopped")
    (event,) = (await watcher.ask(GetSeen())).events
    assert (event.address, event.reason, event.restarting) == ("watched", Ended.STOPPED, False)


async def test_a_watcher_is_told_of_a_crash_and_whether_it_comes_back(company: Company) -> None:
    watcher = await _watcher(company)
    for restart, name in ((Restart.PERMANENT, "back"), (Restart.TEMPORARY, "gone")):
        watched = await company.clerk(name, restart=restart)
        await watcher.ask(Watch(name))
        await _settled(company, name, watched=True)
        with pytest.raises(HandlerFailed):
            await watched.ask(Fail())
        await DIARY.has(f"watcher saw {name} crashed")
    back, gone = (await watcher.ask(GetSeen())).events
    assert (back.restarting, gone.restarting) == (True, False)
    assert back.error is not None
    assert "one over nothing" in back.error.message


async def test_watching_who_is_not_there_is_answered_at_once(company: Company) -> None:
    watcher = await _watcher(company)
    for address in ("nobody", "watcher.nobody"):
        await watcher.ask(Watch(address))
        await DIARY.has(f"watcher saw {address} not_there")


async def test_who_no_longer_watches_is_not_told(company: Company) -> None:
    await company.clerk("watched")
    watcher = await _watcher(company)
    await watcher.ask(Watch("watched"))
    await _settled(company, "watched", watched=True)
    await watcher.ask(Unwatch("watched"))
    await _settled(company, "watched", watched=False)
    await company.home.stop("watched")
    await watcher.ask(Watch("watched"))
    await DIARY.has("watcher saw watched not_there")
    assert len((await watcher.ask(GetSeen())).events) == 1


async def test_the_end_of_a_watcher_is_the_end_of_its_watches(company: Company) -> None:
    await company.clerk("watched")
    watcher = await _watcher(company)
    await watcher.ask(Watch("watched"))
    await _settled(company, "watched", watched=True)
    with pytest.raises(HandlerFailed):
        await watcher.ask(Fail())
    await watcher.ask(Add(1))
    await _settled(company, "watched", watched=False)


@pytest.mark.parametrize("first", ["linker", "linked"])
async def test_linked_actors_crash_together_in_both_directions(company: Company, first: str) -> None:
    await company.clerk("linked")
    linker = await _watcher(company, "linker")
    await linker.ask(Watch("linked", link=True))
    await _settled(company, "linked", watched=True)
    if company.away is not company.home:
        await _settled(company, "linker", watched=True)
    with pytest.raises(HandlerFailed):
        await company.away.actor(first).ask(Fail())
    for name in ("linked", "linker"):
        await DIARY.has(f"{name} started", 2)
    assert await company.away.actor("linked").ask(Add(1)) == Count(1)
    assert await company.away.actor("linker").ask(Add(1)) == Count(1)


async def test_a_linked_actor_outlives_a_normal_end(company: Company) -> None:
    await company.clerk("linked")
    linker = await _watcher(company, "linker")
    await linker.ask(Watch("linked", link=True))
    await _settled(company, "linked", watched=True)
    await company.home.stop("linked")
    await DIARY.has("linker saw linked stopped")
    assert DIARY.entries.count("linker started") == 1


async def _watcher(company: Company, name: str = "watcher") -> Ref:
    """A clerk that lives away from the others, where there is an away."""
    return await company.away.spawn(Clerk, ClerkConfig(name), name=name)


async def _settled(company: Company, address: str, *, watched: bool) -> None:
    """A watch over the bus takes effect when it arrives."""
    for node in (company.home, company.away):
        child = node.actors.get(address)
        while child is not None and bool(child.watchers) is not watched:
            await anyio.sleep(0.01)


# The end


async def test_a_stop_handles_what_waits_first(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    answers: list[Count] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clerk.ask, Wait())
        await DIARY.has("clerk wait began")

        async def add() -> None:
            answers.append(await clerk.ask(Add(1)))

        for _ in range(5):
            tasks.start_soon(add)
        await eventually(lambda: company.home.actors["clerk"].info().mailbox == 5)
        cell = company.home.actors["clerk"]
        tasks.start_soon(company.home.stop, "clerk", 5.0)
        await eventually(lambda: cell.closed)
        with pytest.raises(ActorStopped):
            await clerk.ask(Add(1))
        LIVING["clerk"].gate.set()
    assert sorted(answer.n for answer in answers) == [1, 2, 3, 4, 5]
    with pytest.raises(NoSuchActor):
        await clerk.ask(Add(1))


async def test_a_stop_hands_back_what_it_has_no_time_for(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    errors: list[str] = []

    async def ask(request: Wait | Add) -> None:
        with pytest.raises(ActorStopped) as caught:
            await clerk.ask(request)
        errors.append(caught.value.message)

    async with company.away.listen("dead.clerk", Note) as dead, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, Wait())
        await DIARY.has("clerk wait began")
        for _ in range(3):
            tasks.start_soon(ask, Add(1))
        await clerk.tell(Note("never read"))
        await eventually(lambda: len(company.home.actors["clerk"].inbox) == 4)  # type: ignore[attr-defined]
        await company.home.stop("clerk", 0.1)
        assert (await anext(dead))[1] == Note("never read")
    assert len(errors) == 4
    assert DIARY.entries[-2:] == ["clerk wait CancelledError", "clerk stopped"]


async def test_a_stop_lets_concurrent_handlers_finish(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    cell = company.home.actors["clerk"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clerk.ask, WaitBeside())
        await DIARY.has("clerk wait began")
        tasks.start_soon(company.home.stop, "clerk", 5.0)
        await eventually(lambda: cell.closed)
        LIVING["clerk"].gate.set()
    assert DIARY.entries[-2:] == ["clerk wait finished", "clerk stopped"]


async def test_a_stop_whose_caller_gives_up_is_carried_through(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clerk.ask, Wait())
        await DIARY.has("clerk wait began")
        with anyio.move_on_after(0.05):
            await company.home.stop("clerk", 5.0)
        LIVING["clerk"].gate.set()
    await eventually(lambda: "clerk" not in company.home.actors)
    await company.clerk()
    assert await clerk.ask(Add(1)) == Count(1)


# All at once


async def test_after_any_mix_of_requests_nothing_is_left_over(company: Company, eventually: Eventually) -> None:
    dice = random.Random(company.home is company.away)
    clerk = await company.clerk(kind=SmallClerk)
    told: list[str] = []
    odd: list[BaseException] = []

    async def one(index: int) -> None:
        try:
            match dice.randrange(9):
                case 0 | 1:
                    await clerk.ask(Add(1), timeout=dice.choice([None, 0.001]))
                case 2:
                    await clerk.ask(dice.choice([Wait(), WaitBeside()]), timeout=dice.random() / 20)
                case 3:
                    with anyio.move_on_after(dice.random() / 20):
                        await clerk.ask(dice.choice([Wait(), WaitBeside(), Add(1)]))
                case 4:
                    async with clerk.stream(dice.choice([Numbers(600), NumbersBeside(600)])) as numbers:
                        for _ in range(dice.randrange(600)):
                            await anext(numbers)
                case 5:
                    with anyio.move_on_after(dice.random() / 20):
                        async for _ in clerk.stream(Numbers(20, wait_at=dice.randrange(20)), timeout=0.05):
                            pass
                case 6:
                    await clerk.ask(dice.choice([Fail(typed=True), FailBeside(typed=True), Unknown()]))
                case 7:
                    await clerk.tell(Note(str(index)), timeout=dice.choice([0.0, 0.05, 10.0]))
                    told.append(str(index))
                case 8:
                    await clerk.tell(Open(), timeout=0.05)
        except (MailboxFull, DeadlineExceeded, RequestInvalid, NotUnderstood):
            pass
        except BaseException as error:
            odd.append(error)
            raise

    async def several(first: int) -> None:
        for index in range(first, first + 40):
            await one(index)
            LIVING["clerk"].gate = anyio.Event()

    async with anyio.create_task_group() as tasks:
        for first in range(0, 400, 40):
            tasks.start_soon(several, first)
    assert not odd
    assert DIARY.entries.count("clerk started") == 1
    noted = LIVING["clerk"].noted
    await eventually(lambda: len(noted) >= len(told))
    assert sorted(text for text in noted if text.isdigit()) == sorted(told)
    cell = company.home.actors["clerk"]
    assert isinstance(cell, Cell)
    assert not cell.dropped
    await eventually(lambda: not cell.inbox and not cell._running and not cell.current)
    for node in {company.home, company.away}:
        assert node.links is not None
        inbound = node.links.inbound
        promised = sum(ledger.promised for ledger in inbound._ledgers.values())
        await eventually(lambda inbound=inbound: not inbound._asks and not inbound._streams)
        if node is company.home:
            assert cell.held == promised
        assert not [call for call in node.links.conversations.values() if not isinstance(call, GrantCall)]


# Names


async def test_a_name_is_taken_once(company: Company) -> None:
    clerk = await company.clerk()
    for node in (company.home, company.away):
        with pytest.raises(NameTaken):
            await node.spawn(Clerk, name="clerk")
    assert await clerk.ask(Add(1)) == Count(1)
    assert (await clerk.ask(GetNotes())).texts == ("add 1",)
    await company.home.stop("clerk")
    await company.away.spawn(Clerk, name="clerk")
    assert await company.home.actor("clerk").ask(Add(1)) == Count(1)


@pytest.mark.parametrize("name", ["two words", "a.b", "*", ">", "ümlaut", "x" * 65, "node"])
async def test_a_bad_name_is_refused(company: Company, name: str) -> None:
    with pytest.raises(ConfigError):
        await company.home.spawn(Clerk, name=name)


@pytest.mark.parametrize("address", ["", "two words", "a..b", ".a", "a.", "*", "a.>", "a\r\nPUB b 0"])
async def test_a_bad_address_is_refused(company: Company, address: str) -> None:
    with pytest.raises(ConfigError):
        company.away.actor(address)


@pytest.mark.parametrize("subject", ["", "two words", "topic.*", "topic.>", "topic..a", "a\r\nPUB b 0"])
async def test_a_bad_subject_is_refused(company: Company, subject: str) -> None:
    with pytest.raises(ConfigError):
        await company.away.publish(subject, Note("x"))
