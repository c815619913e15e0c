"""One replica and what runs on it: the loop that plans steps, sends them, and takes their results."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import anyio

from ...runtime.errors import CallboardError, ConfigError, DeadlineExceeded, NoSuchActor
from ...runtime.refs import Ref
from ...schemas.serve_steps import AskReplica, ReplicaInfo, Step, StepResult
from .errors import ReplicaChanged, ReplicaLost
from .planner import MAX_IN_FLIGHT, Planner
from .sequence import Sequence

# A request that was in this many lost steps one after another may well be what kills the replica.
MAX_FAILURES = 3
# Checking all books takes a millisecond or more. Who asks again at once should not wait for it.
QUIET_S = 0.02
# A replica that is nowhere is looked for this often. After so long, more than loading a model takes, what waits for it
# fails; the search goes on.
LOOK_EVERY_S = 0.25
LOOK_FOR_S = 150.0


class LaneEvents(Protocol):
    """Who has lanes. Nothing of this may wait, but `met`."""

    async def met(self, lane: Lane) -> None:
        """A replica is there, in a new life; it gets no step before this returns."""
        ...

    def handed(self, sequences: list[Sequence], now: float) -> None:
        """There is news of these."""
        ...

    def lost(self, lane: Lane) -> None:
        """The replica died. What ran there waits now, and may be taken elsewhere."""
        ...

    def hung(self, lane: Lane, error: CallboardError) -> None:
        """The replica did not answer in time."""
        ...

    def idle(self, lane: Lane) -> None:
        """A replica has nothing to do, and may be given what waits elsewhere."""
        ...


@dataclass
class LaneCounts:
    """The fields of `EngineStats` of the same names."""

    replica_failures: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    compute_seconds: float = 0.0
    plan_seconds: float = 0.0
    busy_seconds: float = 0.0


class UnderWay(NamedTuple):
    answer: asyncio.Task[StepResult]
    sent_at: float


class Lane:
    """`info` is None while the replica is away. With `overlap` a step is sent while the one before is computed."""

    def __init__(self, ref: Ref, planner: Planner, events: LaneEvents, *, overlap: bool, step_timeout_s: float) -> None:
        self.ref = ref
        self.planner = planner
        self.info: ReplicaInfo | None = None
        self.counts = LaneCounts()
        self._events = events
        self._depth = MAX_IN_FLIGHT if overlap else 1
        self._step_timeout_s = step_timeout_s
        self._under_way: deque[UnderWay] = deque()
        self._work = asyncio.Event()
        self._busy_since: float | None = None
        self._result_at = 0.0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. RequestInvalid if the cache can never hold it."""
        self.planner.add(sequence)
        self._work.set()

    def adopt(self, sequences: list[Sequence]) -> None:
        """Queue some that come from another lane."""
        self.planner.adopt(sequences)
        self._work.set()

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence. Nothing if it has left already."""
        self.planner.remove(sequence)
        if self.planner.waiting:
            self._work.set()

    def busy_seconds(self, now: float) -> float:
        return self.counts.busy_seconds + (now - self._busy_since if self._busy_since is not None else 0.0)

    async def run(self) -> None:
        """Plan, send, take results, for ever."""
        try:
            while True:
                if self.info is None:
                    await self._meet()
                self._work.clear()
                if self._under_way and self._under_way[0].answer.done():
                    self._take(self._under_way.popleft())
                    continue
                self._send()
                if self._under_way:
                    await self._work.wait()
                else:
                    await self._rest()
        finally:
            self._drop_under_way()

    def _send(self) -> None:
        """Plan and send as many steps as may be under way."""
        while self.info is not None and len(self._under_way) < self._depth:
            began = time.perf_counter()
            step = self.planner.plan(began)
            if step is None:
                self.counts.plan_seconds += time.perf_counter() - began
                return
            if self._busy_since is None:
                self._busy_since = began
            # It is computed when those before it are.
            patience = self._step_timeout_s * (len(self._under_way) + 1)
            answer = asyncio.get_running_loop().create_task(self._ask(step, self.info.life, patience))
            answer.add_done_callback(self._answered)
            now = time.perf_counter()
            self._under_way.append(UnderWay(answer, now))
            self.counts.plan_seconds += now - began

    async def _ask(self, step: Step, life: str, patience: float) -> StepResult:
        return await self.ref.ask(Step(step.step_id, step.sequences, life, step.forget), timeout=patience)

    def _answered(self, _: asyncio.Task[StepResult]) -> None:
        self._work.set()

    def _take(self, done: UnderWay) -> None:
        """Take a result, and send the next step before anybody hears of this one's tokens."""
        try:
            result = done.answer.result()
        except CallboardError as error:
            self._recover(error)
            return
        now = time.perf_counter()
        counts = self.counts
        counts.steps += 1
        counts.step_seconds += now - max(done.sent_at, self._result_at)
        counts.compute_seconds += result.seconds
        self._result_at = now
        news = self.planner.apply(result)
        counts.plan_seconds += time.perf_counter() - now
        self._send()
        began = time.perf_counter()
        self._events.handed(news, now)
        counts.plan_seconds += time.perf_counter() - began

    async def _rest(self) -> None:
        """Nothing is to be computed: wait for work, and use the time to look whether the books are right."""
        if self._busy_since is not None:
            self.counts.busy_seconds += time.perf_counter() - self._busy_since
            self._busy_since = None
        self._events.idle(self)
        with anyio.move_on_after(QUIET_S):
            await self._work.wait()
            return
        self.planner.check_integrity()
        await self._work.wait()

    # Loss

    def _recover(self, error: CallboardError) -> None:
        """Queue again what ran, to be computed by the replica's next life, or by another replica."""
        self._drop_under_way()
        self.info = None
        self.counts.replica_failures += 1
        if isinstance(error, DeadlineExceeded):
            self._events.hung(self, error)
        failed: list[Sequence] = []
        for sequence in self.planner.rewind():
            if isinstance(error, NoSuchActor | ReplicaChanged):
                break  # nobody computed it
            sequence.num_failures += 1
            if sequence.num_failures >= MAX_FAILURES:
                failed.append(sequence)
        self._fail(failed, f"the replica died {MAX_FAILURES} times during this request: {error}")
        self._events.lost(self)

    def _fail(self, sequences: list[Sequence], reason: str) -> None:
        for sequence in sequences:
            self.planner.remove(sequence)
            sequence.fail(ReplicaLost(reason))
        self._events.handed(sequences, time.perf_counter())

    def _drop_under_way(self) -> None:
        for step in self._under_way:
            step.answer.remove_done_callback(self._answered)
            step.answer.add_done_callback(_ignore)
            step.answer.cancel()
        self._under_way.clear()

    async def _meet(self) -> None:
        """Wait until the replica is there and holds nothing of an earlier scheduler; learn which life of it."""
        absent_since = time.perf_counter()
        while True:
            try:
                info = await self.ref.ask(AskReplica(forget=True), timeout=LOOK_FOR_S)
                self._check(info)
                await self._events.met(self)
            except ConfigError:
                raise
            except CallboardError as error:
                if isinstance(error, DeadlineExceeded):
                    self._events.hung(self, error)
                now = time.perf_counter()
                if now - absent_since > LOOK_FOR_S:
                    self._fail(list(self.planner.waiting), f"the replica has been away for {LOOK_FOR_S:g} s: {error}")
                    absent_since = now
                await anyio.sleep(LOOK_EVERY_S)  # nothing tells when a name is there again
            else:
                self.info = info
                return

    def _check(self, info: ReplicaInfo) -> None:
        planner = self.planner
        if (info.num_blocks, info.block_size) != (planner.pool.num_blocks, planner.block_size):
            raise ConfigError(
                f"{self.ref.address} has {info.num_blocks} blocks of {info.block_size} tokens, "
                f"its scheduler counts on {planner.pool.num_blocks} of {planner.block_size}"
            )


def _ignore(task: asyncio.Task[StepResult]) -> None:
    """A step that nobody waits for any more may end as it likes."""
    if not task.cancelled():
        task.exception()
