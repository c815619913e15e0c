"""Keys while an answer streams: what a person types is there at once, however fast the model is."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time

import anyio.to_thread
import msgspec
import pytest
from textual import events
from tui_support import Daemon, Eventually, OpenApp, Running

from callboard.schemas.scripted import ScriptedAnswer

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(300)]

SECONDS = 4
# What feels as if it were at once.
AT_ONCE_S = 0.1
BETWEEN_S = 0.07
PATIENCE_S = 20.0


def answer(tokens: int) -> tuple[str, ...]:
    """What models write: paragraphs with some of it bold, lists, titles, code."""
    words = ["word "] * 9 + ["**bold** "]
    parts = {
        0: "\n\n## A part\n\n",
        40: "\n\n```python\nprint(40)\n```\n\n",
        70: "\n\n- one\n- another\n\n",
    }
    return tuple(parts.get(n % 100, words[n % 10]) for n in range(tokens))


class Typist:
    """Presses keys at its own pace, as a terminal's reader does from its thread, whatever the app is busy with.

    `waits`: how long each took to stand in the prompt, in seconds."""

    def __init__(self, it: Running) -> None:
        self._it = it
        self._loop = asyncio.get_running_loop()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._type, daemon=True)
        self.waits: list[float] = []

    def __enter__(self) -> Typist:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    async def end(self) -> None:
        self._done.set()
        await anyio.to_thread.run_sync(self._thread.join)

    def _type(self) -> None:
        area = self._it.page.prompt.area
        while not self._done.is_set():
            before, began = len(area.text), time.perf_counter()
            self._loop.call_soon_threadsafe(self._it.app.post_message, events.Key("k", "k"))
            while len(area.text) == before and time.perf_counter() - began < PATIENCE_S:
                time.sleep(0.001)  # the clock is what is measured
            self.waits.append(time.perf_counter() - began)
            self._done.wait(BETWEEN_S)


@pytest.mark.parametrize("rate", [400, 2_400])
async def test_keys_are_there_at_once_while_a_model_answers(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually, rate: int
) -> None:
    """A rate at which the answer is formatted as it comes, and one at which it is formatted afterwards."""
    pieces = answer(SECONDS * rate)
    script = {"answers": [ScriptedAnswer(pieces=pieces)], "pieces_per_s": rate}
    async with daemon.connect() as bus:
        await bus.spawn("agent.scripted", msgspec.json.encode(script).decode(), name=f"paced-{rate}")
        async with open_app("chat", size=(120, 40)) as it:
            with Typist(it) as at_rest:
                await eventually(lambda: len(at_rest.waits) >= 20)
            await at_rest.end()
            it.page.prompt.text = "Go on"
            await it.pilot.press("enter")
            await eventually(lambda: any(one.first for one in it.page.answering.values()))
            (answering,) = it.page.answering.values()
            with Typist(it) as typist:
                await eventually(lambda: answering.ended)
                achieved = answering.rate
                await eventually(lambda: not it.page.answering and not it.page.transcript.is_plain)
            await typist.end()
            waits = sorted(typist.waits)
            print(
                f"{achieved:,.0f} tokens/s, {len(waits)} keys: median {1000 * statistics.median(waits):.0f} ms, nine "
                f"of ten within {1000 * waits[len(waits) * 9 // 10]:.0f} ms, all within {1000 * waits[-1]:.0f} ms; "
                f"at rest {1000 * statistics.median(at_rest.waits):.0f} ms"
            )
            assert it.page.conversation.path()[-1].text == "".join(pieces)
            # It is formatted in the end.
            await eventually(lambda: "A part" in it.screen_text() and "## A part" not in it.screen_text())
            # On a machine that is busy with other things a key takes long at rest, too.
            assert statistics.median(waits) < max(AT_ONCE_S, 10 * statistics.median(at_rest.waits))
        await bus.stop(f"paced-{rate}")
