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
from callboard.actors.gateway.kserve.http_routes import kserve_routes
from callboard.actors.gateway.openai_routes import openai_routes
from callboard.actors.gateway.openapi import DESCRIPTIONS, document
from callboard.actors.gateway.operation_routes import operation_routes
from callboard.actors.gateway.responses_routes import responses_routes
from callboard.actors.gateway.sessions_routes import sessions_routes
from callboard.actors.gateway.web_routes import _plain, web_routes
from callboard.schemas import agent, question
from callboard.schemas.train import JobState, TrainJob

ROUTES = (
    *(anthropic_routes, files_routes, fine_tuning_routes, kserve_routes, openai_routes),
    *(operation_routes, responses_routes, sessions_routes, web_routes),
)
# Requests that say all with their path.
WITHOUT_BODY = {f"/v1/fine_tuning/jobs/{{job_id}}/{what}" for what in ("cancel", "pause", "resume")} | {
    "/v1/responses/{response_id}/cancel"
}

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


def test_every_request_and_every_answer_has_a_type(whole: dict[str, Any]) -> None:
    def typed(content: dict[str, Any]) -> bool:
        return bool(content) and all(
            {"$ref", "type", "anyOf", "enum"} & media["schema"].keys() for media in content.values()
        )

    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            assert typed(operation["responses"]["200"]["content"]), (method, path)
            assert typed(operation["responses"]["default"]["content"]), (method, path)
            has_body = method == "post" and path not in WITHOUT_BODY
            assert ("requestBody" in operation) == has_body, (method, path)
            assert not has_body or typed(operation["requestBody"]["content"]), (method, path)
            assert all(typed({"": parameter}) for parameter in operation.get("parameters", ())), (method, path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("WebJob", TrainJob(job="a", state=JobState.RUNNING, folder="f", out="o", model="m", data="d")),
        ("WebApproval", agent.Approval(id="1", run="r", step="s", kind=agent.ApprovalKind.TOOL)),
        ("WebQuestion", question.Question("1", "text", "asker")),
        ("WebAnsweredApproval", agent.Answered("1", agent.Verdict.APPROVE, "me")),
        ("WebAnsweredQuestion", question.Answered("1", question.Outcome.ACCEPTED)),
    ],
)
def test_the_page_is_told_what_the_document_says(whole: dict[str, Any], name: str, message: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": whole["components"]}
    jsonschema.Draft202012Validator(schema).validate(_plain(message))
    assert whole["components"]["schemas"][name]["properties"].keys() == _plain(message).keys()


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
        ("/v2/models/{model}/infer", {"inputs": [{"name": "a", "datatype": "BYTES", "shape": [1]}]}, True),
        ("/v2/models/{model}/infer", {"inputs": [{"name": "a", "datatype": "BYTES"}]}, False),
        ("/v2/models/{model}/generate", {"text_input": "a", "max_tokens": 3, "stop": ["b"]}, True),
        ("/v2/models/{model}/generate", {"text_input": "a", "max_tokens": "b"}, False),
        ("/v2/models/{model}/versions/{version}/generate_stream", {"max_tokens": 3}, False),
        ("/web/approvals/{id}", {"verdict": "approve", "scope": "run"}, True),
        ("/web/approvals/{id}", {"verdict": "maybe"}, False),
        ("/web/questions/{id}", {"outcome": "accepted", "value": {"any": 1}}, True),
    ],
)
def test_schemas_take_what_routes_take(whole: dict[str, Any], path: str, body: Any, fits: bool) -> None:
    content = whole["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = json.loads(json.dumps({**content, "components": whole["components"]}))
    assert jsonschema.Draft202012Validator(schema).is_valid(body) == fits
