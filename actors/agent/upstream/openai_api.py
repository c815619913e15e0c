"""OpenAI's chat completions, `POST /chat/completions` as a stream, and what vLLM and llama.cpp's server add to them."""

from __future__ import annotations

from typing import Any

import msgspec

from ....schemas.serve import ChatMessage, FinishReason, Generate, Grammar, GrammarKind, Token, TokenLogprob
from .answers import CallParts, ChoiceParts, Counts, ToolNames
from .config import Api, UpstreamConfig
from .errors import UpstreamFiltered, UpstreamGarbled
from .requests import parsed
from .sse import Event
from .statuses import error_in_stream

_FINISH = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "tool_calls": FinishReason.STOP,
    "function_call": FinishReason.STOP,
    "length": FinishReason.LENGTH,
}
_DONE = "[DONE]"
# Fields that go by the same name, and their values that mean nothing is wanted.
_NUMBERS: dict[str, float | None] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": None,
}
# How vLLM writes a token whose id was asked for in place of its text.
_TOKEN_ID = "token_id:"


def request_body(request: Generate, config: UpstreamConfig, names: ToolNames) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model or config.model,
        "messages": [_message(message, names) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": request.temperature,
    }
    if request.max_tokens is not None or config.default_max_tokens:
        body[config.max_tokens_field] = config.default_max_tokens if request.max_tokens is None else request.max_tokens
    for name, nothing in _NUMBERS.items():
        if (value := getattr(request, name)) != nothing:
            body[name] = value
    if request.ignore_eos:
        body["ignore_eos"] = True
    if request.stop:
        body["stop"] = list(request.stop)
    if request.n != 1:
        body["n"] = request.n
    if request.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in request.logit_bias}
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.logprobs, "return_tokens_as_token_ids": True}
    if request.grammar is not None:
        body |= _constraint(request.grammar, config)
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": names.sent(tool.name),
                    "description": tool.description,
                    "parameters": parsed(tool.parameters, f"the schema of the tool '{tool.name}'"),
                },
            }
            for tool in request.tools
        ]
        if request.tool_choice in ("auto", "none", "required"):
            body["tool_choice"] = request.tool_choice
        elif request.tool_choice:
            body["tool_choice"] = {"type": "function", "function": {"name": names.sent(request.tool_choice)}}
    return body


def _message(message: ChatMessage, names: ToolNames) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        body["content"] = message.content or None
        body["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": names.sent(call.name), "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return body


def _constraint(grammar: Grammar, config: UpstreamConfig) -> dict[str, Any]:
    """What holds the answer to it; `requests.check` has seen that the API can."""
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            schema: dict[str, Any] = {"name": "answer", "schema": parsed(grammar.text, "the grammar's schema")}
            if config.api is Api.OPENAI:
                schema["strict"] = config.strict_schemas
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case GrammarKind.JSON:
            return {"response_format": {"type": "json_object"}}
        case GrammarKind.EBNF if config.api is Api.LLAMACPP:
            return {"grammar": grammar.text}
        case GrammarKind.EBNF:
            return {"structured_outputs": {"grammar": grammar.text}}
        case GrammarKind.REGEX:
            return {"structured_outputs": {"regex": grammar.text}}
        case GrammarKind.CHOICE:
            return {"structured_outputs": {"choice": msgspec.json.decode(grammar.text, type=list[str])}}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float


class _Logprob(_Top):
    top_logprobs: list[_Top] = []


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


_NO_ERROR = msgspec.Raw(b"null")


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = _NO_ERROR


class OpenAiAnswer:
    """Collects a stream. `feed` gives the pieces of text of an event; `done` once the endpoint has said its last."""

    def __init__(self, num_choices: int, names: ToolNames) -> None:
        self.choices = [ChoiceParts() for _ in range(num_choices)]
        self.counts = Counts()
        self.done = False
        self.names = names
        self._decode = msgspec.json.Decoder(_Chunk).decode

    @property
    def complete(self) -> bool:
        """Whether each choice has its end; some servers leave out the last mark of all."""
        return all(choice.finish_reason is not None for choice in self.choices)

    def feed(self, event: Event) -> list[Token]:
        if event.data.strip() == _DONE:
            self.done = True
            return []
        try:
            chunk = self._decode(event.data)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise UpstreamGarbled(f"a piece of the stream is none of OpenAI's API: {error}") from error
        if bytes(chunk.error) != bytes(_NO_ERROR):
            raise error_in_stream(bytes(chunk.error))
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            cached = (details.cached_tokens or 0) if details is not None else 0
            self.counts = Counts(chunk.usage.prompt_tokens, chunk.usage.completion_tokens, cached)
        return [token for choice in chunk.choices if (token := self._take(choice)) is not None]

    def _take(self, choice: _Choice) -> Token | None:
        if not 0 <= choice.index < len(self.choices):
            raise UpstreamGarbled(f"the stream has a choice {choice.index}, which nobody asked for")
        parts = self.choices[choice.index]
        delta = choice.delta
        text = delta.content or ""
        if text:
            parts.text.append(text)
        if delta.refusal:
            parts.refusal.append(delta.refusal)
        for call in delta.tool_calls or ():
            _take_call(parts, call)
        logprobs = _logprobs(choice.logprobs)
        parts.logprobs += logprobs
        if choice.finish_reason:
            self._finish(parts, choice.finish_reason)
        if not (text or logprobs):
            return None
        return Token(text, tuple(one.token_id for one in logprobs), choice.index, logprobs)

    def _finish(self, parts: ChoiceParts, reason: str) -> None:
        if reason == "content_filter" or parts.refusal:
            said = "".join(parts.refusal)
            raise UpstreamFiltered(said or "the endpoint's content filter ended the answer")
        if reason not in _FINISH:
            raise UpstreamGarbled(f"the answer ended for an unknown reason: '{reason}'")
        parts.finish_reason = _FINISH[reason]


def _take_call(parts: ChoiceParts, call: _Call) -> None:
    place = call.index
    if place is None:
        # Servers that leave the index out send each call whole.
        place = len(parts.calls)
    known = parts.calls.setdefault(place, CallParts())
    known.id = known.id or call.id or ""
    if call.function is not None:
        known.name = known.name or call.function.name or ""
        if call.function.arguments:
            known.arguments.append(call.function.arguments)


def _logprobs(given: _Logprobs | None) -> tuple[TokenLogprob, ...]:
    if given is None or not given.content:
        return ()
    return tuple(
        TokenLogprob(
            _token_id(one.token), one.logprob, tuple((_token_id(top.token), top.logprob) for top in one.top_logprobs)
        )
        for one in given.content
    )


def _token_id(token: str) -> int:
    try:
        return int(token.removeprefix(_TOKEN_ID))
    except ValueError:
        raise UpstreamGarbled(f"a logprob does not say its token's id: {token!r}") from None
