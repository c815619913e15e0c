"""A call's arguments and results for people: JSON laid out, programs as programs."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.syntax import Syntax
from rich.text import Text

from .safe_text import plain, safe

# Arguments that hold a program, and the language it is in.
_PROGRAMS = {"code": "python", "python": "python", "sql": "sql", "query": "sql", "script": "bash", "command": "bash"}
MAX_TEXT = 20_000


def readable(text: str) -> Text:
    """JSON laid out, anything else as it is; not without an end."""
    cut = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\n… and {len(text) - MAX_TEXT:,} characters more"
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return plain(cut)
    if isinstance(value, str):
        return plain(value[:MAX_TEXT])
    if isinstance(value, dict | list) and len(text) <= MAX_TEXT:
        return plain(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    return plain(cut)


def arguments_text(arguments: str) -> Text:
    """A line an argument; what has several lines stands below its name, programs in their colours."""
    try:
        given: Any = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return plain(arguments)
    if not isinstance(given, dict):
        return readable(arguments)
    text = Text()
    for name, value in given.items():
        text.append_text(plain(str(name), "bold"))
        if isinstance(value, str) and ("\n" in value or name in _PROGRAMS):
            text.append("\n").append_text(_indented(_program(name, value))).append("\n")
        elif isinstance(value, str):
            text.append_text(plain(f" {value}\n"))
        else:
            laid = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
            text.append_text(plain(f" {laid}\n"))
    return text


def _program(name: str, value: str) -> Text:
    shown = safe(value[:MAX_TEXT])
    if name not in _PROGRAMS:
        return Text(shown)
    text = Syntax("", _PROGRAMS[name], theme="ansi_dark", background_color="default").highlight(shown)
    text.rstrip()
    return text


def _indented(text: Text) -> Text:
    return Text("\n").join(Text("  ").append_text(line) for line in text.split("\n"))


def details_text(details: dict[str, str]) -> Text:
    """Everything that is known of a step, each part under its name."""
    text = Text()
    for name, value in details.items():
        text.append_text(plain(f"{name}\n", "bold underline"))
        shown = arguments_text(value) if name == "arguments" else readable(value)
        shown.rstrip()
        text.append_text(shown).append("\n\n")
    return text
