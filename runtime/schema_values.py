"""What a person typed as the value that a JSON Schema describes: numbers, true and false, JSON, and text as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

MEDIA_FORMATS = ("image", "audio", "file")
"""Values of the `format` of a string that stands for a medium."""

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}
# A chain of references that is longer leads round in a circle.
_MAX_STEPS = 64


def part_of(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Past references, and an alternative that is only null."""
    for _ in range(_MAX_STEPS):
        if "$ref" in part:
            part = schema.get("$defs", {}).get(part["$ref"].rpartition("/")[2], {})
        elif len(options := [option for option in part.get("anyOf", ()) if option.get("type") != "null"]) == 1:
            part = options[0]
        else:
            return part
    return {}


def value_of(text: str, part: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """A medium is the Path of its file. What does not fit stays text: where a number is needed, whoever takes it says
    so."""
    if part.get("format") in MEDIA_FORMATS:
        return Path(text.removeprefix("@")).expanduser()
    options = [part_of(option, schema) for option in part.get("anyOf", part.get("oneOf", (part,)))]
    named = {name for option in options for name in _names(option)}
    enums = [value for option in options for value in option.get("enum", ())]
    if text in enums:
        return text
    try:
        read = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    fits = any(_is_of(read, name) for name in named)
    return read if fits or read in enums or not (named or enums or "string" in map(_type, options)) else text


def _is_of(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (name == "boolean") == isinstance(value, bool)


def _type(option: Mapping[str, Any]) -> str:
    return str(option.get("type", ""))


def _names(option: Mapping[str, Any]) -> list[str]:
    named = option.get("type", [])
    return [name for name in (named if isinstance(named, list) else [named]) if name in _TYPES]
