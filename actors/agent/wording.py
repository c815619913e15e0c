"""Tools as models read them, and arguments as models write them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import json_repair
import msgspec

from ...schemas.serve import OfferedTool
from ...schemas.tool import ToolInfo

# A model's arguments are repaired up to here; what is longer has to be right.
MAX_REPAIR = 16_000
# Characters for what a model is told of all of its tools: a small one has a context of some thousand tokens.
DESCRIBED = 6000
SENTENCE = 200
# The same for tools with their schemas.
OFFERED = 12_000


class Unreadable(Exception):
    """What a model wrote cannot be read; the words are for the model."""


@lru_cache(maxsize=1024)
def schema_of(tool: ToolInfo) -> dict[str, Any]:
    """A tool's input schema; that of any object where it is none."""
    try:
        schema = json.loads(tool.input_schema)
    except ValueError:
        schema = None
    return schema if isinstance(schema, dict) else {"type": "object"}


def properties_of(tool: ToolInfo) -> dict[str, Any]:
    found = schema_of(tool).get("properties")
    return found if isinstance(found, dict) else {}


def main_property(tool: ToolInfo) -> str:
    """What a bare text can only mean: the only required one, or the only one. "" where there is none."""
    properties, required = properties_of(tool), schema_of(tool).get("required") or []
    names = required if len(required) == 1 else list(properties)
    return str(names[0]) if len(names) == 1 else ""


def describe(tools: Iterable[ToolInfo], room: int = DESCRIBED) -> str:
    """One line a tool: its name, its arguments with their types, what it does; in so many characters, if it can be:
    what does not fit loses all but the first sentence of what it says of each."""
    tools = tuple(tools)
    whole = "\n".join(_line(tool, " ".join(tool.description.split())) for tool in tools)
    if len(whole) <= room:
        return whole
    return "\n".join(_line(tool, _first_sentence(tool.description)) for tool in tools)


def offered(tools: Iterable[ToolInfo], room: int = OFFERED) -> tuple[OfferedTool, ...]:
    """Tools for a model's own calls; in so many characters, if it can be: what does not fit loses what schemas say to
    people, and all but the first sentence of each description."""
    tools = tuple(tools)
    whole = tuple(OfferedTool(tool.name, tool.description, tool.input_schema) for tool in tools)
    if sum(len(tool.description) + len(tool.parameters) for tool in whole) <= room:
        return whole
    return tuple(
        OfferedTool(tool.name, _first_sentence(tool.description), json.dumps(_bare(schema_of(tool)))) for tool in tools
    )


def _bare(schema: Any) -> Any:
    """A schema without titles and examples. What stands below `properties` and `$defs` are names, not keywords."""
    if isinstance(schema, list):
        return [_bare(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs") and isinstance(value, dict):
            found[key] = {name: _bare(part) for name, part in value.items()}
        elif key == "description" and isinstance(value, str):
            found[key] = _first_sentence(value)
        elif key in ("enum", "const", "default"):
            found[key] = value
        elif key not in ("title", "examples", "$schema", "$id"):
            found[key] = _bare(value)
    return found


def _first_sentence(text: str) -> str:
    first = re.split(r"(?<=[.!?])\s|\n\s*\n", text.strip(), maxsplit=1)[0]
    return " ".join(first.split())[:SENTENCE]


def _line(tool: ToolInfo, summary: str) -> str:
    required = schema_of(tool).get("required") or []
    parts = [
        f"{name}{'' if name in required else '?'}: {_type(schema)}" for name, schema in properties_of(tool).items()
    ]
    return f"- {tool.name}({', '.join(parts)}): {summary}"


def _type(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "any"
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    kind = schema.get("type", "any")
    return " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


def read_arguments(tool: ToolInfo | None, text: str) -> str:
    """What a model wrote as arguments, as a JSON object. Raises Unreadable.

    JSON is taken as it is; nearly JSON is repaired; a bare text is the tool's one argument, where it has one.
    """
    text = _without_fence(text.strip())
    if (found := _object(text)) is not None:
        return found
    name = main_property(tool) if tool is not None else ""
    if text.startswith("{"):
        repaired = _repaired(text)
        if isinstance(repaired, dict) and repaired:
            return json.dumps(repaired, ensure_ascii=False)
        raise Unreadable("the arguments are no JSON object; write them as one, in double quotes")
    if name:
        return json.dumps({name: _typed(tool, name, text)}, ensure_ascii=False)
    if not text:
        return "{}"
    raise Unreadable("the arguments must be one JSON object, such as " + example(tool))


def _repaired(text: str) -> Any:
    if len(text) > MAX_REPAIR:
        return None
    try:
        return json_repair.loads(text)
    except (ValueError, RecursionError):  # nested too deeply
        return None


def example(tool: ToolInfo | None) -> str:
    names = list(properties_of(tool)) if tool is not None else []
    return json.dumps(dict.fromkeys(names, "...") or {"name": "value"})


def _object(text: str) -> str | None:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return None
    return text if isinstance(value, dict) else None


def _typed(tool: ToolInfo | None, name: str, text: str) -> Any:
    schema = properties_of(tool).get(name) if tool is not None else None
    kind = schema.get("type") if isinstance(schema, dict) else None
    bare = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    if kind in ("integer", "number", "boolean", "array"):
        try:
            return json.loads(text)
        except ValueError:
            return bare
    return bare


def _without_fence(text: str) -> str:
    if text.startswith("```"):
        text = text.partition("\n")[2] if "\n" in text else text[3:]
        text = text.rstrip().removesuffix("```").rstrip()
    return text
