"""How far to guess ahead, from how earlier guesses fared."""

from __future__ import annotations

# After guesses that were all wrong nothing is guessed for 2 steps, then 4, and so on up to this many.
LONGEST_REST = 64
FIRST_LENGTH = 2


class GuessPace:
    """How many tokens ahead a sequence is worth guessing, by how its last guesses fared.

    A guess that is wrong costs about what a right one saves, so text that cannot be guessed is soon left alone and only
    tried now and then.
    """

    def __init__(self) -> None:
        self._length = FIRST_LENGTH
        self._misses = 0
        self._rest = 0

    def limit(self, most: int) -> int:
        """How many to guess in the step at hand."""
        if self._rest:
            self._rest -= 1
            return 0
        return min(self._length, most)

    def record(self, num_guesses: int, num_right: int) -> None:
        if num_right == num_guesses:
            self._length = num_guesses + FIRST_LENGTH
            self._misses = 0
        elif num_right:
            self._length = num_right + 1
            self._misses = 0
        else:
            self._length = 1
            self._misses += 1
            self._rest = min(2**self._misses, LONGEST_REST)
