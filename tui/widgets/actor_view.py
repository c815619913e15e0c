"""One actor in full, as its node describes it."""

from __future__ import annotations

import time

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from ...schemas.inspecting import ActorDescription
from ...schemas.metrics import BUCKETS_US, Durations
from ..census import ActorRow, short_rate, short_size, short_time
from ..styles import beside
from .safe_text import plain, plain_line

_LABEL_WIDTH = 12


class ActorView(VerticalScroll):
    HELP = """
## One actor

What its own process says of it, and how its supervisor sees it. The arrows, page up and page down scroll, `c` copies
all of it, escape closes it.
"""
    DEFAULT_CSS = beside(__file__)

    def compose(self) -> ComposeResult:
        yield Static()

    def show(self, row: ActorRow | None, description: ActorDescription, outside: ActorDescription | None) -> None:
        """`outside`: as its supervisor's node describes it, where that is another one."""
        self.border_title = plain_line(description.info.address).markup
        self.query_one(Static).update(described(row, description, outside, time.time()))


def described(row: ActorRow | None, inside: ActorDescription, outside: ActorDescription | None, now: float) -> Text:
    """`inside` is what its own process says."""
    info = row.info if row is not None else inside.info
    text = Text()

    def line(label: str, value: str) -> None:
        if value:
            text.append(f"{label:<{_LABEL_WIDTH}}", "dim")
            text.append_text(plain(value))
            text.append("\n")

    line("kind", info.kind)
    line("state", f"{info.state}, for {short_time(now - info.since)}" if info.since else info.state)
    line("node", f"{info.node}, process {info.pid}")
    restart = outside.restart if outside is not None else inside.restart
    line("restart", f"{restart}; restarted {info.restarts} times" if info.restarts else restart)
    line("supervisor", info.supervisor or f"node {(outside.info if outside is not None else info).node}")
    if inside.children:
        line("children", ", ".join(inside.children))
        line("strategy", f"{inside.strategy}, {inside.max_restarts} restarts in {inside.period_s:g} s")
    line("mailbox", f"{info.mailbox} of {inside.mailbox_size} wait, {inside.mailbox_high} at most so far")
    rate = f", {short_rate(row.rate)} a second" if row is not None and row.rate is not None else ""
    refused = f", {inside.refused} refused" if inside.refused else ""
    dropped = f", {info.dropped} dropped" if info.dropped else ""
    line("messages", f"{info.processed:,} handled{rate}, {info.errors:,} failed{refused}{dropped}")
    line("handlers", _took(inside.durations))
    if row is not None and row.memory:
        line("memory", f"{short_size(row.memory)} of the whole process")
    line("watched by", str(inside.watchers) if inside.watchers else "")
    line("last error", inside.last_error)
    line("takes", ", ".join(inside.handles))
    if inside.doc:
        text.append("\n")
        text.append_text(plain(inside.doc, "italic"))
    return text


def _took(durations: Durations) -> str:
    """Mean, and within what most of them ended."""
    total = sum(durations.counts)
    if not total:
        return ""
    below, bound = 0, "longer"
    for limit, count in zip((*BUCKETS_US, None), durations.counts, strict=True):
        below += count
        if below >= 0.95 * total:
            bound = f"within {_duration(limit / 1e6)}" if limit is not None else "longer than that"
            break
    return f"{_duration(durations.seconds / total)} on average, 95% {bound}"


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} \u00b5s"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
