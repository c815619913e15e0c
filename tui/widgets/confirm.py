"""Yes or no, over a page."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Label, Static

from .dialog import Dialog
from .safe_text import plain


class Confirm(Dialog[bool]):
    """Yes or no. Enter on the button in focus, `y` and `n`; escape is no, and no is in focus."""

    HELP = """
## Yes or no

`y` does it. `n`, escape, and enter as it stands do not. The arrows and tab go to the other button.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", id="dialog.yes"),
        Binding("n,escape", "answer(False)", "No", id="dialog.no"),
        Binding("left,right", "app.focus_next", "Other button", show=False, id="dialog.other"),
    ]

    def __init__(self, question: str, detail: str = "", yes: str = "Yes") -> None:
        super().__init__()
        self._question, self._detail, self._yes = question, detail, yes

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box"):
            yield Label(plain(self._question), classes="dialog-question")
            if self._detail:
                yield Static(plain(self._detail), classes="dialog-detail")
            with Horizontal(classes="dialog-buttons"):
                yield Button("No", id="no")
                yield Button(self._yes, id="yes", variant="error")

    def on_mount(self) -> None:
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)
