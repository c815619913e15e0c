"""An OpenAPI document: loaded within bounds, its references followed, its schemas as JSON Schema 2020-12."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from ...errors import ToolDefinition
from ..net.addresses import Network
from ..net.client import Bounds, Client
from ..optional import need

MAX_BYTES = 16 << 20
# References that lead to references, and parts of a schema that one operation needs.
MAX_HOPS = 50
MAX_PARTS = 2000
MAX_DEPTH = 100
# Of OpenAPI's own, without meaning in JSON Schema.
_DROPPED = ("discriminator", "xml", "externalDocs", "example", "nullable", "readOnly", "writeOnly", "deprecated")


def parse_document(data: bytes, source: str) -> dict[str, Any]:
    """JSON or YAML. Raises ToolDefinition for what is no OpenAPI 3 document."""
    if len(data) > MAX_BYTES:
        raise ToolDefinition(f"{source} has more than {MAX_BYTES:,} bytes")
    try:
        found = msgspec.json.decode(data)
    except msgspec.DecodeError:
        yaml = need("yaml", "tools", "reading an OpenAPI document in YAML")
        try:
            found = yaml.load(data, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ToolDefinition(f"{source} is neither JSON nor YAML: {error}") from error
    version = str(found.get("openapi", "")) if isinstance(found, dict) else ""
    if not isinstance(found, dict) or not version.startswith("3."):
        said = f"it says openapi: {version}" if version else "it does not say openapi: 3.x"
        raise ToolDefinition(f"{source} is no OpenAPI 3 document: {said}")
    return found


def read_document(path: Path) -> dict[str, Any]:
    """Raises ToolDefinition."""
    try:
        with path.open("rb") as file:
            return parse_document(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise ToolDefinition(f"{path} cannot be read: {error.strerror}") from error


async def fetch_document(url: str, allowed: tuple[Network, ...]) -> dict[str, Any]:
    """Raises FetchFailed, ToolDefinition."""
    client = Client(allowed, Bounds(30.0, MAX_BYTES))
    try:
        answer = await client.request("GET", url)
    finally:
        await client.aclose()
    if answer.status != 200:
        raise ToolDefinition(f"{url} answers with status {answer.status}")
    return parse_document(answer.body, url)


class References:
    """Follows references within one document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def resolved(self, node: Any) -> Any:
        """What a node stands for, after any references at its top. Raises ToolDefinition."""
        for _ in range(MAX_HOPS):
            if not isinstance(node, dict) or "$ref" not in node:
                return node
            node = self.target(node["$ref"])
        raise ToolDefinition("a reference leads round in circles")

    def target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise ToolDefinition(
                f"the reference {reference!r} leads out of the document", hint="bundle the document into one file first"
            )
        node: Any = self._document
        for part in reference[1:].split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
                node = node[int(key)]
            else:
                raise ToolDefinition(f"the reference {reference!r} leads nowhere")
        return node


class SchemaBuilder:
    """Schemas of one operation. References stay references, into `$defs`: a schema may contain itself."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._names: dict[str, str] = {}
        self.defs: dict[str, Any] = {}
        self._parts = 0

    def build(self, schema: Any, depth: int = 0) -> Any:
        """A schema of the document as JSON Schema. Raises ToolDefinition where it is too large."""
        self._parts += 1
        if self._parts > MAX_PARTS or depth > MAX_DEPTH:
            raise ToolDefinition("the operation's schema is too large", hint="leave the operation out")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            return {}
        if "$ref" in schema:
            return {"$ref": f"#/$defs/{self._named(schema['$ref'])}"}
        found = {key: self._part(key, value, depth) for key, value in schema.items() if _is_kept(key)}
        self._without_read_only(schema, found)
        _bounds(found)
        if found.get("type") == "string" and (schema.get("format") == "binary" or "contentMediaType" in schema):
            found["format"] = "file"
        if schema.get("nullable"):
            return _nullable(found)
        return found

    def _part(self, key: str, value: Any, depth: int) -> Any:
        if key in ("properties", "patternProperties", "$defs", "dependentSchemas") and isinstance(value, dict):
            return {name: self.build(each, depth + 1) for name, each in value.items()}
        if key in ("allOf", "anyOf", "oneOf", "prefixItems") and isinstance(value, list):
            return [self.build(each, depth + 1) for each in value]
        if key in ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"):
            return self.build(value, depth + 1)
        return copy.copy(value)

    def _without_read_only(self, schema: Mapping[str, Any], found: dict[str, Any]) -> None:
        """What only the server sets is not asked of a model."""
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return
        hidden = {name for name, each in properties.items() if isinstance(each, dict) and each.get("readOnly") is True}
        found["properties"] = {name: each for name, each in found["properties"].items() if name not in hidden}
        if isinstance(found.get("required"), list):
            found["required"] = [name for name in found["required"] if name not in hidden]

    def _named(self, reference: Any) -> str:
        if not isinstance(reference, str):
            raise ToolDefinition("a reference that is no text")
        if reference not in self._names:
            wanted = "".join(c if c.isalnum() or c == "_" else "_" for c in reference.rpartition("/")[2]) or "schema"
            name, number = wanted, 1
            while name in self.defs:
                number += 1
                name = f"{wanted}_{number}"
            self._names[reference] = name
            self.defs[name] = {}
            self.defs[name] = self.build(self._references.target(reference))
        return self._names[reference]


def _is_kept(key: str) -> bool:
    return key not in _DROPPED and not key.startswith("x-")


def _bounds(schema: dict[str, Any]) -> None:
    """OpenAPI 3.0 has `exclusiveMinimum: true` beside `minimum`."""
    for exclusive, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(exclusive), bool):
            if schema.pop(exclusive) and plain in schema:
                schema[exclusive] = schema.pop(plain)


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type")
    if isinstance(kind, str):
        schema["type"] = [kind, "null"]
        if "enum" in schema and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]
        return schema
    return {"anyOf": [schema, {"type": "null"}]}
