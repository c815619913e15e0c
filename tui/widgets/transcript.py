"""The turns of a conversation, the last ones as widgets, the ones before as mere text until they are scrolled to.

A long answer is many pieces (`chat/pieces.py`), each a widget; more than `MOST_DRAWN` are not kept while one reads at
the end. The history itself is whole elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownBlock, MarkdownFence, MarkdownStream

from ..chat.conversation import USER, Turn
from ..chat.pieces import Pieces, pieces_of
from ..styles import beside
from .safe_text import plain, plain_line, safe

MOST_DRAWN = 60
MORE_AT_ONCE = 20


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


@dataclass
class Entry:
    """What one widget shows: the head of a turn, or a piece of its text. `id` is the turn's."""

    id: str
    kind: str
    text: Text | str
    widget: Widget | None = field(default=None, repr=False)

    def make(self) -> Widget:
        if self.kind == "answer":
            self.widget = AnswerText(str(self.text), open_links=False, classes="turn-answer")
        else:
            shown = self.text if isinstance(self.text, Text) else plain(self.text)
            self.widget = Static(shown, classes=f"turn-{self.kind}", markup=False)
        return self.widget


class Transcript(VerticalScroll, can_focus=True):
    """`show` takes whole turns; `begin`, `feed` and `finish` an answer as it comes."""

    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", show=False),
        Binding("k", "scroll_up", show=False),
        Binding("G,upper_g", "scroll_end", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._entries: list[Entry] = []
        self._first = 0  # entries before this one are not drawn
        self._growing: Pieces | None = None
        self._stream: MarkdownStream | None = None
        self._loading = False
        self._earlier = Static("", id="earlier", markup=False)

    def compose(self) -> ComposeResult:
        yield self._earlier

    @property
    def num_drawn(self) -> int:
        """How many entries are widgets now."""
        return len(self._entries) - self._first

    @property
    def num_entries(self) -> int:
        return len(self._entries)

    async def show(self, turns: Sequence[tuple[Turn, Text]], empty: str = "") -> None:
        """Draw these turns, each with its head, and go to the end."""
        await self._stop_stream()
        self._entries = []
        for turn, head in turns:
            self._entries += _entries_of(turn, head)
        if not self._entries and empty:
            self._entries = [Entry("", "empty", empty)]
        self._first = max(0, len(self._entries) - MOST_DRAWN)
        with self.app.batch_update():
            await self.remove_children("Transcript > .turn")
            await self._mount_entries(self._entries[self._first :])
        self._say_earlier()
        self.anchor()

    async def begin(self, turn: Turn, head: Text) -> None:
        """The head of an answer that is about to come, and what there is of it."""
        await self._stop_stream()
        self._growing = Pieces()
        head_entry = Entry(turn.id, "head", head)
        self._entries.append(head_entry)
        await self._mount_entries([head_entry])
        await self._open_piece(turn.id)
        await self._drop_far()
        self.anchor()
        if turn.text:
            await self.feed(turn.id, turn.text)

    async def feed(self, id: str, text: str) -> None:
        """More of the answer. The app calls this at most ten times a second."""
        if self._growing is None:
            return
        for number, part in self._growing.feed(safe(text)):
            while self._num_pieces(id) <= number:
                await self._stop_stream(keep=True)
                await self._open_piece(id)
                await self._drop_far()
            self._entries[-1].text = str(self._entries[-1].text) + part
            if self._stream is not None:
                await self._stream.write(part)

    async def finish(self, id: str, head: Text) -> None:
        """The answer is whole."""
        await self._stop_stream()
        self.set_head(id, head)

    def set_head(self, id: str, head: Text) -> None:
        for entry in self._entries:
            if entry.id == id and entry.kind == "head":
                entry.text = head
                if isinstance(entry.widget, Static):
                    entry.widget.update(head)

    @property
    def follows(self) -> bool:
        """Whether the end is in view, and stays there as more comes."""
        return self.scroll_y >= self.max_scroll_y - 1

    # Drawing

    def _num_pieces(self, id: str) -> int:
        count = 0
        for entry in reversed(self._entries):
            if entry.id != id or entry.kind != "answer":
                break
            count += 1
        return count

    async def _open_piece(self, id: str) -> None:
        entry = Entry(id, "answer", "")
        self._entries.append(entry)
        await self._mount_entries([entry])
        assert isinstance(entry.widget, AnswerText)
        self._stream = Markdown.get_stream(entry.widget)

    async def _stop_stream(self, *, keep: bool = False) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.stop()
        if not keep:
            self._growing = None

    async def _mount_entries(self, entries: Sequence[Entry], before: Widget | None = None) -> None:
        widgets = [entry.make() for entry in entries]
        for widget in widgets:
            widget.add_class("turn")
        if widgets:
            await self.mount_all(widgets, before=before)

    async def _drop_far(self) -> None:
        """Take away what is far above, while the end is what one reads; else only what is too much altogether."""
        most = MOST_DRAWN if self.follows else 4 * MOST_DRAWN
        over = self.num_drawn - most
        if over <= 0:
            return
        gone = [entry.widget for entry in self._entries[self._first : self._first + over] if entry.widget is not None]
        for entry in self._entries[self._first : self._first + over]:
            entry.widget = None
        self._first += over
        await AwaitComplete(*(widget.remove() for widget in gone))
        self._say_earlier()

    def _say_earlier(self) -> None:
        self._earlier.display = self._first > 0
        if self._first:
            self._earlier.update(plain_line(f"\u2191 {self._first} earlier pieces: scroll up for more"))

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if new_value <= 0 < old_value and self._first and not self._loading:
            self._loading = True
            self.run_worker(self._load_earlier(), group="earlier")

    async def _load_earlier(self) -> None:
        first = max(0, self._first - MORE_AT_ONCE)
        entries = self._entries[first : self._first]
        below = self._entries[self._first].widget
        height = self.virtual_size.height
        self._first = first
        await self._mount_entries(entries, before=below)
        self._say_earlier()

        def stay() -> None:
            """What one read stays where it was."""
            self.scroll_to(y=self.scroll_y + self.virtual_size.height - height, animate=False, immediate=True)
            self._loading = False

        self.call_after_refresh(stay)


def _entries_of(turn: Turn, head: Text) -> list[Entry]:
    entries = [Entry(turn.id, "head", head)]
    for file in turn.attachments:
        entries.append(Entry(turn.id, "file", f"\u2295 {file.name} ({len(file.text):,} characters)"))
    kind = "question" if turn.role == USER else "answer"
    return entries + [
        Entry(turn.id, kind, safe(piece) if kind == "answer" else piece) for piece in pieces_of(turn.text)
    ]
