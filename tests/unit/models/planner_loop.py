"""A planner's loop over a replica whose model is a pure function of the tokens.

The fake replica keeps the tokens that were written to each slot, as the real one keeps keys and values, and refuses a
step whose earlier tokens are not where the step says they are.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from callboard.actors.models.tokenizer import TokenType, byte_alphabet
from callboard.actors.models.tokenizer_gguf import BytePairTokenizer
from callboard.actors.serve.planner import MAX_IN_FLIGHT, Planner
from callboard.actors.serve.sequence import Sequence
from callboard.actors.serve.text import Text
from callboard.schemas.serve import TokenLogprob
from callboard.schemas.serve_steps import Drawn, FailedSequence, Pooled, PromptLogprobs, SequenceStart, Step, StepResult

BLOCK_SIZE = 4
VOCAB = list(byte_alphabet().values())
TOKENIZER = BytePairTokenizer(VOCAB, [], [TokenType.NORMAL] * len(VOCAB), pre="gpt-2", stop_ids=frozenset({0}))


def next_token(tokens: list[int]) -> int:
    """What the fake model says after `tokens`: depends on all of them; sometimes the token that ends a turn."""
    return random.Random(str(tokens)).randrange(40)


def expected_answer(prompt: list[int], max_tokens: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] in TOKENIZER.stop_ids:
            break
    return tokens[len(prompt) :]


def unending(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens


class FakeReplica:
    """Computes steps in order. Its guesses are right two times out of three."""

    def __init__(self, num_blocks: int) -> None:
        self.slots: list[int | None] = [None] * (num_blocks * BLOCK_SIZE)
        self.starts: dict[int, SequenceStart] = {}
        self.tokens: dict[int, list[int]] = {}
        self.blocks: dict[int, list[int]] = {}
        self.fails: Callable[[SequenceStart], bool] = lambda start: False
        self.num_computed = 0

    def execute(self, step: Step) -> StepResult:
        drawn: list[Drawn] = []
        scores: list[PromptLogprobs] = []
        pooled: list[Pooled] = []
        failed: list[FailedSequence] = []
        for sequence_id in step.forget:
            for known in (self.starts, self.tokens, self.blocks):
                known.pop(sequence_id, None)  # type: ignore[attr-defined]
        for part in step.sequences:
            name = part.sequence_id
            if part.start is not None:
                assert name not in self.starts, "a sequence starts twice"
                self.starts[name], self.tokens[name], self.blocks[name] = part.start, [*part.start.token_ids], []
            start, tokens = self.starts[name], self.tokens[name]
            if self.fails(start):
                failed.append(FailedSequence(name, "model.request", "a test"))
                drawn += [Drawn(())] * part.draws
                continue
            self.blocks[name] += part.new_blocks
            self.num_computed += part.num_tokens
            end = part.num_cached + part.num_tokens
            self._write(name, part.num_cached, tokens[part.num_cached : end])
            self._check(name, end)
            if start.prompt_logprobs >= 0:
                assert part.num_cached or part.start is not None
                rest = tokens[part.num_cached + 1 : min(end + 1, len(start.token_ids))]
                entries = tuple(TokenLogprob(token, -float(token)) for token in rest)
                scores.append(PromptLogprobs(name, part.num_cached + 1, entries))
            if start.pooling is not None and end == len(tokens):
                pooled.append(Pooled(name, tuple(map(float, tokens))))
            if part.draws:
                assert end == len(tokens), "a token is drawn before all others are computed"
                drawn.append(self._draw(name, part.num_draft))
        return StepResult(step.step_id, tuple(drawn), 0.0, tuple(scores), tuple(pooled), tuple(failed))

    def _draw(self, name: int, num_draft: int) -> Drawn:
        tokens = self.tokens[name]
        begin = len(tokens)
        tokens.append(next_token(tokens))
        for _ in range(num_draft):
            guess = next_token(tokens) if random.Random(str(tokens) + "guess").random() < 0.67 else 39
            self._write(name, len(tokens) - 1, [tokens[-1]])
            tokens.append(next_token(tokens))
            if guess != tokens[-1]:
                tokens.pop()
                break
        return Drawn(tuple(tokens[begin:]), num_drafted=num_draft)

    def _slot(self, name: int, place: int) -> int:
        return self.blocks[name][place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE

    def _write(self, name: int, first: int, tokens: list[int]) -> None:
        for place, token in enumerate(tokens, first):
            self.slots[self._slot(name, place)] = token

    def _check(self, name: int, end: int) -> None:
        known = [self.slots[self._slot(name, place)] for place in range(end)]
        assert known == self.tokens[name][:end], "a step counts on tokens that were never computed"


def make_sequence(prompt: list[int], max_tokens: int, **fields: Any) -> Sequence:
    return Sequence(
        tuple(prompt), max_tokens, **{"stop_ids": TOKENIZER.stop_ids, "text": Text(TOKENIZER, ()), **fields}
    )


class Loop:
    """Planner and replica, with steps planned ahead or one at a time."""

    def __init__(self, planner: Planner, num_blocks: int, *, overlap: bool) -> None:
        self.planner = planner
        self.num_blocks = num_blocks
        self.depth = MAX_IN_FLIGHT if overlap else 1
        self.replica = FakeReplica(num_blocks)
        self.steps: list[Step] = []
        self.in_flight: deque[Step] = deque()

    def plan(self) -> Step | None:
        """Plan as many steps as may be under way; the last of them."""
        step = None
        while len(self.in_flight) < self.depth and (planned := self.planner.plan()) is not None:
            step = planned
            self.steps.append(step)
            self.in_flight.append(step)
            self.planner.check_integrity()
        return step

    def turn(self) -> list[Sequence] | None:
        """Plan, and take one result; None if there was nothing to do."""
        self.plan()
        if not self.in_flight:
            return None
        news = self.planner.apply(self.replica.execute(self.in_flight.popleft()))
        self.planner.check_integrity()
        return news

    def die(self) -> list[Sequence]:
        self.in_flight.clear()
        self.replica = FakeReplica(self.num_blocks)
        return self.planner.rewind()

    def run(self, limit: int = 4000) -> list[Step]:
        while self.turn() is not None:
            assert len(self.steps) < limit, "the planner makes no progress"
        assert not self.planner.load
        return self.steps


def computed(loop: Loop, *sequences: Sequence) -> int:
    """How many tokens are computed for these."""
    before = loop.replica.num_computed
    for sequence in sequences:
        loop.planner.add(sequence)
    loop.run()
    return loop.replica.num_computed - before
