"""A message to be sent: where it goes, and its JSON."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, Label, Static, TextArea

from ...runtime.errors import CallboardError
from ...runtime.topics import check_subject
from ..bus.heard import CannotPublish, checked_json
from ..session import as_line
from ..styles import beside
from .dialog import Dialog
from .safe_text import plain, plain_line


class PublishDialog(Dialog[tuple[str, bytes] | None]):
    """Returns (subject, bytes), checked; None where it is given up."""

    HELP = """
## Sending a message

The first line says where to: `topic.NAME` for everybody who listens, `actor.ADDRESS` for one actor. Below is its
JSON, with its `type`. ctrl+s or F12 sends it once it is in order, escape gives it up.
"""
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s,f12", "send", "Send", id="dialog.send", priority=True),
        Binding("escape", "cancel", "Cancel", id="dialog.cancel"),
    ]

    def __init__(self, subject: str, message: str) -> None:
        super().__init__()
        self._subject, self._message = subject, message

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box"):
            yield Label(plain_line("Publish (ctrl+s sends, escape does not)"), classes="dialog-question")
            yield Input(self._subject, id="subject", placeholder="topic.news, or actor.ADDRESS", compact=True)
            yield TextArea(self._message, id="message", language=None, compact=True)
            yield Static("", id="wrong", markup=False)

    def action_send(self) -> None:
        subject = self.query_one("#subject", Input).value.strip()
        try:
            check_subject(subject)
            if subject.partition(".")[0] not in ("topic", "actor"):
                raise CannotPublish(f"{subject} is the runtime's own", hint="send to topic.NAME or actor.ADDRESS")
            data = checked_json(self.query_one("#message", TextArea).text)
        except CallboardError as error:
            self.query_one("#wrong", Static).update(plain(as_line(error)))
            return
        self.dismiss((subject, data))

    def action_cancel(self) -> None:
        self.dismiss(None)
