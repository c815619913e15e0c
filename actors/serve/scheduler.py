"""The scheduler: takes requests, keeps the replica busy, hands out tokens.

A thin shell around the planner. One task makes steps and takes their results; each request's handler waits for news
of its own sequence and streams it out.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.errors import (
    ActorStopped,
    BusError,
    CallboardError,
    DeadlineExceeded,
    HandlerFailed,
    NoSuchActor,
)
from ...schemas.serve import (
    Completion,
    EngineStats,
    Generate,
    GetStats,
    Step,
    StepResult,
    Timings,
    Token,
    Usage,
)
from ..models.loading import load_tokenizer
from .errors import ReplicaLost
from .intake import IntakeConfig, admit
from .planner import Limits, Planner
from .sequence import Sequence

# What a replica that died, is being restarted, or cannot be reached is known by.
REPLICA_ERRORS = (HandlerFailed, ActorStopped, NoSuchActor, BusError, DeadlineExceeded)
# A request that was in this many lost steps one after another may well be what kills the replica.
MAX_FAILURES = 3
# A replica that is nowhere is looked for this often, for this long; then the scheduler gives up and is restarted.
LOOK_EVERY_S = 0.25
LOOK_FOR_S = 60.0


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`path` is the model's file, `replica` the address of what computes."""

    model: str
    path: str
    dtype: str
    replica: str
    num_blocks: int
    block_size: int
    context_length: int
    default_max_tokens: int
    max_batch_tokens: int
    max_running: int
    max_waiting: int
    step_timeout_s: float


@dataclass
class Counts:
    """What happened since the start; the fields of `EngineStats` of the same names."""

    requests: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    replica_failures: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    compute_seconds: float = 0.0


@dataclass(eq=False)
class Listener:
    """A request's handler, waiting for news of its sequence. Times are of one monotonic clock."""

    sequence: Sequence
    arrived: float
    first_token: float = 0.0
    last_token: float = 0.0
    news: anyio.Event = field(default_factory=anyio.Event)
    num_sent: int = 0

    def take(self) -> Token | None:
        """The piece of the answer that is ready to go. Ids whose text is held back wait for it, or for the end."""
        sequence = self.sequence
        text = sequence.text.take()
        if not text and not (sequence.is_done and self.num_sent < sequence.num_generated):
            return None
        start, self.num_sent = self.num_sent, sequence.num_generated
        return Token(text, tuple(sequence.token_ids[sequence.num_prompt_tokens + start :]))

    def completion(self) -> Completion:
        sequence = self.sequence
        if sequence.finish_reason is None:
            raise RuntimeError(f"sequence {sequence.sequence_id} is not finished")
        generated = sequence.num_generated
        if generated > 1:
            rate = (generated - 1) / max(self.last_token - self.first_token, 1e-9)
        else:
            rate = 1 / max(self.first_token - self.arrived, 1e-9)
        return Completion(
            text=sequence.text.whole(),
            finish_reason=sequence.finish_reason,
            usage=Usage(sequence.num_prompt_tokens, generated),
            timings=Timings(round(1e3 * (self.first_token - self.arrived), 3), round(rate, 3)),
        )


class Scheduler(Actor[SchedulerConfig]):
    """Serves `Generate`, many at once.

    A caller that goes away takes its request with it: its blocks are free before the next step is planned. If the
    replica dies, what ran is computed again from its prompt and what it had generated, and goes on with the same
    random numbers; a request that keeps meeting dying replicas ends in ReplicaLost.
    """

    mailbox_size = 4096  # above what the engine lets wait and run, so that who is one too many hears Overloaded

    async def started(self) -> None:
        config = self.config
        self._tokenizer = await anyio.to_thread.run_sync(load_tokenizer, Path(config.path))
        self._intake = IntakeConfig(config.model, config.context_length, config.default_max_tokens)
        limits = Limits(config.max_batch_tokens, config.max_running, config.max_waiting)
        self._planner = Planner(config.num_blocks, config.block_size, limits)
        self._replica = self.actor(config.replica)
        self._listeners: dict[Sequence, Listener] = {}
        self._counts = Counts()
        self._work = anyio.Event()
        self._absent_since: float | None = None
        self.start_soon(self._run)

    @handler(concurrent=True)
    async def generate(self, message: Generate) -> AsyncIterator[Token | Completion]:
        listener = await self._admit(message)
        try:
            done = False
            while not done:
                await listener.news.wait()
                listener.news = anyio.Event()
                done = listener.sequence.is_done
                if (token := listener.take()) is not None:
                    yield token
            if listener.sequence.error is not None:
                raise listener.sequence.error
            yield listener.completion()
        finally:
            self._leave(listener)

    @handler
    async def stats(self, message: GetStats) -> EngineStats:
        config, planner = self.config, self._planner
        return EngineStats(
            model=config.model,
            dtype=config.dtype,
            running=len(planner.running),
            waiting=len(planner.waiting),
            num_blocks=config.num_blocks,
            free_blocks=planner.pool.num_free,
            block_size=config.block_size,
            context_length=config.context_length,
            preemptions=planner.num_preemptions,
            **vars(self._counts),
        )

    async def _admit(self, message: Generate) -> Listener:
        arrived = time.perf_counter()
        # Long prompts take long to tokenize; requests that wait already should not wait for that.
        sequence = await anyio.to_thread.run_sync(admit, message, self._tokenizer, self._intake)
        self._planner.add(sequence)
        self._counts.requests += 1
        self._counts.prompt_tokens += sequence.num_prompt_tokens
        listener = self._listeners[sequence] = Listener(sequence, arrived)
        self._work.set()
        return listener

    def _leave(self, listener: Listener) -> None:
        sequence = listener.sequence
        del self._listeners[sequence]
        self._planner.remove(sequence)
        if sequence.error is not None:
            self._counts.failed += 1
        elif sequence.finish_reason is not None:
            self._counts.finished += 1
        else:
            self._counts.aborted += 1

    async def _run(self) -> None:
        """Plan, compute, hand out, for as long as the actor lives."""
        while True:
            step = self._planner.plan()
            if step is None:
                self._planner.check_integrity()
                self._work = anyio.Event()
                await self._work.wait()
                continue
            result = await self._compute(step)
            if result is not None:
                self._hand_out(self._planner.apply(result))

    async def _compute(self, step: Step) -> StepResult | None:
        """The step's result; None if it was lost, and what ran then waits again."""
        began = time.perf_counter()
        try:
            result = await self._replica.ask(step, timeout=self.config.step_timeout_s)
        except REPLICA_ERRORS as error:
            self._counts.replica_failures += 1
            await self._recover(error)
            return None
        self._absent_since = None
        self._counts.steps += 1
        self._counts.step_seconds += time.perf_counter() - began
        self._counts.compute_seconds += result.seconds
        return result

    def _hand_out(self, advanced: list[Sequence]) -> None:
        now = time.perf_counter()
        self._counts.generated_tokens += len(advanced)
        for sequence in advanced:
            listener = self._listeners[sequence]
            listener.first_token = listener.first_token or now
            listener.last_token = now
            listener.news.set()

    async def _recover(self, error: CallboardError) -> None:
        """Queue again what the step under way was about. Raises `error` if the replica has been gone for too long."""
        for sequence in self._planner.rewind():
            if isinstance(error, NoSuchActor):
                continue  # nobody computed it
            sequence.num_failures += 1
            if sequence.num_failures >= MAX_FAILURES:
                self._fail(sequence, f"the replica died {MAX_FAILURES} times during this request: {error}")
        if isinstance(error, HandlerFailed):
            return  # its supervisor restarts it, and the next step waits in its mailbox
        now = time.perf_counter()
        self._absent_since = self._absent_since or now
        if now - self._absent_since > LOOK_FOR_S:
            raise error
        await anyio.sleep(LOOK_EVERY_S)  # nothing tells when a name is there again

    def _fail(self, sequence: Sequence, reason: str) -> None:
        self._planner.remove(sequence)
        sequence.fail(ReplicaLost(reason))
        self._listeners[sequence].news.set()
