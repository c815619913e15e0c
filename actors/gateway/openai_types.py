"""What OpenAI's API takes, as far as it means something here, with the extensions that other servers made usual.

Fields that are not known are ignored, as clients send new ones before servers know them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

# A text, its tokens, or a list of either.
Texts = str | list[str | int | list[int]]


class FunctionCall(msgspec.Struct, kw_only=True):
    name: str
    arguments: str = "{}"


class CallOfTool(msgspec.Struct, kw_only=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Part(msgspec.Struct, kw_only=True):
    """A piece of a message. Only texts are read; another `type` is refused by its name."""

    type: str
    text: str = ""


class ChatTurn(msgspec.Struct, kw_only=True):
    """`reasoning_content`: what the assistant thought before it said this, as answers have it."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[CallOfTool] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(msgspec.Struct, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class FunctionTool(msgspec.Struct, kw_only=True):
    function: Function
    type: Literal["function"] = "function"


class NamedFunction(msgspec.Struct, kw_only=True):
    name: str


class ToolChoice(msgspec.Struct, kw_only=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class JsonSchema(msgspec.Struct, kw_only=True):
    schema: dict[str, Any] | None = None
    name: str = ""


class ResponseFormat(msgspec.Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """`include_timings` is an extension: what the engine measured, beside the usage."""

    include_usage: bool = False
    include_timings: bool = False


class SamplingBody(msgspec.Struct, kw_only=True):
    """What both kinds of completions share. From `top_k` on they are extensions."""

    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool = False
    session_id: str | None = None
    session_ttl_s: float | None = None
    priority: int | None = None
    deterministic: bool = False


class ChatBody(SamplingBody, kw_only=True):
    messages: list[ChatTurn]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


class CompletionBody(SamplingBody, kw_only=True):
    prompt: Texts
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None


class EmbeddingBody(msgspec.Struct, kw_only=True):
    input: Texts
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    model: str = ""
    prompt: str | None = None
    messages: list[ChatTurn] | None = None
    tools: list[FunctionTool] | None = None
    add_special_tokens: bool = True


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str = ""
