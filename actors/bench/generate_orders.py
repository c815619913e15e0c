"""What an engine of ours is asked to do by `callboard bench generate`, and what it answers beside a batch."""

from __future__ import annotations

import msgspec


class RunBatch(msgspec.Struct, frozen=True, tag_field="do", tag="batch"):
    """`size` random prompts of `prompt` tokens, drawn from `seed`, each answered by `output` tokens."""

    size: int
    prompt: int
    output: int
    seed: int
    vocab_size: int
    deterministic: bool = False


class PeerBatch(msgspec.Struct, frozen=True):
    """The same for a peer, whose orders have no kinds."""

    size: int
    prompt: int
    output: int
    seed: int
    vocab_size: int


class SecondTurn(msgspec.Struct, frozen=True, tag_field="do", tag="second_turn"):
    """A conversation of `history` tokens and its follow-up of `more` tokens, against the same prompt cold."""

    history: int
    more: int
    seed: int
    vocab_size: int


class SecondTurnAnswer(msgspec.Struct, frozen=True):
    """Times to the first token, in milliseconds as the engine says them."""

    cold_ms: float
    warm_ms: float


class MeasurePerplexity(msgspec.Struct, frozen=True, tag_field="do", tag="perplexity"):
    texts: tuple[str, ...]


class PerplexityAnswer(msgspec.Struct, frozen=True):
    perplexity: float
    num_tokens: int


Order = RunBatch | SecondTurn | MeasurePerplexity
