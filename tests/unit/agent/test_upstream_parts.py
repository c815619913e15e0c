"""The parts of an upstream by themselves: events out of bytes, limits over a minute, waits, names of tools."""

from __future__ import annotations

import email.utils
import time
from itertools import pairwise

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.agent.upstream import rate
from callboard.actors.agent.upstream.answers import ToolNames
from callboard.actors.agent.upstream.config import UpstreamConfig
from callboard.actors.agent.upstream.errors import UpstreamAuth, UpstreamDown, UpstreamGarbled, UpstreamLimited
from callboard.actors.agent.upstream.rate import WINDOW_S, Pace, Window
from callboard.actors.agent.upstream.retry import retry_after, wait_before_retry
from callboard.actors.agent.upstream.secret import Secret
from callboard.actors.agent.upstream.sse import MAX_EVENT_BYTES, Event, EventDecoder

texts = st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.lists(texts, min_size=1, max_size=3), max_size=4), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_events_are_the_same_however_their_bytes_are_split(
    events: list[list[str]], end: str, data: st.DataObject
) -> None:
    text = "".join("".join(f"data: {line}{end}" for line in event) + end for event in events)
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    decoder = EventDecoder()
    found = [event for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) for event in decoder.feed(raw[a:b])]
    assert found == [Event("", "\n".join(event)) for event in events]


def test_comments_unknown_fields_and_a_mark_of_byte_order_are_passed_over() -> None:
    raw = b"\xef\xbb\xbf: hello\nid: 7\nretry: 5\nevent: e\ndata:x\ndata\ndata:  y\n\n\nevent: lost\n\ndata: z\n\n"
    assert EventDecoder().feed(raw) == [Event("e", "x\n\n y"), Event("", "z")]


def test_an_event_without_end_is_given_up() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"x" * MAX_EVENT_BYTES) == []
    with pytest.raises(UpstreamGarbled):
        decoder.feed(b"x")


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 10)), max_size=30), st.integers(10, 30))
def test_no_window_of_a_minute_ever_holds_more_than_its_limit(asked: list[tuple[float, int]], limit: int) -> None:
    window, now, taken = Window(limit), 0.0, list[tuple[float, int]]()
    for gap, amount in asked:
        now += gap
        while (wait := window.delay(now, amount)) > 0:
            now += wait
        window.take(now, amount)
        taken.append((now, amount))
    for at, _ in taken:
        # A wait ends where an entry leaves the window, as near as floating point tells the two apart.
        assert sum(amount for when, amount in taken if at - WINDOW_S + 1e-6 < when <= at) <= limit


def test_what_is_over_the_limit_by_itself_waits_for_an_empty_window() -> None:
    window = Window(10)
    window.take(0.0, 3)
    assert window.delay(1.0, 50) == pytest.approx(WINDOW_S - 1)
    assert window.delay(WINDOW_S, 50) == 0


def test_an_estimate_that_was_too_high_gives_back_what_it_held() -> None:
    window = Window(10)
    entry = window.take(0.0, 10)
    assert window.delay(1.0, 5) > 0
    window.correct(entry, 4)
    assert window.delay(1.0, 5) == 0
    assert window.delay(WINDOW_S + 1, 5) == 0  # and the window has let it go
    window.correct(entry, 100)
    assert window.delay(WINDOW_S + 1, 5) == 0


def test_pace_waits_for_the_strictest_of_its_limits() -> None:
    now = 0.0
    pace = Pace(2, 100, clock=lambda: now)
    assert pace.delay(60) == 0
    pace.pause(7)
    assert pace.delay(60) == 7


@pytest.mark.anyio
async def test_those_who_wait_for_the_window_come_in_the_order_of_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "WINDOW_S", 0.15)
    pace = Pace(1, 0)
    order: list[int] = []
    times: list[float] = []

    async def take(number: int) -> None:
        await pace.take(1)
        order.append(number)
        times.append(time.monotonic())

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(take, number)
    assert order == [0, 1, 2, 3]
    assert all(later - earlier >= 0.149 for earlier, later in pairwise(times))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    wait = retry_after({"retry-after": email.utils.formatdate(time.time() + 30, usegmt=True)})
    assert wait is not None
    assert 25 < wait <= 30


def test_waits_double_up_to_a_bound_and_differ() -> None:
    config = UpstreamConfig(model="m", backoff_s=1.0, backoff_max_s=5.0, retries=9)
    error = UpstreamDown("x")
    for attempt, most in enumerate((1, 2, 4, 5, 5)):
        waits = {wait_before_retry(config, error, attempt) for _ in range(50)}
        assert len(waits) > 1
        assert all(wait is not None and most / 2 <= wait <= most for wait in waits)
    assert wait_before_retry(config, error, 9) is None
    assert wait_before_retry(config, UpstreamAuth("x"), 0) is None


def test_a_wish_to_wait_for_too_long_is_not_followed() -> None:
    config = UpstreamConfig(model="m", retry_after_max_s=10)
    error = UpstreamLimited("x")
    error.retry_after = 10
    assert wait_before_retry(config, error, 0) == 10
    error.retry_after = 11
    assert wait_before_retry(config, error, 0) is None


@given(st.lists(st.text(max_size=80), max_size=20))
def test_names_of_tools_go_there_and_back(names: list[str]) -> None:
    both = ToolNames(names)
    sent = {both.sent(name) for name in names}
    assert len(sent) == len(set(names))
    for name in names:
        assert both.ours(both.sent(name)) == name
        assert 1 <= len(both.sent(name)) <= 64
        assert all(c.isascii() and (c.isalnum() or c in "_-") for c in both.sent(name))


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = Secret("hunter2")
    assert "hunter2" not in f"{secret} {secret!r}"
    assert secret.redact("say hunter2") == "say [key]"
    assert Secret("").redact("say") == "say"
