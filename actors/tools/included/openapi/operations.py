"""The operations of a document: what each is called, takes and needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urljoin

from ...errors import ToolDefinition
from .document import References, SchemaBuilder

METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
MAX_DESCRIPTION = 2000
# Of those a body may have, in the order of preference.
_BODIES = ("application/json", "application/x-www-form-urlencoded", "multipart/form-data")
# Set by us, whatever the document says.
_OWN_HEADERS = ("accept", "content-type", "authorization", "host", "content-length", "transfer-encoding", "connection")


@dataclass(frozen=True, slots=True)
class Parameter:
    """`key`: the argument's name for the model, `name` the one on the wire; `where`: path, query, header or cookie."""

    key: str
    name: str
    where: str
    style: str
    explode: bool
    as_json: bool = False
    allow_reserved: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """`security`: alternatives, each the names of schemes that are needed together; empty where none is needed."""

    name: str
    method: str
    path: str
    description: str
    schema: dict[str, Any]
    parameters: tuple[Parameter, ...]
    body_mime: str = ""
    security: tuple[tuple[str, ...], ...] = ()
    tags: tuple[str, ...] = field(default=())


def base_url(document: Mapping[str, Any], source: str) -> str:
    """The document's first server, with its variables' defaults. Raises ToolDefinition."""
    servers = document.get("servers")
    server: Any = servers[0] if isinstance(servers, list) and servers else {"url": "/"}
    if not isinstance(server, dict):
        raise ToolDefinition("a server of the document is no object")
    url = str(server.get("url", "/"))
    for name, variable in dict(server.get("variables") or {}).items():
        url = url.replace(f"{{{name}}}", str(variable.get("default", "")))
    url = urljoin(source, url) if source.startswith("http") else url
    if not url.startswith(("http://", "https://")):
        raise ToolDefinition("the document names no server", hint="`base_url` of the API's options says where it is")
    return url.rstrip("/")


def operations_of(document: Mapping[str, Any]) -> list[Operation]:
    """Raises ToolDefinition for a document that is not what it should be."""
    references = References(document)
    found: list[Operation] = []
    names: set[str] = set()
    for path, item, method, operation in _listed(document, references):
        made = _operation(document, references, path, item, method, operation)
        name, number = made.name, 1
        while name in names:
            number += 1
            name = f"{made.name[:60]}_{number}"
        names.add(name)
        found.append(replace(made, name=name))
    return found


def _listed(document: Mapping[str, Any], references: References) -> Iterator[tuple[str, Any, str, Any]]:
    paths = document.get("paths") or {}
    if not isinstance(paths, dict):
        raise ToolDefinition("`paths` of the document is no object")
    for path, item in paths.items():
        item = references.resolved(item)
        if not isinstance(item, dict):
            raise ToolDefinition(f"`paths` of the document: {path!r} is no object")
        for method in METHODS:
            if isinstance(item.get(method), dict):
                yield str(path), item, method, item[method]


def _operation(
    document: Mapping[str, Any], references: References, path: str, item: Any, method: str, operation: Any
) -> Operation:
    builder = SchemaBuilder(references)
    properties: dict[str, Any] = {}
    required: list[str] = []
    parameters: list[Parameter] = []
    for given in _parameters(references, item, operation):
        parameter, schema = _parameter(builder, given, properties)
        parameters.append(parameter)
        properties[parameter.key] = schema
        # What a template in the path stands for is needed, whatever the document says.
        if given.get("required") or parameter.where == "path":
            required.append(parameter.key)
    body_mime = _body(references, builder, operation, properties, required)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if builder.defs:
        schema["$defs"] = builder.defs
    return Operation(
        name=_name(operation, method, path),
        method=method.upper(),
        path=path,
        description=_description(operation, method, path),
        schema=schema,
        parameters=tuple(parameters),
        body_mime=body_mime,
        security=_security(operation.get("security", document.get("security"))),
        tags=tuple(str(tag) for tag in operation.get("tags", ()) if isinstance(tag, str)),
    )


def _parameters(references: References, item: Any, operation: Any) -> list[dict[str, Any]]:
    """The operation's own come over those of its path."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for given in [*item.get("parameters", ()), *operation.get("parameters", ())]:
        parameter = references.resolved(given)
        if not isinstance(parameter, dict) or not parameter.get("name") or "in" not in parameter:
            raise ToolDefinition("a parameter without name or place")
        if parameter["in"] == "header" and str(parameter["name"]).lower() in _OWN_HEADERS:
            continue
        found[str(parameter["in"]), str(parameter["name"])] = parameter
    return list(found.values())


def _parameter(builder: SchemaBuilder, given: Mapping[str, Any], taken: Mapping[str, Any]) -> tuple[Parameter, Any]:
    name, where = str(given["name"]), str(given["in"])
    key = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    if key in taken or key == "body":
        key = f"{key}_{where}"
    content = given.get("content")
    as_json = isinstance(content, dict) and bool(content)
    raw = (
        next(iter(content.values())).get("schema", {}) if as_json and isinstance(content, dict) else given.get("schema")
    )
    schema = builder.build(raw if raw is not None else {"type": "string"})
    if given.get("description") and isinstance(schema, dict):
        # Beside a reference a description is allowed since JSON Schema 2019-09.
        schema = {**schema, "description": str(given["description"])[:MAX_DESCRIPTION]}
    style = str(given.get("style") or ("form" if where in ("query", "cookie") else "simple"))
    explode = bool(given.get("explode", style == "form"))
    return Parameter(key, name, where, style, explode, as_json, bool(given.get("allowReserved"))), schema


def _body(
    references: References, builder: SchemaBuilder, operation: Any, properties: dict[str, Any], required: list[str]
) -> str:
    """Adds the argument `body`. Gives the type that it is sent as."""
    body = references.resolved(operation.get("requestBody"))
    content = body.get("content") if isinstance(body, dict) else None
    if not isinstance(content, dict) or not content:
        return ""
    plain = {str(mime).partition(";")[0].strip().lower(): mime for mime in content}
    chosen = next((mime for mime in _BODIES if mime in plain), None)
    chosen = chosen or next((mime for mime in plain if mime.endswith("+json")), None) or next(iter(plain))
    media = references.resolved(content[plain[chosen]])
    schema = builder.build(media.get("schema", {}) if isinstance(media, dict) else {})
    if chosen not in _BODIES and not chosen.endswith("+json") and not chosen.startswith("text/"):
        schema = {"type": "string", "format": "file"}
    if isinstance(schema, dict) and body.get("description"):
        schema = {**schema, "description": str(body["description"])[:MAX_DESCRIPTION]}
    properties["body"] = schema
    if body.get("required"):
        required.append("body")
    return chosen


def _name(operation: Any, method: str, path: str) -> str:
    wanted = str(operation.get("operationId") or f"{method}_{path.strip('/') or 'root'}")
    return re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_-]", "_", wanted)).strip("_")[:64] or method


def _description(operation: Any, method: str, path: str) -> str:
    parts = [str(operation[key]).strip() for key in ("summary", "description") if operation.get(key)]
    text = "\n\n".join(dict.fromkeys(parts)) or f"{method.upper()} {path}"
    return f"{text} (deprecated)" if operation.get("deprecated") else text[:MAX_DESCRIPTION]


def _security(given: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(given, list):
        return ()
    return tuple(tuple(map(str, each)) for each in given if isinstance(each, dict))
