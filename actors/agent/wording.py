"""Tools as models read them, and arguments as models write them. Pure."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import json_repair
import msgspec

from ...schemas.serve import OfferedTool
from ...schemas.tool import ToolInfo

Schema = dict[str, Any]
Said = TypeVar("Said")

# A model's arguments are repaired up to here; what is longer has to be right.
MAX_REPAIR = 16_000
# Characters for what a model is told of all of its tools: a small one has a context of some thousand tokens.
DESCRIBED = 6000
# The same for tools with their schemas.
OFFERED = 12_000


# Said of a schema to people and programs, of no use to a model that fills in a form.
_NOISE = ("title", "$schema", "$id", "examples", "deprecated", "readOnly", "writeOnly", "$defs", "definitions")
# What stands below these are names, not keywords.
_NAMED = ("properties", "patternProperties")
_VALUES = ("default", "enum", "const")
_MAX_DEPTH = 6
# References of references multiply: beyond so many parts, what they name is an object of any kind.
_MAX_INLINED = 2000
# A sentence that does not end is cut off here, and a choice of more is no help to a small model.
SENTENCE = 200


class Unreadable(Exception):
    """What a model wrote cannot be read; the words are for the model."""


@lru_cache(maxsize=1024)
def schema_of(info: ToolInfo) -> Schema:
    """A tool's input schema; that of any object where it is none: models are offered tools of strangers too."""
    try:
        schema = msgspec.json.decode(info.input_schema or "{}")
    except (msgspec.DecodeError, RecursionError):
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


# Telling a model of tools


def describe(tools: Iterable[ToolInfo], room: int = DESCRIBED) -> str:
    """One line a tool: its name, its arguments with their types, what it does; in so many characters, of which those
    that say the most give up the most (`levels`). Names and required arguments are never left out."""
    return "\n".join(_fitting(map(_lines, tools), room, lambda line: len(line) + 1))


def offered(tools: Iterable[ToolInfo], room: int = OFFERED) -> tuple[OfferedTool, ...]:
    """Tools for a model's own calls, with their schemas, in so many characters; what is left out as in `describe`."""
    return _fitting(map(_offers, tools), room, lambda one: len(one.name) + len(one.description) + len(one.parameters))


def _fitting(tools: Iterable[Sequence[Said]], room: int, size: Callable[[Said], int]) -> tuple[Said, ...]:
    """Of what can be said of each, the most for which all fit while none may have more characters than another."""
    said = list(tools)
    sizes = [[size(one) for one in each] for each in said]

    def chosen(share: int) -> list[int]:
        return [next((at for at, one in enumerate(each) if one <= share), len(each) - 1) for each in sizes]

    def is_over(share: int) -> bool:
        return sum(each[at] for each, at in zip(sizes, chosen(share), strict=True)) > room

    shares = sorted({one for each in sizes for one in each})
    share = shares[max(0, bisect_left(shares, True, key=is_over) - 1)] if shares else 0
    return tuple(each[at] for each, at in zip(said, chosen(share), strict=True))


@lru_cache(maxsize=256)
def _offers(tool: ToolInfo) -> tuple[OfferedTool, ...]:
    return tuple(
        OfferedTool(
            tool.name,
            level["description"],
            json.dumps(level["parameters"], ensure_ascii=False, separators=(",", ":")),
        )
        for level in levels(tool)
    )


@lru_cache(maxsize=256)
def _lines(tool: ToolInfo) -> tuple[str, ...]:
    return tuple(_line(tool, level) for level in levels(tool))


def _line(tool: ToolInfo, level: Schema) -> str:
    required = _required(level)
    parts = [f"{name}{'' if name in required else '?'}: {_type(schema)}" for name, schema in _properties(level).items()]
    return f"- {tool.name}({', '.join(parts)}): {' '.join(level['description'].split())}"


def _type(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "any"
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    kind = schema.get("type", "any")
    return " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


# Tools in fewer words


def levels(info: ToolInfo) -> tuple[Schema, ...]:
    """A tool's `description` and `parameters` in fewer and fewer words, each level without what the one before still
    said.

    The first is whole, but for titles and the like. Then go all but the first paragraph of the description, all but a
    sentence of what is said of arguments, all but the first sentence of the description, what is said of optional
    arguments, of all; what nested parts hold; optional arguments; what the others hold, and at last their types.
    """
    schema = schema_of(info)
    found: Schema = {
        "description": info.description,
        "parameters": _Inliner(schema).whole() or {"type": "object", "properties": {}},
    }
    made = [found]
    for cut in _CUTS:
        found = cut(found)
        made.append(found)
    return tuple(made)


class _Inliner:
    """Puts what references name in their places, for small models do not follow them.

    One that holds itself ends as an object of any kind.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        named = (schema.get(key) for key in ("definitions", "$defs"))
        self._named: Schema = {name: part for part in named if isinstance(part, dict) for name, part in part.items()}
        self._left = _MAX_INLINED

    def whole(self) -> Schema:
        return self._inlined(self._schema, 0)

    def _inlined(self, part: Any, depth: int) -> Any:
        if isinstance(part, list):
            return [self._inlined(each, depth) for each in part]
        if not isinstance(part, dict):
            return part
        self._left -= depth > 0
        if isinstance(part.get("$ref"), str):
            if depth >= _MAX_DEPTH or self._left <= 0:
                return {"type": "object"}
            inner = self._inlined(self._named.get(part["$ref"].rpartition("/")[2], {}), depth + 1)
            own = {key: part[key] for key in ("description", "default") if key in part}
            return {**inner, **own} if isinstance(inner, dict) else inner
        return {
            key: _each_named(value, lambda inner: self._inlined(inner, depth))
            if key in _NAMED
            else value
            if key in _VALUES
            else self._inlined(value, depth)
            for key, value in part.items()
            if key not in _NOISE
        }


def _each_named(value: Any, change: Callable[[Any], Any]) -> Any:
    return {name: change(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def _described(part: Any, change: Callable[[str], str]) -> Any:
    """A schema with other words for it and for all that it holds; none where `change` gives none."""
    if isinstance(part, list):
        return [_described(each, change) for each in part]
    if not isinstance(part, dict):
        return part
    found: Schema = {}
    for key, value in part.items():
        if key == "description" and isinstance(value, str):
            if text := change(value):
                found[key] = text
        elif key in _NAMED:
            found[key] = _each_named(value, lambda inner: _described(inner, change))
        else:
            found[key] = value if key in _VALUES else _described(value, change)
    return found


def _bare(part: Any, depth: int) -> Any:
    """A schema down to so many levels; of what is below, only which kind of value it is."""
    if isinstance(part, list):
        return [_bare(each, depth) for each in part]
    if not isinstance(part, dict):
        return part
    if depth == 0:
        return {
            key: part[key]
            for key in ("type", "enum", "const")
            if key in part and len(json.dumps(part[key])) <= SENTENCE
        }
    return {
        key: _each_named(value, lambda inner: _bare(inner, depth - 1))
        if key in _NAMED
        else value
        if key in _VALUES
        else _bare(value, depth - 1)
        for key, value in part.items()
    }


# The cuts, in the order in which they are made. Each takes what the one before left.


def _first_paragraph(found: Schema) -> Schema:
    return {**found, "description": found["description"].partition("\n\n")[0]}


def _first_sentence(found: Schema) -> Schema:
    return {**found, "description": _sentence(found["description"])}


def _sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0][:SENTENCE]


def _short_arguments(found: Schema) -> Schema:
    return {**found, "parameters": _described(found["parameters"], _sentence)}


def _bare_optional(found: Schema) -> Schema:
    required = _required(found)
    return _arguments(found, lambda name, part: part if name in required else _described(part, lambda _: ""))


def _bare_arguments(found: Schema) -> Schema:
    return {**found, "parameters": _described(found["parameters"], lambda _: "")}


def _shallow(depth: int) -> Callable[[Schema], Schema]:
    return lambda found: {**found, "parameters": _bare(found["parameters"], depth)}


def _required_only(found: Schema) -> Schema:
    parameters, required = found["parameters"], _required(found)
    kept = {name: part for name, part in _properties(found).items() if name in required}
    return {**found, "parameters": {**parameters, "properties": kept}} if "properties" in parameters else found


def _names_only(found: Schema) -> Schema:
    kept: Schema = {"type": "object"}
    if properties := _properties(found):
        kept["properties"] = {name: {} for name in properties}
    if required := _required(found):
        kept["required"] = required
    return {**found, "parameters": kept}


def _properties(found: Schema) -> Schema:
    properties = found["parameters"].get("properties")
    return properties if isinstance(properties, dict) else {}


def _required(found: Schema) -> list[Any]:
    required = found["parameters"].get("required")
    return required if isinstance(required, list) else []


def _arguments(found: Schema, change: Callable[[str, Any], Any]) -> Schema:
    if not (properties := _properties(found)):
        return found
    changed = {name: change(name, part) for name, part in properties.items()}
    return {**found, "parameters": {**found["parameters"], "properties": changed}}


_CUTS = (
    *(_first_paragraph, _short_arguments, _first_sentence, _bare_optional, _bare_arguments),
    *(_shallow(4), _shallow(2), _required_only, _shallow(1), _names_only),
)


# Arguments


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
