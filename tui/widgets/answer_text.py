"""A piece of an answer as Markdown, with blocks of code that a click copies."""

from __future__ import annotations

from textual import events
from textual.message import Message
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownBlock, MarkdownFence


class CodeFence(MarkdownFence):
    """A block of code; a click on it copies it."""

    class Clicked(Message):
        def __init__(self, code: str) -> None:
            super().__init__()
            self.code = code

    def on_mount(self) -> None:
        self.border_subtitle = "click: copy"

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Clicked(self.code))


class AnswerText(Markdown):
    """A piece of an answer."""

    def get_block_class(self, block_name: str) -> type[MarkdownBlock]:
        return CodeFence if block_name in ("fence", "code_block") else super().get_block_class(block_name)
