"""An `Embed` or a `Score` under way: many texts to be looked at, of which a few at a time stand in the queue."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from ...runtime.errors import CallboardError
from ...schemas.serve import Embed, Embeddings, Score, ScoredText, Scores, TokenLogprob
from .sequence import Sequence

# Enough to fill steps; the rest of the texts do not lengthen the queue for others.
WINDOW = 32


class TextBatch:
    """Owns the sequences of a request and lets them start as others end."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.sequences = sequences
        self.num_entered = 0
        self._num_open = 0
        self._error: CallboardError | None = None
        self._news = asyncio.Event()
        for sequence in sequences:
            sequence.owner = self

    @property
    def has_begun(self) -> bool:
        return False  # what it waits for is no stream

    def advanced(self, sequence: Sequence, now: float) -> None:
        if sequence.is_done:
            self._num_open -= 1
            self._error = self._error or sequence.error
            self._news.set()

    async def run(self, enter: Callable[[Sequence], None]) -> None:
        """Return when all are done; raises the error of one that failed, or what `enter` raised."""
        for sequence in self.sequences:
            await self._until(WINDOW - 1)
            enter(sequence)
            self.num_entered += 1
            self._num_open += 1
        await self._until(0)

    async def _until(self, num_open: int) -> None:
        while self._error is None and self._num_open > num_open:
            await self._news.wait()
            self._news.clear()
        if self._error is not None:
            raise self._error


def embeddings(request: Embed, sequences: list[Sequence]) -> Embeddings:
    vectors: list[tuple[float, ...]] = []
    for sequence in sequences:
        if sequence.pooled is None:
            raise RuntimeError(f"sequence {sequence.sequence_id} is not pooled")
        vectors.append(_normalized(sequence.pooled) if request.normalize else sequence.pooled)
    return Embeddings(tuple(vectors), sum(sequence.num_prompt_tokens for sequence in sequences))


def scores(request: Score, sequences: list[Sequence]) -> Scores:
    texts: list[ScoredText] = []
    total, count = 0.0, 0
    for sequence in sequences:
        entries = [entry for entry in sequence.scores[sequence.first_scored :] if entry is not None]
        logprob = math.fsum(entry.logprob for entry in entries)
        total += logprob
        count += len(entries)
        is_greedy = all(_is_likeliest(entry) for entry in entries)
        texts.append(ScoredText(logprob, len(entries), is_greedy, tuple(entries) if request.return_tokens else ()))
    return Scores(tuple(texts), math.exp(min(-total / count, math.log(1e300))))


def _is_likeliest(entry: TokenLogprob) -> bool:
    return bool(entry.top) and entry.top[0][0] == entry.token_id


def _normalized(vector: tuple[float, ...]) -> tuple[float, ...]:
    length = math.sqrt(math.fsum(value * value for value in vector))
    return tuple(value / length for value in vector) if length else vector
