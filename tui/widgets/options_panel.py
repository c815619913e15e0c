"""How answers are drawn: a field for each option of a conversation, checked as it is typed."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Label

from ..chat.conversation import Options
from ..chat.options import FIELDS, OptionInvalid, read_option, written
from ..styles import beside
from .safe_text import plain_line


class OptionsPanel(VerticalScroll, can_focus=False):
    HELP = """
## Options of this chat

Each holds from the next answer on, and is kept with the chat; an empty one is as the model has it. The arrow up and
tab go from one to the next, ctrl+o closes the panel.
"""
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", "Option before", show=False, id="options.previous")
    ]

    class Changed(Message):
        def __init__(self, options: Options) -> None:
            super().__init__()
            self.options = options

    class Wrong(Message):
        """A field that does not fit, with why; "" once it does."""

        def __init__(self, why: str) -> None:
            super().__init__()
            self.why = why

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._options = Options()

    def compose(self) -> ComposeResult:
        for name, what in FIELDS.items():
            with Horizontal(classes="option"):
                yield Label(plain_line(what.title))
                yield Input(written(self._options, name), id=f"option-{name}", placeholder=what.empty, compact=True)

    def show(self, options: Options) -> None:
        if options != self._options:
            self._options = options
            if self.is_mounted:
                for name in FIELDS:
                    field = self.query_one(f"#option-{name}", Input)
                    if not field.has_focus:
                        field.value = written(options, name)

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        name = (event.input.id or "").removeprefix("option-")
        try:
            value: Any = read_option(name, event.value)
        except OptionInvalid as error:
            event.input.add_class("-wrong")
            self.post_message(self.Wrong(str(error)))
            return
        event.input.remove_class("-wrong")
        options = msgspec.structs.replace(self._options, **{name: value})
        if options != self._options:
            self._options = options
            self.post_message(self.Wrong(""))
            self.post_message(self.Changed(options))
