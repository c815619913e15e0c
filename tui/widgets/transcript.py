"""The turns of a conversation, the last ones as widgets, the ones before as mere text until they are scrolled to.

A long answer is many pieces (`chat/pieces.py`), each a widget; more than `MOST_DRAWN` of them, or than `MOST_TEXT`, are
not kept while one reads at the end. The history itself is whole elsewhere.

Markdown is a widget for each paragraph, and to make and lay out those of an answer that comes faster than anybody reads
takes longer than it takes to come: keys would wait. So that is drawn as plain text, and formatted once it slows down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from ..chat.conversation import USER, Turn
from ..chat.pieces import Pieces, pieces_of
from ..styles import beside
from .answer_text import AnswerText
from .safe_text import plain, plain_line, safe

MOST_DRAWN = 60
MORE_AT_ONCE = 20
# Characters of what is drawn, beside what one sees: all of it is laid out anew when some of it grows.
MOST_TEXT = 24_000
# Characters a second beyond which an answer is drawn as plain text, and below which it is formatted again; 20 to 30 are
# read.
FAST, SLOW = 2_500.0, 1_000.0
# Of an answer that is drawn as plain text so much is kept and formatted in the end: more than one sees.
MOST_FAST_TEXT = 9_000


@dataclass
class Entry:
    """What one widget shows: the head of a turn, or a piece of its text. `id` is the turn's."""

    id: str
    kind: str
    text: Text | str
    widget: Widget | None = field(default=None, repr=False)

    @property
    def is_plain(self) -> bool:
        """An answer's text that is drawn as it came."""
        return self.kind == "answer" and isinstance(self.widget, Static)

    def make(self, plainly: bool = False) -> Widget:
        if self.kind == "answer" and not plainly:
            return AnswerText(str(self.text), open_links=False, classes="turn turn-answer")
        shown = self.text if isinstance(self.text, Text) else plain(self.text)
        return Static(shown, classes=f"turn turn-{self.kind}", markup=False)


class Transcript(VerticalScroll, can_focus=True):
    """`show` takes whole turns; `begin`, `feed` and `finish` an answer as it comes."""

    HELP = """
## Reading

The arrows, `j` and `k`, page up and page down scroll; home goes up and end to the newest. alt+a copies the last
answer, alt+c a block of code, and so does a click on one. tab goes back to the prompt.
"""
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False, id="transcript.down"),
        Binding("k", "scroll_up", "Up", show=False, id="transcript.up"),
        Binding("G,upper_g", "scroll_end", "To the end", show=False, id="transcript.end"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._entries: list[Entry] = []
        self._first = 0  # entries before this one are not drawn
        self._growing: Pieces | None = None
        self._stream: MarkdownStream | None = None
        self._loading = False
        self._is_fast = False
        self._fed_at = 0.0
        self._earlier = Static("", id="earlier", markup=False)

    def compose(self) -> ComposeResult:
        yield self._earlier

    @property
    def num_drawn(self) -> int:
        """How many entries are widgets now."""
        return len(self._entries) - self._first

    @property
    def is_plain(self) -> bool:
        """Whether some of what is drawn is not formatted yet."""
        return any(entry.is_plain for entry in self._entries[self._first :])

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
        self._first = self._first_within(MOST_DRAWN, MOST_TEXT)
        with self.app.batch_update():
            await self.remove_children("Transcript > .turn")
            await self._mount_entries(self._entries[self._first :])
        self._say_earlier()
        self.anchor()

    async def begin(self, turn: Turn, head: Text) -> None:
        """The head of an answer that is about to come, and what there is of it."""
        await self._stop_stream()
        self._growing = Pieces()
        self._is_fast, self._fed_at = False, time.monotonic()
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
        now = time.monotonic()
        rate = len(text) / max(now - self._fed_at, 1e-3)
        self._fed_at = now
        was_fast, self._is_fast = self._is_fast, rate > (SLOW if self._is_fast else FAST)
        for number, part in self._growing.feed(safe(text)):
            while self._num_pieces(id) <= number:
                await self._stop_stream(keep=True)
                await self._open_piece(id)
                await self._drop_far()
            entry = self._entries[-1]
            entry.text = str(entry.text) + part
            if self._stream is not None:
                await self._stream.write(part)
        last = self._entries[-1]
        if isinstance(last.widget, Static) and last.is_plain:
            last.widget.update(plain(str(last.text)))
        if was_fast and not self._is_fast:
            await self._format()

    async def finish(self, id: str, head: Text) -> None:
        """The answer is whole."""
        await self._format()
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
        await self._mount_entries([entry], plainly=self._is_fast)
        if isinstance(entry.widget, AnswerText):
            self._stream = Markdown.get_stream(entry.widget)

    async def _format(self) -> None:
        """What was drawn as plain text becomes Markdown, the last piece first; what is far above is let go."""
        if not self.is_plain:
            return
        await self._drop_far(MOST_FAST_TEXT)
        for entry in reversed(self._entries[self._first :]):
            before = entry.widget
            if entry.is_plain and before is not None and before.is_attached:
                after = entry.make()
                with self.app.batch_update():
                    await self.mount(after, after=before)
                    await before.remove()
                entry.widget = after
                if entry is self._entries[-1] and isinstance(after, AnswerText):
                    self._stream = Markdown.get_stream(after)
                await asyncio.sleep(0)  # keys come first

    async def _stop_stream(self, *, keep: bool = False) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.stop()
        if not keep:
            self._growing = None

    async def _mount_entries(
        self, entries: Sequence[Entry], before: Widget | None = None, *, plainly: bool = False
    ) -> None:
        widgets = [entry.make(plainly) for entry in entries]
        for entry, widget in zip(entries, widgets, strict=True):
            entry.widget = widget
        if widgets:
            await self.mount_all(widgets, before=before)

    def _first_within(self, most: int, most_text: int, end: int | None = None) -> int:
        """From which entry on there are so many, or so many characters, to the end; the last two in any case."""
        first = end = len(self._entries) if end is None else end
        text = 0
        while first > 0 and end - first < most and (text < most_text or end - first < 2):
            first -= 1
            text += len(self._entries[first].text)
        return first

    async def _drop_far(self, most_text: int = 0) -> None:
        """Take away what is far above, while the end is what one reads; else only what is too much altogether."""
        most_text = most_text or (MOST_FAST_TEXT if self._is_fast else MOST_TEXT)
        times = 1 if self.follows else 4
        first = max(self._first, self._first_within(times * MOST_DRAWN, times * most_text))
        gone = [entry.widget for entry in self._entries[self._first : first] if entry.widget is not None]
        if not gone:
            return
        for entry in self._entries[self._first : first]:
            entry.widget = None
        self._first = first
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
        first = self._first_within(MORE_AT_ONCE, MOST_TEXT // 2, self._first)
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
