"""The field that one writes in: keys that it has no use for are handed on at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea


class PromptArea(TextArea):
    """Enter sends; ctrl+j, shift+enter and alt+enter begin a new line."""

    HELP = """
## Writing

Enter sends, ctrl+j begins a new line, escape stops an answer. The arrows up and down bring back what was sent before.
A line that begins with `/` is a command; tab completes it, and `/help` lists them.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+j,shift+enter,alt+enter", "new_line", "New line", show=False, id="chat.new_line"),
        Binding("pageup", "page_up", "Scroll up", show=False, id="chat.page_up"),
        Binding("pagedown", "page_down", "Scroll down", show=False, id="chat.page_down"),
    ]

    # Who is told of enter, tab, up and down where the area has no use for them: at once, since a message would come
    # behind what is typed next.
    take: Callable[[str], None] = staticmethod(lambda key: None)

    class Scrolled(Message):
        def __init__(self, pages: int) -> None:
            super().__init__()
            self.pages = pages

    async def _on_key(self, event: events.Key) -> None:
        if event.key.startswith("alt+") and event.key != "alt+enter":
            event.prevent_default()  # terminals send the letter with it, which is no text: somebody's binding
            return
        row, _ = self.cursor_location
        takes = (
            event.key in ("enter", "tab")
            or (event.key == "up" and row == 0)
            or (event.key == "down" and row == self.document.line_count - 1)
        )
        if takes:
            event.stop()
            event.prevent_default()
            self.take(event.key)
            return
        await super()._on_key(event)

    def action_new_line(self) -> None:
        self.insert("\n")

    def action_page_up(self) -> None:
        self.post_message(self.Scrolled(-1))

    def action_page_down(self) -> None:
        self.post_message(self.Scrolled(1))

    def action_cursor_up(self, select: bool = False) -> None:
        if self.cursor_location[0] == 0 and not select:
            self.take("up")
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        if self.cursor_location[0] == self.document.line_count - 1 and not select:
            self.take("down")
        else:
            super().action_cursor_down(select)
