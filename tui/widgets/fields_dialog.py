"""A few named values asked for at once, each a line: a text, or one of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.suggester import SuggestFromList
from textual.widgets import Button, Input, Label, Select, Static

from ..styles import beside
from .dialog import Dialog
from .safe_text import plain, plain_line


@dataclass(frozen=True)
class Field:
    """`choices`: (value, what is shown), where it is one of several. `suggest`: what may be meant as it is typed.
    `needed`: it may not stay empty."""

    name: str
    label: str
    value: str = ""
    choices: Sequence[tuple[str, str]] = ()
    suggest: Sequence[str] = ()
    placeholder: str = ""
    needed: bool = False


class FieldsDialog(Dialog[dict[str, str] | None]):
    """The values by name; escape returns None. Enter in a text goes to the next line, and in the last one takes all."""

    HELP = """
## A few values

Enter and tab go to the next one, the arrow right takes what is suggested, ctrl+s takes all, escape gives it up.
"""
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", id="dialog.cancel"),
        Binding("ctrl+s", "take", "OK", id="dialog.take"),
    ]

    def __init__(self, question: str, fields: Sequence[Field], *, detail: str = "", yes: str = "OK") -> None:
        super().__init__()
        self._question, self._fields, self._detail, self._yes = question, fields, detail, yes

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box"):
            yield Label(plain(self._question), classes="dialog-question")
            if self._detail:
                yield Static(plain(self._detail), classes="dialog-detail")
            with VerticalScroll(classes="fields"):
                for field in self._fields:
                    with Horizontal(classes="field"):
                        yield Label(plain_line(field.label), classes="field-label")
                        yield self._widget(field)
            with Horizontal(classes="dialog-buttons"):
                yield Button("Cancel", id="no", compact=True)
                yield Button(self._yes, id="yes", variant="primary", compact=True)

    def _widget(self, field: Field) -> Input | Select[str]:
        if field.choices:
            options = [(plain_line(shown), value) for value, shown in field.choices]
            value = field.value if field.value in [value for value, _ in field.choices] else field.choices[0][0]
            return Select(options, value=value, allow_blank=False, compact=True, id=f"field-{field.name}")
        suggester = SuggestFromList(field.suggest, case_sensitive=False) if field.suggest else None
        return Input(
            field.value,
            placeholder=field.placeholder,
            suggester=suggester,
            compact=True,
            select_on_focus=False,
            id=f"field-{field.name}",
        )

    def on_mount(self) -> None:
        self.query("Input, Select").first().focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.input.id == f"field-{self._fields[-1].name}":
            self.action_take()
        else:
            self.focus_next()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "yes":
            self.action_take()
        else:
            self.action_cancel()

    def action_take(self) -> None:
        """All values, unless one that is needed is missing: then the cursor goes there."""
        values: dict[str, str] = {}
        for field in self._fields:
            widget = self.query_one(f"#field-{field.name}")
            value = str(widget.value) if isinstance(widget, Input | Select) else ""
            if field.needed and not value.strip():
                widget.focus()
                self.notify(f"{field.label} is needed", severity="warning", markup=False)
                return
            values[field.name] = value.strip()
        self.dismiss(values)

    def action_cancel(self) -> None:
        self.dismiss(None)
