"""The line above the footer: what happened last, and how the connection is.

Where there is no room for the tabs it says how many things wait for the person, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.widget import Widget

from ..styles import beside
from .safe_text import plain_line

if TYPE_CHECKING:
    from ..app import CallboardApp


class StatusLine(Widget):
    DEFAULT_CSS = beside(__file__)
    COMPONENT_CLASSES: ClassVar[set[str]] = {"status--error", "status--away", "status--here", "status--badge"}

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.is_error = False

    def say(self, text: str, error: bool) -> None:
        if (text, error) != (self.text, self.is_error):
            self.text, self.is_error = text, error
            self.refresh()

    def connection(self) -> str:
        """The connection in words."""
        session = cast("CallboardApp", self.app).session
        if session is None or (not session.connected and session.trouble is None):
            return "connecting \u2026"
        if session.connected:
            return "connected"
        return f"not connected, attempt {session.attempts}" if session.attempts > 1 else "not connected"

    def render(self) -> Text:
        session = cast("CallboardApp", self.app).session
        here = session is not None and session.connected
        words = self.connection()
        state = Text(f" {'●' if here else '○'} {words} ", no_wrap=True, end="")
        state.stylize(self.get_component_rich_style("status--here" if here else "status--away"))
        badge = self._badge()
        room = max(0, self.size.width - state.cell_len - badge.cell_len)
        line = plain_line(self.text)
        if self.is_error:
            line.stylize(self.get_component_rich_style("status--error"))
        line.truncate(room, overflow="ellipsis", pad=True)
        return badge.append_text(line).append_text(state)  # at the left, where nothing crops it

    def _badge(self) -> Text:
        """The sum of the tabs' badges, in their place."""
        count = sum(cast("CallboardApp", self.app).badges.values())
        if not count or not self.screen.has_class("-tiny"):
            return Text(end="")
        return Text(f"{count}!", self.get_component_rich_style("status--badge"), no_wrap=True, end="")
