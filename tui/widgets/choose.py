"""One of several, over a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Label, OptionList
from textual.widgets.option_list import Option

from .dialog import Dialog
from .safe_text import plain, plain_line


class Choose(Dialog[str | None]):
    """One of several. `options` are strings, or (value, what is shown); escape returns None."""

    HELP = """
## One of several

The arrows choose, enter takes the one under the cursor, escape none.
"""
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Cancel", id="dialog.cancel")]

    def __init__(self, question: str, options: Sequence[str | tuple[str, str]], chosen: str = "") -> None:
        super().__init__()
        self._question = question
        self._options = [(option, option) if isinstance(option, str) else option for option in options]
        self._chosen = chosen

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box"):
            yield Label(plain(self._question), classes="dialog-question")
            yield OptionList(*(Option(plain_line(shown)) for _, shown in self._options))

    def on_mount(self) -> None:
        options = self.query_one(OptionList)
        values = [value for value, _ in self._options]
        if self._chosen in values:
            options.highlighted = values.index(self._chosen)
        options.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._options[event.option_index][0])

    def action_cancel(self) -> None:
        self.dismiss(None)
