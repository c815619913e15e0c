"""Anthropic's HTTP API: `/v1/messages`, whole or as events, and `/v1/messages/count_tokens`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.errors import CallboardError
from ...schemas.serve import Choice, Completion, FinishReason, Token, Tokenize, Usage
from .anthropic_request import conversation, messages_request, offered
from .anthropic_types import CountBody, MessagesBody
from .asking import begun, pieces, while_there
from .bodies import decode_body, read_body
from .endpoints import answer, endpoint, or_error
from .errors import status_of, words
from .openai_chat import new_id
from .reasoning import ReasoningSplitter, split
from .site import Site
from .sse import EventStream, event
from .visit import client_name

_NAMES = {"stop": "stop_sequences", "prompt": "messages"}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: CallboardError) -> dict[str, Any]:
    """Anthropic's shape of an error."""
    status = status_of(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": words(error)}}


async def messages(site: Site, request: Request) -> Response:
    body = decode_body(await read_body(request, site.max_body_bytes), MessagesBody)
    engine = await site.engines.find(body.model)
    asked = messages_request(body, engine, client_name())
    timeout = site.config.request_timeout_s
    if body.stream:
        stream = await begun(pieces(engine.scheduler, asked, timeout), request)
        return EventStream(_events(stream, body))
    completion = await while_there(request, engine.scheduler.ask(asked, timeout=timeout))
    (choice,) = completion.choices
    reasoning, text = split(choice.text)
    blocks: list[dict[str, Any]] = []
    if reasoning:
        blocks.append(_thinking(reasoning))
    calls = _calls(choice, body)
    if text or not calls:
        blocks.append({"type": "text", "text": text})
    blocks += [_tool_use(call.id, call.name, json.loads(call.arguments)) for call in calls]
    return answer(_message(body, blocks, choice, completion.usage))


async def count_tokens(site: Site, request: Request) -> Response:
    body = decode_body(await read_body(request, site.max_body_bytes), CountBody)
    engine = await site.engines.find(body.model)
    asked = Tokenize(messages=conversation(body), tools=offered(body.tools))
    found = await while_there(request, engine.scheduler.ask(asked))
    return answer({"input_tokens": len(found.token_ids)})


async def _events(stream: AsyncGenerator[Token | Completion, None], body: MessagesBody) -> AsyncGenerator[bytes, None]:
    async with aclosing(stream):
        async for each in or_error(_encoded(MessageStream(body).events(stream)), error_body, "error"):
            yield each


async def _encoded(events: AsyncIterator[tuple[str, dict[str, Any]]]) -> AsyncIterator[bytes]:
    async for name, data in events:
        yield event(msgspec.json.encode({"type": name} | data), name)


class MessageStream:
    """An answer as Anthropic's events: blocks that begin, grow and end, one after the other."""

    def __init__(self, body: MessagesBody) -> None:
        self._body = body
        self._index = -1
        self._open = ""

    async def events(self, stream: AsyncIterator[Token | Completion]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        splitter = ReasoningSplitter()
        yield "message_start", {"message": _message(self._body, [], None, None)}
        async for piece in stream:
            if isinstance(piece, Token):
                for one in self._grow(*splitter.push(piece.text)):
                    yield one
                continue
            (choice,) = piece.choices
            for one in self._grow(*splitter.finish()):
                yield one
            calls = _calls(choice, self._body)
            if self._index < 0 and not calls:
                for one in self._begin("text", {"type": "text", "text": ""}):
                    yield one
            for call in calls:
                for one in self._begin("tool_use", _tool_use(call.id, call.name, {})):
                    yield one
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
            for one in self._end():
                yield one
            reason, stop = _stop_reason(choice, bool(calls))
            yield (
                "message_delta",
                {"delta": {"stop_reason": reason, "stop_sequence": stop}, "usage": _usage(piece.usage)},
            )
        yield "message_stop", {}

    def _grow(self, reasoning: str, text: str) -> list[tuple[str, dict[str, Any]]]:
        events: list[tuple[str, dict[str, Any]]] = []
        for kind, grown in (("thinking", reasoning), ("text", text)):
            if not grown:
                continue
            if self._open != kind:
                events += self._begin(kind, _thinking("") if kind == "thinking" else {"type": "text", "text": ""})
            events.append(self._delta({"type": f"{kind}_delta", kind: grown}))
        return events

    def _begin(self, kind: str, block: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        ended = self._end()
        self._index += 1
        self._open = kind
        return [*ended, ("content_block_start", {"index": self._index, "content_block": block})]

    def _delta(self, delta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return "content_block_delta", {"index": self._index, "delta": delta}

    def _end(self) -> list[tuple[str, dict[str, Any]]]:
        if not self._open:
            return []
        self._open = ""
        return [("content_block_stop", {"index": self._index})]


def _calls(choice: Choice, body: MessagesBody) -> list[Any]:
    calls = list(choice.tool_calls)
    return calls[:1] if body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use else calls


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _tool_use(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def _message(
    body: MessagesBody, blocks: list[dict[str, Any]], choice: Choice | None, usage: Usage | None
) -> dict[str, Any]:
    """Of an answer that only begins, `choice` and `usage` are None."""
    reason, stop = (None, None) if choice is None else _stop_reason(choice, bool(_calls(choice, body)))
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": body.model,
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": stop,
        "usage": {"input_tokens": 0, "output_tokens": 0} if usage is None else _usage(usage),
    }


def _stop_reason(choice: Choice, called: bool) -> tuple[str, str | None]:
    if choice.finish_reason is FinishReason.LENGTH:
        return "max_tokens", None
    if called:
        return "tool_use", None
    return ("stop_sequence", choice.stop) if choice.stop else ("end_turn", None)


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def anthropic_routes(site: Site) -> list[Route]:
    return [
        Route("/v1/messages", endpoint(messages, site, error_body, _NAMES), methods=["POST"]),
        Route("/v1/messages/count_tokens", endpoint(count_tokens, site, error_body), methods=["POST"]),
    ]
