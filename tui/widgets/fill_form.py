"""A form over the page: fields by a JSON Schema, and two buttons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Label, Static

from ...runtime.errors import CallboardError
from ..session import as_line
from ..styles import beside
from .safe_text import plain
from .schema_form import SchemaForm

T = TypeVar("T")


class FormOver(ModalScreen["T | None"], Generic[T]):
    """`result(values)` makes of what was filled in what the screen gives; a CallboardError that it raises is shown, and
    the form stays. Escape gives None."""

    HELP = """
## Form

tab and shift+tab go from field to field and to the buttons, ctrl+s sends it, escape gives it up.
"""
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Cancel", id="dialog.cancel")]

    def __init__(
        self, title: str, schema: Mapping[str, Any], given: Mapping[str, Any] | None = None, *, yes: str = "Start"
    ) -> None:  # fmt: skip
        super().__init__()
        self._title, self._schema, self._given, self._yes = title, schema, given, yes

    def result(self, values: dict[str, Any]) -> T:
        raise NotImplementedError

    def beside(self) -> Widget | None:
        """What stands at the right of the fields."""
        return None

    def compose(self) -> ComposeResult:
        with Vertical(id="form-box"):
            yield Label(plain(self._title), classes="form-question")
            with Horizontal(id="form-middle"):
                yield SchemaForm(self._schema, self._given)
                if (more := self.beside()) is not None:
                    yield more
            yield Static("", id="wrong")
            with Horizontal(id="form-buttons"):
                yield Label("ctrl+s", classes="form-key")
                yield Button(self._yes, id="yes", variant="primary", compact=True)
                yield Button("Cancel", id="no", compact=True)

    def on_mount(self) -> None:
        self.form.focus_first()

    @property
    def form(self) -> SchemaForm:
        return self.query_one(SchemaForm)

    @on(SchemaForm.Changed)
    def _changed(self, event: SchemaForm.Changed) -> None:
        event.stop()
        self.changed()

    def changed(self) -> None:
        """Something was filled in."""

    @on(SchemaForm.Submitted)
    def _submitted(self, event: SchemaForm.Submitted) -> None:
        event.stop()
        self._end()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "yes":
            self._end()
        else:
            self.dismiss(None)

    def action_cancel(self) -> None:
        self.dismiss(None)

    def _end(self) -> None:
        try:
            self.dismiss(self.result(self.form.values()))
        except CallboardError as error:
            self.query_one("#wrong", Static).update(plain(as_line(error), "bold red"))


class FillForm(FormOver[dict[str, Any]]):
    """Gives the values themselves."""

    def result(self, values: dict[str, Any]) -> dict[str, Any]:
        return values
