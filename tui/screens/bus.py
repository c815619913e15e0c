"""What goes over the bus, live."""

from __future__ import annotations

from textual.app import ComposeResult

from ..session import Session
from ..widgets.live_table import LiveTable
from .base import Page


class BusPage(Page):
    NAME = "bus"
    TITLE = "Bus"
    KEY = "f4"

    def body(self) -> ComposeResult:
        yield LiveTable(["subject", "type"], title="Messages")

    async def opened(self, session: Session) -> None:
        self.say("")
