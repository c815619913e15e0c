"""What a scheduler and its replicas say to each other: the steps that compute answers, and what a replica is."""

from __future__ import annotations

import msgspec

from .base import Message, Request
from .serve import Grammar, Pooling, TokenLogprob


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the tokens of one sequence are drawn, for its whole life; see `Generate`. `logprobs` -1: none.

    Token i (counted from the first generated one) uses the random number that `seed` has for i. `stop_ids` end the
    answer and are not drawn before `min_tokens`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    logprobs: int = -1
    grammar: Grammar | None = None


class SequenceStart(msgspec.Struct, frozen=True, kw_only=True):
    """All that a replica must know of a sequence: sent when it is first computed, and again after a preemption, a
    migration, or a replica's death. `token_ids` are then the prompt and all that was generated so far.

    `prompt_logprobs`: -1 none, else as in `Generate`; reported for each token of the sequence that is computed now,
    so the planner starts such a sequence without cached tokens. `pooling`: the hidden states are wanted, no tokens.
    """

    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    sampling: Sampling = Sampling()
    adapter: str = ""
    prompt_logprobs: int = -1
    pooling: Pooling | None = None
    deterministic: bool = False


class StepSequence(msgspec.Struct, frozen=True):
    """One sequence's part of a step: its tokens from `num_cached` up to `num_cached + num_tokens` are computed.

    The replica knows the tokens: from `start`, and those that it drew itself in earlier steps, also in one that is
    still under way when this step is sent. `new_blocks` are appended to the sequence's block table (with `start`, to
    an empty one). With `draws`, a next token is wanted after the last of them; then up to `num_draft` guesses may be
    computed and verified behind it (the block table has room for their keys and values).
    """

    sequence_id: int
    num_cached: int
    num_tokens: int
    new_blocks: tuple[int, ...] = ()
    draws: bool = False
    num_draft: int = 0
    start: SequenceStart | None = None


class Drawn(msgspec.Struct, frozen=True):
    """What one sequence got: one token, or several where guesses were right (`num_drafted` were verified).

    `logprobs`: one for each token where they are wanted. `ended`: the grammar allows nothing more after these.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    num_drafted: int = 0
    ended: bool = False


class PromptLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of the tokens at places `first`, `first + 1`, ... of a sequence, as far as this step computed
    what stands before them."""

    sequence_id: int
    first: int
    tokens: tuple[TokenLogprob, ...]


class Pooled(msgspec.Struct, frozen=True):
    """The pooled hidden state of a sequence whose last token this step computed."""

    sequence_id: int
    vector: tuple[float, ...]


class FailedSequence(msgspec.Struct, frozen=True):
    """A sequence that could not be computed, while the others of the step were; the replica has forgotten it."""

    sequence_id: int
    code: str
    message: str


class StepResult(Message, frozen=True, tag="serve.computed"):
    """`drawn`: one for each sequence of the step that draws, in its order. `seconds`: time computing."""

    step_id: int
    drawn: tuple[Drawn, ...]
    seconds: float
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    pooled: tuple[Pooled, ...] = ()
    failed: tuple[FailedSequence, ...] = ()


class Step(Request[StepResult], frozen=True, tag="serve.compute"):
    """One forward pass over a batch. Steps are computed in the order they come.

    `life` is that of the replica whose cache the step builds on: another one refuses it (ReplicaChanged).
    `forget`: sequences that ended or were preempted; what the replica knows of them goes before anything else.
    """

    step_id: int
    sequences: tuple[StepSequence, ...]
    life: str = ""
    forget: tuple[int, ...] = ()


class ReplicaInfo(Message, frozen=True, kw_only=True, tag="serve.replica_info"):
    """What a replica is. `life` is a new one each time it starts: its cache is empty then."""

    life: str
    num_blocks: int
    block_size: int
    dtype: str
    kernels: str
    """What computes: `native`, `torch`, `triton`, `transformers`."""
    weight_bytes: int
    cache_bytes: int
    device: str = "cpu"
    """Where: `cpu`, `cuda:0` and so on."""
    slower_because: str = ""
    """Why, on a card, torch's own kernels compute and not ours."""


class AskReplica(Request[ReplicaInfo], frozen=True, tag="serve.ask_replica"):
    """Ask a replica what it is, before steps are sent to it.

    `forget`: from whoever begins to send it steps. It answers when no step is being computed any more, and knows no
    sequence then: those of a scheduler that is gone would stay for ever.
    """

    forget: bool = False
