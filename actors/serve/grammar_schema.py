"""What of JSON Schema an answer can be held to. The rest is refused: an answer must never break its schema unnoticed.

xgrammar passes over some keywords, or reads them as another one. Each rule here stands for such a case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from .grammar_pattern import json_pattern

IGNORED_BY_XGRAMMAR = {
    "$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas", "else", "if",
    "maxContains", "minContains", "not", "then", "unevaluatedItems", "uniqueItems",
}  # fmt: skip
# Each says all there is to say about its value; beside others xgrammar looks at one of them only.
WHOLE = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
OF_TYPE = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
        "maxProperties", "unevaluatedProperties",
    },
}  # fmt: skip
OF_TYPE["integer"] = OF_TYPE["number"]
ASSERTIONS = {"type", *WHOLE, *IGNORED_BY_XGRAMMAR}.union(*OF_TYPE.values())
RANGE = OF_TYPE["number"] - {"multipleOf"}
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
MAPS = ("properties", "patternProperties", "$defs", "definitions")
SINGLES = ("items", "additionalProperties", "propertyNames", "unevaluatedProperties")
PYTHON_TYPES = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None), "array": list,
    "object": dict,
}  # fmt: skip


def prepare_schema(text: str) -> str:
    """The schema as xgrammar is to be given it; both are JSON. ValueError, with the reason, if it could not be kept."""
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the schema is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("the schema is nested too deeply") from None
    for part in list(_parts(schema)):
        _check_part(part)
        if "pattern" in part:
            part["pattern"] = json_pattern(_expect(part, "pattern", str, ""))
        if "patternProperties" in part:
            part["patternProperties"] = {json_pattern(key): value for key, value in part["patternProperties"].items()}
    return json.dumps(schema, ensure_ascii=False)


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all schemas inside it."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, dict):
            _refuse(f"a schema is an object or a boolean, not {json.dumps(part)[:40]}")
        yield part
        for key in LISTS:
            waiting += _expect(part, key, list, [])
        for key in MAPS:
            waiting += _expect(part, key, dict, {}).values()
        waiting += [part[key] for key in SINGLES if key in part]


def _expect(part: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = part.get(key, default)
    if not isinstance(value, kind):
        _refuse(f"'{key}' is not what it must be")
    return value


def _names(part: Mapping[str, Any], key: str) -> list[str]:
    names = _expect(part, key, list, [])
    if not all(isinstance(name, str) for name in names):
        _refuse(f"'{key}' is not what it must be")
    return names


def _check_part(part: dict[str, Any]) -> None:
    asserted = {key for key in part if key in ASSERTIONS and (part[key] is not False or key == "const")}
    for key in sorted(asserted & IGNORED_BY_XGRAMMAR):
        _refuse(f"'{key}' cannot be kept to")
    whole = [key for key in WHOLE if key in part]
    if whole:
        _check_whole(part, whole, asserted)
        return
    meant = [kind for kind in ("object", "array", "string", "number") if asserted & OF_TYPE[kind]]
    if "type" not in part and len(meant) == 1:
        part["type"] = meant[0]  # values of other types would satisfy it too, but are hardly what it is for
    types = _types(part)
    for key in sorted(asserted - {"type"}):
        if not any(key in OF_TYPE.get(kind, ()) for kind in types):
            _refuse(f"'{key}' needs a 'type' that it applies to beside it")
    if "pattern" in part and asserted & {"minLength", "maxLength", "format"}:
        _refuse("'pattern' cannot be kept to together with a length or a format: put it into the pattern")
    if "multipleOf" in part and ("number" in types or asserted & RANGE):
        _refuse("'multipleOf' can be kept to for an integer without a range only")
    others = [part.get(key) for key in ("additionalProperties", "patternProperties", "propertyNames")]
    if any(others) and _expect(part, "minProperties", int, 0) > 1:
        _refuse("'minProperties' above 1 cannot be kept to where properties are not named: one may come twice")
    missing = set(_names(part, "required")) - set(part.get("properties", {}))
    if missing:
        _refuse(f"'{min(missing)}' is required but not among the properties")


def _check_whole(part: Mapping[str, Any], whole: list[str], asserted: set[str]) -> None:
    beside = asserted - {whole[0]}
    if whole[0] in ("enum", "const") and beside <= {"type"}:
        values = _expect(part, "enum", list, []) if whole[0] == "enum" else [part["const"]]
        types = _types(part)
        if types and not all(_is_of(value, types) for value in values):
            _refuse(f"a value of '{whole[0]}' is not of the type beside it")
    elif beside:
        _refuse(f"'{min(beside)}' cannot be kept to beside '{whole[0]}'")
    if len(part.get("allOf", ())) > 1:
        _refuse("'allOf' of several schemas cannot be kept to: write them as one")
    if "oneOf" in part and not _are_disjoint(part["oneOf"]):
        _refuse("the schemas of 'oneOf' may overlap: use 'anyOf', or give each another 'type' or a 'const' of its own")


def _are_disjoint(options: list[Any]) -> bool:
    """Whether no value can satisfy two of them, as far as types and constant properties tell."""
    if not all(isinstance(option, dict) for option in options):
        return len(options) < 2
    types = [kind for option in options for kind in _types(option) or ["any"]]
    if "any" not in types and len(set(types)) == len(types) and not {"integer", "number"} <= set(types):
        return True
    constants = [_constants(option) for option in options]
    shared = set(constants[0]).intersection(*constants[1:]) if constants else set()
    return any(len({one[key] for one in constants}) == len(constants) for key in shared)


def _constants(option: Mapping[str, Any]) -> dict[str, str]:
    """Required properties with one possible value, and that value; under "" the schema's own."""
    found = {"": json.dumps(option["const"], sort_keys=True)} if "const" in option else {}
    properties = option.get("properties", {})
    for name in _names(option, "required"):
        constant = properties.get(name) if isinstance(properties, dict) else None
        if isinstance(constant, dict) and "const" in constant:
            found[name] = json.dumps(constant["const"], sort_keys=True)
    return found


def _types(part: Mapping[str, Any]) -> list[str]:
    kind = part.get("type", [])
    return [kind] if isinstance(kind, str) else _names(part, "type")


def _is_of(value: Any, types: list[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    return any(isinstance(value, PYTHON_TYPES.get(kind, ())) for kind in types)


def _refuse(reason: str) -> NoReturn:
    raise ValueError(reason)
