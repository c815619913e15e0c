"""Decides what the next step computes: continuous batching under one token budget.

Every step gives each decoding sequence its one token and fills what is left of the budget with prompts, in chunks
where they are long (Orca, OSDI '22; Sarathi-Serve, OSDI '24). When blocks run out the youngest sequence gives its own
back and is computed again later (vLLM, SOSP '23). Pure bookkeeping: no I/O, no clock, no tensors.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator

import msgspec

from ...runtime.errors import RequestInvalid
from ...schemas.serve import Step, StepResult, StepSequence
from .blocks import BlockPool
from .errors import Overloaded
from .sequence import Sequence


class Limits(msgspec.Struct, frozen=True):
    """How much at once: tokens in a step, sequences in a batch, requests in the queue."""

    max_batch_tokens: int
    max_running: int
    max_waiting: int


class Planner:
    """Sequences wait, run, and leave. `plan` makes a step, `apply` takes its result; one step at a time.

    `running` is ordered by age. A waiting sequence holds no blocks; a running one holds enough for all tokens that it
    has, so a prompt once begun is not preempted by its own later chunks.
    """

    def __init__(self, num_blocks: int, block_size: int, limits: Limits) -> None:
        if limits.max_batch_tokens < limits.max_running:
            raise ValueError("max_batch_tokens below max_running would leave decoding sequences out of a step")
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._num_steps = 0
        self._in_flight: list[tuple[Sequence, int]] = []  # what the step under way computes: tokens of each

    @property
    def max_tokens(self) -> int:
        """Tokens that a single sequence can have: the whole pool."""
        return self.pool.num_blocks * self.block_size

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. RequestInvalid if the pool can never hold it, Overloaded if the queue is full."""
        needed = sequence.num_prompt_tokens + sequence.max_tokens
        if needed > self.max_tokens:
            raise RequestInvalid(
                f"prompt and answer may need {needed:,} tokens; the engine's cache holds {self.max_tokens:,}",
                hint="ask for fewer `max_tokens`, or give the engine a larger cache",
            )
        if len(self.waiting) >= self.limits.max_waiting:
            raise Overloaded(f"{len(self.waiting)} requests are waiting already; the engine takes no more")
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, done or not; its blocks are free at once. Nothing if it is not here any more.

        Safe while a step is under way: steps are computed in order, so whoever gets the blocks writes them later.
        """
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def plan(self) -> Step | None:
        """The next step, or None if there is nothing to do."""
        if self._in_flight:
            raise RuntimeError("a step is under way")
        budget = self.limits.max_batch_tokens
        parts: list[StepSequence] = []
        for sequence in [s for s in self.running if s.num_uncomputed == 1]:
            if sequence in self.running and self._grow(sequence):
                parts.append(self._part(sequence, 1))
                budget -= 1
        for sequence in [*self.running]:
            if sequence.num_uncomputed > 1 and budget:
                parts.append(self._part(sequence, min(sequence.num_uncomputed, budget)))
                budget -= len(parts[-1].token_ids)
        for sequence in self._admissible():
            if not budget:
                break
            self._admit(sequence)
            parts.append(self._part(sequence, min(sequence.num_uncomputed, budget)))
            budget -= len(parts[-1].token_ids)
        if not parts:
            return None
        self._num_steps += 1
        return Step(self._num_steps, tuple(parts))

    def apply(self, result: StepResult) -> list[Sequence]:
        """Take a step's result. Returns the sequences that got a token; those that ended have left."""
        if result.step_id != self._num_steps or not self._in_flight:
            raise RuntimeError(f"step {result.step_id} is not the one under way")
        parts, self._in_flight = self._in_flight, []
        tokens = iter(result.tokens)
        advanced: list[Sequence] = []
        for sequence, num_tokens in parts:
            wanted = num_tokens == sequence.num_uncomputed
            token = next(tokens) if wanted else None
            if sequence not in self.running:
                continue  # it was removed meanwhile
            sequence.num_computed += num_tokens
            sequence.num_failures = 0
            if token is not None:
                sequence.append(token)
                advanced.append(sequence)
                if sequence.is_done:
                    self.remove(sequence)
        return advanced

    def rewind(self) -> list[Sequence]:
        """The cache is lost, and the step under way with it: everything that ran waits again, to be computed anew.

        Returns the sequences of the lost step that are still here.
        """
        lost = [sequence for sequence, _ in self._in_flight if sequence in self.running]
        self._in_flight = []
        for sequence in [*self.running][::-1]:
            self._requeue(sequence)
        return lost

    def check_integrity(self) -> None:
        """RuntimeError unless the blocks held are exactly those of the running sequences."""
        self.pool.check_integrity(sequence.blocks for sequence in self.running)
        for sequence in self.waiting:
            if sequence.blocks or sequence.num_computed:
                raise RuntimeError(f"sequence {sequence.sequence_id} waits and yet holds blocks")

    def _grow(self, sequence: Sequence) -> bool:
        """Make sure that a decoding sequence has a block for its next token; False if it had to give way itself."""
        while self._missing(sequence) > self.pool.num_free:
            youngest = self.running[-1]
            self._requeue(youngest)
            self.num_preemptions += 1
            if youngest is sequence:
                return False
        sequence.blocks += self.pool.allocate(self._missing(sequence))
        return True

    def _admissible(self) -> Iterator[Sequence]:
        """Waiting sequences that may start now, first come first served; each is to be admitted before the next.

        Besides its own blocks, one for each that runs must stay free: otherwise the newcomer would soon be preempted.
        """
        while self.waiting and len(self.running) < self.limits.max_running:
            head = self.waiting[0]
            spare = len(self.running)
            if self._missing(head) + spare > self.pool.num_free:
                return
            yield head

    def _admit(self, sequence: Sequence) -> None:
        self.waiting.popleft()
        sequence.blocks += self.pool.allocate(self._missing(sequence))
        bisect.insort(self.running, sequence, key=lambda s: s.sequence_id)

    def _part(self, sequence: Sequence, num_tokens: int) -> StepSequence:
        self._in_flight.append((sequence, num_tokens))
        start = sequence.num_computed
        return StepSequence(
            sequence.sequence_id,
            tuple(sequence.token_ids[start : start + num_tokens]),
            start,
            tuple(sequence.blocks),
            sequence.next_sampling() if num_tokens == sequence.num_uncomputed else None,
        )

    def _missing(self, sequence: Sequence) -> int:
        """Blocks that a sequence lacks to hold all the tokens it has."""
        return -(-len(sequence.token_ids) // self.block_size) - len(sequence.blocks)

    def _requeue(self, sequence: Sequence) -> None:
        """Back to the front of the queue; its tokens stay, its keys and values are computed again."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks.clear()
