"""What messages between actors promise, each on both paths: in one process, and over the bus with a real server."""

from __future__ import annotations

import math
import time

import anyio
import pytest
from company import (
    DIARY,
    LIVING,
    Add,
    Clerk,
    Count,
    Fail,
    FailBeside,
    Forward,
    GetNotes,
    Note,
    Numbers,
    Open,
    SmallClerk,
    Unknown,
    Wait,
    WaitBeside,
)
from two_paths import Company, Eventually, company

from callboard.runtime.errors import (
    ConfigError,
    DeadlineExceeded,
    HandlerFailed,
    MailboxFull,
    NameTaken,
    NoSuchActor,
    NotUnderstood,
    RequestInvalid,
)
from callboard.runtime.refs import Ref

__all__ = ["company"]  # a fixture
pytestmark = pytest.mark.anyio


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
