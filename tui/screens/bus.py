"""What goes over the bus, live: by subject, decoded, to be looked at and to be sent again."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Static

from ...runtime.errors import CallboardError, DeadlineExceeded
from ...schemas.runtime import ListNodes
from ..bus.feed import USUAL, checked_patterns, listening
from ..bus.heard import MOST_MESSAGES, Heard, Log
from ..copying import Copied
from ..session import Session, as_line
from ..styles import beside
from ..widgets.message_list import MessageList
from ..widgets.publish_dialog import PublishDialog
from ..widgets.safe_text import plain, plain_line
from ..widgets.sparkline_row import SparklineRow
from .base import Page

DRAW_EVERY_S = 0.2
# Of more messages than this at once nobody reads each, so they are drawn less often.
MANY, DRAW_MANY_EVERY_S = 20, 1.0
MEASURE_EVERY_S = 2.0
MAIN = "node.main"
CURVE = 60
# Of a larger message the beginning is shown.
DETAIL_LENGTH = 20_000


class BusPage(Page):
    HELP = """
## Bus

`l` goes to the patterns that are listened to, with spaces between them: `topic.>`, `tap.NAME`, `dead.>`. `/` goes to
the filter. Enter there holds what was typed, escape goes back to the list.
"""
    DEFAULT_CSS = beside(__file__)
    NAME = "bus"
    TITLE = "Bus"
    KEY = "f4"
    AUTO_FOCUS = "#messages"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "pause", "Pause"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("l", "patterns", "Listen to"),
        Binding("enter", "inspect", "Inspect"),
        Binding("p", "publish_again", "Send again"),
        Binding("n", "publish", "Send"),
        Binding("c", "copy", "Copy"),
        Binding("x", "clear", "Clear"),
        Binding("escape", "back", "Back to the list", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Log()
        self.patterns: tuple[str, ...] = USUAL
        self._listened = USUAL
        self.paused = False
        self._words: list[str] = []
        self._seen = 0
        self._losses_seen = 0
        self._drawn_at = 0.0
        self._rate: deque[float] = deque(maxlen=CURVE)
        self._server: deque[float] = deque(maxlen=CURVE)
        self._daemon: deque[float] = deque(maxlen=CURVE)
        self._measured = (0, 0.0)
        self._figures: tuple[str, str, str] | None = None
        self._inspected: Heard | None = None

    def body(self) -> ComposeResult:
        with Horizontal(id="bus-fields"):
            yield Input(" ".join(self.patterns), id="patterns", placeholder=" ".join(USUAL), compact=True)
            yield Input("", id="filter", placeholder="/ filter", compact=True)
        with Horizontal():
            yield MessageList(MOST_MESSAGES, id="messages")
            with VerticalScroll(id="detail"):
                yield Static("", id="detail-text", markup=False)
        with Vertical(id="bus-figures"):
            yield SparklineRow("messages/s", id="rate")
            yield SparklineRow("server", id="server")
            yield SparklineRow("daemon", id="daemon")

    def on_mount(self) -> None:
        self.query_one("#detail").display = False

    async def opened(self, session: Session) -> None:
        if session.losses != self._losses_seen:
            self._losses_seen = session.losses
            self.traffic.missed()
        self._measured = (self.traffic.total, time.monotonic())
        self.every(DRAW_EVERY_S, self._draw)
        self.every(MEASURE_EVERY_S, self._measure)
        await self._listen(session)

    async def _listen(self, session: Session) -> None:
        if self._listened != self.patterns:
            self._listened = self.patterns
            self.action_clear()
        async with listening(session, self.patterns, self.traffic):
            await self._hidden()

    async def _hidden(self) -> None:
        """For ever: the worker is cancelled when the page is hidden, or listens to something else."""
        await asyncio.Event().wait()

    # Drawing

    @property
    def messages(self) -> MessageList:
        return self.query_one(MessageList)

    async def _draw(self) -> None:
        """What came since the last time."""
        if self.paused or self.traffic.total == self._seen:
            self._say_count()
            self._draw_figures()
            return
        now = time.monotonic()
        if self.traffic.total - self._seen > MANY and now - self._drawn_at < DRAW_MANY_EVERY_S:
            return
        self._drawn_at = now
        new = self.traffic.since(self._seen)
        self._seen = self.traffic.total
        if self._words:
            new = [heard for heard in new if self._fits(heard)]
        self.messages.add(new)
        self._say_count()
        self._draw_figures()

    def _fits(self, heard: Heard) -> bool:
        fits = heard.fits(self._words)
        heard.forget()  # thousands are looked through for a few to be shown
        return fits

    def _say_count(self) -> None:
        log = self.traffic
        parts = [f"{self.messages.num_lines:,} messages"]
        if self._words:
            parts.append(f"that have {' and '.join(self._words)}")
        if log.dropped:
            parts.append(f"{log.dropped:,} older ones gone")
        if log.gaps:
            parts.append(
                f"the connection was away {log.gaps} times" if log.gaps > 1 else "the connection was away once"
            )
        if self.paused:
            parts.append(f"paused, {log.total - self._seen:,} new")
        title = plain_line(", ".join(parts)).markup
        if self.messages.border_title != title:
            self.messages.border_title = title

    async def _measure(self) -> None:
        """How fast messages come, and how long the way to the server and to the daemon and back takes."""
        now = time.monotonic()
        total, since = self._measured
        self._measured = (self.traffic.total, now)
        if now > since:
            self._rate.append((self.traffic.total - total) / (now - since))
        client = self.session.client
        began = time.perf_counter()
        await client.node.require_links().bus.flush()
        # A flush is two round trips, one after the other.
        self._server.append((time.perf_counter() - began) / 2 * 1e3)
        began = time.perf_counter()
        try:
            await client.actor(MAIN).ask(ListNodes(), 5.0)
            self._daemon.append((time.perf_counter() - began) * 1e3)
            daemon = f"{self._daemon[-1]:.1f} ms"
        except DeadlineExceeded:
            daemon = "no answer"
        rate = f"{self._rate[-1]:,.0f}" if self._rate else ""
        self._figures = (rate, f"{self._server[-1]:.1f} ms", daemon)  # drawn together with the next messages

    def _draw_figures(self) -> None:
        if self._figures is not None:
            rate, server, daemon = self._figures
            self._figures = None
            self.query_one("#rate", SparklineRow).show(self._rate, rate)
            self.query_one("#server", SparklineRow).show(self._server, server)
            self.query_one("#daemon", SparklineRow).show(self._daemon, daemon)

    def on_message_list_selected(self, event: MessageList.Selected) -> None:
        if self.query_one("#detail").display and event.heard is not self._inspected:
            self._show_detail(event.heard)

    def _show_detail(self, heard: Heard | None) -> None:
        self._inspected = heard
        text = plain("")
        if heard is not None:
            text.append_text(plain_line(heard.subject))
            text.stylize("bold")
            clock = time.strftime("%H:%M:%S", time.localtime(heard.at))
            facts = [f"\nnumber {heard.number:,} at {clock}, {len(heard.data):,} bytes"]
            if heard.is_tapped:
                facts.append(f"from {heard.sender or 'its process'}")
            facts += [heard.tag, heard.explained]
            text.append_text(plain("\n".join(facts), "dim")).append("\n\n")
            pretty = heard.pretty
            text.append_text(plain(pretty[:DETAIL_LENGTH]))
            if len(pretty) > DETAIL_LENGTH:
                text.append(f"\n\u2026 {len(pretty) - DETAIL_LENGTH:,} characters more", "dim")
        self.query_one("#detail-text", Static).update(text)

    # Actions

    def action_pause(self) -> None:
        self.paused = not self.paused
        self._say_count()

    def action_filter(self) -> None:
        self.query_one("#filter", Input).focus()

    def action_patterns(self) -> None:
        self.query_one("#patterns", Input).focus()

    def action_inspect(self) -> None:
        detail = self.query_one("#detail")
        detail.display = not detail.display
        if detail.display:
            self._show_detail(self.messages.heard)

    def action_back(self) -> None:
        detail = self.query_one("#detail")
        field = self.query_one("#filter", Input)
        if self.messages.has_focus and field.value:
            field.value = ""
        elif self.messages.has_focus and detail.display:
            detail.display = False
        self.messages.focus()

    def action_clear(self) -> None:
        self.traffic.clear()
        self._seen = 0
        self._measured = (0, time.monotonic())
        self.messages.replace([])
        self._say_count()

    def copied(self) -> Copied | None:
        heard = self.messages.heard
        return Copied(heard.pretty, "the message") if heard is not None else None

    def action_publish(self) -> None:
        self.run(self._publish("topic.", '{"type": ""}'))

    def action_publish_again(self) -> None:
        heard = self.messages.heard
        if heard is not None:
            self.run(self._publish_again(heard))

    async def _publish_again(self, heard: Heard) -> None:
        await self._publish(heard.target(), heard.pretty)

    async def _publish(self, subject: str, text: str) -> None:
        wanted = await self.app.push_screen_wait(PublishDialog(subject, text))
        if wanted is not None:
            await self.session.client.publish_raw(*wanted)
            self.say(f"sent to {wanted[0]}")

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "filter":
            self._words = event.value.lower().split()
            self._seen = self.traffic.total
            self.messages.replace([heard for heard in self.traffic if not self._words or self._fits(heard)])
            self._say_count()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.input.id == "patterns":
            try:
                patterns = checked_patterns(event.value)
            except CallboardError as error:
                self.say(as_line(error), error=True)
                return
            self.patterns = patterns
            self.run(self._listen_anew())
        self.messages.focus()

    async def _listen_anew(self) -> None:
        await self.reopen()
        self.say(f"listening to {' '.join(self.patterns)}")
