"""How fast an engine has been, second by second: what somebody who begins to look sees at once of the last minutes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ...schemas.serve_stats import ServedSecond
from .sequence import Sequence

KEPT_S = 120


class _Second:
    """Sums of one second."""

    __slots__ = ("cached_tokens", "first_tokens", "gap_tokens", "gaps", "number", "prompt_tokens", "tokens", "ttft")

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens = self.first_tokens = self.gap_tokens = self.prompt_tokens = self.cached_tokens = 0
        self.ttft = self.gaps = 0.0

    def read(self) -> ServedSecond:
        return ServedSecond(
            tokens=self.tokens,
            first_tokens=self.first_tokens,
            ttft_ms=round(1e3 * self.ttft / self.first_tokens, 3) if self.first_tokens else 0.0,
            token_ms=round(1e3 * self.gaps / self.gap_tokens, 3) if self.gap_tokens else 0.0,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
        )


class Pace:
    """Sums for each of the last `KEPT_S` seconds; seconds without a token cost nothing until they are read.

    Times are of one monotonic clock. Called for every sequence of every step, so it only adds up.
    """

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque(maxlen=KEPT_S)

    def advanced(self, sequences: Iterable[Sequence], now: float) -> None:
        """These got tokens, or their end."""
        second = self._at(now)
        for sequence in sequences:
            num_new = sequence.num_generated - sequence.num_timed
            if not num_new:
                continue
            second.tokens += num_new
            if sequence.num_timed:
                second.gaps += now - sequence.last_token_at
                second.gap_tokens += num_new
            else:
                second.first_tokens += 1
                second.ttft += now - sequence.entered
                second.prompt_tokens += sequence.num_prompt_tokens
                second.cached_tokens += sequence.num_cached_tokens or 0
            sequence.num_timed += num_new
            sequence.last_token_at = now

    def read(self, now: float) -> tuple[ServedSecond, ...]:
        """The last `KEPT_S` whole seconds, the oldest first."""
        last = int(now) - 1
        known = {second.number: second for second in self._seconds}
        nothing = ServedSecond()
        return tuple(
            known[number].read() if number in known else nothing for number in range(last - KEPT_S + 1, last + 1)
        )

    def _at(self, now: float) -> _Second:
        number = int(now)
        if not self._seconds or self._seconds[-1].number != number:
            self._seconds.append(_Second(number))
        return self._seconds[-1]
