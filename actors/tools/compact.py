"""A tool as a small model can take it: within so many characters, the least needed left out first.

What is cut is told by its rank below, so that two models with one budget see the same. Names that a function-calling
template can use are here too: most of them know no dots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from ...schemas.tool import ToolInfo

Schema = dict[str, Any]

# Said of a schema to people and programs, of no use to a model that fills in a form.
_NOISE = ("title", "$schema", "additionalProperties", "$id", "examples", "deprecated", "readOnly", "writeOnly")
_MAX_DEPTH = 6


def function_name(name: str) -> str:
    """The name for a template that takes letters, digits, `_` and `-`, 64 at most: `files.read` is `files_read`."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]


def function_names(tools: Iterable[ToolInfo]) -> dict[str, ToolInfo]:
    """Each tool by a name of its own of that kind, in the order given."""
    found: dict[str, ToolInfo] = {}
    for info in tools:
        name, number = function_name(info.name), 1
        while name in found:
            number += 1
            name = f"{function_name(info.name)[:60]}_{number}"
        found[name] = info
    return found


def compact_schema(info: ToolInfo, budget: int = 0) -> dict[str, Any]:
    """`{"name", "description", "parameters"}` as models are told of functions, in at most `budget` characters of JSON.

    0: whole. What is left out, in this order until it fits: titles and the like; all but the first paragraph of the
    description, then all but its first sentence; what is said of arguments beyond a sentence, of optional arguments, of
    all; optional arguments. What is required always stays, so a budget may be exceeded.
    """
    schema: Schema = msgspec.json.decode(info.input_schema or "{}")
    found: Schema = {
        "name": function_name(info.name),
        "description": info.description,
        "parameters": _inlined(schema, schema.get("$defs", {}), 0) or {"type": "object", "properties": {}},
    }
    for cut in (_first_paragraph, _short_arguments, _first_sentence, _bare_optional, _bare_arguments, _required_only):
        if budget <= 0 or size(found) <= budget:
            break
        found = cut(found)
    return found


def size(value: Any) -> int:
    return len(msgspec.json.encode(value).decode())


def _inlined(part: Any, named: Mapping[str, Any], depth: int) -> Any:
    """Without references, which small models do not follow; one that holds itself ends as an object of any kind."""
    if isinstance(part, list):
        return [_inlined(each, named, depth) for each in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        if depth >= _MAX_DEPTH:
            return {"type": "object"}
        inner = _inlined(named.get(part["$ref"].rpartition("/")[2], {}), named, depth + 1)
        return {**inner, **({"description": part["description"]} if "description" in part else {})}
    kept: Schema = {}
    for key, value in part.items():
        if key == "properties" and isinstance(value, dict):  # an argument may be called "title"
            kept[key] = {name: _inlined(inner, named, depth) for name, inner in value.items()}
        elif key not in _NOISE and key != "$defs":
            kept[key] = value if key in ("default", "enum", "const") else _inlined(value, named, depth)
    return kept


def _first_paragraph(found: Schema) -> Schema:
    return {**found, "description": found["description"].partition("\n\n")[0]}


def _first_sentence(found: Schema) -> Schema:
    return {**found, "description": _sentence(found["description"])}


def _sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]


def _short_arguments(found: Schema) -> Schema:
    return _arguments(found, lambda name, part: _said(part, _sentence(part["description"])))


def _bare_optional(found: Schema) -> Schema:
    required = found["parameters"].get("required", ())
    return _arguments(found, lambda name, part: part if name in required else _said(part, ""))


def _bare_arguments(found: Schema) -> Schema:
    return _arguments(found, lambda name, part: _said(part, ""))


def _said(part: Schema, text: str) -> Schema:
    others = {key: value for key, value in part.items() if key != "description"}
    return {**others, "description": text} if text else others


def _arguments(found: Schema, change: Callable[[str, Schema], Schema]) -> Schema:
    parameters = found["parameters"]
    changed = {
        name: change(name, part) if isinstance(part, dict) and "description" in part else part
        for name, part in parameters.get("properties", {}).items()
    }
    return {**found, "parameters": {**parameters, "properties": changed}}


def _required_only(found: Schema) -> Schema:
    parameters = found["parameters"]
    required = parameters.get("required", ())
    kept = {name: part for name, part in parameters.get("properties", {}).items() if name in required}
    return {**found, "parameters": {**parameters, "properties": kept}}
