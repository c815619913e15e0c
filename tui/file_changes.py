"""What a tool call would change in files, as far as its arguments say. Pure.

Tools that write files come from many places, and name the same things in a few ways; these are told by their names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.text import Text

from ..schemas.tool import ToolInfo
from .widgets.safe_text import plain

_PATH = ("path", "file_path", "filepath", "file", "filename", "target")
_WHOLE = ("content", "contents", "file_text", "new_content", "text")
_EDIT = (
    ("old_text", "new_text"),
    ("oldText", "newText"),
    ("old_str", "new_str"),
    ("old_string", "new_string"),
    ("search", "replace"),
    ("old", "new"),
)
_PATCH = ("patch", "diff")
# A difference is read, not scrolled through for ever.
MAX_LINES = 2000


@dataclass(frozen=True)
class FileChange:
    """`old` None: all of the file is written anew, and what is in it now is to be looked up. `patch`: a difference that
    the call itself has as such."""

    path: str
    old: str | None = None
    new: str = ""
    patch: str = ""


def changes_in(arguments: str) -> list[FileChange]:
    """Those of a call's arguments, JSON. None where it is no object or names no file."""
    try:
        given = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return []
    return list(_changes(given)) if isinstance(given, dict) else []


def _changes(given: Mapping[str, Any], path: str = "") -> Iterator[FileChange]:
    path = _text(given, _PATH) or path
    if patch := _text(given, _PATCH):
        yield FileChange(path, patch=patch)
        return
    if not path:
        return
    for old, new in _EDIT:
        if isinstance(given.get(old), str) and isinstance(given.get(new), str):
            yield FileChange(path, given[old], given[new])
            return
    edits = given.get("edits")
    if isinstance(edits, list):
        for edit in edits:
            if isinstance(edit, dict):
                yield from _changes(edit, path)
        return
    for name in _WHOLE:
        if isinstance(given.get(name), str):
            yield FileChange(path, None, given[name])
            return


def _text(given: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((given[name] for name in names if isinstance(given.get(name), str) and given[name]), "")


def reader_of(tool: str, tools: Sequence[ToolInfo]) -> tuple[ToolInfo, str] | None:
    """The tool of the same set that reads a file and changes nothing, and what it calls the path."""
    of_set = tool.rpartition(".")[0]
    for info in tools:
        owner, _, name = info.name.rpartition(".")
        if owner != of_set or not info.annotations.read_only or not name.startswith(("read", "get_file", "cat")):
            continue
        schema = msgspec.json.decode(info.input_schema or "{}", type=dict[str, Any])
        needed = set(schema.get("required", ()))
        path = next((name for name in _PATH if name in schema.get("properties", {})), "")
        if path and needed <= {path}:
            return info, path
    return None


def text_in(value: str, text: str) -> str:
    """The file's text in what such a tool gives: a text, or an object with one."""
    try:
        found = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return text
    if isinstance(found, str):
        return found
    if isinstance(found, dict):
        return _text(found, ("text", "content", "contents")) or text
    return text


def difference(change: FileChange, present: str | None) -> Text:
    """As `diff -u` writes it. `present`: the file as it is, where that is known and all of it is written anew."""
    if change.patch:
        return _coloured(change.patch.splitlines())
    old = change.old if change.old is not None else present
    if old is None:
        head = [f"+++ {change.path} (all of it; what is in it now is not known here)"]
        return _coloured(head + ["+" + line for line in change.new.splitlines()])
    if old == change.new:
        return plain(f"{change.path}: nothing changes", "dim")
    name = change.path
    lines = difflib.unified_diff(old.splitlines(), change.new.splitlines(), name, name, lineterm="")
    return _coloured(list(lines))


def _coloured(lines: Sequence[str]) -> Text:
    text = Text()
    for line in lines[:MAX_LINES]:
        style = "bold" if line.startswith(("+++", "---")) else {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        text.append_text(plain(line + "\n", style))
    if len(lines) > MAX_LINES:
        text.append(f"and {len(lines) - MAX_LINES:,} lines more\n", "dim")
    return text
