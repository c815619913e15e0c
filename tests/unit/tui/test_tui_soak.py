"""A busy bus and a very long answer: memory stays bounded, and every key press arrives."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import psutil
import pytest
from tui_support import Daemon, Eventually, OpenApp

from callboard.schemas.scripted import ScriptedAnswer
from callboard.tui.bus.heard import MOST_MESSAGES
from callboard.tui.widgets.transcript import MOST_DRAWN

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(600)]

MESSAGES = 100_000
TOKENS = 50_000
RATE = 5_000
MIB = 1024 * 1024


def memory() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / MIB


async def test_a_hundred_thousand_messages_are_heard_in_bounded_memory_and_keys_arrive(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with open_app("bus", size=(120, 40)) as it, daemon.connect() as bus:
        it.page.query_one("#patterns").value = "topic.soak.>"
        await it.pilot.press("l", "enter")
        await eventually(lambda: "listening to topic.soak.>" in it.screen_text())
        data = msgspec.json.encode({"type": "soak.note", "text": "x" * 200})
        publisher = bus.node.require_links().bus

        async def publish(count: int) -> None:
            for n in range(count):
                publisher.send(f"topic.soak.{n % 100}", data)
                if n % 500 == 499:
                    await publisher.room(60.0)
                    await anyio.lowlevel.checkpoint()

        await publish(20_000)
        await eventually(lambda: it.page.traffic.total == 20_000)
        before = memory()
        typed = "every-key-press-arrives-" * 4
        field = it.page.query_one("#filter")
        field.focus()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish, MESSAGES - 20_000)
            for key in typed:
                await it.pilot.press("minus" if key == "-" else key)
        assert field.value == typed
        await eventually(lambda: it.page.traffic.total == MESSAGES)
        assert len(it.page.traffic) <= MOST_MESSAGES
        assert it.page.messages.num_lines <= MOST_MESSAGES
        field.value = ""
        await it.pilot.pause()
        grown = memory() - before
        assert grown < 40, f"grown by {grown:.0f} MiB over {MESSAGES - 20_000:,} messages"


async def test_an_answer_of_fifty_thousand_tokens_is_drawn_in_bounded_widgets_and_keys_arrive(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually, tmp_path: Path
) -> None:
    words = ["word "] * 9 + ["**bold**\n"]
    pieces = [words[n % 10] if n % 100 else f"\n\n## Part {n}\n\n```python\nprint({n})\n```\n\n" for n in range(TOKENS)]
    async with daemon.connect() as bus:
        model = await bus.spawn(
            "agent.scripted",
            msgspec.json.encode({"answers": [ScriptedAnswer(pieces=tuple(pieces))], "pieces_per_s": RATE}).decode(),
            name="soaking",
        )
        try:
            async with open_app("chat", size=(120, 40)) as it:
                before = memory()
                it.page.prompt.text = "Go on for ever"
                await it.pilot.press("enter")
                await eventually(lambda: bool(it.page.answering))
                most_widgets = most_drawn = presses = 0
                typed = ""
                began = time.monotonic()
                while it.page.answering:
                    await it.pilot.press("k")
                    typed += "k"
                    presses += 1
                    most_drawn = max(most_drawn, it.page.transcript.num_drawn)
                    most_widgets = max(most_widgets, len(it.page.transcript.query("*")))
                seconds = time.monotonic() - began
                assert it.page.prompt.text == typed
                assert it.page.conversation.path()[-1].text == "".join(pieces)
                assert most_drawn <= MOST_DRAWN + 4
                assert it.page.transcript.num_entries > MOST_DRAWN
                print(
                    f"{TOKENS / seconds:.0f} tokens/s, {presses} keys, {most_widgets} widgets, "
                    f"{memory() - before:.0f} MiB more"
                )
                assert memory() - before < 150
                drawn = it.page.transcript.num_drawn
                await it.pilot.press("alt+t", "home")  # what is far above comes back when it is scrolled to
                await eventually(lambda: it.page.transcript.num_drawn > drawn)
        finally:
            await bus.stop(model.address)
