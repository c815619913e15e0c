"""Decides what the next step computes: continuous batching under one token budget.

Every step gives each decoding sequence its one token and fills what is left of the budget with prompts, in chunks
where they are long (Orca, OSDI '22; Sarathi-Serve, OSDI '24). When blocks run out a sequence gives its own back and is
computed again later (vLLM, SOSP '23). Pure bookkeeping: no I/O, no clock, no tensors.

A step may be planned while the one before is under way, since the replica knows the tokens that it draws:

    plan 1   plan 2   apply 1   plan 3   apply 2 ...
             | what step 1 draws is not known here, but how many tokens there will be

So a sequence may turn out to have ended when a step that goes on with it is under way; what that computes is dropped.
"""

from __future__ import annotations

import bisect
import enum
import itertools
from collections import deque
from typing import NamedTuple

import msgspec

from ...runtime.errors import CallboardError, RequestInvalid, from_info
from ...schemas.base import ErrorInfo
from ...schemas.serve_steps import Drawn, FailedSequence, Step, StepResult, StepSequence
from .blocks import BlockPool
from .fairness import GENERATED_WEIGHT, Accounts, FairQueue
from .leaders import Leaders
from .prefix_tree import Node, PrefixTree
from .sequence import Sequence
from .sessions import Sessions

# Steps under way at once: the one that is computed, and the one that the replica goes on with.
MAX_IN_FLIGHT = 2
# Guesses fill a step up to so many rows. Measured with SmolLM2 on two cores: 8 rows take little longer than one, 16
# half as long again, and each one beyond nearly what a token costs anyway, so a guess seldom pays.
MAX_ROWS_WITH_GUESSES = 16


class Limits(msgspec.Struct, frozen=True):
    """How much at once: tokens in a step, sequences in a batch, conversations that are kept, and for how long."""

    max_batch_tokens: int
    max_running: int
    max_sessions: int = 0
    session_ttl_s: float = 300.0


class Part(NamedTuple):
    """What a step under way does for a sequence."""

    sequence: Sequence
    epoch: int
    num_tokens: int
    draws: bool


class Planned(NamedTuple):
    """A step under way. `drafts`: its result decides where some sequence goes on."""

    step_id: int
    parts: list[Part]
    drafts: bool


class Fit(enum.Enum):
    """Whether a waiting sequence can start: yes; when somebody else has computed its prefix; when there are blocks."""

    PLACED = enum.auto()
    HELD_BACK = enum.auto()
    NO_ROOM = enum.auto()


class Planner:
    """Sequences wait, run, and leave. `plan` makes a step, `apply` takes its result; results come in order.

    `running` is ordered by priority, then by age: who comes last in it gives way first. A waiting sequence holds no
    blocks; a running one holds enough for all tokens that it has, so a prompt once begun is not preempted by its own
    later chunks.
    """

    def __init__(self, num_blocks: int, block_size: int, limits: Limits, accounts: Accounts | None = None) -> None:
        if limits.max_batch_tokens < limits.max_running:
            raise ValueError("max_batch_tokens below max_running would leave decoding sequences out of a step")
        self.pool = BlockPool(num_blocks)
        self.tree = PrefixTree(self.pool, block_size, self._let_go_session)
        self.sessions = Sessions(self.tree, limits.max_sessions, limits.session_ttl_s)
        self.block_size = block_size
        self.limits = limits
        self.waiting = FairQueue()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0
        self.num_drafted_tokens = 0
        self.num_accepted_tokens = 0
        self._accounts = accounts or Accounts()
        self._num_steps = 0
        self._in_flight: deque[Planned] = deque()
        self._forget: list[int] = []
        # Who was next and did not fit, with how many free blocks and how many running: no use to look again before
        # there are more of the one or fewer of the other.
        self._stuck: tuple[Sequence, int, int] | None = None
        self._leaders = Leaders(self.tree)

    @property
    def max_tokens(self) -> int:
        """Tokens that a single sequence can have: the whole pool."""
        return self.pool.num_blocks * self.block_size

    @property
    def load(self) -> int:
        """Sequences that are here."""
        return len(self.running) + len(self.waiting)

    def check_fits(self, sequence: Sequence) -> None:
        """RequestInvalid if the pool can never hold it."""
        needed = sequence.num_prompt_tokens + sequence.max_tokens
        if needed > self.max_tokens:
            raise RequestInvalid(
                f"prompt and answer may need {needed:,} tokens; the engine's cache holds {self.max_tokens:,}",
                hint="ask for fewer `max_tokens`, or give the engine a larger cache",
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. RequestInvalid if the pool can never hold it."""
        self.check_fits(sequence)
        sequence.account = self._accounts.enter(sequence.client)
        self.waiting.append(sequence)

    def hand_over(self, most: int) -> list[Sequence]:
        """Give away up to so many of those that wait, the next in turn first; whoever gets them adopts them."""
        movable = (sequence for sequence in self.waiting.candidates() if not sequence.num_pending)
        leaving = list(itertools.islice(movable, most))
        for sequence in leaving:
            self.waiting.remove(sequence)
            sequence.waits_for = None
        return leaving

    def adopt(self, sequences: list[Sequence]) -> None:
        """Queue some that waited elsewhere, before all others of their priority."""
        for sequence in reversed(sequences):
            self.waiting.resume(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, done or not; its blocks are free at once. Nothing if it is not here any more.

        Safe while a step is under way: steps are computed in order, so whoever gets the blocks writes them later.
        """
        if sequence.is_gone:
            return
        sequence.is_gone = True
        self._accounts.leave(sequence.account)
        if sequence.is_running:
            self.running.pop(self._index(sequence))
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def keep_session(self, name: str, sequence: Sequence, now: float, ttl_s: float = 0.0) -> None:
        """Keep what a sequence that is over has computed for the next turn of its conversation."""
        if sequence.node is not None:
            self.sessions.keep(name, sequence.node, now, ttl_s)

    def num_cached(self, sequence: Sequence) -> int:
        """Tokens of a sequence that would be found computed here."""
        node = self.tree.match(sequence.namespace, sequence.token_ids, sequence.reusable_tokens())
        return len(self.tree.blocks(node)) * self.block_size

    # A step

    def plan(self, now: float = 0.0) -> Step | None:
        """The next step, or None if there is nothing to do, or nothing before a result is here."""
        in_flight = self._in_flight
        if in_flight:
            if len(in_flight) >= MAX_IN_FLIGHT:
                raise RuntimeError("as many steps as may be are under way")
            # Those that guess stay out until their result is here. The rest alone would make two half batches that
            # take turns, each of which costs nearly as much as a whole one.
            if in_flight[-1].drafts:
                return None
        self.sessions.expire(now)
        if self.waiting:
            self._make_way()
        sent: list[StepSequence] = []
        planned = Planned(self._num_steps + 1, [], False)
        budget, drafts = self._plan_decoding(sent, planned.parts)
        if budget > 0:
            budget = self._plan_prompts(sent, planned.parts, budget)
        if budget > 0 and self.waiting:
            self._plan_waiting(sent, planned.parts, budget, now)
        if not sent:
            return None
        self._num_steps += 1
        in_flight.append(planned._replace(drafts=True) if drafts else planned)
        forget, self._forget = tuple(self._forget), []
        return Step(self._num_steps, tuple(sent), forget=forget)

    def apply(self, result: StepResult) -> list[Sequence]:
        """Take a step's result. Returns the sequences of which there is news; those that ended have left."""
        if not self._in_flight or result.step_id != self._in_flight[0].step_id:
            raise RuntimeError(f"step {result.step_id} is not the one whose result is next")
        planned = self._in_flight.popleft()
        failed = {failure.sequence_id: failure for failure in result.failed}
        if len(result.drawn) != sum(part.draws for part in planned.parts):
            raise RuntimeError(f"step {result.step_id} has {len(result.drawn)} results, which is not what it asked for")
        news = self._take_scores(planned, result) if result.prompt_logprobs or result.pooled else {}
        drawn = iter(result.drawn)
        size = self.block_size
        for sequence, epoch, num_tokens, draws in planned.parts:
            got = None
            if draws:
                sequence.num_pending -= 1
                got = next(drawn)
            if failed and sequence.sequence_id in failed:
                if not sequence.is_gone:
                    sequence.fail(_error_of(failed[sequence.sequence_id]))
                    self.remove(sequence)
                    news[sequence] = None
                continue
            if sequence.is_gone:
                continue
            sequence.num_failures = 0
            if sequence.epoch == epoch:
                sequence.num_computed += num_tokens
            if got is not None:
                self._take_drawn(sequence, epoch, got)
                news[sequence] = None
            if sequence.epoch == epoch and sequence.num_computed >= (sequence.num_known + 1) * size:
                self._make_known(sequence)
            if sequence.is_done:
                self.remove(sequence)
        return list(news)

    def rewind(self) -> list[Sequence]:
        """The cache is lost, and the steps under way with it: everything that ran waits again, to be computed anew.

        Returns the sequences of the first lost step that are still here.
        """
        lost = [part.sequence for part in self._in_flight[0].parts] if self._in_flight else []
        for planned in self._in_flight:
            for part in planned.parts:
                part.sequence.num_pending = 0
        self._in_flight.clear()
        for sequence in self.running[::-1]:
            self._give_way(sequence)
        self.tree.flush()
        self.sessions.flush()
        return [sequence for sequence in lost if not sequence.is_gone]

    def check_integrity(self) -> None:
        """RuntimeError unless the blocks held are exactly those of the running sequences."""
        self.tree.check_integrity(sequence.blocks + sequence.anchors for sequence in self.running)
        for sequence in self.waiting:
            if sequence.blocks or sequence.anchors or sequence.num_computed or sequence.is_running:
                raise RuntimeError(f"sequence {sequence.sequence_id} waits and yet holds blocks")
        self._leaders.check_integrity(self.running)
        if not self._in_flight and any(sequence.num_pending for sequence in (*self.running, *self.waiting)):
            raise RuntimeError("a token is awaited that no step draws")

    # The three parts of a step

    def _plan_decoding(self, sent: list[StepSequence], parts: list[Part]) -> tuple[int, bool]:
        """One token for each sequence that decodes. Returns what is left of the budget, and whether any guesses."""
        running, size = self.running, self.block_size
        budget = self.limits.max_batch_tokens
        # The same for each, so that nobody's guesses depend on where in the batch it stands.
        most = min(budget, MAX_ROWS_WITH_GUESSES) // len(running) - 1 if running else 0
        drafts = False
        index = 0
        while index < len(running):  # those at the end may give way meanwhile
            sequence = running[index]
            index += 1
            scheduled, pending = sequence.num_scheduled, sequence.num_pending
            if len(sequence.token_ids) + pending - scheduled != 1:
                continue
            num_draft = 0
            if pending:
                if (sequence.num_draft and most > 0) or sequence.num_generated + pending >= sequence.max_tokens:
                    continue
            elif sequence.num_draft and most > 0:
                num_draft = max(0, min(sequence.num_draft, sequence.max_tokens - sequence.num_generated - 1, most))
                drafts = True
            missing = -(-(scheduled + 1 + num_draft) // size) - len(sequence.blocks)
            new: tuple[int, ...] = ()
            if missing > 0:
                if not self._make_room(sequence, missing):
                    continue
                new = tuple(self.tree.allocate(missing))
                sequence.blocks += new
            draws = sequence.max_tokens > 0
            sent.append(StepSequence(sequence.sequence_id, scheduled, 1, new, draws, num_draft))
            parts.append(Part(sequence, sequence.epoch, 1, draws))
            sequence.num_scheduled = scheduled + 1
            if draws:
                sequence.num_pending = pending + 1
            budget -= 1 + num_draft
        return budget, drafts

    def _plan_prompts(self, sent: list[StepSequence], parts: list[Part], budget: int) -> int:
        """The next chunks of prompts that were begun. Returns what is left of the budget."""
        for sequence in self.running:
            if len(sequence.token_ids) + sequence.num_pending - sequence.num_scheduled > 1:
                budget -= self._send_chunk(sequence, sent, parts, budget)
                if budget <= 0:
                    break
        return budget

    def _plan_waiting(self, sent: list[StepSequence], parts: list[Part], budget: int, now: float) -> None:
        """Let sequences start, the next in turn first, as far as there is room.

        One that lacks room is not overtaken by smaller ones. One whose prefix is just being computed is.
        """
        max_running = self.limits.max_running
        if len(self.running) >= max_running:
            return
        for sequence in self.waiting.candidates():
            if sequence.num_pending:
                continue  # it gave way, and its token is still to come
            if self._is_stuck(sequence):
                break
            fit = self._place(sequence)
            if fit is Fit.NO_ROOM:
                self._stuck = (sequence, self.pool.num_free, len(self.running))
                break
            if fit is Fit.PLACED:
                sequence.began = sequence.began or now
                budget -= self._send_chunk(sequence, sent, parts, budget, start=True)
                if budget <= 0 or len(self.running) >= max_running:
                    break

    def _send_chunk(
        self, sequence: Sequence, sent: list[StepSequence], parts: list[Part], budget: int, *, start: bool = False
    ) -> int:
        """As much of a sequence's uncomputed tokens as the budget allows; how many those are."""
        scheduled = sequence.num_scheduled
        left = len(sequence.token_ids) - scheduled
        num_tokens = min(left, budget)
        draws = num_tokens == left and sequence.max_tokens > 0
        new = tuple(sequence.blocks) if start else ()
        begin = sequence.start() if start else None
        sent.append(StepSequence(sequence.sequence_id, scheduled, num_tokens, new, draws, 0, begin))
        parts.append(Part(sequence, sequence.epoch, num_tokens, draws))
        sequence.num_scheduled = scheduled + num_tokens
        if draws:
            sequence.num_pending += 1
        return num_tokens

    # Starting

    def _is_stuck(self, sequence: Sequence) -> bool:
        if self._stuck is None:
            return False
        last, num_free, num_running = self._stuck
        return last is sequence and self.pool.num_free <= num_free and len(self.running) >= num_running

    def _place(self, sequence: Sequence) -> Fit:
        """Give a waiting sequence its blocks, those that are computed already first, and let it run."""
        node = self._leaders.match(sequence)
        if node is None:
            return Fit.HELD_BACK
        known, missing, needed = self._needed(sequence, node)
        # Besides its own blocks, one for each that runs stays free: otherwise the newcomer would soon give way.
        if needed + len(self.running) > self.pool.num_free:
            return Fit.NO_ROOM
        self.tree.take(known)
        sequence.blocks = known + self.tree.allocate(missing)
        sequence.node = node
        sequence.num_known = len(known)
        sequence.num_computed = sequence.num_scheduled = len(known) * self.block_size
        self.waiting.remove(sequence)
        sequence.is_running = True
        bisect.insort(self.running, sequence, key=_rank)
        self._leaders.announce(sequence)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = min(sequence.num_computed, sequence.num_prompt_tokens)
            self.num_cached_tokens += sequence.num_cached_tokens
            sequence.account.served += sequence.num_prompt_tokens - sequence.num_cached_tokens
        return Fit.PLACED

    def _needed(self, sequence: Sequence, node: Node) -> tuple[list[int], int, int]:
        """To start after `node`: the blocks that are known, how many more, and how many free ones that takes."""
        known = self.tree.blocks(node)
        missing = -(-len(sequence.token_ids) // self.block_size) - len(known)
        return known, missing, missing + sum(not self.pool.is_held(block) for block in known)

    # Results

    def _take_drawn(self, sequence: Sequence, epoch: int, got: Drawn) -> None:
        taken = sequence.take(got)
        sequence.account.served += GENERATED_WEIGHT * taken
        self.num_generated_tokens += taken
        num_right = len(got.tokens) - 1
        if got.num_drafted:
            sequence.num_drafted += got.num_drafted
            sequence.num_accepted += num_right
            self.num_drafted_tokens += got.num_drafted
            self.num_accepted_tokens += num_right
        if num_right > 0 and sequence.epoch == epoch:
            sequence.num_computed += num_right  # the keys and values of guesses that were right are there
            sequence.num_scheduled += num_right

    def _take_scores(self, planned: Planned, result: StepResult) -> dict[Sequence, None]:
        """Take what is there beside tokens. Returns the sequences that are done by it."""
        here = {part.sequence.sequence_id: part.sequence for part in planned.parts if not part.sequence.is_gone}
        for scored in result.prompt_logprobs:
            if scored.sequence_id in here:
                here[scored.sequence_id].take_scores(scored)
        for pooled in result.pooled:
            if pooled.sequence_id in here:
                here[pooled.sequence_id].take_pooled(pooled.vector)
        return {sequence: None for sequence in here.values() if sequence.is_done}

    def _make_known(self, sequence: Sequence) -> None:
        """Put a sequence's whole blocks that are computed now into the tree."""
        size, tokens = self.block_size, sequence.token_ids
        num_whole = min(sequence.num_computed, len(tokens)) // size
        self._leaders.withdraw(sequence)
        while sequence.num_known < num_whole:
            start = sequence.num_known * size
            assert sequence.node is not None
            node, is_anchor = self.tree.insert(
                sequence.node, tuple(tokens[start : start + size]), sequence.blocks[sequence.num_known]
            )
            if is_anchor:
                sequence.anchors.append(node.block)
            sequence.node = node
            sequence.num_known += 1
        if not sequence.is_done:
            self._leaders.announce(sequence)

    # Giving way

    def _make_room(self, sequence: Sequence, num_blocks: int) -> bool:
        """Have others give way until a running sequence can have so many blocks; False if it had to itself."""
        while num_blocks > self.pool.num_free:
            last = self.running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _make_way(self) -> None:
        """Have running sequences give way to the next waiting one if they are of lower priority and it lacks room."""
        top, running = self.waiting.top_priority, self.running
        if top is None or not running or top <= running[-1].priority:
            return
        sequence = next((waiting for waiting in self.waiting.candidates() if not waiting.num_pending), None)
        if sequence is None:
            return
        lower = [other for other in running if other.priority < sequence.priority]
        node = self._leaders.match(sequence) if lower else None
        if node is None:
            return
        most = self.pool.num_free + sum(len(other.blocks) for other in lower)
        if self._needed(sequence, node)[2] + len(running) - len(lower) > most:
            return  # it would have to wait all the same
        for other in reversed(lower):
            fits = self._needed(sequence, node)[2] + len(running) <= self.pool.num_free
            if fits and len(running) < self.limits.max_running:
                break
            self._preempt(other)

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self._give_way(sequence)

    def _give_way(self, sequence: Sequence) -> None:
        """Back to the queue; its tokens stay, its keys and values are computed again where the tree loses them."""
        self.running.pop(self._index(sequence))
        self._stop(sequence)
        self.waiting.resume(sequence)

    def _stop(self, sequence: Sequence) -> None:
        self._leaders.withdraw(sequence)
        self.tree.release(sequence.blocks + sequence.anchors)
        sequence.blocks = []
        sequence.anchors = []
        sequence.num_computed = sequence.num_scheduled = sequence.num_known = 0
        sequence.epoch += 1
        sequence.is_running = False
        self._forget.append(sequence.sequence_id)

    def _index(self, sequence: Sequence) -> int:
        return bisect.bisect_left(self.running, _rank(sequence), key=_rank)

    def _let_go_session(self) -> bool:
        return self.sessions.let_go_oldest()


def _rank(sequence: Sequence) -> tuple[int, int]:
    return -sequence.priority, sequence.sequence_id


def _error_of(failure: FailedSequence) -> CallboardError:
    return from_info(ErrorInfo(failure.code, failure.message))
