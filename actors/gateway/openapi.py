"""`/openapi.json`: what the gateway's routes take and answer, from the very types that bodies are decoded as.

A route that has no description is listed all the same, with no more than its name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .descriptions import DESCRIPTIONS, PATH, Described
from .file_store import Purpose
from .files_routes import MAX_TTL_S, MIN_TTL_S

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")

UPLOAD = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(get_args(Purpose))},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": MIN_TTL_S, "maximum": MAX_TTL_S},
    },
}

_TEXT = {"type": "string"}
_BINARY = {"type": "string", "format": "binary"}
SENT_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
}


def document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    types = [kind for described in DESCRIPTIONS.values() for kind in described.types]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    of = {repr(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    for schema in components.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, Route):
            path = _PARAMETER.sub(r"{\1}", route.path)
            for method in sorted((route.methods or set()) - {"HEAD"}):
                described = DESCRIPTIONS.get((method, path), Described(f"{method} {path}", error=None))
                paths.setdefault(path, {})[method.lower()] = _operation(path, described, of, components)
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "Callboard", "version": _version()},
        "paths": paths,
        "components": {"schemas": components},
    }
    return msgspec.json.decode(msgspec.json.encode(whole))  # plain JSON: a default may be a tuple


def _version() -> str:
    try:
        return version("callboard")
    except PackageNotFoundError:
        return "0"


def _operation(path: str, described: Described, of: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """`of`: the schemas of types, by their `repr`."""
    answers: dict[str, Any] = {}
    if described.answer is not None:
        answers["application/json"] = {"schema": of[repr(described.answer)]}
    if described.streams:
        answers["text/event-stream"] = {"schema": SENT_EVENT}
    answers |= {
        media: {"schema": _TEXT if media.startswith(("text/", "image/svg")) else _BINARY} for media in described.media
    }

    def of_type(description: str, kind: Any) -> dict[str, Any]:
        content = {} if kind is None else {"content": {"application/json": {"schema": of[repr(kind)]}}}
        return {"description": description} | content

    success = {"description": "What was asked for"} | ({"content": answers} if answers else {})
    others = {str(status): of_type(HTTPStatus(status).phrase, kind) for status, kind in described.others.items()}
    responses = {"200": success, **others, "default": of_type("An error", described.error)}
    operation: dict[str, Any] = {"summary": described.summary, "responses": responses}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PARAMETER.findall(path)
    ]
    if described.query is not None:
        query = components[of[repr(described.query)]["$ref"].rpartition("/")[2]]
        parameters += [
            {"name": name, "in": "query", "required": name in query.get("required", ()), "schema": schema}
            for name, schema in query["properties"].items()
        ]
    if parameters:
        operation["parameters"] = parameters
    if described.body is not None:
        operation["requestBody"] = {
            "required": described.needs_body,
            "content": {"application/json": {"schema": of[repr(described.body)]}},
        }
    if described.upload:
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": UPLOAD}}}
    return operation


def openapi_route(routes: Sequence[BaseRoute]) -> Route:
    """Of these routes and itself."""
    made: list[bytes] = []

    async def show(request: Request) -> Response:
        if not made:
            made.append(msgspec.json.encode(document([*routes, route])))
        return Response(made[0], media_type="application/json")

    route = Route(PATH, show, methods=["GET"])
    return route
