"""`/v1/chat/completions`: a conversation goes on, as one answer or as it is written."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec

from ...schemas.serve import Choice, Completion, FinishReason, Generate, ModelToolCall, TokenLogprob, Usage
from .asking import Pieces
from .openai_types import ChatBody, StreamOptions
from .reasoning import ReasoningSplitter, split
from .sse import DONE, HOLE, Template, event
from .token_words import TokenWords

FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


async def whole_chat(
    completion: Completion, request: Generate, body: ChatBody, words: TokenWords, in_thought: bool
) -> dict[str, Any]:
    """`in_thought`: whether the answers begin inside a thought."""
    return {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model or request.model,
        "choices": [
            await _choice(index, choice, request, body, words, in_thought)
            for index, choice in enumerate(completion.choices)
        ],
        "usage": usage_of(completion.usage),
    }


async def _choice(
    index: int, choice: Choice, request: Generate, body: ChatBody, words: TokenWords, in_thought: bool
) -> dict[str, Any]:
    reasoning, content = split(choice.text, in_thought)
    calls = _allowed(choice.tool_calls, body)
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    logprobs = None
    if request.logprobs is not None:
        logprobs = {"content": await _logprobs(choice.logprobs, words), "refusal": None}
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": finish_reason(choice.finish_reason, bool(calls)),
    }


def finish_reason(reason: FinishReason, called: bool) -> str:
    return "tool_calls" if called and reason is FinishReason.STOP else FINISH[reason]


def _allowed(calls: tuple[ModelToolCall, ...], body: ChatBody) -> tuple[ModelToolCall, ...]:
    return calls[:1] if body.parallel_tool_calls is False else calls


def _call(call: ModelToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


async def _logprobs(entries: tuple[TokenLogprob, ...], words: TokenWords) -> list[dict[str, Any]]:
    await words.learn_logprobs(entries)

    def described(token_id: int, logprob: float) -> dict[str, Any]:
        return {"token": words.text_of(token_id), "logprob": logprob, "bytes": list(words.bytes_of(token_id))}

    return [
        described(entry.token_id, entry.logprob) | {"top_logprobs": [described(*top) for top in entry.top]}
        for entry in entries
    ]


class ChatStream:
    """The pieces of an answer as OpenAI's chunks. `in_thought`: whether it begins inside a thought."""

    def __init__(self, request: Generate, body: ChatBody, words: TokenWords, in_thought: bool) -> None:
        self._request = request
        self._body = body
        self._words = words
        self._head = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": body.model or request.model,
        }
        self._splitters = [ReasoningSplitter(in_thought) for _ in range(request.n)]
        self._content: dict[int, Template] = {}
        options = body.stream_options or StreamOptions()
        self._with_usage = options.include_usage
        self._with_timings = options.include_timings

    async def chunks(self, answer: AsyncIterator[Pieces]) -> AsyncIterator[bytes]:
        """`answer`: what came of the engine's stream together, its completion last. Each goes into one write."""
        chunks = [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._request.n)]
        async for some in answer:
            for piece in some:
                if isinstance(piece, Completion):
                    chunks += self._end(piece)
                    continue
                reasoning, content = self._splitters[piece.index].push(piece.text)
                if piece.logprobs:
                    logprobs = {"content": await _logprobs(piece.logprobs, self._words), "refusal": None}
                    chunks.append(self._chunk(piece.index, _delta(reasoning, content) or {"content": ""}, logprobs))
                elif reasoning or content:
                    chunks.append(self._grown(piece.index, reasoning, content))
            if chunks:
                yield b"".join(chunks)
                chunks.clear()

    def _end(self, completion: Completion) -> Iterator[bytes]:
        for index, choice in enumerate(completion.choices):
            reasoning, content = self._splitters[index].finish()
            if reasoning or content:
                yield self._grown(index, reasoning, content)
            calls = _allowed(choice.tool_calls, self._body)
            if calls:
                yield self._chunk(
                    index, {"tool_calls": [{"index": number} | _call(call) for number, call in enumerate(calls)]}
                )
            yield self._chunk(index, {}, finish=finish_reason(choice.finish_reason, bool(calls)))
        last: dict[str, Any] = {"usage": usage_of(completion.usage)} if self._with_usage else {}
        if self._with_timings:
            last["timings"] = completion.timings
        if last:
            yield event(msgspec.json.encode(self._head | {"choices": []} | last))
        yield DONE

    def _grown(self, index: int, reasoning: str, content: str) -> bytes:
        if reasoning:
            return self._chunk(index, _delta(reasoning, content))
        template = self._content.get(index)
        if template is None:
            template = self._content[index] = Template(self._shape(index, {"content": HOLE}))
        return template.event(content)

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> bytes:
        return event(msgspec.json.encode(self._shape(index, delta, logprobs, finish)))

    def _shape(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        chunk = self._head | {
            "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]
        }
        if self._with_usage:
            chunk["usage"] = None
        return chunk


def _delta(reasoning: str, content: str) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if reasoning:
        delta["reasoning_content"] = reasoning
    if content:
        delta["content"] = content
    return delta
