"""The names of the pages, each with its key; a click goes there. Which of them must shout, does (a badge)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import events
from textual.widget import Widget

from ..pages import PAGES
from ..styles import beside

if TYPE_CHECKING:
    from ..app import CallboardApp


class TabBar(Widget):
    """One line. Where there is no room for keys it shows names, and where there is none for those, the present one."""

    DEFAULT_CSS = beside(__file__)
    COMPONENT_CLASSES: ClassVar[set[str]] = {"tab--on", "tab--off", "tab--badge"}

    def __init__(self, current: str) -> None:
        super().__init__()
        self._current = current
        self._spans: list[tuple[int, int, str]] = []

    def render(self) -> Text:
        app = cast("CallboardApp", self.app)
        for keys, gap in ((True, 2), (True, 1), (False, 2), (False, 1)):
            text = self._line(app, keys, gap)
            if text.cell_len <= self.size.width:
                return text
        badges = sum(app.badges.values())
        self._spans = []
        line = Text(f" {PAGES[self._current].title}", style=self.get_component_rich_style("tab--on"))
        if badges:
            line.append(f" {badges}! ", self.get_component_rich_style("tab--badge"))
        return line

    def _line(self, app: CallboardApp, keys: bool, gap: int) -> Text:
        off = self.get_component_rich_style("tab--off")
        line = Text(no_wrap=True, end="")
        self._spans = []
        for name in app.page_names:
            entry = PAGES[name]
            on = name == self._current
            style = self.get_component_rich_style("tab--on") if on else off
            begin = line.cell_len
            if keys:
                line.append(f" {entry.key.upper()}", off)
            line.append(f" {entry.title} ", style)
            if badge := app.badges.get(name):
                line.append(f"{badge}!", self.get_component_rich_style("tab--badge"))
            self._spans.append((begin, line.cell_len, name))
            line.append(" " * (gap - 1))
        return line

    def on_click(self, event: events.Click) -> None:
        for begin, end, name in self._spans:
            if begin <= event.x < end:
                app = cast("CallboardApp", self.app)
                app.run_worker(app.show_page(name))
