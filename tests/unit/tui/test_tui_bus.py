"""The page of the bus, on a real one: what is heard, found, held back, looked at and sent again."""

from __future__ import annotations

import psutil
import pytest
from tui_support import Daemon, Eventually, OpenApp, Running

from callboard.runtime.errors import CallboardError
from callboard.schemas.bench import Add
from callboard.tui.bus.feed import checked_patterns
from callboard.tui.bus.heard import Heard, Log, checked_json

pytestmark = pytest.mark.anyio


def lines(it: Running) -> list[str]:
    return [heard.subject + " " + heard.line for heard in it.page.messages._lines]


async def listen_to(it: Running, eventually: Eventually, patterns: str) -> None:
    it.page.query_one("#patterns").value = patterns
    await it.pilot.press("l", "enter")
    await eventually(lambda: it.page.patterns == tuple(patterns.split()) and it.page.is_open)
    await eventually(lambda: f"listening to {patterns}" in it.screen_text())


async def test_messages_are_shown_decoded_and_found_by_a_word(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with open_app("bus", size=(100, 30)) as it, daemon.connect() as bus:
        await listen_to(it, eventually, "topic.>")
        await bus.publish_raw("topic.fruit", b'{"type": "test.apple", "weight": 3}')
        await bus.publish_raw("topic.fruit", b'{"type": "test.pear", "weight": 4}')
        await bus.publish_raw("topic.noise", b"\x1b[31mno message")
        await eventually(lambda: it.page.messages.num_lines == 3)
        await eventually(lambda: 'test.apple {"weight":3}' in it.screen_text())
        await eventually(lambda: "␛[31mno message" in it.screen_text())
        await it.pilot.press("slash", *"pear", "enter")
        await eventually(lambda: it.page.messages.num_lines == 1)
        await it.pilot.press("enter")
        await eventually(lambda: "this program does not" in it.screen_text())
        await it.pilot.press("escape")
        await eventually(lambda: it.page.messages.num_lines == 3)


async def test_a_pause_holds_the_list_and_says_how_much_is_new(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with open_app("bus") as it, daemon.connect() as bus:
        await listen_to(it, eventually, "topic.p.>")
        await bus.publish_raw("topic.p.a", b'{"type": "test.a"}')
        await eventually(lambda: it.page.messages.num_lines == 1)
        await it.pilot.press("space")
        await bus.publish_raw("topic.p.b", b'{"type": "test.b"}')
        await eventually(lambda: "paused, 1 new" in it.screen_text())
        assert it.page.messages.num_lines == 1
        await it.pilot.press("space")
        await eventually(lambda: it.page.messages.num_lines == 2)


async def test_what_an_actor_gets_is_mirrored_typed_and_may_be_sent_again(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with open_app("bus", size=(120, 40)) as it, daemon.connect() as bus:
        counter = await bus.spawn("counter")
        await listen_to(it, eventually, f"tap.{counter.address}")

        async def mirrored() -> bool:
            await counter.ask(Add(2))
            return it.page.messages.num_lines > 0

        while not await mirrored():  # the nodes hear of the observer in a moment
            await it.pilot.pause()
        await it.pilot.press("space")
        await it.pilot.press("enter")
        await eventually(lambda: "Add" in it.screen_text() and '"amount": 2' in it.screen_text())
        before = (await counter.ask(Add(0))).value
        await it.pilot.press("p")
        await it.pilot.pause()
        await it.pilot.press("ctrl+s")
        await eventually(lambda: f"sent to actor.{counter.address}" in it.screen_text())
        while (await counter.ask(Add(0))).value != before + 2:
            await it.pilot.pause()
        await bus.stop(counter.address)


def test_the_log_is_bounded_in_messages_and_in_bytes() -> None:
    log = Log(most=100, most_bytes=10_000)
    for n in range(1000):
        log.take("topic.x", b"%d" % n)
    assert (len(log), log.total, log.dropped) == (100, 1000, 900)
    assert [heard.number for heard in log.since(997)] == [998, 999, 1000]
    for _ in range(10):
        log.take("topic.x", b"x" * 4000)
    assert log.bytes <= 10_000 + 4000


def test_a_gap_is_counted_once_however_often_it_is_noticed() -> None:
    log = Log()
    log.missed()
    assert log.gaps == 0  # nothing had been heard yet
    for gaps in (1, 2):
        log.take("topic.x", b"{}")
        log.missed()
        log.missed()
        assert log.gaps == gaps
    log.clear()
    assert log.gaps == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"type": "bench.add", "amount": "many"}'])
def test_what_is_no_message_is_not_sent(text: str) -> None:
    with pytest.raises(CallboardError):
        checked_json(text)


@pytest.mark.parametrize("text", ["actor.>", ">", "*.x", "topic..x", "topic.>.x"])
def test_a_pattern_that_would_make_us_an_actor_is_refused(text: str) -> None:
    with pytest.raises(CallboardError):
        checked_patterns(text)


def test_what_is_the_runtimes_own_is_not_sent_again() -> None:
    assert Heard(1, 0.0, "dead.engine", b"{}").target() == "actor.engine"
    with pytest.raises(CallboardError):
        Heard(1, 0.0, "nodes.hello", b"{}").target()


async def test_what_was_said_while_the_server_was_away_is_said_to_be_missing(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with open_app("bus", size=(120, 30)) as it:
        await listen_to(it, eventually, "topic.gap.>")
        async with daemon.connect() as bus:
            await bus.publish_raw("topic.gap.a", b'{"type": "test.a"}')
            await eventually(lambda: it.page.messages.num_lines == 1)
        server = next(
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "nats-server" and str(daemon.state) in " ".join(process.info["cmdline"])
        )
        server.kill()  # the guardian starts another
        await eventually(lambda: "the connection was away once" in it.screen_text())
        await eventually(lambda: it.app.session is not None and it.app.session.connected and it.page.is_open)
        async with daemon.connect() as bus:
            while it.page.messages.num_lines < 2:  # until the page listens again, nobody hears it
                await bus.publish_raw("topic.gap.b", b'{"type": "test.b"}')
                await it.pilot.pause()
        assert "topic.gap.b" in lines(it)[-1]
