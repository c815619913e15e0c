"""The OpenAPI document knows all routes, and what it says holds together."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from callboard.actors.gateway.anthropic_routes import anthropic_routes
from callboard.actors.gateway.files_routes import files_routes
from callboard.actors.gateway.fine_tuning_routes import fine_tuning_routes
from callboard.actors.gateway.openai_routes import openai_routes
from callboard.actors.gateway.openapi import DESCRIPTIONS, document
from callboard.actors.gateway.responses_routes import responses_routes
from callboard.actors.gateway.sessions_routes import sessions_routes

ROUTES = (anthropic_routes, files_routes, fine_tuning_routes, openai_routes, responses_routes, sessions_routes)

ASKED = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    site: Any = None  # nothing is asked of it before a request comes
    return document([route for routes in ROUTES for route in routes(site)])


def test_every_route_is_described(whole: dict[str, Any]) -> None:
    for path, methods in whole["paths"].items():
        for method in methods:
            assert (method.upper(), path) in DESCRIPTIONS
    described = {path for _, path in DESCRIPTIONS}
    assert described - whole["paths"].keys() == {"/openapi.json"}


def test_a_route_that_nobody_described_is_listed_all_the_same() -> None:
    async def nothing(request: Any) -> Any: ...

    made = document([Route("/more/{name:path}", nothing, methods=["GET", "PUT"])])
    assert made["paths"]["/more/{name}"].keys() == {"get", "put"}
    (parameter,) = made["paths"]["/more/{name}"]["put"]["parameters"]
    assert (parameter["name"], parameter["in"]) == ("name", "path")


def test_all_references_lead_somewhere(whole: dict[str, Any]) -> None:
    references = set[str]()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                references.add(value["$ref"])
            for one in value.values():
                look(one)
        elif isinstance(value, list):
            for one in value:
                look(one)

    look(whole)
    schemas = whole["components"]["schemas"]
    assert references
    assert references <= {f"#/components/schemas/{name}" for name in schemas}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("path", "body", "fits"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, True),
        ("/v1/chat/completions", {"messages": [{"content": "a"}]}, False),
        ("/v1/responses", {"input": "a", "metadata": {"a": "b"}}, True),
        ("/v1/responses", {"input": "a", "metadata": {"a": 1}}, False),
        ("/v1/messages", ASKED | {"output_config": {"format": {"type": "json_schema", "schema": {}}}}, True),
        ("/v1/messages", ASKED | {"output_config": {"format": {"type": "json_schema"}}}, False),
        ("/v1/messages", ASKED | {"output_format": {"type": "text", "schema": {}}}, False),
        ("/v1/fine_tuning/jobs", {"model": "m", "training_file": "f", "suffix": "a b"}, False),
    ],
)
def test_schemas_take_what_routes_take(whole: dict[str, Any], path: str, body: Any, fits: bool) -> None:
    content = whole["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = json.loads(json.dumps({**content, "components": whole["components"]}))
    assert jsonschema.Draft202012Validator(schema).is_valid(body) == fits
