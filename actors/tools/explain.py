"""Why arguments do not fit, said so that a model can mend all of it in one go: each problem with its schema path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ...runtime.matching import did_you_mean
from .errors import ToolArguments

_PATH = re.compile(r" - at `([^`]*)`$")
# What is quoted of a value that does not fit.
_MAX_QUOTE = 80


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """`path` as in JSONPath, `$.unit` say. `problem`: missing, unknown, type."""

    path: str
    problem: str
    expected: str = ""
    got: str = ""
    meant: str = ""

    def __str__(self) -> str:
        name = self.path.removeprefix("$.")
        if self.problem == "missing":
            return f"`{name}` is missing" + (f" ({self.expected})" if self.expected else "")
        if self.problem == "unknown":
            return f"there is no argument `{name}`" + (f", did you mean `{self.meant}`?" if self.meant else "")
        return f"`{name}`: expected {self.expected}, got {self.got}"


def refusal(problems: Iterable[Problem], schema: Mapping[str, Any]) -> ToolArguments:
    """One error of all problems; `detail` has them as JSON."""
    listed = tuple(problems)
    names = ", ".join(
        name if name in schema.get("required", ()) else f"{name}?" for name in schema.get("properties", {})
    )
    return ToolArguments(
        "the arguments do not fit: " + "; ".join(str(problem) for problem in listed),
        hint=f"its arguments are: {names} (? may be left out)" if names else "it takes no arguments",
        detail=msgspec.json.encode(listed).decode(),
    )


def explain(arguments: Any, schema: Mapping[str, Any], error: Exception) -> ToolArguments:
    """What `error`, from reading the arguments, and a look at their names say together."""
    try:
        given = msgspec.json.decode(arguments or "{}") if isinstance(arguments, (str, bytes)) else arguments
    except (msgspec.DecodeError, UnicodeDecodeError) as broken:
        return ToolArguments(f"the arguments are no JSON: {broken}", hint="send one JSON object")
    if not isinstance(given, Mapping):
        return refusal([Problem("$", "type", "object", quoted(given))], schema)
    problems = name_problems(given, schema)
    text = str(error)
    place = _PATH.search(text)
    if place is not None or not problems:
        path = place[1] if place is not None else "$"
        said = _PATH.sub("", text)
        part = part_at(schema, path)
        value = value_at(given, path)
        missing = re.search(r"missing required field `([^`]*)`", said)
        unknown = re.search(r"unknown field `([^`]*)`", said)
        if missing is not None:
            problems.append(
                Problem(f"{path}.{missing[1]}", "missing", describe(part_at(schema, f"{path}.{missing[1]}")))
            )
        elif unknown is not None:
            meant = did_you_mean(unknown[1], _resolved(part, schema).get("properties", ())) or ""
            problems.append(Problem(f"{path}.{unknown[1]}", "unknown", meant=meant))
        elif said.startswith(("Expected `", "Invalid ")):
            problems.append(Problem(path, "type", describe(_resolved(part, schema)) or said, quoted(value)))
        else:
            problems.append(Problem(path, "type", said.removeprefix("Expected "), quoted(value)))
    return refusal(problems, schema)


def name_problems(given: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Problem]:
    """What is missing, and what is there that nobody asked for, of an object."""
    properties = schema.get("properties", {})
    problems = [
        Problem(f"$.{name}", "missing", describe(_resolved(properties.get(name, {}), schema)))
        for name in schema.get("required", ())
        if name not in given
    ]
    if schema.get("additionalProperties") is False:
        left = [name for name in properties if name not in given]
        problems += [
            Problem(f"$.{name}", "unknown", meant=did_you_mean(name, left) or did_you_mean(name, properties) or "")
            for name in given
            if name not in properties
        ]
    return problems


def describe(part: Mapping[str, Any]) -> str:
    """A schema in a few words: `integer of at least 1`, `one of "a", "b"`."""
    if "enum" in part:
        return "one of " + ", ".join(msgspec.json.encode(value).decode() for value in part["enum"])
    if "const" in part:
        return msgspec.json.encode(part["const"]).decode()
    for joined in ("anyOf", "oneOf"):
        if joined in part:
            return " or ".join(dict.fromkeys(filter(None, map(describe, part[joined]))))
    if "$ref" in part:
        return part["$ref"].rpartition("/")[2]
    named = part.get("type", "")
    words = " or ".join(named) if isinstance(named, list) else named
    if part.get("format") in ("image", "audio", "file"):
        return f"the name of an entry of `media` ({part['format']})"
    if words == "array" and describe(part.get("items", {})):
        words = f"array of {describe(part['items'])}"
    limits = (
        ("minimum", "at least"),
        ("exclusiveMinimum", "more than"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "less than"),
        ("minLength", "length at least"),
        ("maxLength", "length at most"),
        ("minItems", "length at least"),
        ("maxItems", "length at most"),
        ("multipleOf", "a multiple of"),
        ("pattern", "matching"),
        ("format", "in the form of a"),
    )
    return " ".join([words, *(f"{said} {part[key]}" for key, said in limits if key in part)]).strip()


def quoted(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _MAX_QUOTE else f"{text[:_MAX_QUOTE]}…"


def integral(arguments: Any) -> Any:
    """The same with whole floats as integers: JSON has one kind of number, and models write `3.0` for 3."""
    try:
        found = msgspec.json.decode(arguments) if isinstance(arguments, (str, bytes)) else arguments
    except (msgspec.DecodeError, UnicodeDecodeError):
        return arguments
    return _integral(found)


def _integral(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _integral(inner) for key, inner in value.items()}
    return [_integral(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def part_at(schema: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The part of a schema that a path leads to; empty where it does not say."""
    part: Mapping[str, Any] = schema
    for step in re.findall(r"\.([^.\[\]]+)|(\[[^\]]*\])", path.removeprefix("$")):
        part = _resolved(part, schema)
        if step[1]:
            items = part.get("items", part.get("additionalProperties", {}))
            part = items if isinstance(items, Mapping) else {}
        else:
            part = part.get("properties", {}).get(step[0], {})
    return part


def value_at(value: Any, path: str) -> Any:
    """What is at a path; the whole where msgspec does not say the key (`[...]`)."""
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", path.removeprefix("$")):
        if name and isinstance(value, Mapping):
            value = value.get(name)
        elif index.isdigit() and isinstance(value, (list, tuple)) and int(index) < len(value):
            value = value[int(index)]
        else:
            return value
    return value


def _resolved(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Past references and an alternative that is only null."""
    while True:
        if "$ref" in part:
            part = schema.get("$defs", {}).get(part["$ref"].rpartition("/")[2], {})
        elif len(options := [o for o in part.get("anyOf", ()) if o.get("type") != "null"]) == 1:
            part = options[0]
        else:
            return part
