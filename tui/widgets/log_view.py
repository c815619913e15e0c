"""Lines of logs as they come, the newest below; scrolling up stays where it is."""

from __future__ import annotations

from collections import deque
from datetime import datetime

from rich.text import Text
from textual.widgets import RichLog

from ...schemas.inspecting import LogEntry
from ..styles import beside
from .safe_text import plain

MOST_LINES = 5000
# Lines that come faster than the screen is drawn are written together.
DRAW_EVERY_S = 0.1
STYLES = {"warning": "yellow", "error": "red", "critical": "bold red", "debug": "dim"}


class LogView(RichLog):
    HELP = """
## Logs

Lines come as they are written, the newest below. Scroll up to stay where you are, end follows again. `c` copies what
is here, escape closes it.
"""
    DEFAULT_CSS = beside(__file__)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, max_lines=MOST_LINES, wrap=True, markup=False, highlight=False)
        self._waiting: deque[LogEntry] = deque(maxlen=MOST_LINES)
        self._several = False
        self.entries: deque[LogEntry] = deque(maxlen=MOST_LINES)

    def on_mount(self) -> None:
        self.set_interval(DRAW_EVERY_S, self._draw)

    def begin(self, title: str, *, several: bool) -> None:
        """Begin anew. `several`: the lines are of more than one log."""
        self.begin_again()
        self._several = several
        self.border_title = Text(title).markup

    def begin_again(self) -> None:
        """The same lines come once more: the connection was away."""
        self.clear()
        self._waiting.clear()
        self.entries.clear()

    def add(self, entries: tuple[LogEntry, ...]) -> None:
        self._waiting.extend(entries)
        self.entries.extend(entries)

    def as_text(self) -> str:
        """All lines that are kept, as they are shown."""
        return "\n".join(_line(entry, self._several).plain for entry in self.entries)

    def _draw(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = list(self._waiting), deque(maxlen=MOST_LINES)
        at_end = self.is_vertical_scroll_end
        for entry in waiting:
            self.write(_line(entry, self._several), scroll_end=at_end)


def _line(entry: LogEntry, several: bool) -> Text:
    text = Text()
    if entry.time:
        text.append(datetime.fromisoformat(entry.time).astimezone().strftime("%H:%M:%S.%f")[:-3] + " ", "dim")
    if several:
        text.append_text(plain(f"{entry.process} ", "dim"))
    if entry.actor and entry.actor != entry.process:
        text.append_text(plain(f"{entry.actor} ", "italic"))
    text.append_text(plain(entry.message, STYLES.get(entry.level, "")))
    if entry.error:
        text.append_text(plain("\n" + entry.error.rstrip(), "dim"))
    return text
