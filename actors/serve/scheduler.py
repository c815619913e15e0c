"""The scheduler: takes requests, keeps the replicas busy, hands out what they compute.

A thin shell around the planners. Each replica has a lane, whose task makes steps and takes their results; each
request's handler waits for news of its own sequences and streams it out.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.errors import CallboardError, ConfigError, HandlerFailed, ModelError, RequestInvalid
from ...runtime.log import log
from ...schemas.abilities import GetAbilities, ModelAbilities
from ...schemas.serve import (
    AdapterInfo,
    Adapters,
    CloseSession,
    Completion,
    DescribeModel,
    Detokenize,
    Embed,
    Embeddings,
    Generate,
    GrammarKind,
    ListAdapters,
    ListSessions,
    LoadAdapter,
    ModelDescription,
    PinSession,
    Score,
    Scores,
    SessionClosed,
    SessionList,
    SessionPinned,
    Token,
    TokenIds,
    Tokenize,
    TokenText,
    UnloadAdapter,
)
from ...schemas.serve_stats import EngineDetail, EngineStats, GetStats
from ..models.loading import load_tokenizer
from .adapter_book import AdapterBook
from .admission import Admission
from .checks import check_ttl
from .errors import ReplicaLost
from .fairness import Accounts
from .generation import Generation
from .intake import Intake, IntakeConfig, needs_a_thread
from .lane import Lane
from .lane_stats import lane_stats
from .pace import Pace
from .planner import Limits, Planner
from .routing import route
from .sequence import Sequence
from .text_batch import TextBatch, embeddings, scores

R = TypeVar("R", Generate, Embed, Score)


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`path` is the model's file, `replicas` the addresses of what computes, all with the same sizes."""

    model: str
    path: str
    dtype: str
    replicas: tuple[str, ...]
    num_blocks: int
    block_size: int
    context_length: int
    default_max_tokens: int
    max_batch_tokens: int
    max_running: int
    max_waiting: int
    step_timeout_s: float
    overlap: bool = True
    num_draft: int = 0
    max_sessions: int = 256
    session_ttl_s: float = 300.0
    tool_format: str = ""
    compute_dtype: str = ""
    kv_cache: str = ""


@dataclass
class Counts:
    """What became of requests; the fields of `EngineStats` of the same names."""

    requests: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    prompt_tokens: int = 0


class Scheduler(Actor[SchedulerConfig]):
    """Serves `Generate`, `Embed` and `Score`, many at once.

    A caller that goes away takes its request with it: its blocks are free before the next step is planned. If a
    replica dies, what ran on it is computed again from its prompt and what it had generated, by another one or by the
    next life of the same, and goes on with the same random numbers; a request that keeps meeting dying replicas ends
    in ReplicaLost.
    """

    mailbox_size = 4096  # above what the engine lets wait and run, so that who is one too many hears Overloaded

    async def started(self) -> None:
        config = self.config
        tokenizer = await anyio.to_thread.run_sync(load_tokenizer, Path(config.path))
        self._adapters = AdapterBook()
        self._started = time.time()
        limits = IntakeConfig(
            model=config.model,
            context_length=config.context_length,
            default_max_tokens=config.default_max_tokens,
            num_draft=config.num_draft,
            cache_tokens=config.num_blocks * config.block_size,
            tool_format=config.tool_format,
        )
        self._intake = Intake(limits, tokenizer, self._adapters)
        self._admission = Admission(config.max_running * len(config.replicas) + config.max_waiting)
        accounts = Accounts()
        self._lanes = tuple(self._lane(address, accounts) for address in config.replicas)
        self._lane_of: dict[Sequence, Lane] = {}
        self._counts = Counts()
        self._pace = Pace()
        self._changing_adapters = anyio.Lock()
        self._adapters_known = anyio.Event()
        for lane in self._lanes:
            self.start_soon(lane.run)

    def _lane(self, address: str, accounts: Accounts) -> Lane:
        config = self.config
        limits = Limits(config.max_batch_tokens, config.max_running, config.max_sessions, config.session_ttl_s)
        planner = Planner(config.num_blocks, config.block_size, limits, accounts)
        return Lane(self.actor(address), planner, self, overlap=config.overlap, step_timeout_s=config.step_timeout_s)

    # Requests

    @handler(concurrent=True)
    async def generate(self, message: Generate) -> AsyncIterator[Token | Completion]:
        arrived = time.perf_counter()
        sequences = await self._admit(message, self._intake.generate)
        generation = Generation(message, sequences, arrived)
        try:
            lane = route(self._lanes, sequences[0], message.session)  # the answers share the blocks of their prompt
            for sequence in sequences:
                self._enter(sequence, lane)
            while not generation.is_done:
                await generation.news.wait()
                generation.news.clear()
                for piece in generation.take():
                    yield piece
            yield generation.completion()
        finally:
            best = generation.best
            last_lane = self._lane_of.get(best)
            self._leave(sequences)
            if message.session and last_lane is not None:
                self._keep_session(message, best, last_lane)

    @handler(concurrent=True)
    async def embed(self, message: Embed) -> Embeddings:
        return embeddings(message, await self._look_at(message, self._intake.embed))

    @handler(concurrent=True)
    async def score(self, message: Score) -> Scores:
        return scores(message, await self._look_at(message, self._intake.score))

    @handler
    async def close_session(self, message: CloseSession) -> SessionClosed:
        closed = [lane.planner.sessions.close(message.session) for lane in self._lanes]
        return SessionClosed(any(closed))

    @handler
    async def list_sessions(self, message: ListSessions) -> SessionList:
        now = time.perf_counter()
        for lane in self._lanes:
            lane.planner.sessions.expire(now)
        return SessionList(tuple(info for lane in self._lanes for info in lane.planner.sessions.infos(now)))

    @handler
    async def pin_session(self, message: PinSession) -> SessionPinned:
        check_ttl(message.ttl_s)
        now = time.perf_counter()
        pinned = [lane.planner.sessions.pin(message.session, now, message.ttl_s) for lane in self._lanes]
        return SessionPinned(any(pinned))

    @handler(concurrent=True)
    async def tokenize(self, message: Tokenize) -> TokenIds:
        return TokenIds(await anyio.to_thread.run_sync(self._intake.tokenize, message))

    @handler(concurrent=True)
    async def detokenize(self, message: Detokenize) -> TokenText:
        return self._intake.detokenize(message)

    @handler
    async def describe(self, message: DescribeModel) -> ModelDescription:
        config, tokenizer = self.config, self._intake.tokenizer
        return ModelDescription(
            model=config.model,
            dtype=config.dtype,
            context_length=config.context_length,
            default_max_tokens=config.default_max_tokens,
            vocab_size=tokenizer.vocab_size,
            has_chat_template=tokenizer.chat_template is not None,
            tool_format=self._intake.tool_format,
            eos_id=tokenizer.eos_id,
            adapters=self._adapters.names,
            started=self._started,
            compute_dtype=config.compute_dtype,
            kv_cache=config.kv_cache,
        )

    @handler
    async def abilities(self, message: GetAbilities) -> ModelAbilities:
        return ModelAbilities(grammars=tuple(GrammarKind), tools=bool(self._intake.tool_format))

    async def _look_at(self, message: R, make: Callable[[R], list[Sequence]]) -> list[Sequence]:
        sequences = await self._admit(message, make)
        batch = TextBatch(sequences)
        try:
            await batch.run(lambda sequence: self._enter(sequence, route(self._lanes, sequence)))
            return sequences
        finally:
            self._leave(sequences[: batch.num_entered])

    async def _admit(self, message: R, make: Callable[[R], list[Sequence]]) -> list[Sequence]:
        """What is to be computed for a request. Raises RequestInvalid, Overloaded; nothing is taken then."""
        self._check_room()
        if message.adapter:
            await self._adapters_known.wait()
        try:
            if needs_a_thread(message):
                sequences = await anyio.to_thread.run_sync(make, message)
                self._check_room()
            else:
                sequences = make(message)
        except CallboardError:
            raise
        except Exception as error:  # nothing is taken yet, so it need not end the others' requests
            log.error("a request cannot be prepared", exc_info=error)
            raise HandlerFailed(f"the request cannot be prepared: {type(error).__name__}: {error}") from error
        for sequence in sequences:
            self._lanes[0].planner.check_fits(sequence)  # all lanes have the same size
        self._counts.requests += 1
        self._counts.prompt_tokens += sum(sequence.num_prompt_tokens for sequence in sequences)
        return sequences

    def _check_room(self) -> None:
        num_waiting = sum(len(lane.planner.waiting) for lane in self._lanes)
        self._admission.check(len(self._lane_of), num_waiting, time.perf_counter())

    def _enter(self, sequence: Sequence, lane: Lane) -> None:
        self._adapters.enter(sequence.adapter, sequence.adapter_generation)
        self._lane_of[sequence] = lane
        sequence.entered = time.perf_counter()
        lane.add(sequence)

    def _leave(self, sequences: list[Sequence]) -> None:
        """A request is over, however it ended."""
        now = time.perf_counter()
        for sequence in sequences:
            lane = self._lane_of.pop(sequence, None)
            if lane is not None:
                lane.remove(sequence)
                self._adapters.leave(sequence.adapter)
                self._admission.ended(now)
        if any(sequence.error is not None for sequence in sequences):
            self._counts.failed += 1
        elif all(sequence.is_done for sequence in sequences):
            self._counts.finished += 1
        else:
            self._counts.aborted += 1

    def _keep_session(self, message: Generate, sequence: Sequence, lane: Lane) -> None:
        """A turn of a conversation is over, or was given up: its next one will begin with what there is."""
        lane.planner.keep_session(message.session, sequence, time.perf_counter(), message.session_ttl_s)
        for other in self._lanes:
            if other is not lane:
                other.planner.sessions.close(message.session)

    # What lanes tell

    def handed(self, sequences: list[Sequence], now: float) -> None:
        # Who waits for a first token hears of it before those who read on already: their order stays all the way.
        sequences.sort(key=lambda sequence: sequence.owner is not None and sequence.owner.has_begun)
        for sequence in sequences:
            if sequence.owner is not None:
                sequence.owner.advanced(sequence, now)
        self._pace.advanced(sequences, now)

    def lost(self, lane: Lane) -> None:
        """Take what ran on a replica that died to others, if there are any."""
        others = [other for other in self._lanes if other.info is not None]
        if others:
            for sequence in reversed(lane.planner.hand_over(len(lane.planner.waiting))):
                self._move([sequence], route(others, sequence))

    def hung(self, lane: Lane, error: CallboardError) -> None:
        """A process that is stuck answers nothing, and ends only if it is made to: then it is started again."""
        address = lane.ref.address
        if self.node.give_up(address, ReplicaLost(f"{address} did not answer in time: {error}")):
            log.error("%s did not answer in time and is killed", address, extra={"actor": address})

    def idle(self, lane: Lane) -> None:
        """Give a replica half of what waits for the one with the longest queue; for one that is away, all of it."""
        queued = [
            other
            for other in self._lanes
            if other is not lane and other.planner.waiting and (other.info is None or other.planner.running)
        ]
        if queued:
            other = max(queued, key=lambda other: (other.info is None, len(other.planner.waiting)))
            num_waiting = len(other.planner.waiting)
            share = num_waiting if other.info is None else -(-num_waiting // 2)
            self._move(other.planner.hand_over(share), lane)

    def _move(self, sequences: list[Sequence], lane: Lane) -> None:
        for sequence in sequences:
            self._lane_of[sequence] = lane
        if sequences:
            lane.adopt(sequences)

    async def met(self, lane: Lane) -> None:
        """Bring a replica's adapters to what is known here; the first one that is met says what there is."""
        async with self._changing_adapters:
            there = {info.name: info for info in (await lane.ref.ask(ListAdapters())).adapters}
            if not self._adapters_known.is_set():
                for info in there.values():
                    self._adapters.add(info)
                self._adapters_known.set()
            wanted = {info.name: info for info in self._adapters.infos}
            for name, info in there.items():
                if name not in wanted or wanted[name].path != info.path:
                    await self._change_adapters(lane, UnloadAdapter(name))
            for name, info in wanted.items():
                if name not in there or there[name].path != info.path:
                    try:
                        await self._change_adapters(lane, LoadAdapter(name, info.path))
                    except (ModelError, ConfigError) as error:
                        # Its file went meanwhile, say. Requests that name it fail one by one, others are served.
                        log.error("%s cannot load the adapter %s again: %s", lane.ref.address, name, error)

    # Adapters

    @handler(concurrent=True)
    async def load_adapter(self, message: LoadAdapter) -> Adapters:
        """Loads it everywhere, or nowhere."""
        await self._adapters_known.wait()
        if message.replace and message.name in self._adapters.names:
            return await self._replace_adapter(message)
        async with self._changing_adapters:
            if not message.name or message.name in self._adapters.names:
                raise RequestInvalid(
                    f"an adapter named '{message.name}' is loaded already"
                    if message.name
                    else "an adapter needs a name",
                    hint="unload it first, or give this one another name",
                )
            self._adapters.add(await self._load_everywhere(message))
        return Adapters(self._adapters.infos)

    async def _replace_adapter(self, message: LoadAdapter) -> Adapters:
        """A replica that loads a name again keeps the old one until it has read the new one."""
        await self._adapters.close(message.name)
        try:
            async with self._changing_adapters:
                old = self._adapters.info(message.name)
                info = await self._load_everywhere(message, instead_of=old)
                self._adapters.drop(message.name)
                self._adapters.add(info)
        except BaseException:
            self._adapters.reopen(message.name)
            raise
        return Adapters(self._adapters.infos)

    async def _load_everywhere(self, message: LoadAdapter, instead_of: AdapterInfo | None = None) -> AdapterInfo:
        """If one replica cannot, those that did get back what they had."""
        done: list[Lane] = []
        infos: list[AdapterInfo] = []
        try:
            for lane in self._lanes:
                infos.append(await self._change_adapters(lane, message))
                done.append(lane)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._unload(message.name, done)
                if instead_of is not None:
                    await self._load_back(instead_of, done)
            raise
        return infos[0]

    async def _load_back(self, info: AdapterInfo, lanes: SequenceOf[Lane]) -> None:
        for lane in lanes:
            try:
                await self._change_adapters(lane, LoadAdapter(info.name, info.path))
            except CallboardError as error:
                log.error("%s cannot load the adapter %s again: %s", lane.ref.address, info.name, error)

    @handler(concurrent=True)
    async def unload_adapter(self, message: UnloadAdapter) -> Adapters:
        await self._adapters_known.wait()
        await self._adapters.close(message.name)
        async with self._changing_adapters:
            self._adapters.drop(message.name)
            await self._unload(message.name, self._lanes)
        return Adapters(self._adapters.infos)

    @handler(concurrent=True)
    async def list_adapters(self, message: ListAdapters) -> Adapters:
        await self._adapters_known.wait()
        return Adapters(self._adapters.infos)

    async def _unload(self, name: str, lanes: SequenceOf[Lane]) -> None:
        for lane in lanes:
            try:
                await self._change_adapters(lane, UnloadAdapter(name))
            except CallboardError as error:
                # One that is away is brought in line when it is met again.
                log.warning("%s did not unload the adapter %s: %s", lane.ref.address, name, error)

    async def _change_adapters(self, lane: Lane, message: LoadAdapter | UnloadAdapter) -> AdapterInfo:
        """Returns what is known of the adapter (an unloaded one: as it was named)."""
        adapters = (await lane.ref.ask(message, timeout=self.config.step_timeout_s)).adapters
        unknown = AdapterInfo(message.name, "", 0, 0)
        return next((info for info in adapters if info.name == message.name), unknown)

    # How it goes

    @handler
    async def stats(self, message: GetStats) -> EngineStats:
        config, lanes = self.config, self._lanes
        planners = [lane.planner for lane in lanes]
        now = time.perf_counter()
        for planner in planners:
            planner.sessions.expire(now)  # nobody else does while nothing is asked

        def total(of: Callable[[Lane], float]) -> float:
            return sum(of(lane) for lane in lanes)

        return EngineStats(
            model=config.model,
            dtype=config.dtype,
            running=sum(len(planner.running) for planner in planners),
            waiting=sum(len(planner.waiting) for planner in planners),
            num_blocks=sum(planner.pool.num_blocks for planner in planners),
            free_blocks=sum(planner.pool.num_free for planner in planners),
            cached_blocks=sum(planner.pool.num_idle for planner in planners),
            pinned_blocks=sum(planner.tree.num_pinned for planner in planners),
            sessions=sum(len(planner.sessions) for planner in planners),
            evictions=sum(planner.tree.num_evictions for planner in planners),
            cached_tokens=sum(planner.num_cached_tokens for planner in planners),
            preemptions=sum(planner.num_preemptions for planner in planners),
            block_size=config.block_size,
            context_length=config.context_length,
            refused=self._admission.num_refused,
            replica_failures=sum(lane.counts.replica_failures for lane in lanes),
            generated_tokens=sum(planner.num_generated_tokens for planner in planners),
            drafted_tokens=sum(planner.num_drafted_tokens for planner in planners),
            accepted_tokens=sum(planner.num_accepted_tokens for planner in planners),
            steps=sum(lane.counts.steps for lane in lanes),
            step_seconds=total(lambda lane: lane.counts.step_seconds),
            compute_seconds=total(lambda lane: lane.counts.compute_seconds),
            plan_seconds=total(lambda lane: lane.counts.plan_seconds),
            busy_seconds=total(lambda lane: lane.busy_seconds(now)),
            replicas=tuple(lane.info for lane in lanes if lane.info is not None),
            adapters=self._adapters.names,
            detail=EngineDetail(tuple(map(lane_stats, lanes)), self._pace.read(now)) if message.detail else None,
            **vars(self._counts),
        )
