"""Guesses by prompt lookup: what followed when the sequence's last few tokens stood together before."""

from __future__ import annotations

from collections.abc import Sequence

from .block_tables import BlockTables
from .replica_sequence import ReplicaSequence

# A single token that occurred before says little of what comes next; more than four say no more than four.
SHORTEST = 2
LONGEST = 4


class NgramIndex:
    """What came after each n-gram of a sequence when it stood there last. A few entries for each token."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}
        self._num_seen = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that came since; an n-gram counts once it has a token behind it."""
        for end in range(max(self._num_seen, SHORTEST), len(tokens)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._next[tuple(tokens[end - length : end])] = end
        self._num_seen = max(self._num_seen, len(tokens))

    def guess(self, tokens: Sequence[int], limit: int) -> list[int]:
        """What followed the longest suffix of `tokens` that stood before; a loop is followed round and round."""
        for length in range(min(LONGEST, len(tokens) - 1), SHORTEST - 1, -1):
            start = self._next.get(tuple(tokens[-length:]))
            if start is not None:
                follow = tokens[start : start + limit]
                return [follow[i % len(follow)] for i in range(limit)]
        return []


class NgramDrafter:
    weight_bytes = 0
    cache_bytes = 0

    def __init__(self) -> None:
        self._indices: dict[int, NgramIndex] = {}

    def propose(self, wanted: Sequence[tuple[ReplicaSequence, int]], tables: BlockTables) -> list[list[int]]:
        return [self._guess(sequence, limit) for sequence, limit in wanted]

    def settle(self, sequence: ReplicaSequence, num_right: int) -> None:
        """Nothing is kept of guesses."""

    def forget(self, sequence_id: int) -> None:
        self._indices.pop(sequence_id, None)

    def _guess(self, sequence: ReplicaSequence, limit: int) -> list[int]:
        index = self._indices.get(sequence.sequence_id)
        if index is None:
            index = self._indices[sequence.sequence_id] = NgramIndex()
        index.extend(sequence.tokens)
        return index.guess(sequence.tokens, limit)
