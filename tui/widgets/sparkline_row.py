"""One figure over time: its name, its curve and its present value, on one line."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Sparkline, Static

from ..styles import beside
from .safe_text import plain_line


class SparklineRow(Horizontal):
    """`show(values, value)`: the curve, and what is written behind it."""

    DEFAULT_CSS = beside(__file__)

    def __init__(self, title: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._title = title
        self._shown: tuple[tuple[float, ...], str] | None = None

    def compose(self) -> ComposeResult:
        yield Static(plain_line(self._title), classes="sparkline-title")
        yield Sparkline([])
        yield Static("", classes="sparkline-value")

    def show(self, values: Sequence[float], value: str) -> None:
        shown = (tuple(values), value)
        if shown != self._shown:
            self._shown = shown
            self.query_one(Sparkline).data = shown[0]
            # Its place is always as wide, so nothing else has to be laid out anew.
            self.query_one(".sparkline-value", Static).update(plain_line(value), layout=False)
