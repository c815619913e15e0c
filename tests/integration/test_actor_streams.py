"""What streams promise, and what is published, each on both paths: in one process, and over the bus."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from company import DIARY, Add, Count, Fail, Note, Number, Numbers, NumbersBeside, Total
from two_paths import Company, Eventually, company

from callboard.runtime.client import Client
from callboard.runtime.errors import ActorStopped, DeadlineExceeded, HandlerFailed, RequestInvalid
from callboard.runtime.refs import Stream
from callboard.schemas.runtime import Tapped

__all__ = ["company"]  # a fixture
pytestmark = pytest.mark.anyio


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
