"""A form made from the JSON Schema of an object: a line a property, filled in as the schema says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Checkbox, Input, Label, Select, TextArea

from ...runtime.errors import CallboardError
from ...runtime.schema_values import MEDIA_FORMATS, part_of, value_of
from ..styles import beside
from .safe_text import plain, safe

# A string that may be longer than this, or that says it is of several lines, gets several.
_LONG = 300
_AREA_FORMATS = ("textarea", "json")


class FormInvalid(CallboardError):
    """A field whose text is no value of its type, or that must not be empty."""

    code = "tui.form"

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field


class SchemaForm(VerticalScroll, can_focus=False):
    """`values()` is the object that was filled in, without what was left empty. Media are the Paths of their files.

    A property whose name has dots (`optimizer.lr`) is a value within an object. `given`: values to begin with.
    """

    HELP = """
## Form

A field for each thing that may be said, with `*` where it must be. tab and shift+tab go from field to field, ctrl+s
or enter in a line sends it all. Of a list each line is one; what is left empty is not sent.
"""
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "submit", "Send", id="form.send", priority=True),
    ]

    class Changed(Message):
        def __init__(self, form: SchemaForm) -> None:
            super().__init__()
            self.form = form

        @property
        def control(self) -> SchemaForm:
            return self.form

    class Submitted(Changed):
        """Enter in a field, or ctrl+s."""

    def __init__(
        self, schema: Mapping[str, Any], given: Mapping[str, Any] | None = None, *, id: str | None = None
    ) -> None:  # fmt: skip
        super().__init__(id=id)
        self.schema = schema
        self._given = dict(given or {})
        properties = schema.get("properties", {})
        self.fields: dict[str, Mapping[str, Any]] = {
            name: _resolved(part, schema) if isinstance(part, Mapping) else {} for name, part in properties.items()
        }
        self._required = frozenset(schema.get("required", ()))
        self._widgets: dict[str, Widget] = {}

    def compose(self) -> ComposeResult:
        if not self.fields:
            yield Label("it takes no arguments", classes="form-hint")
        for name, part in self.fields.items():
            widget = self._widget(name, part)
            self._widgets[name] = widget
            if not isinstance(widget, Checkbox):
                yield Label(self._title(name, part), classes="form-title")
            yield widget

    def _title(self, name: str, part: Mapping[str, Any]) -> Any:
        text = plain(name, "bold")
        if name in self._required:
            text.append("*", "bold red")
        text.append(f"  {_kind(part)}", "dim")
        if words := " ".join(str(part.get("description", "")).split()):
            text.append_text(plain(f"  {words}", "dim"))
        return text

    def _widget(self, name: str, part: Mapping[str, Any]) -> Widget:
        value = self._given.get(name, part.get("default"))
        if part.get("type") == "boolean":
            words = " ".join(str(part.get("description", "")).split())
            label = plain(name, "bold").append_text(plain(f"  {words}", "dim"))
            return Checkbox(label, bool(value), compact=True)
        if "enum" in part:
            options = [(plain(str(one)), json.dumps(one)) for one in part["enum"]]
            chosen = json.dumps(value) if value in part["enum"] else Select.NULL
            return Select(options, value=chosen, allow_blank=name not in self._required, compact=True)
        if _is_area(part):
            return TextArea(_written(value, part), compact=True, tab_behavior="focus", show_line_numbers=False)
        hint = "the path of a file on this machine" if part.get("format") in MEDIA_FORMATS else ""
        return Input(_written(value, part), placeholder=hint, compact=True)

    # What was filled in

    def text_of(self, name: str) -> str:
        widget = self._widgets[name]
        match widget:
            case Input():
                return widget.value
            case TextArea():
                return widget.text
            case Select():
                return "" if widget.value is Select.NULL else str(json.loads(str(widget.value)))
            case _:
                return ""

    def set_text(self, name: str, text: str) -> None:
        match widget := self._widgets[name]:
            case Input():
                widget.value = text
            case TextArea():
                widget.text = text
            case _:
                raise KeyError(name)

    def values(self) -> dict[str, Any]:
        """Raises FormInvalid for the first field that cannot be read; it has the focus then."""
        found: dict[str, Any] = {}
        for name, part in self.fields.items():
            try:
                is_there, value = self._value(name, part)
            except FormInvalid:
                self._widgets[name].focus()
                raise
            if is_there:
                _put(found, name, value)
        return found

    def _value(self, name: str, part: Mapping[str, Any]) -> tuple[bool, Any]:
        widget = self._widgets[name]
        if isinstance(widget, Checkbox):
            is_default = widget.value == part.get("default", False) and name not in self._given
            return name in self._required or not is_default, widget.value
        if isinstance(widget, Select):
            return widget.value is not Select.NULL, _decoded(widget.value)
        text = self.text_of(name)
        if not text.strip():
            if name in self._required and not (part.get("type") == "string" and part.get("minLength", 0) == 0
                                               and part.get("default") == ""):  # fmt: skip
                raise FormInvalid(name, "it must not be empty")
            return False, None
        if part.get("type") == "array" and not text.lstrip().startswith("["):
            items = part_of(part.get("items", {}), self.schema)
            return True, [
                _checked(name, line.strip(), items, self.schema) for line in text.splitlines() if line.strip()
            ]
        return True, _checked(name, text, part, self.schema)

    # What happens in it

    @on(Input.Changed)
    @on(TextArea.Changed)
    @on(Select.Changed)
    @on(Checkbox.Changed)
    def _changed(self, event: Message) -> None:
        event.stop()
        self.post_message(self.Changed(self))

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_submit()

    def action_submit(self) -> None:
        self.post_message(self.Submitted(self))

    def focus_first(self) -> None:
        """The first field that is to be filled in and is not."""
        empty = [name for name in self.fields if name in self._required and not self.text_of(name)]
        for name in [*empty, *self.fields]:
            self._widgets[name].focus()
            return


def _resolved(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference leads to, with what stands beside it."""
    beside_it = {key: part[key] for key in ("default", "description") if key in part}
    return {**part_of(part, schema), **beside_it}


def _is_area(part: Mapping[str, Any]) -> bool:
    kind = part.get("type", "")
    if kind in ("object", "array") or part.get("format") in _AREA_FORMATS:
        return True
    return kind == "string" and part.get("maxLength", 0) > _LONG


def _kind(part: Mapping[str, Any]) -> str:
    if part.get("format") in MEDIA_FORMATS:
        return str(part["format"])
    if options := part.get("anyOf", part.get("oneOf")):
        return " or ".join(_kind(option) for option in options if isinstance(option, Mapping))
    kind = part.get("type", "")
    words = ", ".join(kind) if isinstance(kind, list) else str(kind or ("one of" if "enum" in part else "any"))
    if words == "array":
        words = "a list: a line each, or JSON"
    limits = [f"{sign} {part[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in part]
    return safe(" ".join([words, *limits]))


def _written(value: Any, part: Mapping[str, Any]) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if part.get("type") == "array" and isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    return json.dumps(value, ensure_ascii=False)


def _checked(name: str, text: str, part: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    value = value_of(text, part, schema)
    kinds = part.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if isinstance(value, str) and kinds and "string" not in kinds:
        raise FormInvalid(name, f"'{text[:40]}' is no {' or '.join(kinds)}")
    if isinstance(value, Path) and not value.is_file():
        raise FormInvalid(name, f"there is no file {value}")
    return value


def _decoded(value: Any) -> Any:
    return None if value is Select.NULL else json.loads(str(value))


def _put(found: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        found = found.setdefault(group, {})
    found[last] = value
