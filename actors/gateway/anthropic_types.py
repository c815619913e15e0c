"""What Anthropic's API takes, as far as it means something here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec


class Block(msgspec.Struct, kw_only=True):
    """A piece of a message, of whatever `type`: text, tool_use, tool_result, thinking. Others are refused by name."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}
    tool_use_id: str = ""
    content: str | list[Block] | None = None
    is_error: bool = False


class Turn(msgspec.Struct, kw_only=True):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class Tool(msgspec.Struct, kw_only=True):
    name: str
    input_schema: dict[str, Any]
    description: str = ""
    type: str | None = None


class Choice(msgspec.Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False


class Metadata(msgspec.Struct, kw_only=True):
    user_id: str | None = None


class OutputFormat(msgspec.Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True):
    format: OutputFormat | None = None


class CountBody(msgspec.Struct, kw_only=True):
    model: str
    messages: list[Turn]
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None


class MessagesBody(CountBody, kw_only=True):
    """`output_format` is what betas of the API called the `format` of `output_config`. What follows it are extensions,
    as in OpenAI's requests."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool = False
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    session_id: str | None = None
    session_ttl_s: float | None = None
