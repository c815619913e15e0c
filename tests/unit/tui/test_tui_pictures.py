"""Pictures of the pages with settled content, in three sizes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tui_support import Daemon, Eventually, OpenApp, Picture

from callboard.tui.chat.conversation import Conversation
from callboard.tui.chat.history import History

pytestmark = pytest.mark.anyio

SIZES = [(80, 24), (120, 40), (200, 60)]
ANSWER = """The sky is blue because of **Rayleigh scattering**: short waves are scattered more than long ones.

| colour | nm | share |
|---|---:|---:|
| blue | 450 | 4.4 |
| red | 650 | 1.0 |

```python
def scattered(nm: float) -> float:
    return (650 / nm) ** 4
```

1. Sunlight has *all* colours.
2. Air scatters the blue ones to `all` sides.
"""
TIMES = [(r"\d\d:\d\d:\d\d\.\d ", "10:24:00.1 "), (r"at \d\d:\d\d:\d\d,", "at 10:24:00,")]


def fill(history: History) -> Conversation:
    """Three chats; the last one is shown."""
    for place, title in enumerate(("A recipe for bread", "Why is my test slow?")):
        other = Conversation(id=f"{place}" * 16, title=title, created=1.0, changed=float(place + 1))
        other.add("user", title)
        other.changed = float(place + 1)
        history.save(other)
    shown = Conversation(id="f" * 16, created=1.0)
    shown.add("user", "Why is the sky blue? Show me in numbers.")
    figures = {"prompt_tokens": 214, "completion_tokens": 131, "tokens_per_s": 42.0, "ttft_ms": 87.0}
    shown.add("assistant", ANSWER, model="smollm2", finish="stop", **figures)
    shown.add("user", "And at dusk?")
    shown.add("assistant", "The way through the air is long, so the blue is gone.", model="smollm2", finish="stopped")
    history.save(shown)
    return shown


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_page_of_chats(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually, picture: Picture, tmp_path: Path, size: tuple[int, int]
) -> None:
    fill(History(tmp_path / "callboard-data" / "chats"))
    async with daemon.connect() as bus:
        model = await bus.spawn("agent.scripted", msgspec.json.encode({}).decode(), name="storyteller")
        try:
            async with open_app("chat", size=size) as it:
                await eventually(lambda: len(it.page.conversations) == 3 and it.page.looked)
                await it.page.wish("open", "f" * 16)
                await eventually(lambda: "storyteller" in it.screen_text() and "long, so the blue" in it.screen_text())
                await it.pilot.pause()
                await picture(it.app, "chat")
        finally:
            await bus.stop(model.address)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_page_of_the_bus(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually, picture: Picture, size: tuple[int, int]
) -> None:
    async with open_app("bus", size=size) as it, daemon.connect() as bus:
        it.page.query_one("#patterns").value = "topic.>"
        await it.pilot.press("l", "enter")
        await eventually(lambda: "listening to topic.>" in it.screen_text())
        for n in range(6):
            await bus.publish_raw("topic.weather", b'{"type": "demo.weather", "degrees": %d, "place": "Oslo"}' % n)
        await bus.publish_raw("topic.count", b'{"type": "bench.count", "value": 7}')
        await eventually(lambda: it.page.messages.num_lines == 7)
        await it.pilot.press("enter")
        await eventually(lambda: "bench.count" in it.screen_text() and '"value": 7' in it.screen_text())
        await it.page.hidden()  # nothing is measured any more
        for row in it.page.query("SparklineRow"):
            row.show([1.0, 4.0, 2.0, 8.0, 5.0], "5.0")
        await it.pilot.pause()
        await picture(it.app, "bus", TIMES)
