"""A `Generate` under way: what its sequences have drawn becomes pieces of answers, and at last a completion."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from ...runtime.errors import CallboardError
from ...schemas.serve import Choice, Completion, Generate, Timings, Token, TokenLogprob, Usage
from .sequence import Sequence


class Answer:
    """One of the answers that are computed."""

    __slots__ = ("index", "is_new", "num_sent", "sequence")

    def __init__(self, index: int, sequence: Sequence) -> None:
        self.index = index
        self.sequence = sequence
        self.num_sent = 0
        self.is_new = False


class Generation:
    """Owns the sequences of a request. `news` is set when there is something to take.

    Answers are handed out as they grow, except where the best are to be picked at the end. Times are of one monotonic
    clock.
    """

    def __init__(self, request: Generate, sequences: list[Sequence], arrived: float) -> None:
        self.request = request
        self.sequences = sequences
        self.news = asyncio.Event()
        self.is_done = False
        self.error: CallboardError | None = None
        self._arrived = arrived
        self._first_token = 0.0
        self._last_token = arrived
        self._picks = len(sequences) > request.n
        self._num_open = len(sequences)
        self._answers = {sequence: Answer(index, sequence) for index, sequence in enumerate(sequences)}
        self._new: list[Answer] = []
        for sequence in sequences:
            sequence.owner = self

    def advanced(self, sequence: Sequence, now: float) -> None:
        """There is news of a sequence."""
        if not self._first_token and sequence.num_generated:
            self._first_token = now
        self._last_token = now
        if sequence.is_done:
            self._num_open -= 1
            self.error = self.error or sequence.error
            self.is_done = self.error is not None or not self._num_open
        answer = self._answers[sequence]
        if not answer.is_new:
            answer.is_new = True
            self._new.append(answer)
        if self.is_done or not self._picks:
            self.news.set()

    @property
    def has_begun(self) -> bool:
        return self._first_token > 0

    def take(self) -> Iterator[Token]:
        """The pieces that are ready to go. Ids whose text is held back wait for it, or for the end."""
        if self._picks:
            if self.is_done and self.error is None:
                for index, answer in enumerate(self._chosen()):
                    if (piece := self._piece(answer, index)) is not None:
                        yield piece
            return
        new, self._new = self._new, []
        for answer in new:
            answer.is_new = False
            if (piece := self._piece(answer, answer.index)) is not None:
                yield piece

    def completion(self) -> Completion:
        """All of it, once it is done. Raises the error that it ended with."""
        if self.error is not None:
            raise self.error
        chosen = [answer.sequence for answer in self._chosen()]
        choices = tuple(_choice(sequence, self.request.logprobs is not None) for sequence in chosen)
        first = self.sequences[0]
        scores = tuple(entry for entry in first.scores if entry is not None)
        return Completion(
            choices[0].text,
            choices[0].finish_reason,
            self._usage(),
            self._timings(),
            choices,
            scores,
            choices[0].tool_calls,
        )

    @property
    def best(self) -> Sequence:
        """The sequence that a conversation goes on from."""
        return self._chosen()[0].sequence if self.is_done and self.error is None else self.sequences[0]

    def _chosen(self) -> list[Answer]:
        answers = list(self._answers.values())
        if self._picks:
            answers.sort(key=lambda answer: -(_likelihood(answer.sequence) or 0.0))
        return answers[: self.request.n]

    def _piece(self, answer: Answer, index: int) -> Token | None:
        sequence = answer.sequence
        text = sequence.text.take() if sequence.text is not None else ""
        start, end = answer.num_sent, sequence.num_generated
        if not text and not (sequence.is_done and start < end):
            return None
        answer.num_sent = end
        ids = tuple(sequence.token_ids[sequence.num_prompt_tokens + start :])
        if self.request.logprobs is None:
            return Token(text, ids, index)
        return Token(text, ids, index, tuple(sequence.logprobs[start:end]))

    def _usage(self) -> Usage:
        first, all_of_them = self.sequences[0], self.sequences
        return Usage(
            prompt_tokens=first.num_prompt_tokens,
            completion_tokens=sum(sequence.num_generated for sequence in all_of_them),
            cached_tokens=first.num_cached_tokens or 0,
            drafted_tokens=sum(sequence.num_drafted for sequence in all_of_them),
            accepted_tokens=sum(sequence.num_accepted for sequence in all_of_them),
        )

    def _timings(self) -> Timings:
        ttft = self._first_token - self._arrived
        generated = sum(sequence.num_generated for sequence in self.sequences)
        if generated > 1:
            rate = (generated - 1) / max(self._last_token - self._first_token, 1e-9)
        else:
            rate = 1 / max(ttft, 1e-9)
        queued = min(sequence.began for sequence in self.sequences) - self._arrived
        return Timings(round(1e3 * ttft, 3), round(rate, 3), round(1e3 * max(0.0, queued), 3))


def _choice(sequence: Sequence, with_logprobs: bool) -> Choice:
    if sequence.finish_reason is None or sequence.text is None:
        raise RuntimeError(f"sequence {sequence.sequence_id} is not finished")
    return Choice(
        text=sequence.text.whole(),
        token_ids=tuple(sequence.token_ids[sequence.num_prompt_tokens :]),
        finish_reason=sequence.finish_reason,
        likelihood=_likelihood(sequence),
        logprobs=tuple(sequence.logprobs) if with_logprobs else (),
        tool_calls=sequence.text.tool_calls,
        stop=sequence.text.stop,
    )


def _likelihood(sequence: Sequence) -> float | None:
    """The mean log-probability of its tokens, where they are known."""
    entries: list[TokenLogprob] = sequence.logprobs
    return sum(entry.logprob for entry in entries) / len(entries) if entries else None
