"""smolagents' tools as ours, and ours as smolagents' (1.2x). They are also what became of transformers' agents."""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING, Any

import msgspec

from ..context import ToolContext
from ..schema_tool import SchemaTool
from ..values import Audio, File, Image
from .callee import Callee, callee, framework, lasting_path

if TYPE_CHECKING:
    from ..client import OpenedTool
    from ..tool import Tool

_PLAIN = ("string", "boolean", "integer", "number", "array", "object", "null")
_MEDIA = ("image", "audio")
_JSON_KINDS: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def from_smolagents(tool: Any, **options: Any) -> SchemaTool:
    """A tool of smolagents' (`smolagents.Tool`) as one of ours. `options` are those of `@tool`.

    Images reach it as PIL images and sounds as paths, as its agents would send them. It is called one call at a time,
    unless `concurrency` says otherwise.
    """
    properties = {name: _property(said) for name, said in tool.inputs.items()}
    schema = {
        "type": "object",
        "properties": properties,
        "required": [name for name, said in tool.inputs.items() if not said.get("nullable")],
        "additionalProperties": False,
    }

    def run(arguments: dict[str, Any], context: ToolContext) -> Any:
        # By name: an only argument that is a dictionary would be taken for all of them.
        return _ours(tool(**{name: _theirs(value) for name, value in arguments.items()}))

    options.setdefault("concurrency", 1)
    return SchemaTool(tool.name[:64], tool.description, schema, run, **options)


def _property(said: dict[str, Any]) -> dict[str, Any]:
    kinds = said["type"] if isinstance(said["type"], list) else [said["type"]]
    found: dict[str, Any] = {"description": str(said["description"])}
    if kinds[0] in _MEDIA:
        found |= {"type": "string", "format": kinds[0]}
    elif "any" not in kinds:
        found["type"] = kinds if len(kinds) > 1 else kinds[0]
    found |= {key: said[key] for key in ("enum", "items", "properties", "default") if key in said}
    if said.get("nullable") and kinds[0] in _MEDIA:
        return {"anyOf": [found, {"type": "null"}], "description": found["description"]}
    if said.get("nullable") and "type" in found:
        found["type"] = [*kinds, "null"]
    return found


def _theirs(value: Any) -> Any:
    if isinstance(value, Image):
        return value.pil()
    return str(value.path) if isinstance(value, File) else value


def _ours(value: Any) -> Any:
    """Out of the agents' own types, into those of ours."""
    kind = type(value).__name__
    if kind == "AgentAudio":
        return Audio.from_path(value.to_string())
    if kind == "AgentImage":
        return Image.from_pil(value.to_raw())
    return value.to_raw() if kind == "AgentText" else value


def to_smolagents(tool: Tool | OpenedTool | Callee) -> Any:
    """One of our tools as smolagents': for `CodeAgent(tools=[...])`.

    Images go in and come out as PIL images, sounds and files as paths.
    """
    base = framework("smolagents", "smolagents").Tool

    called = callee(tool)
    schema: dict[str, Any] = msgspec.json.decode(called.info.input_schema or "{}")
    required = schema.get("required", ())
    parts: dict[str, Any] = schema.get("properties", {})
    inputs = {name: _input(part, schema, required=name in required) for name, part in parts.items()}
    outcome_schema: dict[str, Any] = msgspec.json.decode(called.info.output_schema or "{}")
    output = _kind(outcome_schema, outcome_schema)[0]

    class CallboardTool(base):
        # Its arguments are in `inputs`: a signature made for each tool would say the same again.
        skip_forward_signature_validation = True

        def __init__(self) -> None:
            self.name = _identifier(called.info.name)
            self.description = called.info.description
            self.inputs = inputs
            self.output_type = output
            super().__init__()

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(inputs, args, strict=False)), **kwargs}
            if len(args) > len(inputs):
                raise TypeError(f"{self.name} takes {len(inputs)} arguments, not {len(args)}")
            # What may be left out is None where it was.
            arguments = {name: value for name, value in given.items() if value is not None or name in required}
            return _given_back(called.call(arguments).data)

    return CallboardTool()


def _input(part: dict[str, Any], schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    kind, nullable = _kind(part, schema)
    found: dict[str, Any] = {"type": kind, "description": part.get("description", "") or part.get("title", "")}
    if not required or nullable:
        found["nullable"] = True
    if "enum" in part:
        found["enum"] = part["enum"]
    return found


def _kind(part: dict[str, Any], schema: dict[str, Any]) -> tuple[str, bool]:
    """The smolagents type of a schema's part, and whether null is allowed there."""
    for _ in range(8):
        if "$ref" not in part:
            break
        part = schema.get("$defs", {}).get(str(part["$ref"]).rpartition("/")[2], {})
    options = part.get("anyOf") or part.get("oneOf")
    if options:
        others = [option for option in options if option.get("type") != "null"]
        kind = _kind(others[0], schema)[0] if len(others) == 1 else "any"
        return kind, len(others) < len(options)
    if part.get("format") in _MEDIA:
        return part["format"], False
    named = part.get("type") or [_JSON_KINDS.get(type(value), "any") for value in part.get("enum", ())]
    names = [named] if isinstance(named, str) else named or []
    others = list(dict.fromkeys(name for name in names if name != "null"))
    kind = others[0] if len(others) == 1 and others[0] in _PLAIN else "any"
    return kind, len(others) < len(names)


def _identifier(name: str) -> str:
    found = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"{found}_" if keyword.iskeyword(found) or not found.isidentifier() else found


def _given_back(value: Any) -> Any:
    if isinstance(value, Image):
        return value.pil()
    if isinstance(value, File):
        return lasting_path(value)
    if isinstance(value, list):
        return [_given_back(one) for one in value]
    if isinstance(value, dict):
        return {key: _given_back(one) for key, one in value.items()}
    return value
