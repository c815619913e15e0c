"""What is answered, for the OpenAPI document: the shapes of answers that are made as plain dictionaries."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0)]


class ErrorDetail(msgspec.Struct, kw_only=True):
    """`param`: the path of the field that is wrong. `code`: stable, for programs."""

    message: str
    type: str
    param: str | None
    code: str


class Error(msgspec.Struct, kw_only=True):
    error: ErrorDetail


class AnthropicErrorDetail(msgspec.Struct, kw_only=True):
    type: str
    message: str


class AnthropicError(msgspec.Struct, kw_only=True):
    error: AnthropicErrorDetail
    type: Literal["error"]


class Page(msgspec.Struct, Generic[T], kw_only=True):
    object: Literal["list"]
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Listed(msgspec.Struct, Generic[T], kw_only=True):
    object: Literal["list"]
    data: list[T]


class Deleted(msgspec.Struct, kw_only=True):
    id: str
    object: str
    deleted: Literal[True]


class TokenUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: Count
    total_tokens: Count
    completion_tokens: Count = 0


class CalledFunction(msgspec.Struct, kw_only=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatAnswer(msgspec.Struct, kw_only=True):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(msgspec.Struct, kw_only=True):
    index: Count
    message: ChatAnswer
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class TextChoice(msgspec.Struct, kw_only=True):
    index: Count
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage


class ModelAnswer(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class Embedding(msgspec.Struct, kw_only=True):
    """`embedding`: numbers, or with the format base64 their little-endian float32."""

    object: Literal["embedding"]
    index: Count
    embedding: list[float] | str


class EmbeddingAnswer(msgspec.Struct, kw_only=True):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TokenUsage


class Tokens(msgspec.Struct, kw_only=True):
    tokens: list[int]
    count: Count
    max_model_len: int


class DetokenizedText(msgspec.Struct, kw_only=True):
    prompt: str


class ResponseUsage(msgspec.Struct, kw_only=True):
    input_tokens: Count
    output_tokens: Count
    total_tokens: Count


class ResponseError(msgspec.Struct, kw_only=True):
    code: str
    message: str


class ResponseAnswer(msgspec.Struct, kw_only=True):
    """`output`: items of the types reasoning, message and function_call."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage | None
    error: ResponseError | None
    incomplete_details: dict[str, str] | None
    previous_response_id: str | None
    instructions: str | None
    metadata: dict[str, str]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    background: bool
    store: bool


class InputTokens(msgspec.Struct, kw_only=True):
    object: Literal["response.input_tokens"]
    input_tokens: Count


class InputItemAnswer(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["message", "function_call", "function_call_output", "reasoning"]
    status: str


class AnthropicUsage(msgspec.Struct, kw_only=True):
    input_tokens: Count
    output_tokens: Count
    cache_read_input_tokens: Count = 0
    cache_creation_input_tokens: Count = 0


class AnthropicMessage(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: AnthropicUsage


class CountedTokens(msgspec.Struct, kw_only=True):
    input_tokens: Count


class LoadingEngine(msgspec.Struct, kw_only=True):
    """`since`: ISO 8601."""

    engine: str
    state: str
    since: str | None
    for_s: float | None


class Health(msgspec.Struct, kw_only=True):
    status: Literal["ok", "ready", "loading", "no model", "draining"]
    models: list[str]
    loading: list[LoadingEngine]
