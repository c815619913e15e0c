"""`/v1/completions`: texts go on. Evaluation harnesses score prompts through it, with `echo` and `logprobs`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec

from ...schemas.serve import Choice, Completion, Generate, Token, TokenLogprob
from .openai_chat import FINISH, new_id, usage_of
from .openai_types import CompletionBody
from .sse import DONE, HOLE, Template, event
from .token_words import TokenWords


class Prompt:
    """One prompt of a request and what is to be shown of it."""

    def __init__(self, request: Generate, prompt_ids: tuple[int, ...], text: str) -> None:
        self.request = request
        self.prompt_ids = prompt_ids
        self.text = text


async def whole_completion(
    completions: Sequence[Completion], prompts: Sequence[Prompt], body: CompletionBody, words: TokenWords
) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for completion, prompt in zip(completions, prompts, strict=True):
        for choice in completion.choices:
            choices.append(await _choice(len(choices), choice, completion, prompt, body, words))
    usages = [usage_of(completion.usage) for completion in completions]
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model or prompts[0].request.model,
        "choices": choices,
        "usage": {
            key: sum(usage[key] for usage in usages) for key in ("prompt_tokens", "completion_tokens", "total_tokens")
        },
    }


async def _choice(
    index: int, choice: Choice, completion: Completion, prompt: Prompt, body: CompletionBody, words: TokenWords
) -> dict[str, Any]:
    only_prompt = shows_only_prompt(body)
    text = "" if only_prompt else choice.text
    entries: list[TokenLogprob | None] = [] if only_prompt else list(choice.logprobs)
    ids = [] if only_prompt else [entry.token_id for entry in choice.logprobs]
    if body.echo:
        text = prompt.text + text
        entries = [None, *completion.prompt_logprobs, *entries]
        ids = [*prompt.prompt_ids, *ids]
    logprobs = None if body.logprobs is None else await _legacy_logprobs(ids, entries, words)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": _finish_reason(choice, body)}


def shows_only_prompt(body: CompletionBody) -> bool:
    """A prompt that is scored: one token is generated for that, and belongs to no answer."""
    return bool(body.echo) and body.max_tokens == 0


def _finish_reason(choice: Choice, body: CompletionBody) -> str:
    return "length" if shows_only_prompt(body) else FINISH[choice.finish_reason]


async def _legacy_logprobs(
    token_ids: Sequence[int], entries: Sequence[TokenLogprob | None], words: TokenWords, offset: int = 0
) -> dict[str, Any]:
    """Lists with an entry for each token; of the first one of a text nothing is known."""
    await words.learn(token_ids)
    await words.learn_logprobs([entry for entry in entries if entry is not None])
    offsets: list[int] = []
    tokens = [words.text_of(token_id) for token_id in token_ids]
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    top: list[dict[str, float] | None] = []
    for entry in entries:
        if entry is None:
            top.append(None)
            continue
        likeliest: dict[str, float] = {}
        for token_id, logprob in entry.top:  # two tokens may look alike: the likelier one is shown
            likeliest.setdefault(words.text_of(token_id), logprob)
        top.append(likeliest)
    return {
        "tokens": tokens,
        "token_logprobs": [None if entry is None else entry.logprob for entry in entries],
        "top_logprobs": top,
        "text_offset": offsets,
    }


class CompletionStream:
    """The pieces of answers to several prompts, mixed as they come. Put together they are the whole completion.

    Of a prompt the log-probabilities are known when its answers end, and a chunk has those of its own text: where they
    are asked for with `echo`, each answer is one chunk.
    """

    def __init__(self, prompts: Sequence[Prompt], body: CompletionBody, words: TokenWords) -> None:
        self._prompts = prompts
        self._body = body
        self._words = words
        self._head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model or prompts[0].request.model,
        }
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._growing: dict[int, Template] = {}
        self._scores_prompt = bool(body.echo) and body.logprobs is not None
        self._offsets: dict[int, int] = {}  # where the next token of each answer begins

    async def chunks(self, answers: AsyncIterator[Sequence[tuple[int, Token | Completion]]]) -> AsyncIterator[bytes]:
        """`answers`: pieces that came together, each with its prompt's number. They go into one write."""
        usages: list[dict[str, Any]] = []
        first = 0
        starts: list[int] = []
        for prompt in self._prompts:
            starts.append(first)
            first += prompt.request.n
        chunks = list(self._echoes(starts)) if self._body.echo and not self._scores_prompt else []
        only_ends = self._scores_prompt or shows_only_prompt(self._body)
        async for some in answers:
            for number, piece in some:
                if isinstance(piece, Completion):
                    usages.append(usage_of(piece.usage))
                    chunks += [chunk async for chunk in self._ends(piece, self._prompts[number], starts[number])]
                elif not only_ends:
                    chunks += await self._grown(starts[number] + piece.index, piece)
            if len(usages) == len(self._prompts):
                chunks += self._end(usages)
            if chunks:
                yield b"".join(chunks)
                chunks.clear()

    async def _grown(self, index: int, piece: Token) -> list[bytes]:
        if not piece.logprobs:
            return [self._chunk(index, piece.text)] if piece.text else []
        ids = [entry.token_id for entry in piece.logprobs]
        logprobs = await _legacy_logprobs(ids, piece.logprobs, self._words, self._offsets.get(index, 0))
        self._offsets[index] = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
        return [self._chunk(index, piece.text, logprobs)]

    async def _ends(self, completion: Completion, prompt: Prompt, start: int) -> AsyncIterator[bytes]:
        for index, choice in enumerate(completion.choices, start):
            if self._scores_prompt:
                whole = await _choice(index, choice, completion, prompt, self._body, self._words)
                yield event(msgspec.json.encode(self._head | {"choices": [whole]}))
            else:
                yield self._chunk(index, "", finish=_finish_reason(choice, self._body))

    def _echoes(self, starts: Sequence[int]) -> Iterator[bytes]:
        for prompt, start in zip(self._prompts, starts, strict=True):
            for index in range(prompt.request.n):
                yield self._chunk(start + index, prompt.text)

    def _end(self, usages: Sequence[dict[str, Any]]) -> Iterator[bytes]:
        if self._with_usage:
            total = {key: sum(usage[key] for usage in usages) for key in usages[0] if key.endswith("_tokens")}
            yield event(msgspec.json.encode(self._head | {"choices": [], "usage": total}))
        yield DONE

    def _chunk(self, index: int, text: str, logprobs: dict[str, Any] | None = None, finish: str | None = None) -> bytes:
        if logprobs is not None or finish is not None:
            return event(msgspec.json.encode(self._shape(index, text, logprobs, finish)))
        template = self._growing.get(index)
        if template is None:
            template = self._growing[index] = Template(self._shape(index, HOLE))
        return template.event(text)

    def _shape(
        self, index: int, text: str | msgspec.Raw, logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return self._head | {"choices": [choice]}
