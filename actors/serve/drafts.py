"""Guessing ahead: who proposes the tokens that a step then verifies (speculative decoding, arXiv:2211.17192).

A guess is kept only where it equals the token that is drawn at its place with that place's own random number. So
guesses decide how many tokens a step yields, and never which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .block_tables import BlockTables
from .replica_sequence import ReplicaSequence


class Drafter(Protocol):
    """Proposes guesses, and keeps what it needs for that of each sequence until `forget`."""

    def propose(self, wanted: Sequence[tuple[ReplicaSequence, int]], tables: BlockTables) -> list[list[int]]:
        """For each sequence up to so many guesses of what follows its tokens; maybe none."""
        ...

    def settle(self, sequence: ReplicaSequence, num_right: int) -> None:
        """So many of the sequence's last guesses were right; its tokens now include them and the one drawn after."""
        ...

    def forget(self, sequence_id: int) -> None: ...

    @property
    def weight_bytes(self) -> int: ...
    @property
    def cache_bytes(self) -> int: ...
