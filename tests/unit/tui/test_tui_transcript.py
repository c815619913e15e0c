"""The transcript of a chat: what comes faster than it can be formatted is plain text first, Markdown in the end."""

from __future__ import annotations

import asyncio

import pytest
from rich.text import Text
from textual.app import App, ComposeResult
from textual.widgets import Markdown

from callboard.tui.chat.conversation import ASSISTANT, Turn
from callboard.tui.widgets.transcript import FAST, Transcript

pytestmark = pytest.mark.anyio


class Screen(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.transcript = Transcript()

    def compose(self) -> ComposeResult:
        yield self.transcript


async def test_it_is_plain_until_all_that_is_drawn_is_markdown() -> None:
    app = Screen()
    async with app.run_test():
        transcript = app.transcript
        await transcript.begin(Turn(id="a", parent="", role=ASSISTANT, text="", at=0.0), Text("model"))
        paragraphs = "".join(f"## Part {n}\n\n{'word ' * 30}\n\n" for n in range(20))
        # Twice: a piece is opened as plain text once the answer is known to be fast.
        for half in (paragraphs[: len(paragraphs) // 2], paragraphs[len(paragraphs) // 2 :]):
            await transcript.feed("a", half + "\n" * int(FAST))
        assert transcript.is_plain
        finishing = asyncio.create_task(transcript.finish("a", Text("model")))
        while transcript.is_plain:
            await asyncio.sleep(0)
        pieces = list(transcript.query(".turn-answer"))
        assert pieces
        assert all(isinstance(piece, Markdown) and piece.is_mounted for piece in pieces)
        await finishing
