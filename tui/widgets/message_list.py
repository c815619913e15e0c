"""Messages as lines, newest at the bottom. Only those in view are ever decoded and drawn, however many there are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from ..bus.heard import Heard
from ..styles import beside
from .safe_text import safe_line


class _Paint(NamedTuple):
    """The styles of a line's parts."""

    plain: Style
    time: Style
    subject: Style
    type: Style


_PARTS = ("message--time", "message--subject", "message--type")


class MessageList(ScrollView, can_focus=True):
    """`add` new ones at the end, which stays in view until the cursor is moved up, and again once it is back."""

    HELP = """
## Messages

Newest at the bottom. Enter shows one whole, space holds the list, `/` filters, `l` listens to other subjects, `p`
sends one again.
"""
    DEFAULT_CSS = beside(__file__)
    COMPONENT_CLASSES: ClassVar[set[str]] = {"message--cursor", "message--subject", "message--type", "message--time"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False, id="messages.up"),
        Binding("down,j", "move(1)", "Down", show=False, id="messages.down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="messages.page_up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="messages.page_down"),
        Binding("home,g", "first", "To the oldest", show=False, id="messages.first"),
        Binding("end,G,upper_g", "last", "To the newest", show=False, id="messages.last"),
    ]

    class Selected(Message):
        def __init__(self, heard: Heard | None) -> None:
            super().__init__()
            self.heard = heard

    def __init__(self, most: int, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: deque[Heard] = deque(maxlen=most)
        self.follows = True
        self.cursor = -1
        self._paint: _Paint | None = None
        self._cursor_paint: _Paint | None = None

    @property
    def heard(self) -> Heard | None:
        """The one under the cursor."""
        return self._lines[self.cursor] if 0 <= self.cursor < len(self._lines) else None

    @property
    def num_lines(self) -> int:
        return len(self._lines)

    def replace(self, heard: Sequence[Heard]) -> None:
        """All of them anew: the filter changed."""
        before = self.heard
        self._lines.clear()
        self._lines.extend(heard)
        self.cursor = len(self._lines) - 1
        if before is not None and not self.follows and before in self._lines:
            self.cursor = self._lines.index(before)
        else:
            self.follows = True
        self._resized()

    def add(self, heard: Sequence[Heard]) -> None:
        if not heard:
            return
        most = self._lines.maxlen or 0
        pushed_out = max(0, len(self._lines) + len(heard) - most)
        self._lines.extend(heard)
        if self.follows:
            self.cursor = len(self._lines) - 1
        else:  # what one looks at stays in its place
            self.cursor = max(0, self.cursor - pushed_out)
            self.scroll_to(y=max(0, self.scroll_y - pushed_out), animate=False, immediate=True)
        self._resized()

    def _resized(self) -> None:
        size = Size(self.size.width, len(self._lines))
        if self.show_vertical_scrollbar == (size.height > self.size.height):
            # Only the scrollbar's thumb changes: to set it the usual way has the whole screen laid out anew.
            self.set_reactive(Widget.virtual_size, size)  # pyright: ignore[reportArgumentType]
            self._scroll_update(size)
        else:
            self.virtual_size = size
        if self.follows:
            self.scroll_to(y=max(0, len(self._lines) - self.size.height), animate=False, immediate=True)
        self.refresh()
        self.post_message(self.Selected(self.heard))

    def on_resize(self, event: events.Resize) -> None:
        self._resized()

    def render_lines(self, crop: Region) -> list[Strip]:
        # Styles are worked out from the style sheets each time that they are asked for: once for a drawing is enough.
        # Not the partial ones, in which a colour that goes by what lies below (`$text-muted`) is white.
        parts = [Style(color=self.get_component_rich_style(part).color) for part in _PARTS]
        at_cursor = self.get_component_rich_style("message--cursor")
        self._paint = _Paint(self.rich_style, *(self.rich_style + part for part in parts))
        if at_cursor.reverse:  # a line of the terminal's own colours: those of its parts may be that of its background
            self._cursor_paint = _Paint(*[at_cursor] * len(_Paint._fields))
        else:
            self._cursor_paint = _Paint(at_cursor, *(at_cursor + part for part in parts))
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        place = int(self.scroll_offset.y) + y
        width = self.size.width
        paint = self._cursor_paint if place == self.cursor else self._paint
        assert paint is not None
        if not 0 <= place < len(self._lines):
            return Strip.blank(width, paint.plain)
        return _drawn(self._lines[place], width, paint)

    # Moving

    def action_move(self, step: int) -> None:
        self._go(self.cursor + step)

    def action_page(self, step: int) -> None:
        self._go(self.cursor + step * max(1, self.size.height - 1))

    def action_first(self) -> None:
        self._go(0)

    def action_last(self) -> None:
        self._go(len(self._lines) - 1)

    def on_click(self, event: events.Click) -> None:
        self._go(int(self.scroll_offset.y) + event.y)

    def _go(self, place: int) -> None:
        if not self._lines:
            return
        self.cursor = min(max(0, place), len(self._lines) - 1)
        self.follows = self.cursor == len(self._lines) - 1
        top, height = int(self.scroll_offset.y), max(1, self.size.height)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, immediate=True)
        self.refresh()
        self.post_message(self.Selected(self.heard))


def _drawn(heard: Heard, width: int, paint: _Paint) -> Strip:
    # To the tenth of a second: so seldom the bus is read (runtime/overhearing.py).
    clock = f"{time.strftime('%H:%M:%S', time.localtime(heard.at))}.{int(heard.at * 10 % 10)} "
    strip = Strip(
        [
            Segment(clock, paint.time),
            Segment(safe_line(heard.subject, max(10, width // 3)) + " ", paint.subject),
            Segment(safe_line(heard.tag, 40) + " ", paint.type),
            Segment(safe_line(heard.line), paint.plain),
        ]
    )
    if strip.cell_length > width:
        strip = Strip([*strip.crop(0, max(0, width - 1)), Segment("\u2026"[:width], paint.plain)])
    return strip.adjust_cell_length(width, paint.plain)
