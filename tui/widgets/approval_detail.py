"""What waits for a person, in whole: what will run, where, with which arguments, what it would change, and why it is
asked."""

from __future__ import annotations

import time

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from ...schemas.agent import Approval
from ...schemas.question import Question
from ..file_changes import changes_in, difference
from ..styles import beside
from ..train_view import duration
from .call_text import arguments_text, readable
from .safe_text import plain

_KINDS = {
    "tool": "wants to call a tool",
    "command": "the planner asks before this command",
    "question": "asks you",
    "again": "was under way when its owner died, and may have been carried out: again?",
}


class ApprovalDetail(VerticalScroll, can_focus=True):
    HELP = """
## What is asked

What will run, where, with which arguments, what it would change, and why it is asked. The arrows scroll, `c` copies
it. `y` allows it once, `d` denies it, `f` denies it and says why; the list beside it shows what else waits.
"""
    DEFAULT_CSS = beside(__file__)

    def compose(self) -> ComposeResult:
        yield Static(id="approval-text")

    def show(
        self, one: Approval | Question | None, *, task: str = "", node: str = "", present: dict[str, str] | None = None,
        any_arguments: bool = False,
    ) -> None:  # fmt: skip
        """`task`: of the run that asks. `node`: where the tool runs. `present`: what is in files that would be written
        anew, by their paths. `any_arguments`: an answer beyond once is for the tool whatever its arguments."""
        text = (
            Text("nothing waits for you", "dim") if one is None else shown(one, task, node, present or {}, time.time())
        )
        if isinstance(one, Approval) and one.tool:
            words = "whatever its arguments" if any_arguments else "with these arguments alone"
            reach = Text(f"\nr and A: this tool, {words} (w)", "bold yellow" if any_arguments else "dim")
            text.append_text(reach)
        self.query_one("#approval-text", Static).update(text)


def shown(one: Approval | Question, task: str, node: str, present: dict[str, str], now: float) -> Text:
    return _approval(one, task, node, present, now) if isinstance(one, Approval) else _question(one, now)


def _approval(one: Approval, task: str, node: str, present: dict[str, str], now: float) -> Text:
    text = Text()
    _row(text, "run", f"{one.run}  step {one.step}")
    _row(text, "task", task)
    _row(text, "what", _KINDS[one.kind.value])
    _row(text, "tool", one.tool, "bold")
    _row(text, "where", f"{one.address}, on node {node}" if node else one.address)
    _row(text, "why", one.why, "yellow")
    _row(text, "asked", _when(one.asked_at, one.expires_at, now, "then it is denied"))
    if one.text:
        text.append("\n").append_text(plain(one.text, "bold")).append("\n")
    if one.arguments:
        text.append("\narguments\n", "underline")
        text.append_text(arguments_text(one.arguments))
    for change in changes_in(one.arguments):
        text.append("\nwhat would change\n", "underline")
        text.append_text(difference(change, present.get(change.path)))
    return text


def _question(one: Question, now: float) -> Text:
    text = Text()
    _row(text, "asker", one.asker)
    _row(text, "kind", one.kind)
    _row(text, "asked", _when(one.asked, one.expires, now, "then it expires"))
    _row(text, "link", one.link, "underline")
    text.append("\n").append_text(plain(one.text, "bold")).append("\n")
    for name, value in (("details", one.details), ("proposal", one.proposal)):
        if value:
            text.append(f"\n{name}\n", "underline").append_text(readable(value)).append("\n")
    if one.schema not in ("", "{}"):
        text.append("\nthe answer's schema\n", "underline").append_text(readable(one.schema)).append("\n")
    return text


def _row(text: Text, name: str, value: str, style: str = "") -> None:
    if value:
        text.append(f"{name:7}", "dim").append_text(plain(value, style)).append("\n")


def _when(asked: float, expires: float, now: float, then: str) -> str:
    words = f"{duration(now - asked)} ago" if asked else ""
    return f"{words}; {duration(expires - now)} left, {then}" if expires else words
