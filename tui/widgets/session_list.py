"""The conversations at the side: search, and single keys to open, rename, fork and delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from ..chat.conversation import Conversation
from ..styles import beside
from .safe_text import plain_line


class Conversations(OptionList):
    HELP = """
## Chats

Enter opens one. `r` gives it another title, `f` goes on in a chat of its own, `d` deletes it, `/` searches.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "wish('rename')", "Rename", id="sessions.rename"),
        Binding("f", "wish('fork')", "Fork", id="sessions.fork"),
        Binding("d,delete", "wish('delete')", "Delete", id="sessions.delete"),
        Binding("slash", "search", "Search", key_display="/", id="sessions.search"),
    ]

    def action_wish(self, what: str) -> None:
        if self.highlighted is not None:
            id = self.get_option_at_index(self.highlighted).id or ""
            self.post_message(SessionList.Wish(what, id))

    def action_search(self) -> None:
        self.screen.query_one("#search", Input).focus()


class SessionList(Vertical):
    HELP = """
## Searching chats

Words of titles and texts; a chat stays while each word occurs in it. Enter opens the first, tab goes to the list.
"""
    DEFAULT_CSS = beside(__file__)

    class Wish(Message):
        """What is to be done (open, rename, fork, delete) with the conversation of that id."""

        def __init__(self, what: str, id: str) -> None:
            super().__init__()
            self.what, self.id = what, id

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._all: Sequence[Conversation] = ()
        self._current = ""
        self._drawn: list[tuple[str, str]] = []

    def compose(self) -> ComposeResult:
        yield Input(placeholder="search", id="search", compact=True)
        yield Conversations(id="conversations", markup=False)

    def show(self, conversations: Sequence[Conversation], current: str) -> None:
        """All of them, in the order to be shown."""
        self._all, self._current = conversations, current
        self._draw()

    def _draw(self) -> None:
        words = self.query_one("#search", Input).value.lower().split()
        options = self.query_one(Conversations)
        fitting = [(one.id, one.shown_title) for one in self._all if not words or one.matches(words)]
        if fitting != self._drawn:
            self._drawn = fitting
            options.clear_options()
            options.add_options([Option(plain_line(title), id=id) for id, title in fitting])
        ids = [id for id, _ in fitting]
        options.highlighted = ids.index(self._current) if self._current in ids else None

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self._drawn:
            self.post_message(self.Wish("open", self._drawn[0][0]))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Wish("open", event.option_id or ""))
