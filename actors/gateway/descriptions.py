"""What each route of a gateway takes and answers: the table that the OpenAPI document is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .answers import (
    AnthropicError,
    AnthropicMessage,
    ChatCompletion,
    CountedTokens,
    Deleted,
    DetokenizedText,
    EmbeddingAnswer,
    Error,
    Health,
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
from .file_store import FileObject
from .files_routes import FilesQuery
from .fine_tuning_types import FineTuningJob, JobBody, JobCheckpoint, JobEvent
from .kserve import json_types as kserve
from .kserve.http_codec import InferBody
from .kserve.http_routes import IndexBody
from .openai_types import ChatBody, CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from .operation_routes import ReadyQuery
from .pages import PageQuery
from .responses_types import ResponseBody
from .sessions_routes import PinBody, Session
from .web_types import (
    ANSWERED_APPROVAL,
    ANSWERED_QUESTION,
    JOBS,
    WAITING,
    ApprovalAnswer,
    CurvesQuery,
    QuestionAnswer,
)

PATH = "/openapi.json"
_BYTES = ("application/octet-stream",)


@dataclass(frozen=True)
class Described:
    """Of one route: the types of its body, its query and its answer in JSON. `others`: those of answers with other
    statuses, None for no content. `streams`: its answer comes as server-sent events, beside one in JSON only with
    `stream` in the body. `upload`: the body is a form with a file. `media`: types of answers that are no JSON."""

    summary: str
    answer: Any = None
    body: Any = None
    query: type[msgspec.Struct] | None = None
    error: Any = Error
    streams: bool = False
    upload: bool = False
    media: tuple[str, ...] = ()
    others: Mapping[int, Any] = field(default_factory=dict)
    needs_body: bool = True

    @property
    def types(self) -> list[Any]:
        every = (self.answer, self.body, self.query, self.error, *self.others.values())
        return [one for one in every if one is not None]


_ITEMS = Page[InputItemAnswer]
_JOB = "/v1/fine_tuning/jobs/{job_id}"
_RESPONSE = "/v1/responses/{response_id}"


def _asset(summary: str, *media: str) -> Described:
    """304: a browser has it already."""
    return Described(summary, media=media, others={304: None})


def _kserve(summary: str, answer: Any = None, body: Any = None, **more: Any) -> Described:
    return Described(summary, answer, body, error=kserve.KserveError, **more)


_OF_A_MODEL = {
    ("GET", ""): _kserve("A model's inputs and outputs", kserve.ModelMetadata),
    ("GET", "/ready"): _kserve("Whether a model is served", kserve.ModelReady),
    ("GET", "/config"): _kserve("A model's configuration, in Triton's terms", kserve.ModelConfig),
    ("POST", "/infer"): _kserve("Ask a model with tensors", kserve.InferAnswer, InferBody, media=_BYTES),
    ("POST", "/generate"): _kserve("Go on with a text", kserve.GENERATE_ANSWER, kserve.GENERATE_BODY),
    ("POST", "/generate_stream"): _kserve("The same, in pieces", body=kserve.GENERATE_BODY, streams=True),
}

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
    ("GET", "/v1/files/{file_id}/content"): Described("What is in a file", media=_BYTES),
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
    ("GET", "/health"): Described("Whether some model is served", Health, others={503: Health}),
    ("GET", "/ready"): Described("Whether requests are taken", Health, query=ReadyQuery, others={503: Health}),
    ("GET", "/metrics"): Described("What is counted, for Prometheus", media=("text/plain",)),
    ("GET", PATH): Described("This document", dict[str, Any]),
    ("GET", "/"): _asset("The chat page", "text/html"),
    ("GET", "/favicon.ico"): _asset("Its icon", "image/svg+xml"),
    ("GET", "/static/{name}"): _asset("Its files", "text/javascript", "text/css", "text/html", "image/svg+xml"),
    ("GET", "/web/jobs"): Described("The jobs of training, for the page", JOBS),
    ("GET", "/web/curves"): Described(
        "Curves of jobs as an image", media=("image/svg+xml",), query=CurvesQuery, others={204: None}
    ),
    ("GET", "/web/waiting"): Described("What waits for a person", WAITING),
    ("POST", "/web/approvals/{id}"): Described("Answer an approval", ANSWERED_APPROVAL, ApprovalAnswer),
    ("POST", "/web/questions/{id}"): Described("Answer a question", ANSWERED_QUESTION, QuestionAnswer),
    ("GET", "/v2"): _kserve("What this server is (KServe v2)", kserve.Server),
    ("GET", "/v2/health/live"): _kserve("Whether the server runs", kserve.Live),
    ("GET", "/v2/health/ready"): _kserve("Whether there is a model to ask", kserve.Ready, others={503: kserve.Ready}),
    ("POST", "/v2/repository/index"): _kserve(
        "The models that there are", list[kserve.IndexedModel], IndexBody, needs_body=False
    ),
} | {
    (method, f"/v2/models/{{model}}{version}{path}"): described
    for version in ("", "/versions/{version}")
    for (method, path), described in _OF_A_MODEL.items()
}
