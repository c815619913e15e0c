"""From a request to a sequence: everything that can be wrong with it is found here, before any block is taken."""

from __future__ import annotations

import math
from typing import NoReturn

import msgspec

from ...runtime.errors import RequestInvalid
from ...schemas.serve import Generate
from ..models.tokenizer import Tokenizer
from .sampling import new_seed
from .sequence import SamplingParams, Sequence, Text

MAX_STOPS = 16


class IntakeConfig(msgspec.Struct, frozen=True):
    """What requests are held against."""

    model: str
    context_length: int
    default_max_tokens: int


def admit(request: Generate, tokenizer: Tokenizer, config: IntakeConfig) -> Sequence:
    """A new sequence for `request`. RequestInvalid, with what is wrong, if it can never be served."""
    _check(request, config)
    prompt_ids = _encode(request, tokenizer, config.context_length)
    room = config.context_length - len(prompt_ids)
    if not prompt_ids:
        _refuse("the prompt is empty")
    if room < 1:
        _refuse(
            f"the prompt has {len(prompt_ids):,} tokens; the model's context holds {config.context_length:,}, "
            "answer included"
        )
    if request.max_tokens is not None and request.max_tokens > room:
        _refuse(
            f"max_tokens {request.max_tokens:,} and a prompt of {len(prompt_ids):,} tokens are more than the "
            f"model's context of {config.context_length:,}",
            hint=f"at most {room:,} tokens can follow this prompt",
        )
    return Sequence(
        prompt_ids=tuple(prompt_ids),
        max_tokens=request.max_tokens or min(config.default_max_tokens, room),
        sampling=SamplingParams(
            request.temperature,
            min(request.top_k, tokenizer.vocab_size),
            request.top_p,
            new_seed() if request.seed is None else request.seed,
        ),
        stop_ids=frozenset() if request.ignore_eos else tokenizer.stop_ids,
        text=Text(tokenizer, request.stop),
    )


def _check(request: Generate, config: IntakeConfig) -> None:
    if request.model and request.model != config.model:
        _refuse(
            f"this engine serves '{config.model}', not '{request.model}'",
            hint=f"`callboard stop engine`, then `callboard chat --model {request.model}` starts one that does",
        )
    if bool(request.messages) == bool(request.prompt):
        _refuse("a request needs either `messages` or a `prompt`" + (", not both" if request.prompt else ""))
    if not (math.isfinite(request.temperature) and request.temperature >= 0):
        _refuse(f"temperature {request.temperature} is not a number from 0 up")
    if request.top_k < 0:
        _refuse(f"top_k {request.top_k} is below 0 (0 means all tokens)")
    if not 0 < request.top_p <= 1:
        _refuse(f"top_p {request.top_p} does not lie above 0 and up to 1")
    if request.max_tokens is not None and request.max_tokens < 1:
        _refuse(f"max_tokens {request.max_tokens} is below 1")
    if len(request.stop) > MAX_STOPS or not all(request.stop):
        _refuse(f"stop takes up to {MAX_STOPS} strings, none of them empty")
    texts = [request.prompt, *(text for message in request.messages for text in (message.role, message.content))]
    for text in (*texts, *request.stop):
        if not _is_unicode(text):
            _refuse("a text holds half a character (a lone surrogate), which is not valid Unicode")


def _encode(request: Generate, tokenizer: Tokenizer, context_length: int) -> list[int]:
    num_bytes = len(request.prompt.encode()) + sum(len(message.content.encode()) for message in request.messages)
    if num_bytes > context_length * tokenizer.longest_token_bytes:
        _refuse(f"the prompt has {num_bytes:,} bytes, more than the model's {context_length:,} tokens can hold")
    if request.messages:
        return tokenizer.encode_chat([{"role": turn.role, "content": turn.content} for turn in request.messages])
    return tokenizer.encode(request.prompt)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(message: str, hint: str = "") -> NoReturn:
    raise RequestInvalid(message, hint=hint)
