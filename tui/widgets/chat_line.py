"""The line above the prompt: who answers, how full its context is, how fast it is."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.widget import Widget

from ..styles import beside
from .safe_text import plain_line

BAR = 10


class ChatLine(Widget):
    """`show` the figures as they are; drawn again only where they differ."""

    DEFAULT_CSS = beside(__file__)
    COMPONENT_CLASSES: ClassVar[set[str]] = {"chat-line--full", "chat-line--name"}

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._figures = ("", 0, 0, "")

    def show(self, name: str, used: int, size: int, rest: str) -> None:
        """`used` of `size` tokens of context (0: not known), and what else there is to say."""
        if (name, used, size, rest) != self._figures:
            self._figures = (name, used, size, rest)
            self.refresh()

    def render(self) -> Text:
        name, used, size, rest = self._figures
        line = Text(" ", no_wrap=True, end="")
        shown = plain_line(name)
        shown.stylize(self.get_component_rich_style("chat-line--name"))
        line.append_text(shown)
        if size:
            share = min(1.0, used / size)
            full = round(share * BAR)
            style = self.get_component_rich_style("chat-line--full") if share > 0.85 else ""
            line.append("  ")
            line.append("\u2588" * full + "\u2591" * (BAR - full), style)
            line.append(f" {used:,} of {size:,} tokens")
        elif used:
            line.append(f"  {used:,} tokens")
        if rest:
            line.append("  ").append_text(plain_line(rest))
        return line
