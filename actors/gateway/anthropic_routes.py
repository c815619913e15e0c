"""Anthropic's HTTP API: `/v1/messages`, whole or as events, and `/v1/messages/count_tokens`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.errors import CallboardError, RequestInvalid
from ...schemas.serve import Choice, Completion, FinishReason, Token, Tokenize, Usage
from .anthropic_request import conversation, format_place, messages_request, offered
from .anthropic_types import CountBody, MessagesBody
from .asking import Pieces, begun, pieces, while_there
from .bodies import decode_body, read_body
from .endpoints import answer, endpoint, named, or_error
from .errors import status_of, words
from .openai_chat import new_id
from .reasoning import ReasoningSplitter, split
from .site import Site
from .sse import HOLE, EventStream, Template, event
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
    try:
        return await _answered(site, request, body)
    except RequestInvalid as error:  # only the body says in which of two fields the schema was
        raise named(error, _NAMES | {"grammar": f"{format_place(body)}.schema"}) from error


async def _answered(site: Site, request: Request, body: MessagesBody) -> Response:
    engine = await site.engines.find(body.model)
    asked = messages_request(body, engine, client_name())
    in_thought = await site.prompt_ends(engine.scheduler, asked.model).in_thought(asked)
    timeout = site.config.request_timeout_s
    if body.stream:
        stream = await begun(pieces(engine.scheduler, asked, timeout), request)
        return EventStream(or_error(MessageStream(body, in_thought).events(stream), stream, error_body, "error"))
    completion = await while_there(request, engine.scheduler.ask(asked, timeout=timeout))
    (choice,) = completion.choices
    reasoning, text = split(choice.text, in_thought)
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


def _event(name: str, **data: Any) -> bytes:
    return event(msgspec.json.encode({"type": name} | data), name)


class MessageStream:
    """An answer as Anthropic's events: blocks that begin, grow and end, one after the other. `in_thought`: whether it
    begins inside a thought."""

    def __init__(self, body: MessagesBody, in_thought: bool) -> None:
        self._body = body
        self._splitter = ReasoningSplitter(in_thought)
        self._index = -1
        self._open = ""
        self._growing: Template | None = None  # of the block that is open

    async def events(self, answer: AsyncIterator[Pieces]) -> AsyncIterator[bytes]:
        """`answer`: what came of the engine's stream together, its completion last. Each goes into one write."""
        events = [_event("message_start", message=_message(self._body, [], None, None))]
        async for some in answer:
            for piece in some:
                if isinstance(piece, Token):
                    events += self._grow(*self._splitter.push(piece.text))
                else:
                    events += self._grow(*self._splitter.finish())
                    events += self._finish(piece)
            if events:
                yield b"".join(events)
                events.clear()

    def _finish(self, completion: Completion) -> Iterator[bytes]:
        (choice,) = completion.choices
        calls = _calls(choice, self._body)
        if self._index < 0 and not calls:
            yield from self._begin("text", {"type": "text", "text": ""})
        for call in calls:
            yield from self._begin("tool_use", _tool_use(call.id, call.name, {}))
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        yield from self._end()
        reason, stop = _stop_reason(choice, bool(calls))
        yield _event(
            "message_delta", delta={"stop_reason": reason, "stop_sequence": stop}, usage=_usage(completion.usage)
        )
        yield _event("message_stop")

    def _grow(self, reasoning: str, text: str) -> Iterator[bytes]:
        for kind, grown in (("thinking", reasoning), ("text", text)):
            if not grown:
                continue
            if self._open != kind or self._growing is None:
                yield from self._begin(kind, _thinking("") if kind == "thinking" else {"type": "text", "text": ""})
                delta = {"type": f"{kind}_delta", kind: HOLE}
                name = "content_block_delta"
                self._growing = Template({"type": name, "index": self._index, "delta": delta}, name)
            yield self._growing.event(grown)

    def _begin(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._end()
        self._index += 1
        self._open = kind
        yield _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _end(self) -> Iterator[bytes]:
        if self._open:
            self._open = ""
            self._growing = None
            yield _event("content_block_stop", index=self._index)


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
        Route("/v1/messages", endpoint(messages, site, error_body), methods=["POST"]),
        Route("/v1/messages/count_tokens", endpoint(count_tokens, site, error_body), methods=["POST"]),
    ]
