"""A response of `/v1/responses` while it is made: what it is by now, and the events that say what became of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from ...runtime.errors import CallboardError
from ...schemas.serve import Completion, FinishReason, ModelToolCall, Token, TokenLogprob, Usage
from .errors import status_of, words
from .reasoning import ReasoningSplitter
from .responses_types import ResponseBody, ResponseTool
from .token_words import TokenWords

Event = dict[str, Any]
"""Its `type` is the event's name."""


def item_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


class ResponseBuilder:
    """Takes the pieces of an answer. `response` is always what would be answered now. `in_thought`: whether the answer
    begins inside a thought."""

    def __init__(self, body: ResponseBody, model: str, token_words: TokenWords, in_thought: bool = False) -> None:
        self.response = _begun(body, model)
        self._words = token_words
        self._parallel = body.parallel_tool_calls is not False
        self._splitter = ReasoningSplitter(in_thought)
        self._number = 0
        self._open: dict[str, Any] | None = None  # the item that grows
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text is not there yet
        self._thoughts = ""

    @property
    def id(self) -> str:
        return self.response["id"]

    # Events

    def begin(self) -> list[Event]:
        self.response["status"] = "in_progress"
        return [self._state("created"), self._state("in_progress")]

    async def push(self, piece: Token) -> list[Event]:
        return list(self._grow(*self._splitter.push(piece.text), await self._described(piece.logprobs)))

    async def finish(self, completion: Completion, count: Callable[[str], Awaitable[int]]) -> list[Event]:
        """All but the last event, which `end` says: by then the response may be stored. `count`: tokens of a text."""
        (choice,) = completion.choices
        cut = choice.finish_reason is FinishReason.LENGTH
        events = list(self._grow(*self._splitter.finish(), []))
        calls = choice.tool_calls if self._parallel else choice.tool_calls[:1]
        if not self.response["output"] and not calls:
            events += self._begin_message()
        events += self._end_item("incomplete" if cut else "completed")
        for call in calls:
            events += self._call(call)
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": None if cut else int(time.time()),
            "usage": usage_of(completion.usage, await count(self._thoughts) if self._thoughts else 0),
        }
        return events

    def fail(self, error: CallboardError) -> None:
        code = "server_error" if status_of(error) != 429 else "rate_limit_exceeded"
        code = "invalid_prompt" if status_of(error) == 400 else code
        self._stop("failed")
        self.response["error"] = {"code": code, "message": words(error)}

    def cancel(self) -> None:
        self._stop("cancelled")

    def _stop(self, status: str) -> None:
        for item in self.response["output"]:
            if item["status"] == "in_progress":
                item["status"] = "incomplete"
        self.response["status"] = status

    def end(self) -> Event:
        """The last event: completed, incomplete or failed."""
        return self._state(self.response["status"])

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": f"response.{kind}", "sequence_number": self._number - 1, **fields}

    def _state(self, kind: str) -> Event:
        return self._event(kind, response=dict(self.response))

    # Items

    def _grow(self, reasoning: str, text: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        if reasoning:
            self._thoughts += reasoning
            self._logprobs = []
            if self._open is None:
                yield from self._begin_reasoning()
            yield from self._add(reasoning)
        else:
            self._logprobs += logprobs
        if text:
            if self._open is not None and self._open["type"] == "reasoning":
                yield from self._end_item("completed")
            if self._open is None:
                yield from self._begin_message()
            yield from self._add(text)

    def _begin_reasoning(self) -> Iterator[Event]:
        yield from self._begin({"type": "reasoning", "id": item_id("rs"), "summary": []})
        yield from self._begin_part({"type": "reasoning_text", "text": ""})

    def _begin_message(self) -> Iterator[Event]:
        yield from self._begin({"type": "message", "id": item_id("msg"), "role": "assistant"})
        yield from self._begin_part({"type": "output_text", "text": "", "annotations": [], "logprobs": []})

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        self._open = {**item, "status": "in_progress"} | ({} if item["type"] == "function_call" else {"content": []})
        self.response["output"].append(self._open)
        shown = dict(self._open) if item["type"] == "function_call" else {**self._open, "content": []}
        yield self._event("output_item.added", output_index=self._at, item=shown)

    def _begin_part(self, part: dict[str, Any]) -> Iterator[Event]:
        assert self._open is not None
        self._open["content"].append(part)
        yield self._event("content_part.added", **self._place(), part=dict(part))

    def _add(self, text: str) -> Iterator[Event]:
        assert self._open is not None
        (part,) = self._open["content"]
        part["text"] += text
        if part["type"] == "reasoning_text":
            yield self._event("reasoning_text.delta", **self._place(), delta=text)
            return
        logprobs, self._logprobs = self._logprobs, []
        part["logprobs"] += logprobs
        yield self._event("output_text.delta", **self._place(), delta=text, logprobs=logprobs)

    def _end_item(self, status: str) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        (part,) = item["content"]
        if part["type"] == "reasoning_text":
            yield self._event("reasoning_text.done", **self._place(), text=part["text"])
        else:
            part["logprobs"] += self._logprobs
            self._logprobs = []
            yield self._event("output_text.done", **self._place(), text=part["text"], logprobs=part["logprobs"])
        yield self._event("content_part.done", **self._place(), part=part)
        item["status"] = status
        yield self._event("output_item.done", output_index=self._at, item=item)
        self._open = None

    def _call(self, call: ModelToolCall) -> Iterator[Event]:
        name = item_id("fc")
        yield from self._begin(
            {"type": "function_call", "id": name, "call_id": call.id, "name": call.name, "arguments": ""}
        )
        item = self._open
        assert item is not None
        place = {"item_id": name, "output_index": self._at}
        yield self._event("function_call_arguments.delta", **place, delta=call.arguments)
        item["arguments"] = call.arguments
        yield self._event("function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        item["status"] = "completed"
        yield self._event("output_item.done", output_index=self._at, item=item)
        self._open = None

    @property
    def _at(self) -> int:
        return len(self.response["output"]) - 1

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": self._at, "content_index": 0}

    async def _described(self, entries: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
        if not entries:
            return []
        await self._words.learn_logprobs(entries)

        def described(token_id: int, logprob: float) -> dict[str, Any]:
            piece = self._words.bytes_of(token_id)
            return {"token": self._words.text_of(token_id), "logprob": logprob, "bytes": list(piece)}

        return [
            described(entry.token_id, entry.logprob) | {"top_logprobs": [described(*top) for top in entry.top]}
            for entry in entries
        ]


def usage_of(usage: Usage, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _begun(body: ResponseBody, model: str) -> dict[str, Any]:
    text = body.text
    format = {"type": "text"} if text is None or text.format is None else _given(text.format)
    choice = body.tool_choice
    return {
        "id": item_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "queued",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model or model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {
            "effort": body.reasoning.effort if body.reasoning else None,
            "summary": body.reasoning.summary if body.reasoning else None,
        },
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": format},
        "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else _given(choice),
        "tools": [_tool(tool) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _tool(tool: ResponseTool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": bool(tool.strict),
    }


def _given(value: Any) -> dict[str, Any]:
    """Of a struct, the fields that were given."""
    fields = {name: field for name, field in msgspec.structs.asdict(value).items() if field not in (None, "", [])}
    return msgspec.to_builtins(fields)
