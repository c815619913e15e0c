"""What people give to a pipeline, texts and conversations and options, as requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypedDict

import msgspec

from ...runtime.errors import UsageError
from ...schemas.serve import ChatMessage, Generate, Grammar

# A turn of a conversation: `{"role": "user", "content": "..."}`, or the same as a message.
Turn = ChatMessage | Mapping[str, Any]


class Sampling(TypedDict, total=False):
    """How an answer is drawn and how long it may be: fields of `Generate`, where each is explained."""

    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    n: int
    best_of: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    grammar: Grammar | None
    adapter: str
    session: str
    priority: int
    deterministic: bool
    speculative: bool | None


def requests_of(prompts: Any, sampling: Mapping[str, Any]) -> tuple[bool, list[Generate]]:
    """Whether several were given, and a request for each. Raises UsageError."""
    fields = _fields(sampling)
    if isinstance(prompts, str) or _is_conversation(prompts):
        return False, [_request(prompts, fields, "the prompt")]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise UsageError(f"a prompt is a text or a list of turns, no {type(prompts).__name__}")
    return True, [_request(prompt, fields, f"prompt {index}") for index, prompt in enumerate(prompts)]


def _is_conversation(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], (ChatMessage, Mapping))


def _request(prompt: Any, fields: Mapping[str, Any], what: str) -> Generate:
    try:
        if isinstance(prompt, str):
            return msgspec.convert({**fields, "prompt": prompt}, Generate)
        if not _is_conversation(prompt):
            raise UsageError(f"{what} is neither a text nor a list of turns but {type(prompt).__name__}")
        turns = [msgspec.to_builtins(turn) if isinstance(turn, ChatMessage) else dict(turn) for turn in prompt]
        return msgspec.convert({**fields, "messages": turns}, Generate)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise UsageError(f"{what} and its options make no request: {error}") from error


def _fields(sampling: Mapping[str, Any]) -> dict[str, Any]:
    known = Sampling.__annotations__
    for name in sampling:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
            raise UsageError(f"there is no option '{name}'", hint=hint)
    fields = dict(sampling)
    if isinstance(fields.get("stop"), str):
        fields["stop"] = (fields["stop"],)
    if isinstance(fields.get("logit_bias"), Mapping):
        fields["logit_bias"] = tuple(fields["logit_bias"].items())
    return fields
