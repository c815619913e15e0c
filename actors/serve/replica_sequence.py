"""What a replica knows of one sequence: its tokens, where its keys and values lie, and how its tokens are drawn."""

from __future__ import annotations

import numpy as np
import torch

from ...schemas.serve_steps import SequenceStart
from .grammar import GrammarState
from .guess_pace import GuessPace
from .token_counts import TokenCounts


class ReplicaSequence:
    """Made from its `SequenceStart`; `append` takes each token that is drawn.

        tokens   p0 p1 p2 p3 | g0 g1 g2 | x0 x1
                 num_prompt    drawn      guesses that were taken by `advance` and are not in `tokens`

    `advance` moves all that sampling depends on (place, penalties, grammar) past a guess, so that the row behind it is
    prepared as if it had been drawn; `retreat` takes all guesses back.
    """

    def __init__(self, sequence_id: int, start: SequenceStart, row: int, grammar: GrammarState | None) -> None:
        self.sequence_id = sequence_id
        self.row = row
        """Its row of the block tables."""
        self.tokens = list(start.token_ids)
        self.num_prompt = start.num_prompt_tokens
        self.num_start = len(start.token_ids)
        self.sampling = sampling = start.sampling
        self.adapter = start.adapter
        self.deterministic = start.deterministic
        self.prompt_logprobs = start.prompt_logprobs
        self.pooling = start.pooling
        self.pooled: torch.Tensor | None = None
        """Sum of the hidden states so far (float64), where their mean is wanted."""
        self.grammar = grammar
        self.stop_ids = frozenset(sampling.stop_ids)
        self.stop_array = np.array(sorted(self.stop_ids), np.int64)
        bias = dict[int, float]()
        for token, value in sampling.logit_bias:
            bias[token] = bias.get(token, 0.0) + value
        self.bias_ids = np.array(list(bias), np.int64)
        self.bias_values = np.array(list(bias.values()), np.float32)
        self.counts: TokenCounts | None = None
        if sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty:
            self.counts = TokenCounts(self.tokens[: self.num_prompt], self.tokens[self.num_prompt :])
        self.is_plain = not (
            sampling.temperature
            or sampling.logit_bias
            or sampling.min_tokens
            or sampling.logprobs >= 0
            or self.counts is not None
            or grammar is not None
        )
        """Its next token is the one of the largest logit, and nothing more is asked."""
        self.pace = GuessPace()
        self._ahead: list[tuple[int, bool]] = []

    @property
    def next_index(self) -> int:
        """Which generated token is drawn next, guesses counted."""
        return len(self.tokens) - self.num_prompt + len(self._ahead)

    @property
    def has_ended(self) -> bool:
        return self.grammar is not None and self.grammar.ended

    def append(self, token: int) -> bool:
        """Take a drawn token; whether it is the last: a stop token, or the end of the grammar."""
        self.tokens.append(token)
        if self.counts is not None:
            self.counts.add(token)
        if self.grammar is not None:
            self.grammar.accept(token)
        return token in self.stop_ids or self.has_ended

    def advance(self, token: int) -> bool:
        """Go past a guess. False, and nothing changes, where nothing would be drawn after it or it cannot be drawn."""
        if token in self.stop_ids or (self.grammar is not None and not self.grammar.guess(token)):
            return False
        was_new = False
        if self.counts is not None:
            was_new = token not in self.counts
            self.counts.add(token)
        self._ahead.append((token, was_new))
        return True

    def retreat(self) -> None:
        if self.grammar is not None and self._ahead:
            self.grammar.rollback(len(self._ahead))
        while self._ahead:
            token, was_new = self._ahead.pop()
            if self.counts is not None:
                self.counts.remove(token, was_new=was_new)
