"""What is said to and within the serving engine: requests for text, and the steps that compute it."""

from __future__ import annotations

import enum

import msgspec

from .base import Message, Request, StreamRequest


class FinishReason(enum.StrEnum):
    """Why an answer ended: the model or a stop string ended it, or it reached its length."""

    STOP = "stop"
    LENGTH = "length"


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation. `role` is what the model's chat template knows: system, user, assistant."""

    role: str
    content: str


class Usage(msgspec.Struct, frozen=True):
    """Tokens of the prompt as the model saw it, and tokens generated (the one that ends the turn included)."""

    prompt_tokens: int
    completion_tokens: int


class Timings(msgspec.Struct, frozen=True):
    """`ttft_ms`: from the request's arrival at the engine to its first token. `tokens_per_s`: the rate of the tokens
    after the first; of a single token, its share of the time to it."""

    ttft_ms: float
    tokens_per_s: float


class Token(Message, frozen=True, tag="serve.token"):
    """A piece of an answer: whole characters, never part of a stop string.

    `token_ids` are the ids generated since the last piece. Text may lag behind ids (half a character, the possible
    beginning of a stop string), so the last piece may be ids without text.
    """

    text: str
    token_ids: tuple[int, ...]


class Completion(Message, frozen=True, tag="serve.completion"):
    """The end of an answer, and all of its text."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings


class Generate(StreamRequest[Token, Completion], frozen=True, kw_only=True, tag="serve.generate"):
    """Ask the model to go on from `messages` (through its chat template) or from the raw text `prompt`; give one.

    By default the likeliest token is taken each time, so the same request has the same answer. With `temperature`
    above 0 tokens are drawn, from the `top_k` likeliest (0: all) that hold a share `top_p` of the probability; the
    same `seed` draws the same random numbers whatever else is being served (None: a new seed each time).

    It ends at the model's own end of turn (unless `ignore_eos`), before a string of `stop`, or at `max_tokens` (None:
    the engine's default, or what the model's context still holds if that is less). RequestInvalid for values that
    can never be served, Overloaded where the queue is full.
    """

    messages: tuple[ChatMessage, ...] = ()
    prompt: str = ""
    model: str = ""
    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


class Sampling(msgspec.Struct, frozen=True):
    """How a step draws one sequence's next token; `uniform` in [0, 1) is its random number."""

    temperature: float
    top_k: int
    top_p: float
    uniform: float


class StepSequence(msgspec.Struct, frozen=True):
    """One sequence's part of a step.

    `token_ids` are computed now; the keys and values of the `num_cached` tokens before them lie in `blocks`, where
    those of the new ones go too. With `sampling`, a next token is wanted after the last of them.
    """

    sequence_id: int
    token_ids: tuple[int, ...]
    num_cached: int
    blocks: tuple[int, ...]
    sampling: Sampling | None = None


class StepResult(Message, frozen=True, tag="serve.step_result"):
    """`tokens`: one for each sequence of the step that wanted one, in its order. `seconds`: time computing."""

    step_id: int
    tokens: tuple[int, ...]
    seconds: float


class Step(Request[StepResult], frozen=True, tag="serve.step"):
    """One forward pass over a batch. All that a replica must know is in it: a replica keeps nothing but the cache."""

    step_id: int
    sequences: tuple[StepSequence, ...]


class EngineStats(Message, frozen=True, kw_only=True, tag="serve.stats"):
    """The engine at one moment, and its counts since it started."""

    model: str
    dtype: str
    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    block_size: int
    context_length: int
    requests: int
    finished: int
    aborted: int
    failed: int
    preemptions: int
    replica_failures: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    step_seconds: float
    """From sending steps to having their results."""
    compute_seconds: float
    """The replica's own part of that."""


class GetStats(Request[EngineStats], frozen=True, tag="serve.get_stats"):
    """Ask a scheduler or an engine how it is doing."""
