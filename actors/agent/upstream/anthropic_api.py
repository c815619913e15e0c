"""Anthropic's messages, `POST /messages` as a stream."""

from __future__ import annotations

from typing import Any

import msgspec

from ....schemas.serve import ChatMessage, FinishReason, Generate, GrammarKind, Token
from .answers import CallParts, ChoiceParts, Counts, ToolNames
from .config import UpstreamConfig
from .errors import UpstreamFiltered, UpstreamGarbled
from .requests import parsed, refuse
from .sse import Event
from .statuses import error_in_stream

# The version since which the API has no `temperature`, `top_p` and `top_k`; dates compare as texts.
WITHOUT_SAMPLING = "2026-10-21"
OLD_VERSION = "2023-06-01"
# The API wants a bound in each request.
DEFAULT_MAX_TOKENS = 4096

_FINISH = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "tool_use": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
}


def request_body(request: Generate, config: UpstreamConfig, names: ToolNames) -> dict[str, Any]:
    system = "\n\n".join(m.content for m in request.messages if m.role == "system" and m.content)
    max_tokens = request.max_tokens
    if max_tokens is None:
        max_tokens = config.default_max_tokens or DEFAULT_MAX_TOKENS
    body: dict[str, Any] = {
        "model": request.model or config.model,
        "max_tokens": max_tokens,
        "messages": _turns([message for message in request.messages if message.role != "system"], names),
        "stream": True,
    }
    if draws_as_told(config):
        body["temperature"] = request.temperature
    if system:
        body["system"] = system
    if request.top_p != 1.0:
        body["top_p"] = request.top_p
    if request.top_k:
        body["top_k"] = request.top_k
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    if request.grammar is not None:
        assert request.grammar.kind is GrammarKind.JSON_SCHEMA  # `requests.check` has seen to it
        schema = parsed(request.grammar.text, "the grammar's schema")
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    if request.tools:
        body["tools"] = [
            {
                "name": names.sent(tool.name),
                "description": tool.description,
                "input_schema": parsed(tool.parameters, f"the schema of the tool '{tool.name}'"),
            }
            for tool in request.tools
        ]
        if request.tool_choice in ("auto", "none"):
            body["tool_choice"] = {"type": request.tool_choice}
        elif request.tool_choice == "required":
            body["tool_choice"] = {"type": "any"}
        elif request.tool_choice:
            body["tool_choice"] = {"type": "tool", "name": names.sent(request.tool_choice)}
    return body


def draws_as_told(config: UpstreamConfig) -> bool:
    """Whether the API's version lets a request say how tokens are drawn."""
    return config.anthropic_version < WITHOUT_SAMPLING


def check_sampling(request: Generate, config: UpstreamConfig) -> None:
    """Raises RequestInvalid where a request says how to draw, and the API draws as it likes. Temperature 0 is what
    requests say who do not care, so that alone is let pass."""
    if draws_as_told(config):
        return
    for name, nothing in (("temperature", 0.0), ("top_p", 1.0), ("top_k", 0)):
        if getattr(request, name) != nothing and name not in config.omit:
            refuse(
                f"the API 'anthropic' has no `{name}` since its version {WITHOUT_SAMPLING}",
                hint=f"leave it out, list it in `omit`, or set `anthropic_version` to {OLD_VERSION} for older models",
            )


def _turns(messages: list[ChatMessage], names: ToolNames) -> list[dict[str, Any]]:
    """Roles take turns here, and the answers to one turn's calls are one turn, before any text in it."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "user" if message.role in ("user", "tool") else "assistant"
        if message.role not in ("user", "assistant", "tool"):
            refuse(f"the API 'anthropic' has no role '{message.role}'")
        blocks = _blocks(message, names)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    if not turns:
        refuse("a request to the API 'anthropic' needs a message that is not the system's")
    return turns


def _blocks(message: ChatMessage, names: ToolNames) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}]
    blocks: list[dict[str, Any]] = [{"type": "text", "text": message.content}] if message.content else []
    for call in message.tool_calls:
        arguments = parsed(call.arguments, f"the arguments of the call '{call.id}' of '{call.name}'")
        blocks.append({"type": "tool_use", "id": call.id, "name": names.sent(call.name), "input": arguments})
    return blocks


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Message(msgspec.Struct):
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Part(msgspec.Struct):
    """A content block, a delta of one, or a message's delta: `type` says which fields count."""

    type: str = ""
    text: str = ""
    id: str = ""
    name: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    input: dict[str, Any] | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    message: _Message = msgspec.field(default_factory=_Message)
    content_block: _Part = msgspec.field(default_factory=_Part)
    delta: _Part = msgspec.field(default_factory=_Part)
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"{}")


class AnthropicAnswer:
    """Collects a stream; as `OpenAiAnswer`. Events and blocks of unknown types are passed over, as the API asks."""

    def __init__(self, num_choices: int, names: ToolNames) -> None:
        self._parts = ChoiceParts()
        self.choices = [self._parts]
        self.counts = Counts()
        self.done = False
        self.names = names
        self._decode = msgspec.json.Decoder(_Event).decode

    @property
    def complete(self) -> bool:
        return self._parts.finish_reason is not None

    def feed(self, event: Event) -> list[Token]:
        try:
            given = self._decode(event.data)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise UpstreamGarbled(f"a piece of the stream is none of Anthropic's API: {error}") from error
        match given.type:
            case "message_start":
                self._count(given.message.usage)
            case "content_block_start":
                return self._start(given.index, given.content_block)
            case "content_block_delta":
                return self._grow(given.index, given.delta)
            case "message_delta":
                self._count(given.usage)
                if given.delta.stop_reason:
                    self._finish(given.delta.stop_reason)
            case "message_stop":
                self.done = True
            case "error":
                raise error_in_stream(bytes(given.error))
            case _:
                pass
        return []

    def _start(self, index: int, block: _Part) -> list[Token]:
        if block.type == "tool_use":
            self._parts.calls[index] = call = CallParts(block.id, block.name)
            if block.input:
                call.arguments.append(msgspec.json.encode(block.input).decode())
        return self._text(block.text) if block.type == "text" else []

    def _grow(self, index: int, delta: _Part) -> list[Token]:
        if delta.type == "input_json_delta":
            if index not in self._parts.calls:
                raise UpstreamGarbled(f"the stream goes on with block {index}, which is no tool call")
            self._parts.calls[index].arguments.append(delta.partial_json)
        return self._text(delta.text) if delta.type == "text_delta" else []

    def _text(self, text: str) -> list[Token]:
        if not text:
            return []
        self._parts.text.append(text)
        return [Token(text, ())]

    def _count(self, usage: _Usage | None) -> None:
        """Counts are of the whole so far; the prompt's are those of new, written and read tokens."""
        if usage is None:
            return
        counts = self.counts
        if usage.input_tokens is not None:
            cached = usage.cache_read_input_tokens or 0
            counts.prompt = usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)
            counts.cached = cached
        if usage.output_tokens is not None:
            counts.completion = usage.output_tokens

    def _finish(self, reason: str) -> None:
        if reason == "refusal":
            raise UpstreamFiltered("the model declined to answer")
        if reason not in _FINISH:
            raise UpstreamGarbled(f"the answer ended for an unknown reason: '{reason}'")
        self._parts.finish_reason = _FINISH[reason]
