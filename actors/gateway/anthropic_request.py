"""From Anthropic's requests to the company's."""

from __future__ import annotations

import json
from typing import Any

from ...schemas.serve import ChatMessage, Generate, Grammar, GrammarKind, ModelToolCall, OfferedTool
from .anthropic_types import Block, CountBody, MessagesBody, Tool, Turn
from .engines import Engine
from .errors import BadBody

TEMPERATURE = 1.0


def messages_request(body: MessagesBody, engine: Engine, client: str) -> Generate:
    """Raises BadBody."""
    user = body.metadata.user_id if body.metadata is not None else None
    optional: dict[str, Any] = {"top_p": body.top_p, "top_k": body.top_k, "session_ttl_s": body.session_ttl_s}
    return Generate(
        model=engine.model.model,
        adapter=engine.adapter,
        messages=conversation(body),
        tools=offered(body.tools),
        tool_choice=_choice(body),
        grammar=_grammar(body),
        max_tokens=body.max_tokens,
        temperature=TEMPERATURE if body.temperature is None else body.temperature,
        stop=tuple(body.stop_sequences or ()),
        session=body.session_id or "",
        client=client or user or "",
        **{name: value for name, value in optional.items() if value is not None},
    )


def conversation(body: CountBody) -> tuple[ChatMessage, ...]:
    """Raises BadBody."""
    if not body.messages:
        raise BadBody("messages: there are none", param="messages")
    system = [ChatMessage("system", _text(body.system, "system"))] if body.system else []
    turns = [message for index, turn in enumerate(body.messages) for message in _messages(turn, f"messages[{index}]")]
    return (*system, *turns)


def _messages(turn: Turn, where: str) -> list[ChatMessage]:
    """Results of tools are messages of their own here, before what the user says beside them."""
    if isinstance(turn.content, str):
        return [ChatMessage(turn.role, turn.content)]
    messages: list[ChatMessage] = []
    texts: list[str] = []
    calls: list[ModelToolCall] = []
    for index, block in enumerate(turn.content):
        place = f"{where}.content[{index}]"
        match block.type:
            case "text":
                texts.append(block.text)
            case "tool_use":
                calls.append(ModelToolCall(block.id, block.name, json.dumps(block.input)))
            case "tool_result":
                said = _text(block.content or "", f"{place}.content")
                error = "error: " if block.is_error else ""
                messages.append(ChatMessage("tool", error + said, tool_call_id=block.tool_use_id))
            case "thinking" | "redacted_thinking":
                continue  # what was thought in an earlier turn is not said again
            case other:
                raise BadBody(f"{place}.type: the model reads texts, no '{other}'", param=f"{place}.type")
    if texts or calls or not messages:
        messages.append(ChatMessage(turn.role, "\n".join(texts), tuple(calls)))
    return messages


def _text(content: str | list[Block], where: str) -> str:
    if isinstance(content, str):
        return content
    for index, block in enumerate(content):
        if block.type != "text":
            place = f"{where}[{index}].type"
            raise BadBody(f"{place}: the model reads texts, no '{block.type}'", param=place)
    return "\n".join(block.text for block in content)


def offered(tools: list[Tool] | None) -> tuple[OfferedTool, ...]:
    """Raises BadBody for tools that only Anthropic's own servers run."""
    for index, tool in enumerate(tools or ()):
        if tool.type not in (None, "custom"):
            place = f"tools[{index}].type"
            raise BadBody(f"{place}: '{tool.type}' is a tool of Anthropic's servers", param=place)
    return tuple(OfferedTool(tool.name, tool.description, json.dumps(tool.input_schema)) for tool in tools or ())


def _choice(body: MessagesBody) -> str:
    choice = body.tool_choice
    if choice is None:
        return "auto" if body.tools else ""
    if choice.type == "tool":
        if not choice.name:
            raise BadBody("tool_choice.name: it is needed for the type tool", param="tool_choice.name")
        return choice.name
    return "required" if choice.type == "any" else choice.type


def format_place(body: MessagesBody) -> str:
    """Which field says what the answer must look like."""
    return "output_config.format" if body.output_format is None else "output_format"


def _grammar(body: MessagesBody) -> Grammar | None:
    newer = body.output_config.format if body.output_config is not None else None
    if newer is not None and body.output_format is not None:
        raise BadBody("output_format: it is there beside `output_config.format`; give one", param="output_format")
    format = newer or body.output_format
    if format is None:
        return None
    if body.tool_choice is not None and body.tool_choice.type in ("any", "tool"):
        place = format_place(body)
        raise BadBody(f"{place}: a tool must be called, so there is no answer to fit it", param=place)
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(format.schema))
