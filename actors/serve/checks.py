"""What is wrong with the fields of a request, whatever the model: found before anything is computed for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NoReturn

from ...runtime.errors import RequestInvalid
from ...schemas.serve import ChatMessage, Embed, Generate, OfferedTool, Score

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_CHOICES = 64
MAX_LOGPROBS = 64
MAX_BIASES = 1024
MAX_NAME = 256
MAX_PRIORITY = 1000
MAX_TEXTS = 4096
# A session may be kept for a month.
MAX_TTL_S = 31 * 86400.0
# What the services that these penalties come from allow.
MAX_PENALTY = 2.0


def refuse(message: str, hint: str = "") -> NoReturn:
    raise RequestInvalid(message, hint=hint)


def check_generate(request: Generate) -> None:
    """RequestInvalid for what no model could serve."""
    prompts = [bool(request.messages), bool(request.prompt), bool(request.prompt_ids)]
    if sum(prompts) != 1:
        refuse("a request needs either `messages`, a `prompt` or `prompt_ids`" + (", not both" if any(prompts) else ""))
    _check_drawing(request)
    _check_penalties(request)
    _check_length(request)
    _check_choices(request)
    check_ttl(request.session_ttl_s)
    _check_names({"session": request.session, "client": request.client, "adapter": request.adapter})
    _check_priority(request.priority)
    texts = [request.prompt, *texts_of(request.messages), *(text for tool in request.tools for text in _words(tool))]
    grammar = [request.grammar.text] if request.grammar is not None else []
    _check_unicode((*texts, *request.stop, *grammar))


def texts_of(messages: Sequence[ChatMessage]) -> list[str]:
    """All that is said in messages, calls and ids included."""
    return [
        text
        for one in messages
        for text in (
            *(one.role, one.content, one.tool_call_id),
            *(part for call in one.tool_calls for part in (call.id, call.name, call.arguments)),
        )
    ]


def _words(tool: OfferedTool) -> tuple[str, ...]:
    return tool.name, tool.description, tool.parameters


def check_ttl(seconds: float) -> None:
    if not 0 <= seconds <= MAX_TTL_S:
        refuse(f"session_ttl_s {seconds} is not between 0 and {MAX_TTL_S:.0f}")


def check_embed(request: Embed) -> None:
    _check_texts("texts", request.texts)
    _check_names({"client": request.client, "adapter": request.adapter})
    _check_priority(request.priority)


def check_score(request: Score) -> None:
    _check_texts("continuations", request.continuations)
    if request.contexts and len(request.contexts) != len(request.continuations):
        refuse(f"there are {len(request.contexts)} contexts for {len(request.continuations)} continuations")
    _check_unicode(request.contexts)
    _check_names({"client": request.client, "adapter": request.adapter})
    _check_priority(request.priority)


def _check_drawing(request: Generate) -> None:
    if not (math.isfinite(request.temperature) and request.temperature >= 0):
        refuse(f"temperature {request.temperature} is not a number from 0 up")
    if request.top_k < 0:
        refuse(f"top_k {request.top_k} is below 0 (0 means all tokens)")
    if not 0 < request.top_p <= 1:
        refuse(f"top_p {request.top_p} does not lie above 0 and up to 1")
    if not 0 <= request.min_p <= 1:
        refuse(f"min_p {request.min_p} does not lie between 0 and 1")
    if request.seed is not None and not -(1 << 63) <= request.seed < 1 << 64:
        refuse(f"seed {request.seed} does not fit in 64 bits")


def _check_penalties(request: Generate) -> None:
    if not (math.isfinite(request.repetition_penalty) and request.repetition_penalty > 0):
        refuse(f"repetition_penalty {request.repetition_penalty} is not a number above 0 (1 means none)")
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(request, name)
        if not -MAX_PENALTY <= value <= MAX_PENALTY:
            refuse(f"{name} {value} does not lie between {-MAX_PENALTY:g} and {MAX_PENALTY:g}")
    if len(request.logit_bias) > MAX_BIASES:
        refuse(f"logit_bias has {len(request.logit_bias):,} entries, more than {MAX_BIASES:,}")
    for token_id, bias in request.logit_bias:
        if not math.isfinite(bias):
            refuse(f"logit_bias of token {token_id} is {bias}, which is no number to add")
    if len({token_id for token_id, _ in request.logit_bias}) < len(request.logit_bias):
        refuse("logit_bias names a token twice")


def _check_length(request: Generate) -> None:
    if request.max_tokens is not None and request.max_tokens < 1:
        refuse(f"max_tokens {request.max_tokens} is below 1")
    if request.min_tokens < 0:
        refuse(f"min_tokens {request.min_tokens} is below 0")
    if request.max_tokens is not None and request.min_tokens > request.max_tokens:
        refuse(f"min_tokens {request.min_tokens} is more than max_tokens {request.max_tokens}")
    if len(request.stop) > MAX_STOPS or not all(request.stop):
        refuse(f"stop takes up to {MAX_STOPS} strings, none of them empty")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in request.stop):
        refuse(f"a string of stop has more than {MAX_STOP_CHARACTERS:,} characters")


def _check_choices(request: Generate) -> None:
    if not 1 <= request.n <= MAX_CHOICES:
        refuse(f"n {request.n} does not lie between 1 and {MAX_CHOICES}")
    if request.best_of is not None and not request.n <= request.best_of <= MAX_CHOICES:
        refuse(f"best_of {request.best_of} does not lie between n ({request.n}) and {MAX_CHOICES}")
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(request, name)
        if value is not None and not 0 <= value <= MAX_LOGPROBS:
            refuse(f"{name} {value} does not lie between 0 and {MAX_LOGPROBS}")


def _check_texts(name: str, texts: tuple[str, ...]) -> None:
    if not texts:
        refuse(f"there are no {name}")
    if len(texts) > MAX_TEXTS:
        refuse(f"{len(texts):,} {name} are more than {MAX_TEXTS:,}", hint="divide them over several requests")
    for index, text in enumerate(texts):
        if not text:
            refuse(f"number {index} of the {name} is empty")
    _check_unicode(texts)


def _check_names(names: dict[str, str]) -> None:
    for what, name in names.items():
        if len(name) > MAX_NAME:
            refuse(f"{what} has {len(name):,} characters, more than {MAX_NAME}")
    _check_unicode(names.values())


def _check_priority(priority: int) -> None:
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        refuse(f"priority {priority} does not lie between {-MAX_PRIORITY} and {MAX_PRIORITY}")


def _check_unicode(texts: Iterable[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            refuse("a text holds half a character (a lone surrogate), which is not valid Unicode")
