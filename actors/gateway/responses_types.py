"""What `/v1/responses` takes, as far as it means something here. Other fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from .openai_types import NamedFunction

Metadata = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]],
    msgspec.Meta(max_length=16),
]


class InputPart(msgspec.Struct, kw_only=True):
    """A piece of a message. Only texts are read; another `type` is refused by its name."""

    type: str
    text: str = ""
    refusal: str = ""


class InputItem(msgspec.Struct, kw_only=True):
    """Something that was said, called, answered or thought before. Which fields it has depends on its `type`: message,
    function_call, function_call_output or reasoning."""

    type: str = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None
    status: str | None = None


class ResponseTool(msgspec.Struct, kw_only=True):
    """Only functions are called; another `type` is refused by its name."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseToolChoice(msgspec.Struct, kw_only=True):
    """A function by its name, or (`allowed_tools`) which of the tools may be called at all."""

    type: str
    name: str = ""
    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedFunction] = []


class TextFormat(msgspec.Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, Any] | None = None
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningConfig(msgspec.Struct, kw_only=True):
    """Told back as it came: how much a model thinks is the model's own affair."""

    effort: str | None = None
    summary: str | None = None


class ResponseBody(msgspec.Struct, kw_only=True):
    """`session_id` and what follows it are extensions."""

    input: str | list[InputItem]
    model: str = ""
    instructions: str | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[str] | None = None
    metadata: Metadata | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    user: str | None = None
    session_id: str | None = None
    top_k: int | None = None
    seed: int | None = None
    priority: int | None = None
    ignore_eos: bool = False
