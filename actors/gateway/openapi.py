"""`/openapi.json`: what the gateway's routes take and answer, from the very types that bodies are decoded as.

`DESCRIPTIONS` says it of each route. One that is not in it is listed all the same, with no more than its name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .answers import (
    AnthropicError,
    AnthropicMessage,
    ChatCompletion,
    CountedTokens,
    Deleted,
    DetokenizedText,
    EmbeddingAnswer,
    Error,
    InputItemAnswer,
    InputTokens,
    Listed,
    ModelAnswer,
    Page,
    ResponseAnswer,
    TextCompletion,
    Tokens,
)
from .anthropic_types import CountBody, MessagesBody
from .file_store import FileObject, Purpose
from .files_routes import MAX_TTL_S, MIN_TTL_S, FilesQuery
from .fine_tuning_types import FineTuningJob, JobBody, JobCheckpoint, JobEvent
from .openai_types import ChatBody, CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from .pages import PageQuery
from .responses_types import ResponseBody
from .sessions_routes import PinBody, Session

PATH = "/openapi.json"
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

SENT_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
}


@dataclass(frozen=True)
class Described:
    """Of one route: the types of its body, its query and its answer in JSON. `streams`: with `stream` in the body its
    answer comes as server-sent events. `upload`: the body is a form with a file. `raw`: the answer is any bytes."""

    summary: str
    answer: Any = None
    body: Any = None
    query: type[msgspec.Struct] | None = None
    error: Any = Error
    streams: bool = False
    upload: bool = False
    raw: bool = False

    @property
    def types(self) -> list[Any]:
        return [one for one in (self.answer, self.body, self.query, self.error) if one is not None]


_ITEMS = Page[InputItemAnswer]
_JOB = "/v1/fine_tuning/jobs/{job_id}"
_RESPONSE = "/v1/responses/{response_id}"

DESCRIPTIONS: dict[tuple[str, str], Described] = {
    ("POST", "/v1/chat/completions"): Described("Go on with a conversation", ChatCompletion, ChatBody, streams=True),
    ("POST", "/v1/completions"): Described("Go on with texts", TextCompletion, CompletionBody, streams=True),
    ("GET", "/v1/models"): Described("The models that are served", Listed[ModelAnswer]),
    ("GET", "/v1/models/{model}"): Described("One of the models", ModelAnswer),
    ("DELETE", "/v1/models/{model}"): Described("Delete what came of fine-tuning", Deleted),
    ("POST", "/v1/embeddings"): Described("Vectors that stand for texts", EmbeddingAnswer, EmbeddingBody),
    ("POST", "/tokenize"): Described("The tokens of a text or a conversation", Tokens, TokenizeBody),
    ("POST", "/detokenize"): Described("The text of tokens", DetokenizedText, DetokenizeBody),
    ("POST", "/v1/responses"): Described("Make a response", ResponseAnswer, ResponseBody, streams=True),
    ("POST", "/v1/responses/input_tokens"): Described("Count what a response would read", InputTokens, ResponseBody),
    ("GET", _RESPONSE): Described("A response that is stored", ResponseAnswer),
    ("DELETE", _RESPONSE): Described("Forget a response", Deleted),
    ("POST", f"{_RESPONSE}/cancel"): Described("End a response in the background", ResponseAnswer),
    ("GET", f"{_RESPONSE}/input_items"): Described("What a response was asked with", _ITEMS, query=PageQuery),
    ("POST", "/v1/files"): Described("Upload a file", FileObject, upload=True),
    ("GET", "/v1/files"): Described("The files that were uploaded", Page[FileObject], query=FilesQuery),
    ("GET", "/v1/files/{file_id}"): Described("One of the files", FileObject),
    ("DELETE", "/v1/files/{file_id}"): Described("Delete a file", Deleted),
    ("GET", "/v1/files/{file_id}/content"): Described("What is in a file", raw=True),
    ("POST", "/v1/fine_tuning/jobs"): Described("Fine-tune a model", FineTuningJob, JobBody),
    ("GET", "/v1/fine_tuning/jobs"): Described("The jobs of fine-tuning", Page[FineTuningJob], query=PageQuery),
    ("GET", _JOB): Described("One of the jobs", FineTuningJob),
    ("POST", f"{_JOB}/cancel"): Described("End a job", FineTuningJob),
    ("POST", f"{_JOB}/pause"): Described("End a job for now, with a checkpoint", FineTuningJob),
    ("POST", f"{_JOB}/resume"): Described("Go on with a job", FineTuningJob),
    ("GET", f"{_JOB}/events"): Described("What happened in a job", Page[JobEvent], query=PageQuery),
    ("GET", f"{_JOB}/checkpoints"): Described("A job's last checkpoints", Page[JobCheckpoint], query=PageQuery),
    ("GET", "/v1/sessions"): Described("The conversations that engines keep", Listed[Session]),
    ("POST", "/v1/sessions/{session_id}"): Described("Keep a conversation longer", Listed[Session], PinBody),
    ("DELETE", "/v1/sessions/{session_id}"): Described("Let go what is kept of a conversation", Deleted),
    ("POST", "/v1/messages"): Described(
        "Go on with a conversation (Anthropic's API)",
        AnthropicMessage,
        MessagesBody,
        error=AnthropicError,
        streams=True,
    ),
    ("POST", "/v1/messages/count_tokens"): Described(
        "Count a conversation's tokens (Anthropic's API)", CountedTokens, CountBody, error=AnthropicError
    ),
    ("GET", PATH): Described("This document", dict[str, Any]),
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
    if described.raw:
        answers["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    success = {"description": "What was asked for"} | ({"content": answers} if answers else {})
    failure: dict[str, Any] = {"description": "An error"}
    if described.error is not None:
        failure["content"] = {"application/json": {"schema": of[repr(described.error)]}}
    operation: dict[str, Any] = {
        "summary": described.summary,
        "responses": {"200": success, "default": failure},
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PARAMETER.findall(path)
    ]
    if described.query is not None:
        properties = components[of[repr(described.query)]["$ref"].rpartition("/")[2]]["properties"]
        parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
    if parameters:
        operation["parameters"] = parameters
    if described.body is not None:
        operation["requestBody"] = {
            "required": True,
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
