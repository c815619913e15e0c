"""Which tokens occurred in a sequence, and how often each was generated: what penalties are taken from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TokenCounts:
    """Grows token by token, and shrinks again where guesses are taken back.

    `ids` names each token of prompt and answer once, in order of appearance; `generated` says how often it is in the
    answer.
    """

    def __init__(self, prompt: Sequence[int], generated: Sequence[int]) -> None:
        self._place = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        capacity = max(64, 2 * len(self._place))
        self._ids = np.zeros(capacity, np.int64)
        self._ids[: len(self._place)] = list(self._place)
        self._generated = np.zeros(capacity, np.float32)
        for token in generated:
            self.add(token)

    @property
    def ids(self) -> np.ndarray:
        return self._ids[: len(self._place)]

    @property
    def generated(self) -> np.ndarray:
        return self._generated[: len(self._place)]

    def add(self, token: int) -> None:
        place = self._place.get(token)
        if place is None:
            place = self._place[token] = len(self._place)
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._generated = np.concatenate([self._generated, np.zeros_like(self._generated)])
            self._ids[place] = token
        self._generated[place] += 1

    def remove(self, token: int, *, was_new: bool) -> None:
        """Undo the last `add`; `was_new`: it was the token's first occurrence anywhere."""
        self._generated[self._place[token]] -= 1
        if was_new:
            del self._place[token]

    def __contains__(self, token: int) -> bool:
        return token in self._place
