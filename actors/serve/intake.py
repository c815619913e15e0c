"""From a request to sequences: everything that can be wrong with it is found here, before any block is taken."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import msgspec

from ...schemas.serve import Detokenize, Embed, Generate, Pooling, Score, Tokenize, TokenText
from ...schemas.serve_steps import Sampling
from ..models.tokenizer import Tokenizer
from .adapter_book import AdapterBook
from .checks import check_embed, check_generate, check_score, refuse, texts_of
from .sampling import new_seed, uniform
from .sequence import Sequence
from .text import Text
from .tool_use import ToolUse, check_tools, uses_tools

# A text of this many characters is tokenized in one or two milliseconds; a thread would not help anybody.
QUICK_CHARACTERS = 2000


class IntakeConfig(msgspec.Struct, frozen=True):
    """What requests are held against. `num_draft`: guesses a step, for those who do not say that they want none.
    `cache_tokens`: what the cache holds, which bounds an answer whose length nobody asked for (0: no bound)."""

    model: str
    context_length: int
    default_max_tokens: int
    num_draft: int = 0
    cache_tokens: int = 0
    tool_format: str = ""


@dataclass
class Intake:
    """Makes sequences of requests. Its methods may take as long as tokenizing a long text and compiling a grammar do,
    and may be called in a thread. They raise RequestInvalid for what can never be served."""

    config: IntakeConfig
    tokenizer: Tokenizer
    adapters: AdapterBook

    @cached_property
    def _tools(self) -> ToolUse:
        return ToolUse(self.tokenizer, self.config.tool_format)

    def generate(self, request: Generate) -> list[Sequence]:
        """A sequence for each answer that is to be computed."""
        check_generate(request)
        check_tools(request)
        self._check_target(request)
        self._check_ids(request)
        prompt_ids = tuple(self._encode(request))
        max_tokens = self._max_tokens(request, len(prompt_ids))
        grammar = self._tools.grammar(request) if request.tools else request.grammar
        if grammar is not None:
            from .grammar import check_grammar

            check_grammar(grammar, self.tokenizer)
        seed = new_seed() if request.seed is None else request.seed
        stop_ids = frozenset() if request.ignore_eos else self.tokenizer.stop_ids
        sampling = Sampling(
            temperature=request.temperature,
            top_k=min(request.top_k, self.tokenizer.vocab_size),
            top_p=request.top_p,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            logit_bias=request.logit_bias,
            min_tokens=min(request.min_tokens, max_tokens),
            stop_ids=tuple(sorted(stop_ids)),
            logprobs=self._num_logprobs(request),
            grammar=grammar,
        )
        return [
            Sequence(
                prompt_ids,
                max_tokens,
                msgspec.structs.replace(sampling, seed=choice_seed(seed, index)),
                stop_ids,
                self._text(request),
                client=request.client,
                priority=request.priority,
                adapter=request.adapter,
                adapter_generation=self.adapters.generation(request.adapter),
                deterministic=request.deterministic,
                num_draft=0 if request.speculative is False else self.config.num_draft,
                # The prompt is the same for all answers: the first one's sequence reports on it.
                prompt_logprobs=-1 if request.prompt_logprobs is None or index else request.prompt_logprobs,
                max_cached=None if request.prompt_logprobs is None or index else 0,
            )
            for index in range(request.best_of or request.n)
        ]

    def embed(self, request: Embed) -> list[Sequence]:
        """A sequence for each text."""
        check_embed(request)
        self._check_target(request)
        return [
            Sequence(
                self._fitting(self._encode_text(text), 0),
                0,
                client=request.client,
                priority=request.priority,
                adapter=request.adapter,
                adapter_generation=self.adapters.generation(request.adapter),
                pooling=request.pooling,
                # For a mean every hidden state is needed; keys and values alone do not give it back.
                max_cached=0 if request.pooling is Pooling.MEAN else None,
            )
            for text in request.texts
        ]

    def score(self, request: Score) -> list[Sequence]:
        """A sequence for each continuation; its scores begin at the first token of the continuation.

        Context and continuation are tokenized together, since that is how a model sees text; the tokens of the
        context alone are then taken off (as EleutherAI's evaluation harness does). Spaces between the two belong to
        the continuation: tokens begin with a space, they do not end with one.
        """
        check_score(request)
        self._check_target(request)
        prefix = self._prefix()
        sequences: list[Sequence] = []
        for context, continuation in zip(
            request.contexts or ("",) * len(request.continuations), request.continuations, strict=True
        ):
            whole = self._fitting((*prefix, *self._encode_text(context + continuation, bare=True)), 0)
            # The very first token is where scoring cannot begin: nothing stands before it.
            first = max(1, len(prefix) + len(self._encode_text(context.rstrip(), bare=True)))
            if first >= len(whole):
                refuse("a continuation has no token of its own to score: nothing stands before it, or it is too short")
            sequences.append(
                Sequence(
                    whole,
                    0,
                    client=request.client,
                    priority=request.priority,
                    adapter=request.adapter,
                    adapter_generation=self.adapters.generation(request.adapter),
                    prompt_logprobs=1,
                    first_scored=first,
                    # The hidden state before the first scored token is needed, those before it are not.
                    max_cached=first - 1,
                )
            )
        return sequences

    def tokenize(self, request: Tokenize) -> tuple[int, ...]:
        if bool(request.text) == bool(request.messages):
            refuse("give either a `text` or `messages` to tokenize")
        if not request.messages:
            if request.tools:
                refuse("tools are offered in a conversation: give `messages`")
            return self._encode_text(request.text, bare=not request.add_special)
        conversation = Generate(messages=request.messages, tools=request.tools)
        check_generate(conversation)
        check_tools(conversation)
        return tuple(self._encode(conversation))

    def detokenize(self, request: Detokenize) -> TokenText:
        ids = request.token_ids
        self._check_known("token_ids", ids)
        pieces = tuple(self.tokenizer.token_bytes(one, skip_control=False) for one in ids)
        return TokenText(self.tokenizer.decode(ids), pieces)

    @property
    def tool_format(self) -> str:
        return self._tools.format.name

    # What requests are held against

    def _check_target(self, request: Generate | Embed | Score) -> None:
        if request.model and request.model != self.config.model:
            refuse(
                f"this engine serves '{self.config.model}', not '{request.model}'",
                hint=f"`callboard stop engine`, then `callboard chat --model {request.model}` starts one that does",
            )
        if request.adapter:
            self.adapters.check(request.adapter)

    def _check_ids(self, request: Generate) -> None:
        self._check_known("prompt_ids", request.prompt_ids)
        self._check_known("logit_bias", tuple(token_id for token_id, _ in request.logit_bias))

    def _check_known(self, name: str, ids: tuple[int, ...]) -> None:
        num_tokens = self.tokenizer.vocab_size
        if ids and not (min(ids) >= 0 and max(ids) < num_tokens):
            wrong = next(token_id for token_id in ids if not 0 <= token_id < num_tokens)
            refuse(f"{name} has the token {wrong}; the vocabulary has {num_tokens:,}, counted from 0")

    @staticmethod
    def _num_logprobs(request: Generate) -> int:
        if request.logprobs is not None:
            return request.logprobs
        return 0 if request.best_of is not None and request.best_of > request.n else -1

    def _max_tokens(self, request: Generate, num_prompt_tokens: int) -> int:
        room = self.config.context_length - num_prompt_tokens
        if not num_prompt_tokens:
            refuse("the prompt is empty")
        if room < 1:
            self._refuse_long(num_prompt_tokens, ", answer included")
        if request.max_tokens is not None and request.max_tokens > room:
            refuse(
                f"max_tokens {request.max_tokens:,} and a prompt of {num_prompt_tokens:,} tokens are more than the "
                f"model's context of {self.config.context_length:,}",
                hint=f"at most {room:,} tokens can follow this prompt",
            )
        if request.min_tokens > room:
            refuse(f"min_tokens {request.min_tokens:,} is more than the {room:,} tokens that can follow this prompt")
        if request.max_tokens is not None:
            return request.max_tokens
        if self.config.cache_tokens:
            room = max(1, min(room, self.config.cache_tokens - num_prompt_tokens))
        return min(max(self.config.default_max_tokens, request.min_tokens), room)

    # Tokens

    def _encode(self, request: Generate) -> list[int]:
        if request.prompt_ids:
            return list(request.prompt_ids)
        self._check_size(sum(len(text.encode()) for text in (request.prompt, *texts_of(request.messages))))
        if uses_tools(request):
            return self.tokenizer.encode(self._tools.prompt(request), add_bos=False)
        if request.messages:
            turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
            return self.tokenizer.encode_chat(turns)
        return self.tokenizer.encode(request.prompt)

    def _text(self, request: Generate) -> Text:
        if not request.tools:
            return Text(self.tokenizer, request.stop)
        return Text(self.tokenizer, request.stop, self._tools.parser(request), self._tools.marks)

    def _encode_text(self, text: str, *, bare: bool = False) -> tuple[int, ...]:
        """`bare`: without what the model wants around a text."""
        self._check_size(len(text.encode()))
        return tuple(self.tokenizer.encode(text, add_bos=not bare))

    def _prefix(self) -> tuple[int, ...]:
        """What the model wants before a text: its start token, say."""
        text = "a"
        whole, bare = self._encode_text(text), self._encode_text(text, bare=True)
        start = next(start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
        return whole[:start]

    def _check_size(self, num_bytes: int) -> None:
        """Refuse what is far too long before the time is spent to tokenize it."""
        most = self.config.context_length
        if num_bytes > most * self.tokenizer.longest_token_bytes:
            refuse(f"the prompt has {num_bytes:,} bytes, more than the model's {most:,} tokens can hold")

    def _fitting(self, ids: tuple[int, ...], room: int) -> tuple[int, ...]:
        if not ids:
            refuse("a text has no tokens")
        if len(ids) + room > self.config.context_length:
            self._refuse_long(len(ids), "")
        return ids

    def _refuse_long(self, num_tokens: int, what: str) -> None:
        refuse(f"the prompt has {num_tokens:,} tokens; the model's context holds {self.config.context_length:,}{what}")


def choice_seed(seed: int, index: int) -> int:
    """The seed of one of several answers: the request's own for the first, and one that follows from it for others."""
    return seed if not index else int(uniform(~seed, index) * (1 << 53))


def needs_a_thread(request: Generate | Embed | Score) -> bool:
    """Whether making sequences of it may take longer than others should wait for."""
    if isinstance(request, Generate):
        if request.grammar is not None or request.tools:
            return True
        num_characters = len(request.prompt) + sum(len(message.content) for message in request.messages)
        return num_characters + len(request.prompt_ids) > QUICK_CHARACTERS
    return True
